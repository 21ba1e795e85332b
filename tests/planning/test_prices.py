"""Prices: how they are read, how they are written, and that nothing is guessed."""

from __future__ import annotations

import pytest

from coretrain.planning.prices import amount, read_price
from coretrain.planning.show import as_object
from tests.support.plans import planned
from tests.support.refusal import refused


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("20", (20, "EUR")),
        ("2.5USD", (2.5, "USD")),
        ("$2.5", (2.5, "USD")),
        ("¥18", (18, "CNY")),
        ("\N{FULLWIDTH YEN SIGN}18", (18, "CNY")),
        ("18 rmb", (18, "CNY")),
        ("CHF 1,200", (1200, "CHF")),
        ("0", (0, "EUR")),
        ("1e-2", (0.01, "EUR")),
    ],
)
def test_a_price_is_a_number_and_a_currency(text, found):
    assert read_price("price", text, "EUR") == found


@pytest.mark.parametrize(
    "text", ["", "$", "-3", "nan", "inf", "1e999", "3usdx", "$3USD", "1.2.3", "two", "2,5EUR", "18,5", "1,23,456"]
)
def test_what_is_no_price_is_refused(text):
    with refused("planning/price-wrong", f"--device-price {text}"):
        read_price("device-price", text, "USD")


def test_money_has_its_currency():
    assert [amount(x, "USD") for x in (0, 0.001, 0.45, 999, 1234.5)] == [
        "$0.00",
        "under $0.01",
        "$0.45",
        "$999.00",
        "$1,234",
    ]
    assert (amount(2, "CNY"), amount(2, "CHF")) == ("¥2.00", "CHF 2.00")


def test_a_plan_says_where_its_price_comes_from():
    words = ("tiny", "--on", "h100x8")
    table, whole, each = planned(*words), planned(*words, "--price", "16"), planned(*words, "--device-price", "¥2")
    assert (table.price.hour, table.price.currency) == (pytest.approx(8 * 2.99), "USD")
    assert "accelerators.toml, on demand, an example to edit, as seen in 2025" in str(table.price)
    assert str(whole.price) == "$16.00 an hour ($2.00 a device), in USD: as --price says"
    assert str(each.price) == "¥16.00 an hour (¥2.00 a device), in CNY: as --device-price says"
    found = as_object(each)
    assert (found["machine"]["price"], found["currency"], found["price_source"]) == (
        16,
        "CNY",
        "as --device-price says",
    )
    with refused("command/two-prices"):
        planned(*words, "--price", "16", "--device-price", "2")
