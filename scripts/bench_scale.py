"""What sharing a run costs on this machine: time and bytes of each way, against one process, and the loop's own time.

Usage: python scripts/bench_scale.py [--processes 2] [--rounds 3] [--updates 12] [--only NAME ...] [--markdown]

Every way trains the same global batches in processes of its own, which take turns, so that what else the machine does
hits all of them. Ratios are taken within a round, then their median. Bytes are those that went over the loopback device
while a longer run did more updates than a shorter one, beside what the collectives need in theory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # run from a checkout that isn't installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from coretrain.checkpoint import Progress
from coretrain.config import load_config
from coretrain.data import open_data
from coretrain.journal import Journal
from coretrain.layout import layout_of
from coretrain.loop import Loop
from coretrain.traffic import traffic

WARM_UP = 4
"""Updates before the first that is timed: compiling, and the moments' first allocation."""
SHAPE = {
    "model.layers": 4,
    "model.width": 256,
    "model.heads": 4,
    "model.kv_heads": 4,
    "model.context": 128,
    "data.tokenizer": "gpt2",
    "train.batch_size": 16,
    "train.accumulation": 2,
    "train.eval_interval": 100000,
    "train.eval_batches": 1,
    "train.sample_tokens": 0,
    "checkpoint.interval": 100000,
    "schedule.warmup_updates": 2,
    "journal.tensorboard": "false",
    "execution.device": "cpu",
    "execution.compile": "off",
}


@dataclass(frozen=True)
class Way:
    """One way to share the run."""

    name: str
    stack: str
    axis: str = ""
    zero: int = 0

    def options(self, processes: int) -> list[str]:
        """Its command line."""
        if not self.axis:
            return []
        words = [f"--parallel.{self.axis}", str(processes), "--spawn"]
        return [*words, "--parallel.zero", str(self.zero)] if self.zero else words


WAYS = [
    Way("torch, one process", "torch"),
    Way("torch, data", "torch", "data"),
    Way("torch, ZeRO 1", "torch", "data", 1),
    Way("torch, ZeRO 2", "torch", "data", 2),
    Way("torch, ZeRO 3", "torch", "data", 3),
    Way("torch, tensor", "torch", "tensor"),
    Way("torch, pipeline", "torch", "pipeline"),
    Way("jax, one process", "jax"),
    Way("jax, data", "jax", "data"),
    Way("jax, fsdp", "jax", "fsdp"),
    Way("jax, tensor", "jax", "tensor"),
    Way("jax, context", "jax", "context"),
    Way("jax, pipeline", "jax", "pipeline"),
]


def loopback_bytes() -> int:
    """Bytes that this machine has sent to itself so far."""
    row = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(row.split(":")[1].split()[0])


def train(way: Way, processes: int, updates: int, folder: Path) -> tuple[float, int]:
    """Median seconds of an update, and the loopback's bytes of the whole run."""
    command = [sys.executable, "-m", f"{way.stack}train.run", f"--output={folder}", f"--train.updates={updates}"]
    command += [f"--{key}={value}" for key, value in SHAPE.items()] + way.options(processes)
    before = loopback_bytes()
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{way.name}: {last}")
    sent = loopback_bytes() - before
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows if "batch_hash" in row]
    return statistics.median(seconds[WARM_UP:]), sent


def loop_share(stack: str, folder: Path, updates: int = 60) -> float:
    """Share of an update's time that the loop spends outside the stack, at the tiny preset."""
    if stack == "torch":
        from torchtrain.trainer import Trainer
    else:
        from jaxtrain.trainer import Trainer
    config = load_config("tiny", [("train.updates", str(updates)), ("execution.device", "cpu"), *QUIET])
    data = open_data(config)
    config = config.with_vocab(data.tokenizer.vocab)
    trainer: Any = Trainer(config)
    inside: list[float] = []
    for name in ("gradients", "apply"):
        setattr(trainer, name, timed(getattr(trainer, name), inside))
    with Journal(folder, config, stack, 0, trainer.device_name) as journal:
        loop = Loop(config, trainer, data, folder, journal, Progress())
        loop.evaluate = lambda: 0.0  # type: ignore[method-assign]  # what it costs is the user's choice
        loop.save = lambda *_, **__: None  # type: ignore[method-assign]
        loop.train()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows if "batch_hash" in row][WARM_UP:]
    return 1 - sum(inside[2 * WARM_UP :]) / sum(seconds)


QUIET = [("train.eval_interval", "100000"), ("checkpoint.interval", "100000"), ("journal.tensorboard", "false")]


def timed(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    """`function`, its seconds noted."""

    def run(*args: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args)
        finally:
            into.append(time.perf_counter() - started)

    return run


def theory(way: Way, processes: int) -> float:
    """Bytes that all processes send in an update."""
    fields = [(key, str(value)) for key, value in SHAPE.items()]
    if way.axis:
        fields += [(f"parallel.{way.axis}", str(processes)), ("parallel.zero", str(way.zero))]
    config = load_config("tiny", fields).with_vocab(50257)
    layout = layout_of(config, processes if way.axis else 1)
    return layout.devices * sum(traffic(config, layout, way.stack).values())  # type: ignore[arg-type]


def main() -> None:
    """Take turns, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2, help="devices of each way (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default %(default)s)")
    parser.add_argument("--updates", type=int, default=12, help="updates of a turn (default %(default)s)")
    parser.add_argument("--only", nargs="*", default=[], help="ways whose names hold one of these words")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    ways = [way for way in WAYS if not given.only or not way.axis or any(word in way.name for word in given.only)]
    ways = [way for way in ways if way.axis or any(other.stack == way.stack and other.axis for other in ways)]
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    sent: dict[str, float] = {}
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as place:
        for number in range(given.rounds):
            for way in ways:
                short, long = WARM_UP + 2, WARM_UP + given.updates
                _, first = (
                    train(way, given.processes, short, Path(place) / f"{number}-{way.name}-short")
                    if (number == 0 and way.axis)
                    else (0.0, 0)
                )
                each, second = train(way, given.processes, long, Path(place) / f"{number}-{way.name}")
                seconds[way.name].append(each)
                if number == 0 and way.axis:
                    sent[way.name] = (second - first) / (long - short)
        shares = {stack: loop_share(stack, Path(place) / f"loop-{stack}") for stack in {way.stack for way in ways}}
    rows = []
    for way in ways:
        alone = seconds[f"{way.stack}, one process"]
        ratio = statistics.median(a / b for a, b in zip(alone, seconds[way.name], strict=True))
        moved = (
            (f"{sent[way.name] / 2**20:.1f}", f"{theory(way, given.processes) / 2**20:.1f}") if way.axis else ("", "")
        )
        rows.append((way.name, f"{statistics.median(seconds[way.name]) * 1e3:.0f}", f"{ratio:.2f}", *moved))
    head = ("way", "ms an update", "speed against one process", "MiB sent an update", "in theory")
    if given.markdown:
        print("\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)))
    else:
        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for stack, share in sorted(shares.items()):
        print(f"{stack}: the loop takes {share:.1%} of an update's time at the tiny preset")


if __name__ == "__main__":
    main()
