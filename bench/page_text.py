"""How fast pages become text, on one core: from a WARC file to texts, step by step, and beside datatrove.

Usage: python -m bench.page_text (--warc FILE ... | --html FOLDER) [--pages N] [--datatrove PYTHON] [--json FILE]

--html makes a WARC file of N pages of a folder first, chosen by a seed. --datatrove names an interpreter that has
datatrove[processing] 0.10.1 and what its readers want (python-magic, faust-cchardet, lxml_html_clean): its WarcReader
and Trafilatura then read the same file. All figures are CPU seconds, of every process that takes part.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import resource
import statistics
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError, exits_cleanly
from coretrain.base.files import write_atomically
from coretrain.corpus.demo import records
from coretrain.corpus.document import Page
from coretrain.corpus.extract.encoding import decoded
from coretrain.corpus.extract.extract import Extractor
from coretrain.corpus.extract.guarded import guarded
from coretrain.corpus.readers.open import plan, read

ROUNDS = 3
SEED = 1
SMALLEST, LARGEST = 6_000, 400_000
"""Bytes of a page of --html."""
DATATROVE = """
import json, os, resource, sys
from datatrove.pipeline.readers import WarcReader
from datatrove.pipeline.extractors import Trafilatura
def seconds():
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)
folder, name = os.path.split(sys.argv[1])
reader, extractor = WarcReader(folder, glob_pattern=name), Trafilatura(favour_precision=True, timeout=60)
start = seconds()
texts = {one.metadata["url"]: one.text for one in extractor.run(reader.run(None, 0, 1), 0, 1)}
print(json.dumps([seconds() - start, texts]))
"""


def packed(folder: Path, pages: int, path: Path) -> None:
    """Write a WARC file of some pages below a folder."""
    found = [one for one in sorted(folder.rglob("*.html")) if SMALLEST < one.stat().st_size < LARGEST]
    chosen = random.Random(SEED).sample(found, min(pages, len(found)))
    if not chosen:
        raise UserError(
            "bench/no-pages", f"{folder} has no .html file of {SMALLEST:,} to {LARGEST:,} bytes: name another"
        )
    more = {"WARC-Identified-Payload-Type": "text/html"}
    parts = [records.member(records.info(path.name))]
    for one in chosen:
        url = f"https://pages.example/{one.relative_to(folder).as_posix()}"
        parts += [
            records.member(records.request(url)),
            records.member(records.response(url, one.read_bytes(), more=more)),
        ]
    path.write_bytes(b"".join(parts))


def inflated(word: str) -> int:
    """Bytes that a file unpacks to."""
    with gzip.open(word) as file:
        return sum(map(len, iter(lambda: file.read(2**20), b"")))


def spent() -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def seconds(do: Callable[[], object]) -> float:
    """CPU seconds of the quickest of some rounds."""
    found = []
    for _ in range(ROUNDS):
        start = spent()
        do()
        found.append(spent() - start)
    return min(found)


def kept(ours: dict[str, str], theirs: dict[str, str]) -> dict[str, float]:
    """What share of their words is in our texts, over all and in the median page; and of ours in theirs."""
    both, our, their, shares = 0, 0, 0, []
    for url in ours.keys() & theirs.keys():
        a, b = (Counter(re.findall(r"\w+", texts[url].lower())) for texts in (ours, theirs))
        common = (a & b).total()
        both, our, their = both + common, our + a.total(), their + b.total()
        shares.append(common / max(1, b.total()))
    return {"of theirs": both / their, "of theirs, median": statistics.median(shares), "of ours": both / our}


def measure(words: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """(CPU seconds a step, texts by URL)."""
    extractor = Extractor()
    pieces = plan(words)
    items = [one for piece in pieces for one in read(piece)]
    pages = [one for one in items if isinstance(one, Page)]
    documents = [extractor.document(page) for page in pages]
    took = {
        "inflate alone": seconds(lambda: [inflated(word) for word in words]),
        "read": seconds(lambda: [one for piece in pieces for one in read(piece)]),
        "decode": seconds(lambda: [decoded(page.body, page.charset) for page in pages]),
        "decode and extract": seconds(lambda: [extractor.document(page) for page in pages]),
        "read, decode, extract, guarded": seconds(
            lambda: list(guarded((one for piece in pieces for one in read(piece)), extractor))
        ),
    }
    return took, {str(one.metadata["url"]): one.text for one in documents}


def datatrove(python: str, word: str) -> tuple[float, dict[str, str]]:
    """(CPU seconds, texts by URL) of datatrove."""
    done = subprocess.run(
        [python, "-c", DATATROVE, word], check=True, capture_output=True, text=True, env=dict(os.environ)
    )
    took, texts = json.loads(done.stdout.splitlines()[-1])
    return float(took), texts


@exits_cleanly
def main() -> int:
    """Measure, print a table, and write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.page_text", description=__doc__.splitlines()[0])
    parser.add_argument("--warc", nargs="+", default=[])
    parser.add_argument("--html", type=Path)
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--datatrove", default="")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if bool(given.warc) == bool(given.html):
        raise UserError("bench/no-input", "give either --warc FILE or --html FOLDER")
    with tempfile.TemporaryDirectory() as folder:
        words = list(given.warc)
        if given.html:
            words = [str(Path(folder) / "pages.warc.gz")]
            packed(given.html, given.pages, Path(words[0]))
        took, texts = measure(words)
        told: dict[str, Any] = {"pages": len(texts), "packed": sum(Path(one).stat().st_size for one in words) / 1e6}
        if given.datatrove:
            took["datatrove, WARC to text"], theirs = datatrove(given.datatrove, words[0])
            told["words"] = kept(texts, theirs)
    told["seconds"] = took
    print(f"{told['pages']:,} pages, {told['packed']:.1f} MB of gzip, one core")
    for name, second in took.items():
        print(f"{name:34}{len(texts) / second:10.0f} pages/s{told['packed'] / second:8.1f} MB/s of gzip")
    for name, share in told.get("words", {}).items():
        print(f"words {name:28}{share:10.3f}")
    if given.json:
        write_atomically(given.json, json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    main()
