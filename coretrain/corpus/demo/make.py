"""Writes the demo: a crawl of about 1,500 pages as WARC, WET and WAT, an index of it, and the answers.

What it is made of comes with Python, so no download is needed. Some pages are planted, with known fates: see
`answers.py`. The files are the same, byte for byte, in every call under the same Python.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coretrain.base.files import write_atomically
from coretrain.corpus.demo import plants, wire
from coretrain.corpus.demo.answers import DemoAnswers, save
from coretrain.corpus.demo.pages import MENU, flat, page
from coretrain.corpus.demo.plants import Made
from coretrain.corpus.demo.records import DATE, conversion, info, links, member, request, response
from coretrain.corpus.demo.texts import Text, sentences, texts

SITE = "https://docs.example"
FILES = 2
SEED = 15
MOST_PAGES = 1200
"""Of those with Python's own texts."""


def make_demo(folder: Path, pages: int = MOST_PAGES) -> DemoAnswers:
    """Write the demo's files into `folder`, which is made where it isn't; what must happen to them.

    `pages` is how many pages of Python's own texts there are at most; the planted ones are some 300 more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(SEED)
    found = texts()
    own = _own(found, pages)
    planted = [*_planted(sentences(found), dice)]
    last = [made for made in planted if made.damage == "cut"]  # a file is cut at its end
    mixed = own + [made for made in planted if made.damage != "cut"]
    dice.shuffle(mixed)
    mixed += last
    size = -(-len(mixed) // FILES)
    index: list[str] = []
    for number in range(FILES):
        _write(folder, f"demo-{number:05d}", mixed[number * size : (number + 1) * size], index)
    write_atomically(folder / "demo.cdxj", "".join(sorted(index)))
    answers = DemoAnswers(
        warc=tuple(f"demo-{number:05d}.warc.gz" for number in range(FILES)),
        wet=tuple(f"demo-{number:05d}.warc.wet.gz" for number in range(FILES)),
        wat=tuple(f"demo-{number:05d}.warc.wat.gz" for number in range(FILES)),
        index="demo.cdxj",
        pages=len(mixed),
        plants=tuple(made.plant for made in mixed if made.plant),
    )
    save(folder, answers)
    return answers


def _own(found: Sequence[Text], most: int) -> list[Made]:
    """Pages of Python's own texts, the longest ones where there are too many."""
    longest = sorted(range(len(found)), key=lambda number: (-found[number].words, number))[:most]
    made = []
    for number in sorted(longest):
        text, near = found[number], [one.title for one in found[max(0, number - 4) : number]]
        url = f"{SITE}/{number}/{text.title.replace(' ', '-')}"
        made.append(Made(url, text.title, response(url, page(text, near)), flat(text, near)))
    return made


def _planted(pool: list[str], dice: random.Random) -> Iterable[Made]:
    yield from plants.likenesses(pool, dice)
    yield from plants.foreign(dice)
    yield from plants.bad(pool, dice)
    yield from plants.personal(pool, dice)
    yield from wire.charsets(pool, dice)
    yield from wire.bodies(pool, dice)
    yield from wire.others(pool, dice)


@dataclass
class _File:
    """Members in a row, and where each begins."""

    members: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, whole: bytes, harm: Callable[[bytes], bytes] = bytes) -> tuple[int, int]:
        """Append a record; its offset and length."""
        packed = harm(member(whole))
        self.members.append(packed)
        self.size += len(packed)
        return self.size - len(packed), len(packed)


def _write(folder: Path, name: str, made: list[Made], index: list[str]) -> None:
    warc, wet, wat = _File(), _File(), _File()
    for file, ending in ((warc, "warc"), (wet, "warc.wet"), (wat, "warc.wat")):
        file.add(info(f"{name}.{ending}.gz"))
    for one in made:
        warc.add(request(one.url))
        offset, length = warc.add(one.record, HARM.get(one.damage, bytes))
        index.append(_index_line(one, f"{name}.warc.gz", offset, length))
        if one.text:
            wet.add(conversion(one.url, one.text))
            wat.add(links(one.url, one.title, [f"/{item.lower()}/" for item in MENU]))
    for file, ending in ((warc, "warc"), (wet, "warc.wet"), (wat, "warc.wat")):
        write_atomically(folder / f"{name}.{ending}.gz", *file.members)


def _index_line(one: Made, file: str, offset: int, length: int) -> str:
    """A line of CDXJ: the host turned round and the path, the time, and where the record is."""
    host, _, path = one.url.split("//", 1)[1].partition("/")
    key = f"{','.join(reversed(host.split('.')))})/{path}".lower()
    said = {"url": one.url, "filename": file, "offset": str(offset), "length": str(length)}
    digits = "".join(sign for sign in DATE if sign.isdigit())
    return f"{key} {digits} {json.dumps(said)}\n"


def _flipped(packed: bytes) -> bytes:
    """Eight bytes in the middle are others."""
    middle = len(packed) // 2
    return packed[:middle] + bytes(byte ^ 0x5A for byte in packed[middle : middle + 8]) + packed[middle + 8 :]


HARM: dict[str, Callable[[bytes], bytes]] = {
    "flipped": _flipped,
    "header": lambda packed: b"\0\0\0\0" + packed[4:],
    "cut": lambda packed: packed[: len(packed) // 2],
}
