"""Our side of `bench.corpus`: python -m bench.corpus_ours PART TASK, where TASK is JSON: see `bench/corpus.py`."""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.corpus_turns import Facts, Part, serve
from bench.text_rules import AS_DATATROVE, FOUR, batched
from coretrain.corpus.dedup import near
from coretrain.corpus.dedup.minhash import PRIME, MinHash, band_keys, sign
from coretrain.corpus.dedup.parts import Table, write_keys
from coretrain.corpus.document import Document, Page, Step
from coretrain.corpus.extract.extract import Extractor
from coretrain.corpus.extract.guarded import guarded
from coretrain.corpus.filters.limits import SETS
from coretrain.corpus.readers.open import plan, read
from coretrain.corpus.rules import first_broken
from coretrain.corpus.signals.language import Language
from coretrain.tokenizers.registry import named_tokenizer

FILES = 4
"""Parts of the documents that are clustered."""
CHARACTERS = 2**22
"""Of texts that are signed at once, as a part of the input is."""


def texts_of(task: dict[str, Any]) -> list[str]:
    """The texts of a task."""
    found: list[str] = json.loads(Path(task["texts"]).read_text(encoding="utf-8"))
    return found


def megabytes(texts: list[str]) -> float:
    """In UTF-8."""
    return sum(len(one.encode("utf-8", "surrogatepass")) for one in texts) / 1e6


def inflate(task: dict[str, Any]) -> Part:
    """The physical limit beside extraction: the packed files, unpacked."""

    def part() -> Facts:
        size = 0
        for path in files_of(task):
            with gzip.open(path) as file:
                size += sum(len(block) for block in iter(lambda: file.read(2**18), b""))
        return {"bytes": size}

    return part


def files_of(task: dict[str, Any]) -> list[Path]:
    """The WARC files of a task."""
    return sorted(Path(task["one"]).glob("*.warc.gz"))


def records(task: dict[str, Any]) -> Part:
    """Every page of the files, unpacked and parsed, without its text being looked for."""

    def part() -> Facts:
        found = [one for piece in plan([str(one) for one in files_of(task)]) for one in read(piece)]
        pages = [one for one in found if isinstance(one, Page)]
        return {"pages": len(pages), "bytes": sum(len(one.body) for one in pages)}

    return part


def extract(task: dict[str, Any]) -> Part:
    """WARC to text, in a process that is watched, as a corpus is made."""

    def part() -> Facts:
        pieces = plan([str(one) for one in files_of(task)])
        found = [one for piece in pieces for one in guarded(read(piece), Extractor(deadline_s=60.0))]
        texts = {str(one.metadata["url"]): one.text for one in found if isinstance(one, Document)}
        if task.get("keep"):
            Path(task["keep"]).write_text(json.dumps(texts), encoding="utf-8")
        return {"documents": len(texts), "characters": sum(map(len, texts.values()))}

    return part


def rules(task: dict[str, Any], steps: list[Step] = FOUR) -> Part:
    """The four sets of rules, every signal of every document, and which rule drops it."""
    texts = texts_of(task)
    limits = [limit.rule() for step in steps for limit in SETS[step.name]]

    def part() -> Facts:
        kept = 0
        for batch in batched(texts):
            after = batch
            for step in steps:
                after = step.run(after)
            kept += int((first_broken(limits, after.signals, len(batch.documents)) < 0).sum())
        return {"kept": kept}

    return part


def signatures(task: dict[str, Any], counting: str = "fast") -> Part:
    """MinHash signatures, 14 x 8."""
    texts, form = texts_of(task), MinHash(counting=counting)
    pieces: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if size > CHARACTERS:
            pieces.append([])
            size = 0
        pieces[-1].append(text)
        size += len(text)

    def part() -> Facts:
        return {"signed": sum(int(sign(one, form)[1].sum()) for one in pieces)}

    return part


def cluster(task: dict[str, Any]) -> Part:
    """Keys on disk to the list of documents that go. Pairs aren't verified, as datatrove doesn't."""
    folder = Path(tempfile.mkdtemp(dir=task["folder"]))
    form = MinHash(counting="datatrove")
    draw = np.random.default_rng(15)
    signed = draw.integers(0, PRIME, (task["documents"], form.orders), np.uint64)
    signed[9::10, : form.orders // 2] = signed[8::10, : form.orders // 2]  # every tenth is like the one before it
    size, keys = -(-len(signed) // FILES), []
    for number in range(FILES):
        mine, table = signed[number * size : (number + 1) * size], Table()
        table.add([Document(f"{number}-{row}", str(number * size + row)) for row in range(len(mine))])
        keys.append(folder / f"keys-{number}")
        write_keys(keys[-1], form.described, table, band_keys(mine, form), np.arange(len(mine), dtype=np.uint32))
    search = near.Near(form)

    def part() -> Facts:
        found = [folder / f"pairs-{band}" for band in range(form.bands)]
        for band, path in enumerate(found):
            near.pair(search, keys, band, 0, 1, path)
        rows = [folder / f"rows-{number}" for number in range(FILES)]
        near.gather(search, keys, found, folder / "pairs", rows)
        kept = near.decide(search, keys, [folder / "pairs"])
        return {"gone": int((kept.members != kept.keepers).sum())}

    return part


def languages(task: dict[str, Any]) -> Part:
    """The language of every text."""
    batches, step = batched(texts_of(task)), Language()

    def part() -> Facts:
        return {"batches": len([step.run(one) for one in batches])}

    return part


def tokenize(task: dict[str, Any]) -> Part:
    """The physical limit beside all that comes after extraction: texts to tokens."""
    texts, tokenizer = texts_of(task), named_tokenizer("gpt2")

    def part() -> Facts:
        return {"tokens": sum(len(tokenizer.encode(one)) for one in texts)}

    return part


PARTS: dict[str, Callable[[dict[str, Any]], Part]] = {
    "inflate": inflate,
    "records": records,
    "extract": extract,
    "languages": languages,
    "rules": rules,
    "rules-datatrove": lambda task: rules(task, AS_DATATROVE),
    "signatures": signatures,
    "signatures-datatrove": lambda task: signatures(task, "datatrove"),
    "cluster": cluster,
    "tokenize": tokenize,
}

if __name__ == "__main__":
    serve(PARTS[sys.argv[1]](json.loads(sys.argv[2])))
