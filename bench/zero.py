"""The two engines of ZeRO beside each other: DeepSpeed and FSDP2, eager and compiled.

Usage: python -m bench.zero turns [--stage 1|2|3] [--shape gpt2|llama] [--only WORD ...] [--rounds N] [--json FILE]
       python -m bench.zero memory [--stage 1|2|3] [--shape gpt2|llama] [--only WORD ...] [--json FILE]
       python -m bench.zero calls [--ranks N ...] [--shape ...] [--only WORD ...] [--json FILE] [--section.field VALUE]

`turns`: 2 processes of one thread share a run over gloo, with plain data parallelism and with each engine. All take
turns; ratios are taken within a round. Seconds of an update by the clock and of the processor, the most memory that a
process held, bytes on its sockets.
`memory`: the resident peak of the third update alone, where what is freed leaves the process (Linux), beside the
planner's; libraries are in it, some 0.3 GB.
`calls`: rank 0's collectives of an update in a process group of N ranks that isn't there (torch's fake one), in which
nothing is sent, beside `coretrain.planning.traffic`: what NCCL would send in rings, whatever gloo does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.scale import PROCESSES, QUIET, TURN, WARM_UP, Fields, chosen, keep, pairs
from bench.scale_worker import LR, Children
from coretrain.base.errors import UserError, exits_cleanly
from coretrain.config.load import load_config
from coretrain.planning.memory import footprint
from coretrain.planning.traffic import traffic
from coretrain.processes.launch import environment_alone
from coretrain.processes.layout import layout_of
from twintrain.bench.turns import given_fields, updates_of

SIZE: Fields = {"model.layers": 2, "model.width": 768, "model.heads": 12, "model.context": 128, "model.vocab": 50257}
FORMS: dict[str, Fields] = {
    "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": "true", "tied": "true"},
    "llama": {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "bias": "false", "tied": "false"},
}
"""gpt2-124m's width, heads and vocabulary in two layers, with few tokens, so that what is sent counts."""
ONCE = ("reduce_", "broadcast_", "allgather_", "_allgather_base_", "_reduce_scatter_base_")
RING = {"allreduce_": 2} | dict.fromkeys(ONCE, 1)
"""How often a ring passes a buffer on, by the operation's name in torch."""


def shape(name: str, more: Fields) -> Fields:
    """Fields of a run of that form."""
    form = {f"model.{field}": value for field, value in FORMS[name].items()}
    return QUIET | SIZE | form | {"train.batch_size": 4, "train.accumulation": 2} | more


def contenders(stage: int) -> dict[str, Fields]:
    """Ways to share a run: fields by name."""
    shared: Fields = {"parallel.data": PROCESSES}
    found = {"data alone": shared}
    for engine, name in (("deepspeed", "DeepSpeed"), ("fsdp2", "FSDP2")):
        fields = shared | {"parallel.zero": stage, "parallel.zero_engine": engine}
        found[f"{name} {stage}"] = fields
        if engine == "fsdp2" or stage < 3:
            found[f"{name} {stage}, compiled"] = fields | {"execution.compile": "on"}
    return found


def turns(fields: Fields, stage: int, only: Sequence[str], rounds: int) -> Iterator[list[dict[str, Any]]]:
    """After each round, of each contender: seconds of an update, ratios to DeepSpeed's eager ones of the round, peak,
    bytes sent."""
    names = [name for name in contenders(stage) if chosen(name, only)]
    runs = {}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        for name in names:
            print(f"bench.zero: {name}: warm-up", file=sys.stderr, flush=True)
            task = {"do": "train", "stack": "torch", "fields": fields | contenders(stage)[name]}
            runs[name] = Children(task, PROCESSES, threads=1)
            runs[name].turn(WARM_UP)
        for number in range(rounds):
            print(f"bench.zero: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for name in names if number % 2 else reversed(names):
                answers = runs[name].turn(TURN)
                seconds = max(statistics.median(answer["seconds"]) for answer in answers)
                sent = [answer["sent"] for answer in answers]
                most = None if None in sent else max(sent) / TURN
                cpu = max(answer["cpu"] for answer in answers) / TURN
                peak = max(answer["peak"] for answer in answers)
                found[name].append({"seconds": seconds, "cpu": cpu, "peak": peak, "sent": most})
            yield rows_of(found, stage)
    finally:
        for children in runs.values():
            children.close()


def rows_of(found: Mapping[str, Sequence[dict[str, Any]]], stage: int) -> list[dict[str, Any]]:
    """Rows of the table of `turns`, of all rounds until now."""
    base = found.get(f"DeepSpeed {stage}") or next(iter(found.values()))
    rows = []
    for name in found:
        row: dict[str, Any] = {"name": name, "peak": found[name][-1]["peak"], "sent": found[name][-1]["sent"]}
        for key in ("seconds", "cpu"):
            row[key] = statistics.median(each[key] for each in found[name])
            row[f"{key} ratios"] = sorted(a[key] / b[key] for a, b in zip(found[name], base, strict=True))
        rows.append(row | {"rounds": found[name]})
    return rows


def memory(fields: Fields, stage: int, only: Sequence[str]) -> list[dict[str, Any]]:
    """Of each contender the most that a process holds in an update after the first two; nothing of it is timed."""
    rows = []
    for name, way in contenders(stage).items():
        if chosen(name, only):
            task = {"do": "train", "stack": "torch", "fields": fields | way, "tight": True}
            children = Children(task, PROCESSES, threads=1)
            try:
                children.turn(WARM_UP)
                peak = max(answer["peak"] for answer in children.turn(1))
            finally:
                children.close()
            config = load_config("tiny", pairs(fields | way))
            rows.append({"name": name, "peak": peak, "planned": footprint(config, layout_of(config, PROCESSES)).total})
    return rows


def calls(form: str, more: Fields, ranks: int, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Of each engine and stage: how often rank 0 calls which collective in an update, their bytes in rings, and the
    planner's."""
    rows = []
    for stage in (1, 2, 3):
        for name, engine in (("DeepSpeed", "deepspeed"), ("FSDP2", "fsdp2")):
            if not chosen(f"{name} {stage}", only):
                continue
            # rows for all ranks, of one token or two: it is the weights that count here
            few = {"train.batch_size": 2 * ranks, "model.context": 2, "parallel.data": ranks}
            fields = shape(form, few | {"parallel.zero": stage, "parallel.zero_engine": engine} | more)
            task = json.dumps({"fields": fields, "ranks": ranks})
            command = [sys.executable, "-m", "bench.zero", "--child", task]
            done = subprocess.run(command, capture_output=True, text=True, env=environment_alone(), check=False)
            if done.returncode:
                raise UserError(
                    "bench/group-failed",
                    f"rank 0 of {ranks} with {name} {stage} failed: {done.stderr.splitlines()[-1]}",
                )
            config = load_config("tiny", pairs(fields))
            planned = sum(traffic(config, layout_of(config, ranks)).values())
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"name": f"{name} {stage}", "ranks": ranks, "planned": planned} | found)
    return rows


def child(task: dict[str, Any]) -> dict[str, Any]:
    """The collectives of the third update of rank 0 in a group that isn't there."""
    import numpy as np
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from coretrain.data.batch import windows
    from torchtrain.parallel.choose import make_trainer

    noted: Counter[str] = Counter()
    sent: Counter[str] = Counter()

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "c10d":
                name = func._schema.name.removeprefix("c10d::")
                sizes = [t.numel() * t.element_size() for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
                whole = sum(sizes[: task["ranks"]]) if name == "allgather_" else max(sizes)
                noted[name] += 1
                if whole > 1024:  # not the scalars of loss and norm
                    sent[name] += RING[name] * whole
            return func(*args, **(kwargs or {}))

    dist.init_process_group("fake", rank=0, world_size=task["ranks"], store=FakeStore())
    config = load_config("tiny", pairs(task["fields"]))
    trainer = make_trainer(config)
    update = updates_of(trainer, LR)
    ids = np.zeros((config.train.batch_size, config.model.context + 1), np.int32)
    for number in range(3):
        noted.clear()
        sent.clear()
        with Noting():
            update(windows(ids), number)
    ring = (task["ranks"] - 1) / task["ranks"]
    return {"calls": noted, "sent": {name: ring * size for name, size in sent.items()}}


def show(part: str, rows: Sequence[dict[str, Any]]) -> None:
    """The table as Markdown."""
    if part == "turns":
        print("| | s an update | of DeepSpeed's | CPU s a process | of DeepSpeed's | peak MB | MB sent |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for row in rows:
            cells = [row["name"]]
            for key in ("seconds", "cpu"):
                ratios = row[f"{key} ratios"]
                spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                cells += [f"{row[key]:.2f}", spread]
            sent = "" if row["sent"] is None else f"{row['sent'] / 1e6:.0f}"
            print("| " + " | ".join([*cells, f"{row['peak'] / 1e6:.0f}", sent]) + " |")
        return
    if part == "memory":
        print("| | peak MB | planned |\n|---|---:|---:|")
        for row in rows:
            print(f"| {row['name']} | {row['peak'] / 1e6:.0f} | {row['planned'] / 1e6:.0f} |")
        return
    print("| ranks | | MB in rings | planned | collectives |\n|---:|---|---:|---:|---|")
    for row in rows:
        named = ", ".join(f"{count} {name.strip('_')}" for name, count in sorted(row["calls"].items()))
        total = math.fsum(row["sent"].values())
        print(f"| {row['ranks']} | {row['name']} | {total / 1e6:.1f} | {row['planned'] / 1e6:.1f} | {named} |")


@exits_cleanly
def main() -> int:
    """Measure one part, then print its table."""
    if sys.argv[1:2] == ["--child"]:
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print must not get between the answers
        print(json.dumps(child(json.loads(sys.argv[2]))), file=answers, flush=True)
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=("turns", "memory", "calls"))
    parser.add_argument(
        "--stage", type=int, choices=(1, 2, 3), default=3, help="of turns and memory (default %(default)s)"
    )
    parser.add_argument("--shape", choices=FORMS, default="gpt2", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="rows whose names hold all these words")
    parser.add_argument("--rounds", type=int, default=5, help=f"of {TURN} updates each (default %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64], help="of calls (default: 8 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the results to FILE: runs/bench/zero.json")
    given, rest = parser.parse_known_args()
    more = given_fields(rest)
    if given.part == "turns":
        tables = turns(shape(given.shape, more), given.stage, given.only, max(1, given.rounds))
    elif given.part == "memory":
        tables = iter([memory(shape(given.shape, more), given.stage, given.only)])
    else:
        tables = iter([[row for ranks in given.ranks for row in calls(given.shape, more, ranks, given.only)]])
    for rows in tables:
        if given.json:  # after each round: on a busy machine they take minutes
            keep(given.json, f"{given.part} {given.shape} {given.stage if given.part != 'calls' else ''}".strip(), rows)
    show(given.part, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
