"""What identifies a person: mail addresses, IP addresses and telephone numbers, replaced by made-up ones."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coretrain.corpus.document import Batch

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-]+(?:\.[A-Za-z0-9_%+-]+)*@"
    r"((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24})(?![A-Za-z0-9-])"
)
_IP4 = re.compile(r"(?<![\w.])(?<![\w.]-)\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w|-\w)")
_IP6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}(?:[0-9A-Fa-f]{1,4}|(?<=::))(?![\w:.]*\w)")
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|vers|version|release|build|section|chapter|rev|revision)\.?|[=<>~!]=|[<>~^])\s*$", re.I
)
_PHONE = re.compile(
    r"(?<![\w.+=/#$€£:-])(?:"
    r"\+\d{1,3}(?:[ .\-]?\(\d{1,4}\))?(?:[ .\-]?\d{2,4}){2,5}"  # +49 30 1234567
    r"|\(\d{3}\) ?\d{3}[ .\-]\d{4}"  # (212) 345-6789
    r"|\d{3}[\-. ]\d{3}[\-. ]\d{4}"  # 212-345-6789
    r")(?![\w=/]|[.\-]\d)"
)
_EXAMPLES = ("example.com", "example.org", "example.net")
_LEAST_DIGITS, _MOST_DIGITS = 10, 15


@dataclass(frozen=True)
class Pii:
    """Edits the text: mail addresses, IP addresses and telephone numbers become made-up ones of the same kind, chosen
    by a hash of what they replace, so that one address has one replacement everywhere, whatever the order.

    Replacements come from what is reserved for examples: user123@example.com, 192.0.2.0/24, 198.51.100.0/24,
    203.0.113.0/24, 2001:db8::/32, +1 202 555 0123. What is reserved is left alone, so that a second run changes
    nothing; so are private and local IP addresses, which name nobody (datatrove does the same).

    IP version 4: not where it reads as a version (after "version", "v", "==" or in five parts: "1.2.3.4.5"); version 6:
    the global ones, 2000::/3. Telephone
    numbers: after "+", or in the American form with blanks, points, hyphens or brackets; 10 to 15 digits. Digits
    without a separator, dates and numbers in code are left.

    Signals `pii.emails`, `pii.ips` and `pii.phones`: how many were replaced. A hash is no secret: who knows an address
    can compute its replacement.
    """

    emails: bool = True
    ips: bool = True
    phones: bool = True
    name = "pii"

    def run(self, batch: Batch) -> Batch:
        """The batch with edited texts and these signals."""
        table = np.zeros((3, len(batch.documents)))
        edited = []
        for index, text in enumerate(batch.texts):
            new, counts = self.edit(text)
            edited.append(text if new == text else new)
            table[:, index] = counts
        keys = ("emails", "ips", "phones")
        return batch.with_texts(edited).with_signals(
            {f"pii.{key}": column for key, column in zip(keys, table.copy(), strict=True)}
        )

    def edit(self, text: str) -> tuple[str, tuple[int, int, int]]:
        """The text, and how many mail addresses, IP addresses and telephone numbers were replaced."""
        emails = ips = phones = 0
        if self.emails and "@" in text:
            text, emails = _replaced(_EMAIL, text, _other_email)
        if self.ips:
            text, four = _replaced(_IP4, text, _other_ip)
            six = 0
            if "::" in text or text.count(":") >= 7:
                text, six = _replaced(_IP6, text, _other_ip)
            ips = four + six
        if self.phones:
            text, phones = _replaced(_PHONE, text, _other_phone)
        return text, (emails, ips, phones)


def _replaced(pattern: re.Pattern[str], text: str, other: Callable[[re.Match[str]], str | None]) -> tuple[str, int]:
    """The text with what `other` gives for each match, and how many there were; None leaves one as it is."""
    count = 0

    def one(match: re.Match[str]) -> str:
        nonlocal count
        new = other(match)
        count += new is not None
        return match[0] if new is None else new

    return pattern.sub(one, text), count


def _number(match: str, below: int) -> int:
    digest = hashlib.blake2b(match.lower().encode("utf-8", "surrogatepass"), digest_size=8, person=b"pii").digest()
    return int.from_bytes(digest, "little") % below


def _other_email(match: re.Match[str]) -> str | None:
    domain = match[1].lower()
    if any(domain == one or domain.endswith("." + one) for one in _EXAMPLES):
        return None
    return f"user{_number(match[0], 1000)}@{_EXAMPLES[0]}"


def _other_ip(match: re.Match[str]) -> str | None:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return None
    if not address.is_global or address.is_multicast:
        return None
    if address.version == 6:
        return f"2001:db8::{_number(match[0], 0xFFFF) + 1:x}"
    if _VERSION_BEFORE.search(match.string, max(0, match.start() - 20), match.start()):
        return None
    number = _number(match[0], 3 * 254)
    return f"{('192.0.2', '198.51.100', '203.0.113')[number // 254]}.{number % 254 + 1}"


def _other_phone(match: re.Match[str]) -> str | None:
    digits = re.sub(r"\D", "", match[0])
    if not _LEAST_DIGITS <= len(digits) <= _MOST_DIGITS or digits[-7:-2] == "55501":
        return None
    if not match[0].startswith("+") and (digits[0] in "01" or digits[3] in "01"):
        return None  # no American number has those
    return f"+1 202 555 01{_number(digits, 100):02d}"
