"""The address of a page: blocked domains and addresses, and words in it that promise nothing good."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from coretrain.corpus.document import Batch
from coretrain.corpus.signals.lists import read_list
from coretrain.corpus.text.hashes import Hashes, hashes_of

HARD_WORDS = ("camgirls", "escort", "escorts", "hentai", "milf", "porn", "porno", "sexcam", "sexcams", "viagra", "xxx")
SOFT_WORDS = (
    "adult", "bet", "betting", "bikini", "bingo", "casino", "cheap", "dating", "erotic", "gambling", "girls", "hot",
    "jackpot", "lingerie", "loan", "loans", "nude", "pills", "poker", "replica", "sex", "sexy", "slots", "webcam",
)  # fmt: skip
PARTS = ("porn", "xvideos", "sexcam", "freesex", "livesex", "onlinecasino", "buyviagra")
"""Own small lists, English. RefinedWeb and FineWeb have 4.6 million domains and some 400 words: bring files."""
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
_KEYS = ("blocked_domains", "blocked_addresses", "hard_words", "soft_words", "parts")


@dataclass(frozen=True)
class Url:
    """Signals `url.*` of the metadata `url`; NaN where a document has none, or one without a host.

    `blocked_domains`: 1 where the host or a domain above it is in the file `domains`. `blocked_addresses`: 1 where the
    whole address is in the file `addresses`. `hard_words` and `soft_words`: how many different ones of the lists are
    words of the address, between characters that are no letters or digits; two soft ones drop a page by default.
    `parts`: how many occur anywhere in it, such characters left out.

    A file has an entry a line, what begins with # is passed over, .gz as well; millions of domains are held as 8 bytes
    each. A file of words replaces the own list. Raises `UserError` for a file that can't be read.
    """

    domains: str = ""
    addresses: str = ""
    hard_words: str = ""
    soft_words: str = ""
    parts: str = ""
    name = "url"

    def run(self, batch: Batch) -> Batch:
        """The batch with these signals."""
        urls = [str(one.metadata.get("url") or "") for one in batch.documents]
        hosts = [host_of(url) for url in urls]
        found = np.full((len(_KEYS), len(urls)), np.nan)
        known = np.array([host != "" for host in hosts], np.bool_)
        words = [set(_NOT_ALPHANUMERIC.split(url.lower())) for url in urls]
        joined = [_NOT_ALPHANUMERIC.sub("", url.lower()) for url in urls]
        hard, soft = _words(self.hard_words, HARD_WORDS), _words(self.soft_words, SOFT_WORDS)
        parts = _words(self.parts, PARTS)
        found[0] = _any_known(_hashes(self.domains), [list(_domains(host)) for host in hosts])
        found[1] = _any_known(_hashes(self.addresses, lower=False), [[url] for url in urls])
        found[2] = [len(one & hard) for one in words]
        found[3] = [len(one & soft) for one in words]
        found[4] = [sum(part in one for part in parts) for one in joined]
        found[:, ~known] = np.nan
        return batch.with_signals({f"url.{key}": row for key, row in zip(_KEYS, found.copy(), strict=True)})


def host_of(url: str) -> str:
    """The host of an address, in lower case and without a last point; "" where it has none."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return ""
    return (host or "").rstrip(".")


def _domains(host: str) -> Iterator[str]:
    """The host and every domain above it that has a point."""
    yield host
    while "." in (host := host.partition(".")[2]):
        yield host


@cache
def _words(file: str, otherwise: tuple[str, ...]) -> frozenset[str]:
    entries = read_list(Path(file), "a list of words for url") if file else otherwise
    return frozenset(word for one in entries if (word := _NOT_ALPHANUMERIC.sub("", one.lower())))


@cache
def _hashes(file: str, lower: bool = True) -> Hashes:
    if not file:
        return np.zeros(0, np.uint64)
    entries = read_list(Path(file), "a list for url")
    out = np.concatenate(
        [
            hashes_of([one.lower().rstrip(".") if lower else one for one in entries[at : at + 100_000]])
            for at in range(0, len(entries), 100_000)
        ]
        or [np.zeros(0, np.uint64)]
    )
    return np.unique(out)


def _any_known(known: Hashes, strings: Sequence[Sequence[str]]) -> Sequence[bool]:
    """Whether one of each document's strings is known."""
    if not len(known):
        return [False] * len(strings)
    hashes = hashes_of([one for each in strings for one in each])
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    owners = np.repeat(np.arange(len(strings)), [len(each) for each in strings])
    counts = np.bincount(owners[known[at] == hashes], minlength=len(strings))
    return [count > 0 for count in counts.tolist()]
