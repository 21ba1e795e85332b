"""datatrove's side of `bench.corpus`: run by an interpreter that has datatrove[processing,io] 0.10, spaCy and
python-magic with its library; it imports nothing of ours but the clock.

    PYTHON -m bench.corpus_peer PART TASK     # TASK is JSON: see `bench/corpus.py`
"""

from __future__ import annotations

import importlib
import json
import os
import random
import struct
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

from bench.corpus_turns import Facts, Part, serve

BANDS, ROWS, PRIME = 14, 8, 2**61 - 1
FILES = 4
"""Files of signatures that are clustered."""


def has(module: str, name: str) -> Any:
    """A name of datatrove's, which is there in a peer's interpreter alone."""
    return getattr(importlib.import_module(f"datatrove.{module}"), name)


def texts_of(task: dict[str, Any]) -> list[str]:
    """The texts of a task."""
    with open(task["texts"], encoding="utf-8") as file:
        found: list[str] = json.load(file)
    return found


def reader(folder: str) -> Any:
    """Of the WARC files of a folder."""
    return has("pipeline.readers", "WarcReader")(folder, glob_pattern="*.warc.gz")


def extractor() -> Any:
    """As FineWeb has it, with a longer time for a page, since the machine may be busy."""
    return has("pipeline.extractors", "Trafilatura")(favour_precision=True, timeout=60)


def extract(task: dict[str, Any]) -> Part:
    """WARC to text."""
    read, find = reader(task["one"]), extractor()

    def part() -> Facts:
        found = {one.metadata["url"]: one.text for one in find.run(read.run(None, 0, 1), 0, 1)}
        if task.get("keep"):
            with open(task["keep"], "w", encoding="utf-8") as file:
                json.dump(found, file)
        return {"documents": len(found), "characters": sum(map(len, found.values()))}

    return part


def rules_of() -> list[Any]:
    """In FineWeb's order."""
    names = ("GopherRepetitionFilter", "GopherQualityFilter", "C4QualityFilter", "FineWebQualityFilter")
    return [has("pipeline.filters", name)() for name in names]


def rules(task: dict[str, Any], early: bool = False) -> Part:
    """The four sets of rules; `early`: each document up to the first that drops it, as a pipeline does."""
    document, texts, every = has("data", "Document"), texts_of(task), rules_of()
    turns = iter(range(10**9))

    def part() -> Facts:
        kept, turn = 0, next(turns)
        for number, text in enumerate(texts):
            one = document(text=text + "\n" * turn, id=str(number))  # so that no words are remembered
            verdicts = []
            for rule in every:
                verdicts.append(rule.filter(one) is True)
                if early and not verdicts[-1]:
                    break
            kept += all(verdicts)
        return {"kept": kept}

    return part


def signatures(task: dict[str, Any]) -> Part:
    """MinHash signatures, 14 x 8."""
    minhash = importlib.import_module("datatrove.pipeline.dedup.minhash")
    texts = texts_of(task)
    step = minhash.MinhashDedupSignature(tempfile.mkdtemp(), config=minhash.MinhashConfig())

    def part() -> Facts:
        grams = [step.get_shingles(text) for text in texts]
        return {"signed": sum(1 for one in grams if one.size and step.get_signature(one))}

    return part


def cluster(task: dict[str, Any]) -> Part:
    """Signatures on disk to the list of documents that go: stages 2 and 3."""
    minhash = importlib.import_module("datatrove.pipeline.dedup.minhash")
    folder = tempfile.mkdtemp(dir=task["folder"])
    write_signatures(folder, planted(task["documents"]))
    form = minhash.MinhashConfig()

    def part() -> Facts:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            step = minhash.MinhashDedupBuckets(f"{folder}/signatures", f"{made}/pairs", config=form)
            for band in range(BANDS):
                step.run(None, band, BANDS)
            last = minhash.MinhashDedupCluster(f"{made}/pairs", f"{made}/gone", config=form)
            last.run(None, 0, 1)
            gone = sum(os.path.getsize(f"{made}/gone/{name}") // 4 for name in os.listdir(f"{made}/gone"))
            return {"gone": gone}

    return part


def planted(documents: int) -> list[list[int]]:
    """Signatures of random numbers; every tenth document has half the bands of the one before it."""
    draw = random.Random(15)
    found: list[list[int]] = []
    for number in range(documents):
        signed = [draw.randrange(PRIME) for _ in range(BANDS * ROWS)]
        if number % 10 == 9:
            signed[: BANDS * ROWS // 2] = found[-1][: BANDS * ROWS // 2]
        found.append(signed)
    return found


def write_signatures(folder: str, signed: list[list[int]]) -> None:
    """As its first stage leaves them: a file for each band and part, sorted."""
    size = -(-len(signed) // FILES)
    for band in range(BANDS):
        os.makedirs(f"{folder}/signatures/bucket_{band:03d}")
        for part in range(FILES):
            rows = signed[part * size : (part + 1) * size]
            lines = sorted((*one[band * ROWS : (band + 1) * ROWS], row) for row, one in enumerate(rows))
            with open(f"{folder}/signatures/bucket_{band:03d}/{part:05d}.minhash.sig", "wb") as file:
                file.write(b"".join(struct.pack(f"<{ROWS}QI", *line) for line in lines))


def tokenizer(task: dict[str, Any]) -> Part:
    """Not measured: a byte-level BPE that both sides read."""
    from tokenizers import ByteLevelBPETokenizer

    def part() -> Facts:
        made = ByteLevelBPETokenizer()
        made.train_from_iterator(texts_of(task)[:200], vocab_size=8192, special_tokens=["<|endoftext|>"])
        made.save(task["tokenizer"])
        return {"vocabulary": made.get_vocab_size()}

    return part


def language(model: str) -> Any:
    """Its filter of languages, with a model that lies here: its own one is downloaded."""
    lid = importlib.import_module("datatrove.utils.lid")
    vars(lid)["cached_asset_path_or_download"] = lambda *_, **__: model
    return has("pipeline.filters", "LanguageFilter")("en", language_threshold=0.65)


def whole(task: dict[str, Any]) -> Facts:
    """WARC to shards, as its example of FineWeb goes, with 2 workers."""
    executor = has("executor", "LocalPipelineExecutor")
    jsonl, read_jsonl = has("pipeline.writers", "JsonlWriter"), has("pipeline.readers", "JsonlReader")
    minhash = importlib.import_module("datatrove.pipeline.dedup.minhash")
    folder, workers, files = task["folder"], task["workers"], task["files"]
    stages = iter(range(10))

    def run(steps: Iterable[Any], tasks: int) -> None:
        logged = {"logging_dir": f"{folder}/log-{next(stages)}"}
        executor(pipeline=list(steps), tasks=tasks, workers=min(tasks, workers), start_method="fork", **logged).run()

    repetition, quality, c4, fineweb = rules_of()
    c4 = has("pipeline.filters", "C4QualityFilter")(filter_no_terminal_punct=False)
    steps = [reader(task["crawl"]), extractor(), language(task["model"]), repetition, quality, c4, fineweb]
    run([*steps, jsonl(f"{folder}/kept")], files)
    run([read_jsonl(f"{folder}/kept"), minhash.MinhashDedupSignature(f"{folder}/signatures")], files)
    run([minhash.MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/pairs")], BANDS)
    run([minhash.MinhashDedupCluster(f"{folder}/pairs", f"{folder}/gone")], 1)
    pii = has("pipeline.formatters", "PIIFormatter")()
    last = [read_jsonl(f"{folder}/kept"), minhash.MinhashDedupFilter(f"{folder}/gone"), pii]
    run([*last, jsonl(f"{folder}/documents")], files)
    tokens = has("pipeline.tokens", "DocumentTokenizer")
    shards = tokens(f"{folder}/tokens", task["tokenizer"], eos_token="<|endoftext|>", shuffle_documents=False)
    run([read_jsonl(f"{folder}/documents"), shards], files)
    return {}


PARTS = {
    "extract": extract,
    "rules": rules,
    "rules-early": lambda task: rules(task, early=True),
    "signatures": signatures,
    "cluster": cluster,
    "tokenizer": tokenizer,
}

if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    if sys.argv[1] == "whole":
        whole(given)
    else:
        serve(PARTS[sys.argv[1]](given))
