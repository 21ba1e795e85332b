"""What a machine costs by the hour: the figure, its currency, and where it comes from. Nothing is converted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from coretrain.base.errors import UserError
from coretrain.base.parse import shown

SIGNS = {"USD": "$", "CNY": "¥", "EUR": "€", "GBP": "£", "INR": "₹"}
"""Signs of currencies, as they are shown; any other is shown by its three letters."""
READ = {sign: code for code, sign in SIGNS.items()} | {"\N{FULLWIDTH YEN SIGN}": "CNY", "RMB": "CNY"}
FORM = "write a number and a currency, as in 2.5USD, 18CNY or '$2.5' (between quotes, for the shell's sake)"

FIGURE = r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:e[+-]?\d+)?"
"""Commas stand before thousands alone: 2,5 may be meant as 2.5."""


@dataclass(frozen=True)
class Price:
    """Of one hour of the whole machine."""

    hour: float
    devices: int
    currency: str
    """Three letters, as ISO 4217 has them: USD, CNY, EUR."""
    source: str
    """Where the figure comes from, in words."""

    def __str__(self) -> str:
        each = f" ({amount(self.hour / self.devices, self.currency)} a device)" if self.devices > 1 else ""
        return f"{amount(self.hour, self.currency)} an hour{each}, in {self.currency}: {self.source}"


def amount(figure: float, currency: str) -> str:
    """So much money, in words: `$1,234`, `¥0.45`, `CHF 12.00`. Cents are left out from 1000 on."""
    cents = f"{figure:,.0f}" if figure >= 1000 else f"{figure:,.2f}"
    if 0 < figure < 0.005:
        return f"under {amount(0.01, currency)}"
    return f"{SIGNS[currency]}{cents}" if currency in SIGNS else f"{currency} {cents}"


def read_price(option: str, text: str, currency: str) -> tuple[float, str]:
    """The figure and the currency that `text` says after `--option`: `2.5` (in `currency`), `2.5USD`, `¥18`.

    Raises `UserError` where it is no price.
    """
    signs = "|".join(map(re.escape, READ))
    fits = re.fullmatch(
        rf"\s*({signs}|[a-z]{{3}})?\s*({FIGURE})\s*({signs}|[a-z]{{3}})?\s*",
        text,
        re.IGNORECASE,
    )
    try:
        figure = float(fits[2].replace(",", "")) if fits and not (fits[1] and fits[3]) else math.nan
    except ValueError:
        figure = math.nan
    if not fits or not math.isfinite(figure) or figure < 0:
        raise UserError("planning/price-wrong", f"--{option} {shown(text)} is no price: {FORM}")
    said = (fits[1] or fits[3] or currency).upper()
    return figure, READ.get(said, said)
