"""What sharing a run costs: speed of two processes against one, bytes against theory, and the loop's own time.

Usage: python -m bench.scale ratio|bytes|overhead [--shape tiny|gpt2] [--only WORD ...] [--rounds N]
                                     [--json FILE] [--section.field VALUE ...]

`ratio`: a run shared by 2 processes of one thread against one process with one thread and with two, the same global
batches; all take turns, so that what else the machine does hits all, and ratios are taken within a round, then their
median. `bytes`: what one device sends in an update, beside
`coretrain.planning.traffic`: torch's as the kernel counts them on
the processes' own sockets, JAX's from the compiled program. `overhead`: the loop around the stack, and its wait for
data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.scale_worker import Children, cores
from coretrain.base.errors import exits_cleanly
from coretrain.base.files import write_atomically
from coretrain.config.load import load_config
from coretrain.planning.traffic import traffic
from coretrain.processes.layout import layout_of
from twintrain.bench.turns import given_fields, machine

Fields = dict[str, Any]
PROCESSES = 2
"""Devices that share a run."""
WARM_UP = 2
"""Updates before the first that counts: compiling, the moments' allocation, DeepSpeed's trace of the modules."""
TURN = 2
"""Updates of one turn of `ratio`."""
LOOP_WARM_UP = 20
"""Updates of the loop before the first that counts: workers start, the journal opens its files."""
QUIET: Fields = {"execution.device": "cpu", "execution.compile": "off", "schedule.warmup_updates": 2}
SHAPES: dict[str, Fields] = {
    "tiny": {"model.heads": 4, "model.vocab": 4096},
    "gpt2": {
        "model.layers": 6,
        "model.width": 384,
        "model.heads": 6,
        "model.context": 256,
        "model.vocab": 50257,
        "model.norm": "layernorm",
        "model.position": "learned",
        "model.mlp": "gelu",
        "model.bias": "true",
    },
}
"""The tiny preset, Llama's form of 4 layers x 192, with heads that two can share; and GPT-2's form of 6 x 384."""


@dataclass(frozen=True)
class Way:
    """One way to share a run."""

    name: str
    stack: str
    axis: str
    zero: int = 0
    engine: str = "deepspeed"

    @property
    def fields(self) -> Fields:
        """Its part of the config."""
        shared: Fields = {f"parallel.{self.axis}": PROCESSES}
        if self.zero:
            shared |= {"parallel.zero": self.zero, "parallel.zero_engine": self.engine}
        return shared


TORCH = [
    Way("torch, data", "torch", "data"),
    *(Way(f"torch, ZeRO {stage}", "torch", "data", stage) for stage in (1, 2, 3)),
    *(Way(f"torch, ZeRO {stage} by FSDP2", "torch", "data", stage, "fsdp2") for stage in (1, 2, 3)),
    Way("torch, tensor", "torch", "tensor"),
    Way("torch, pipeline", "torch", "pipeline"),
]
JAX = [Way(f"jax, {axis}", "jax", axis) for axis in ("data", "fsdp", "tensor", "context", "pipeline")]


# ---------------------------------------------------------------- ratio


def ratio(shape: Fields, only: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Tokens/s of each way to share a run's rows, and of one process, with as many threads in all and with one."""
    rows = []
    ways = [way for way in (TORCH[0], *JAX[:2]) if chosen(way.name, only)]
    for stack in dict.fromkeys(way.stack for way in ways):
        mine = [way for way in ways if way.stack == stack]
        alone = {"parallel.data": 1} if stack == "jax" else {}
        task = {"do": "train", "stack": stack}
        runs = {
            f"{stack}, 1 process, 1 thread": Children(task | {"fields": shape | alone}, threads=1),
            f"{stack}, 1 process, {PROCESSES} threads": Children(task | {"fields": shape | alone}, threads=PROCESSES),
        }
        runs |= {way.name: Children(task | {"fields": shape | way.fields}, PROCESSES, threads=1) for way in mine}
        try:
            seconds = in_turns(runs, rounds)
        finally:
            for children in runs.values():
                children.close()
        rows += ratio_rows(stack, shape, seconds)
    return rows


def in_turns(runs: dict[str, Children], rounds: int) -> dict[str, list[float]]:
    """Median seconds of an update in each round, the slowest process's."""
    for name, children in runs.items():
        say(f"{name}: warm-up")
        children.turn(WARM_UP)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, children in runs.items():
            seconds[name].append(max(statistics.median(answer["seconds"]) for answer in children.turn(TURN)))
    return seconds


def ratio_rows(stack: str, shape: Fields, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Rows of the table: speeds, and ratios to the first two runs."""
    config = load_config("tiny", pairs(shape))
    one, wide, *_ = seconds.values()

    def against(base: list[float], mine: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(base, mine, strict=True))

    return [
        {
            "name": name,
            "tokens_per_second": config.tokens_per_update / statistics.median(mine),
            "to_one_thread": against(one, mine),
            "to_as_many_threads": against(wide, mine),
            "update_seconds": mine,
        }
        for name, mine in seconds.items()
    ]


# ---------------------------------------------------------------- bytes


def sent(name: str, shape: Fields, only: Sequence[str], updates: int) -> list[dict[str, Any]]:
    """Bytes that a device sends in an update, measured and in theory, of each way: the busiest device's."""
    rows = []
    for way in [way for way in (*TORCH, *JAX) if chosen(way.name, only)]:
        say(f"{name}, {way.name}")
        fields = shape | way.fields
        config = load_config("tiny", pairs(fields))
        parts = traffic(config, layout_of(config, PROCESSES), "torch" if way.stack == "torch" else "jax")
        theory = sum(parts.values())
        found = over_sockets(fields, updates) if way.stack == "torch" else in_program(fields)
        row = {"shape": name, "name": way.name, "theory": theory, "theory_by_kind": parts} | found
        rows.append(row | {"ratio": row["bytes"] / theory if row["bytes"] is not None else None})
    return rows


def over_sockets(fields: Fields, updates: int) -> Fields:
    """Bytes of an update as the processes' sockets count them."""
    children = Children({"do": "train", "stack": "torch", "fields": fields}, PROCESSES, threads=1)
    try:
        children.turn(WARM_UP)
        each = [answer["sent"] for answer in children.turn(updates)]
    finally:
        children.close()
    known = None not in each
    return {"bytes": max(each) / updates if known else None, "by_process": [n / updates for n in each] if known else []}


def in_program(fields: Fields) -> Fields:
    """Bytes of an update by the compiled program's collectives."""
    task = {"do": "compiled", "fields": fields}
    children = Children(task, devices=PROCESSES)
    try:
        (found,) = children.answers()
    finally:
        children.close()
    return {"bytes": sum(found["sent"].values()), "by_collective": found["sent"]} | {
        key: found[key] for key in ("calls", "loops_without_count")
    }


# ---------------------------------------------------------------- overhead


def overhead(fields: Fields, only: Sequence[str], updates: int) -> list[dict[str, Any]]:
    """Of an update of the tiny preset: the time in the stack, in the loop around it, and waiting for data."""
    rows = []
    for stack in ("torch", "jax"):
        for workers in (0, 2):
            name = f"{stack}, {workers} workers"
            if not chosen(name, only):
                continue
            say(name)
            whole = {"train.updates": updates + LOOP_WARM_UP + 1, "data.workers": workers} | fields
            children = Children({"do": "loop", "stack": stack, "fields": whole})
            try:
                (found,) = children.answers()
            finally:
                children.close()
            wall, inside, data = (sum(found[key][LOOP_WARM_UP:]) for key in ("seconds", "stack", "data"))
            rows.append(
                {
                    "name": name,
                    "updates": len(found["seconds"]) - LOOP_WARM_UP,
                    "update_seconds": wall / (len(found["seconds"]) - LOOP_WARM_UP),
                    "outside_share": 1 - inside / wall,
                    "data_share": data / wall,
                    "outside_median": statistics.median(
                        1 - a / b for a, b in zip(found["stack"], found["seconds"], strict=True)
                    ),
                    "data_median_seconds": statistics.median(found["data"][LOOP_WARM_UP:]),
                }
            )
    return rows


# ---------------------------------------------------------------- the table

HEADINGS = {
    "ratio": ("", "tokens/s", "against 1 thread", f"against {PROCESSES} threads in 1 process"),
    "bytes": ("", "MB sent, measured", "in theory", "ratio"),
    "overhead": ("", "ms an update", "outside the step", "waiting for data", "ms a batch (median)"),
}


def cells(part: str, row: dict[str, Any]) -> tuple[str, ...]:
    """One row as text."""
    if part == "ratio":
        speed = f"{row['tokens_per_second']:,.0f}"
        return row["name"], speed, f"{row['to_one_thread']:.2f}x", f"{row['to_as_many_threads']:.2f}x"
    if part == "bytes":
        name, theory = f"{row['shape']}: {row['name']}", f"{row['theory'] / 1e6:.2f}"
        if row["bytes"] is None:
            return name, "not counted on this system", theory, ""
        return name, f"{row['bytes'] / 1e6:.2f}", theory, f"{row['ratio']:.3f}"
    shares = f"{row['outside_share']:.2%}", f"{row['data_share']:.2%}"
    return row["name"], f"{row['update_seconds'] * 1e3:.1f}", *shares, f"{row['data_median_seconds'] * 1e3:.2f}"


def show(part: str, rows: Sequence[dict[str, Any]], as_markdown: bool) -> None:
    """The table on a terminal, or as Markdown."""
    lines = [cells(part, row) for row in rows]
    if as_markdown:
        under = ("---", *["---:"] * (len(HEADINGS[part]) - 1))
        print("\n".join("| " + " | ".join(line) + " |" for line in (HEADINGS[part], under, *lines)))
        return
    table = Table(title=f"{machine(())['cpu']}, {os.cpu_count()} cores", title_justify="left")
    for index, name in enumerate(HEADINGS[part]):
        table.add_column(name, justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    Console(highlight=False, width=None if sys.stdout.isatty() else 110).print(table)


def keep(path: Path, part: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the results of a part into a JSON file, beside the other parts'."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    result = before | {
        part: {"machine": machine(("torch", "jax")) | {"pinned": bool(cores(0, PROCESSES, 1))}, "rows": rows}
    }
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())


def pairs(fields: Fields) -> list[tuple[str, str]]:
    """Fields as `load_config` takes them."""
    return [(key, str(value)) for key, value in fields.items()]


def chosen(name: str, only: Sequence[str]) -> bool:
    """Whether a row's name holds all of the words asked for."""
    return all(word in name for word in only)


def say(text: str) -> None:
    """What is being measured, on stderr."""
    print(f"bench_scale: {text}", file=sys.stderr, flush=True)


@exits_cleanly
def main() -> int:
    """Measure one part, then print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=HEADINGS)
    parser.add_argument("--shape", choices=SHAPES, help="default: gpt2 for ratio, both for bytes; overhead has tiny")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="rows whose names hold all these words")
    parser.add_argument("--rounds", type=int, default=7, help=f"of ratio, of {TURN} updates (default %(default)s)")
    parser.add_argument("--updates", type=int, help="that count, of bytes (default 2) and of overhead (default 300)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the results to FILE: runs/bench/scale.json")
    given, rest = parser.parse_known_args()
    more = given_fields(rest)
    if given.part == "ratio":
        shape = QUIET | {"train.batch_size": 8} | SHAPES[given.shape or "gpt2"] | more
        rows = ratio(shape, given.only, max(1, given.rounds))
    elif given.part == "bytes":
        rows = []
        for name in [given.shape] if given.shape else SHAPES:
            # few tokens, so that it takes seconds: with micro-batches, which what sums or gathers for each is told by
            few = {"model.context": 128, "train.batch_size": 4, "train.accumulation": 2}
            few |= {"execution.scan_layers": "true"}  # JAX's program as on accelerators
            rows += sent(name, QUIET | SHAPES[name] | few | more, given.only, max(1, given.updates or 2))
    else:
        rows = overhead({"execution.device": "cpu"} | more, given.only, max(1, given.updates or 300))
    if given.json:
        keep(given.json, given.part, rows)
    show(given.part, rows, given.markdown)
    return 0


if __name__ == "__main__":
    main()
