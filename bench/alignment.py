"""Speed and memory of GRPO, PPO, DPO and rollouts in both stacks, beside TRL on transformers.

Usage: python -m bench.alignment --start RUN --peer E/bin/python [--only grpo ppo dpo rollouts] [--rounds 3]
                                 [--json FILE]

RUN is a run of the preset sort-sft: model, tokenizer and weights are the same on both sides, TRL's as an export of it.
So are the rows of data (each trainer has an order of its own), the reward, batches, lengths, and float32 on one thread.
E has TRL in folders of its own, as tests/alignment/test_oracles.py says. Every contender is a process of its own; they
take turns, and ratios are taken within a round. The first turn is a warm-up: it tells what compiling costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.corpus_turns import Child
from coretrain.base.errors import UserError, exits_cleanly
from coretrain.tasks.registry import open_task
from twintrain.bench.turns import machine

ROWS = 50_000
LR = 1e-4
SHAPE = {"batch": 128, "group": 8, "tokens": 8, "row": 32, "lr": LR}
Round = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Part:
    """What is measured: so many updates a turn, each of `each` steps of the optimizer."""

    preset: str
    form: str
    rows: int
    updates: int
    peers: dict[str, dict[str, Any]]
    """TRL's rows: their name, and the version and settings."""
    own: dict[str, tuple[str, ...]]
    """Which of them ours are compared with, a row of each stack for each: words of the command line beside the
    preset."""
    shape: dict[str, int] = field(default_factory=dict)
    each: int = 1


PARTS = {
    "grpo": Part(
        "sort-grpo",
        "prompts",
        4096,
        20,
        {"TRL 1.16, no KL": {"trl": "trl-1.16.0"}, "TRL 1.16, KL": {"trl": "trl-1.16.0", "kl": 0.04}},
        {"TRL 1.16, KL": ("--align.kl_coefficient", "0.04")},
    ),
    "ppo": Part(
        "sort-ppo",
        "prompts",
        4096,
        10,
        {"TRL 1.12": {"trl": "trl-1.12.0"}},
        {"TRL 1.12": ()},
        shape={"batch": 64, "minibatches": 2, "epochs": 2},
        each=4,
    ),
    "dpo": Part(
        "sort-dpo",
        "pairs",
        1280,
        40,
        {
            "TRL 1.16": {"trl": "trl-1.16.0", "precompute": False},
            "TRL 1.16, precomputed": {"trl": "trl-1.16.0", "precompute": True},
        },
        {
            "TRL 1.16": ("--optimizer.clip", "1"),
            # an epoch is a turn, so that all after the first know what the reference says
            "TRL 1.16, precomputed": ("--optimizer.clip", "1", "--data.source", "task:sort?rows=1293"),
        },
        shape={"batch": 32},
    ),
}


def write_rows(part: Part, path: Path) -> None:
    """Rows of the sort task, as our presets read them."""
    task = open_task(f"task:sort?rows={ROWS}")
    lines = (json.dumps(task.row(part.form, index)) for index in range(part.rows))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def own_label(part: Part, stack: str, rival: str) -> str:
    """The name of a row of ours."""
    plain = "JAX" if stack == "jax" else stack
    return plain if len(part.own) == 1 else f"{plain}, beside {rival}"


def children(name: str, start: Path, peer: str, model: Path, folder: Path) -> dict[str, Child]:
    """The contenders of a part, each in a process of its own."""
    part, rows = PARTS[name], folder / f"{name}.jsonl"
    write_rows(part, rows)
    task = {**SHAPE, **part.shape, "model": str(model), "rows": str(rows), "updates": part.updates, "each": part.each}
    place = Path(peer).parent.parent
    found = {}
    for label, settings in part.peers.items():
        if not (place / settings["trl"]).is_dir():
            raise UserError(
                "bench/trl-missing",
                f"--peer {peer}: {place / settings['trl']} isn't there: see tests/alignment/test_oracles.py",
            )
        theirs = {**task, **settings}
        found[label] = Child(
            peer, "bench.alignment_peer", name, theirs, str(folder / "log"), str(place / settings["trl"])
        )
    for number, (rival, words) in enumerate(part.own.items()):
        for stack in ("torch", "jax"):
            output = str(folder / f"{name}-{stack}-{number}")
            given = [part.preset, "--train.start", str(start), "--output", output, *words]
            ours = {**task, "stack": stack, "words": given}
            found[own_label(part, stack, rival)] = Child(
                sys.executable, "bench.alignment_ours", name, ours, str(folder / "log")
            )
    return found


def measured(name: str, contenders: dict[str, Child], rounds: int) -> dict[str, Any]:
    """Of each contender: seconds, CPU seconds and peak memory of every round, and what its warm-up took."""
    found: list[Round] = []
    for index in range(rounds + 1):
        told: Round = {}
        for label, child in contenders.items():
            facts = child.turn()["facts"]
            told[label] = facts
            say = f"{facts['clock']:.1f} s, {facts['cpu']:.1f} s of CPU, reward {facts['reward']:.3f}"
            print(f"{name}, {f'round {index}' if index else 'warm-up'}: {label} {say}", file=sys.stderr, flush=True)
        found.append(told)
    part, rows = PARTS[name], []
    rivals = {own_label(part, stack, rival): rival for rival in part.own for stack in ("torch", "jax")}
    for label in contenders:
        row: dict[str, Any] = {"name": label, "warm_up": found[0][label]["clock"], "reward": found[-1][label]["reward"]}
        row["memory"] = max(one[label]["memory"] for one in found)
        for key in ("clock", "cpu"):
            row[key] = [one[label][key] for one in found[1:]]
            if label in rivals:
                row[f"{key}_ratio"] = [one[rivals[label]][key] / one[label][key] for one in found[1:]]
        rows.append(row)
    return {"part": name, "updates": PARTS[name].updates, "rows": rows}


HEADINGS = ("", "seconds", "CPU seconds", "speed", "speed by CPU seconds", "warm-up", "memory, MB")


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(result: dict[str, Any]) -> str:
    """The rows of a part, as Markdown."""
    lines = [HEADINGS, ("---", *("---:" for _ in HEADINGS[1:]))]
    for row in result["rows"]:
        ratios = [spread(row[key], 2) if key in row else "" for key in ("clock_ratio", "cpu_ratio")]
        seconds = (spread(row["clock"]), spread(row["cpu"]))
        lines.append((row["name"], *seconds, *ratios, f"{row['warm_up']:.1f}", f"{row['memory'] / 1e6:,.0f}"))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def export(start: Path, folder: Path) -> Path:
    """The start's weights and tokenizer as transformers reads them."""
    command = [sys.executable, "-m", "twintrain", "convert", str(start), str(folder), "--to", "hf"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def rollouts(rounds: int) -> None:
    """Answers of a model of SmolLM2's shape beside transformers' `generate`: a part of `bench.tuning`."""
    from bench import tuning

    print(tuning.table(tuning.measured("rollouts", {"preset": "smollm2-135m", "fields": {}}, (), rounds)))


@exits_cleanly
def main() -> int:
    """Measure, and print a table for each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--start", type=Path, help="a finished run of sort-sft")
    parser.add_argument("--peer", metavar="PYTHON", help="the interpreter of an environment that has TRL")
    parser.add_argument("--only", nargs="+", choices=(*PARTS, "rollouts"), default=(*PARTS, "rollouts"))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, every round's times included")
    given = parser.parse_args()
    parts = [name for name in given.only if name in PARTS]
    if parts and not (given.start and given.peer):
        parser.error("give --start RUN and --peer PYTHON; --only rollouts needs neither")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = export(given.start.absolute(), folder / "model") if parts else folder
        for part in parts:
            contenders = children(part, given.start.absolute(), given.peer, model, folder)
            try:
                results.append(measured(part, contenders, max(1, given.rounds)))
            except RuntimeError as fault:
                raise UserError("bench/contender-failed", f"{fault}: {(folder / 'log').read_text()[-2000:]}") from None
            finally:
                for child in contenders.values():
                    child.close()
            print(f"\n{part}, {PARTS[part].updates} updates\n\n{table(results[-1])}", flush=True)
    if given.json:
        found = {"machine": machine(("torch", "jax", "transformers")), "parts": results}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if "rollouts" in given.only:
        rollouts(max(1, given.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
