"""How fast the text rules are, on one core: MB/s of UTF-8 text, each set alone and the four of FineWeb together.

Usage: python -m bench.text_rules [--texts FILE ...] [--megabytes N] [--datatrove PYTHON] [--json FILE]

Texts are jsonl or parquet, or a WET file; without any, this Python's documentation. --datatrove names an interpreter
that has datatrove 0.10.1 and spaCy: it then judges every fifth of the same documents, in CPU seconds too.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import exits_cleanly
from coretrain.base.files import write_atomically
from coretrain.corpus.document import Batch, Document, Step
from coretrain.corpus.signals.c4 import C4
from coretrain.corpus.signals.fineweb import FineWeb
from coretrain.corpus.signals.gopher import Gopher
from coretrain.corpus.signals.language import Language
from coretrain.corpus.signals.page import Page
from coretrain.corpus.signals.pii import Pii
from coretrain.corpus.signals.refinedweb import RefinedWeb
from coretrain.corpus.signals.repetition import GopherRepetition
from coretrain.corpus.signals.unspaced import Unspaced
from coretrain.corpus.signals.word_lists import WordList
from coretrain.corpus.text.texts import BLOCK

ROUNDS = 3
SHARE = 5
"""datatrove gets each so manyth document: it is slow, and its speed doesn't depend on how many there are."""
FOUR: list[Step] = [GopherRepetition(), Gopher(), C4(), FineWeb()]
AS_DATATROVE: list[Step] = [
    GopherRepetition(counting="datatrove"), Gopher(counting="datatrove"), C4(counting="datatrove"),
    FineWeb(counting="datatrove"),
]  # fmt: skip
EACH: list[Any] = [*FOUR, Page(), Unspaced(), RefinedWeb(), Pii(), WordList(), Language()]
SETS: dict[str, list[Step]] = {
    "the four": FOUR,
    "the four, counting as datatrove": AS_DATATROVE,
    **{step.name: [step] for step in EACH},
}
DATATROVE = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline import filters
texts = json.load(open(sys.argv[1], encoding="utf-8"))
rules = [filters.GopherRepetitionFilter(), filters.GopherQualityFilter(), filters.C4QualityFilter(),
         filters.FineWebQualityFilter()]
rules[1].filter(Document(text="a first text loads what is needed. " * 20, id="0"))
seconds = []
for early in (False, True):
    start = time.process_time()
    for number, text in enumerate(texts):
        one = Document(text=text + "\\n" * early, id=str(number))  # another text, so that no words are remembered
        for rule in rules:
            if rule.filter(one) is not True and early:
                break
    seconds.append(time.process_time() - start)
print(json.dumps(seconds))
"""


def documentation(largest: int) -> list[str]:
    """Documentation strings of the standard library, six to a text."""
    texts: list[str] = []
    size = 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if size > largest:
            break
        if {"site-packages", "test", "tests"} & set(file.parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        parts = [text for one in ast.walk(tree) if isinstance(one, kinds) and (text := ast.get_docstring(one))]
        found = ["\n\n".join(parts[at : at + 6]) for at in range(0, len(parts), 6)]
        texts += found
        size += sum(map(len, found))
    return texts


def batched(texts: Sequence[str]) -> list[Batch]:
    """The texts in batches of a block each."""
    batches: list[list[Document]] = [[]]
    size = 0
    for number, text in enumerate(texts):
        if size + len(text) > BLOCK and batches[-1]:
            batches.append([])
            size = 0
        batches[-1].append(Document(str(number), text))
        size += len(text)
    return [Batch(batch) for batch in batches]


def seconds(steps: Sequence[Step], batches: Sequence[Batch]) -> float:
    """CPU seconds of the quickest of some rounds."""
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for batch in batches:
            after = batch
            for step in steps:
                after = step.run(after)
        found.append(time.process_time() - start)
    return min(found)


def datatrove_seconds(python: str, texts: Sequence[str]) -> list[float]:
    """CPU seconds of datatrove's four filters over the texts: all on every document, and each up to the first hit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(list(texts)), encoding="utf-8")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [python, "-c", DATATROVE, str(path)], check=True, capture_output=True, text=True, env=environment
        )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def size_of(texts: Sequence[str]) -> float:
    """MB in UTF-8."""
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / 1e6


@exits_cleanly
def main() -> int:
    """Measure, print a table, and write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.text_rules", description=__doc__.splitlines()[0])
    parser.add_argument("--texts", nargs="+", default=[])
    parser.add_argument("--megabytes", type=float, default=4.0)
    parser.add_argument("--datatrove", default="")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.texts:
        from coretrain.corpus.perplexity.examples import examples_of

        texts = examples_of(given.texts).texts
    else:
        texts = [text for text in documentation(int(given.megabytes * 1e6)) if text.strip()]
    megabytes = size_of(texts)
    batches = batched(texts)
    seconds(FOUR, batches[:1])  # tables are made
    speeds = {name: megabytes / seconds(steps, batches) for name, steps in SETS.items()}
    if given.datatrove:
        share = texts[::SHARE]
        found = datatrove_seconds(given.datatrove, share)
        names = ("datatrove, all four", "datatrove, up to the first hit")
        speeds |= {name: size_of(share) / one for name, one in zip(names, found, strict=True)}
    print(f"{len(texts):,} texts, {megabytes:.1f} MB, one core")
    for name, speed in speeds.items():
        print(f"{name:34}{speed:8.2f} MB/s")
    if given.json:
        write_atomically(given.json, json.dumps({"megabytes": megabytes, "speeds": speeds}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    main()
