"""Speed of scoring choices in both stacks, beside lm-evaluation-harness' own class for Hugging Face's models.

Usage: python -m bench.scoring --run RUN --peer E/bin/python [--questions 12] [--batch 8] [--rounds 3] [--json FILE]

RUN is a run in float32; lm-eval reads an export of it. E has torch, transformers and lm_eval. Questions are pieces of
this repository's docs with four endings each, other pieces of them. Every contender is a process of its own on one
thread; they take turns, and ratios are taken within a round. The first turn is a warm-up, with what compiling costs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.corpus_turns import Child
from coretrain.base.errors import UserError, exits_cleanly
from twintrain.bench.turns import machine

PEER = "lm-eval HFLM"
DOCS = Path(__file__).parents[1] / "docs"


def pairs(questions: int) -> list[tuple[str, str]]:
    """Questions of 40 to 110 words, with four endings of 6 to 20 each."""
    words = " ".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("a*.md"))).split()
    drawn, found = random.Random(0), []

    def piece(least: int, most: int) -> str:
        count = drawn.randrange(least, most)
        start = drawn.randrange(len(words) - count)
        return " ".join(words[start : start + count])

    for _ in range(questions):
        question = piece(40, 110)
        found += [(question, " " + piece(6, 20)) for _ in range(4)]
    return found


def contenders(given: Any, folder: Path) -> dict[str, Child]:
    """Each in a process of its own."""
    command = [sys.executable, "-m", "twintrain", "convert", str(given.run), str(folder / "model"), "--to", "hf"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    log, asked = str(folder / "log"), pairs(given.questions)
    task = {"run": str(given.run.absolute()), "model": str(folder / "model"), "pairs": asked, "batch": given.batch}
    found = {PEER: Child(given.peer, "bench.scoring_child", "lm-eval", task, log)}
    for stack in ("torch", "jax"):
        for shares, label in ((True, stack), (False, f"{stack}, a row for each choice")):
            found[label] = Child(sys.executable, "bench.scoring_child", stack, task | {"shares": shares}, log)
    return found


def apart(one: list[Any], other: list[Any]) -> tuple[float, int]:
    """Greatest difference in nats, and flags that differ."""
    both = list(zip(one, other, strict=True))
    return max(abs(a[0] - b[0]) for a, b in both), sum(a[1] != b[1] for a, b in both)


def measured(children: dict[str, Child], rounds: int) -> list[dict[str, Any]]:
    """Of each contender its seconds in each round, by the clock and of CPU, and their ratios to lm-eval's."""
    told: list[dict[str, dict[str, Any]]] = []
    for index in range(rounds + 1):
        told.append({})
        for label, child in children.items():
            told[-1][label] = child.turn()
            seconds = f"{told[-1][label]['clock']:.1f} s, {told[-1][label]['cpu']:.1f} s of CPU"
            print(f"{f'round {index}' if index else 'warm-up'}: {label} {seconds}", file=sys.stderr, flush=True)
    rows = []
    for label in children:
        nats, flags = apart(told[-1][label]["facts"]["scores"], told[-1][PEER]["facts"]["scores"])
        row: dict[str, Any] = {"name": label, "nats": nats, "flags": flags, "warm_up": told[0][label]["clock"]}
        row["memory"] = told[-1][label]["facts"]["memory"]
        for key in ("clock", "cpu"):
            row[key] = [one[label][key] for one in told[1:]]
            row[f"{key}_ratio"] = [one[PEER][key] / one[label][key] for one in told[1:]]
        rows.append(row)
    return rows


HEADINGS = ("", "CPU seconds", "speed", "speed by CPU seconds", "nats apart", "flags apart", "warm-up", "memory, MB")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: medians and ranges."""
    lines = [HEADINGS, ("---", *("---:" for _ in HEADINGS[1:]))]
    for row in rows:
        figures = (spread(row["cpu"], 1), spread(row["clock_ratio"], 2), spread(row["cpu_ratio"], 2))
        last = (f"{row['nats']:.1e}", str(row["flags"]), f"{row['warm_up']:.1f}", f"{row['memory'] / 1e6:,.0f}")
        lines.append((row["name"], *figures, *last))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


@exits_cleanly
def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="a run in float32")
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="an interpreter that has lm-eval")
    parser.add_argument("--questions", type=int, default=12, help="each with four endings (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="rows of lm-eval's batches (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, every round's times included")
    given = parser.parse_args()
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
    with tempfile.TemporaryDirectory() as name:
        children = contenders(given, Path(name))
        try:
            rows = measured(children, max(1, given.rounds))
        except RuntimeError as fault:
            raise UserError("bench/scorer-failed", f"{fault}: {(Path(name) / 'log').read_text()[-2000:]}") from None
        finally:
            for child in children.values():
                child.close()
    print(table(rows))
    if given.json:
        found = {"machine": machine(("torch", "jax", "transformers")), "rows": rows}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
