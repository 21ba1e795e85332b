"""Training speed and memory of both stacks and of Hugging Face's GPT-2, against this machine's own matmul peak.

Usage: python -m bench.speed [--layers 6 --width 384 --vocab 50257 --batch 8 --context 256 --updates 12]
                               [--only NAME ...] [--markdown] [--json FILE]

Every contender is a process of its own, so that its peak memory is its own. They take turns, a few updates each, with a
matmul between them: what else the machine does hits all of them alike. Shares and ratios are taken within a round, then
their median. FLOPs are `coretrain.planning.flops`'s (6N + attention, causal masking not halved), the same for all.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.turns import (
    Child,
    Turn,
    machine,
    serve,
    timed,
    updates_of,
)
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.data.batch import windows
from coretrain.planning.flops import flops_per_token

TURN = 2
"""Updates of one turn."""
WARM_UP = 2
"""Updates before the first timed one: compiling, and the moments' first allocation."""
MATMULS = 8
"""Multiplications of one turn of a matmul peak, of which the fastest counts."""
NO_UNITS = 0.05
"""A bfloat16 peak below this share of the float32 one is a reference path, not hardware."""
PEAK_LIMIT = 60.0
"""Seconds that finding one bfloat16 peak may take."""
LR = 1e-4
"""Learning rate of every contender: it changes nothing about speed."""


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    label: str
    framework: str
    dtype: str
    peer: bool = False
    compile: bool = False


CONTENDERS = {
    "torch-f32": Contender("twintrain, torch, f32", "torch", "float32"),
    "torch-f32-compiled": Contender("twintrain, torch, f32, compiled", "torch", "float32", compile=True),
    "jax-f32": Contender("twintrain, JAX, f32", "jax", "float32"),
    "peer-f32": Contender("transformers GPT-2, torch, f32", "torch", "float32", peer=True),
    "torch-bf16": Contender("twintrain, torch, bf16", "torch", "bfloat16"),
    "torch-bf16-compiled": Contender("twintrain, torch, bf16, compiled", "torch", "bfloat16", compile=True),
    "jax-bf16": Contender("twintrain, JAX, bf16", "jax", "bfloat16"),
    "peer-bf16": Contender("transformers GPT-2, torch, bf16 autocast", "torch", "bfloat16", peer=True),
}


@dataclass(frozen=True)
class Shape:
    """What is trained; heads are 64 wide where the width allows it."""

    layers: int = 6
    width: int = 384
    vocab: int = 50257
    batch: int = 8
    context: int = 256

    @property
    def heads(self) -> int:
        """Heads of the model."""
        return max(1, self.width // 64)

    def config(self, dtype: str = "float32", compiled: bool = False) -> RunConfig:
        """The run that the stacks are given: a GPT-2 of this shape, all else at its default."""
        fields = {
            "model.layers": self.layers,
            "model.width": self.width,
            "model.heads": self.heads,
            "model.vocab": self.vocab,
            "model.context": self.context,
            "model.norm": "layernorm",
            "model.position": "learned",
            "model.mlp": "gelu",
            "model.bias": True,
            "model.tied": True,
            "train.batch_size": self.batch,
            "precision.compute": dtype,
            "execution.compile": "on" if compiled else "off",
        }
        return load_config("tiny", [(key, str(value)) for key, value in fields.items()])


@dataclass
class Row:
    """Results of one contender; `status` is `ok`, or why there are none."""

    name: str
    label: str
    framework: str
    dtype: str
    status: str = "ok"
    tokens_per_second: float | None = None
    gflops: float | None = None
    share_of_peak: float | None = None
    peak_memory_bytes: int | None = None
    ratio_to_peer: float | None = None
    update_seconds: list[float] = field(default_factory=list)
    """Median update of each round."""


# ---------------------------------------------------------------- in a child


def ours(contender: Contender, shape: Shape) -> Callable[[np.ndarray, int], None]:
    """One update of a stack, through its own Trainer, as `coretrain.training.loop` drives it."""
    module = {"torch": "torchtrain.trainer", "jax": "jaxtrain.trainer"}[contender.framework]
    config = shape.config(contender.dtype, contender.compile)
    update = updates_of(importlib.import_module(module).Trainer(config), LR)
    return lambda batch, n: update(windows(batch), n)


def peer(contender: Contender, shape: Shape) -> Callable[[np.ndarray, int], None]:
    """One update of Hugging Face's GPT-2, in the loop that people write around it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    c = shape.config()
    size = {"vocab_size": shape.vocab, "n_positions": shape.context, "n_embd": shape.width, "n_layer": shape.layers}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "attn_implementation": "sdpa"}
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    model = GPT2LMHeadModel(GPT2Config(**size, n_head=shape.heads, **none)).to(device).train()
    o = c.optimizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay)
    bf16 = contender.dtype == "bfloat16"

    def update(batch: np.ndarray, n: int) -> None:
        ids = torch.from_numpy(batch[:, :-1]).to(device, torch.long)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return update


def training(contender: Contender, shape: Shape) -> Turn:
    """A function of n: seconds of each of n more updates."""
    update = (peer if contender.peer else ours)(contender, shape)
    rng, counter = np.random.default_rng(0), itertools.count()
    # all batches of all turns would be too many; making one is nothing against an update
    return timed(
        lambda: update(rng.integers(0, shape.vocab, (shape.batch, shape.context + 1)).astype(np.int32), next(counter))
    )


def multiplying(framework: str, dtype: str, size: int) -> Turn:
    """A function of n: seconds of each of n multiplications of size x size matrices."""
    return timed(importlib.import_module("twintrain.matmul_peak").multiplier(framework, dtype, size))


def contender(task: dict[str, Any]) -> Turn:
    """What a child does."""
    if "size" in task:
        return multiplying(task["framework"], task["dtype"], task["size"])
    return training(CONTENDERS[task["name"]], Shape(**task["shape"]))


# ---------------------------------------------------------------- in the parent


def measured_peak(framework: str, dtype: str) -> dict[str, float]:
    """Matmul GFLOP/s and the size it was measured at, by twintrain/matmul_peak.py; 0 where that took too long."""
    command = [sys.executable, "-m", "twintrain.matmul_peak", framework, dtype]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PEAK_LIMIT, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError):
        return {"size": 0, "gflops": 0.0}


def obstacle(contender: Contender, peaks: dict[str, dict[str, float]]) -> str | None:
    """Why a contender can't be run here, or None."""
    missing = [name for name in ("transformers",) if contender.peer and not importlib.util.find_spec(name)]
    if missing:
        return "not run: pip install 'twintrain[bench]'"
    if contender.dtype == "bfloat16":
        half, full = (peaks[f"{contender.framework} {dtype}"]["gflops"] for dtype in ("bfloat16", "float32"))
        if half < NO_UNITS * full:
            return f"not run: this CPU has no bf16 units ({half:.1f} GFLOP/s)"
    return None


def bench(names: Sequence[str], shape: Shape, updates: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All contenders, in turns: the machine, the shape, the peaks and the rows, as JSON has them."""
    chosen = {name: CONTENDERS[name] for name in names}
    rows = {name: Row(name, c.label, c.framework, c.dtype) for name, c in chosen.items()}
    kinds = {(c.framework, c.dtype) for c in chosen.values()}
    kinds |= {(framework, "float32") for framework, _ in kinds}
    say("matmul peaks")
    peaks = {f"{framework} {dtype}": measured_peak(framework, dtype) for framework, dtype in sorted(kinds)}
    for name, contender in chosen.items():
        rows[name].status = obstacle(contender, peaks) or "ok"
    running = [name for name in chosen if rows[name].status == "ok"]
    children = {name: Child("bench.speed", {"name": name, "shape": asdict(shape)}) for name in running}
    matmuls = {}
    for key in {f"{chosen[name].framework} {chosen[name].dtype}" for name in running}:
        framework, dtype = key.split()
        matmuls[key] = Child("bench.speed", {"framework": framework, "dtype": dtype, "size": int(peaks[key]["size"])})
    for name, child in children.items():
        say(f"{rows[name].label}: warm-up")
        child.turn(WARM_UP)
    rounds: list[dict[str, float]] = []
    for index in range(-(-updates // TURN)):
        say(f"round {index + 1} of {-(-updates // TURN)}")
        seconds = {key: child.turn(MATMULS) for key, child in matmuls.items()}
        speeds = {key: 2 * peaks[key]["size"] ** 3 / min(times) / 1e9 for key, times in seconds.items() if times}
        updated = {name: child.turn(TURN) for name, child in children.items()}
        rounds.append(speeds | {name: statistics.median(times) for name, times in updated.items() if times})
    for child in [*children.values(), *matmuls.values()]:
        child.close()
    for key in matmuls:
        peaks[key]["gflops_in_rounds"] = statistics.median(found[key] for found in rounds)
    for name, child in children.items():
        if child.error:
            rows[name].status = f"failed: {child.error}"
        else:
            fill(rows[name], shape, rounds, child.memory)
    return {
        "machine": machine(("torch", "jax", "transformers")),
        "shape": asdict(shape),
        "flops_per_token": flops_per_token(shape.config().model),
        "peaks": peaks,
        "rows": [asdict(row) for row in rows.values()],
    }


def fill(row: Row, shape: Shape, rounds: Sequence[dict[str, float]], memory: int) -> None:
    """The figures of one contender, from all rounds."""
    tokens = shape.batch * shape.context
    flops = tokens * flops_per_token(shape.config().model)
    row.update_seconds = [found[row.name] for found in rounds]
    seconds = statistics.median(row.update_seconds)
    row.tokens_per_second, row.gflops, row.peak_memory_bytes = tokens / seconds, flops / seconds / 1e9, memory
    peak, other = f"{row.framework} {row.dtype}", "peer-f32" if row.dtype == "float32" else "peer-bf16"
    row.share_of_peak = statistics.median(flops / found[row.name] / 1e9 / found[peak] for found in rounds)
    if all(other in found for found in rounds):
        row.ratio_to_peer = statistics.median(found[other] / found[row.name] for found in rounds)


HEADINGS = ("", "tokens/s", "GFLOP/s", "of matmul peak", "peak memory", "speed against peer")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One row as text."""
    if row["status"] != "ok":
        return (row["label"], row["status"], "", "", "", "")
    ratio = row["ratio_to_peer"]
    return (
        row["label"],
        f"{row['tokens_per_second']:,.0f}",
        f"{row['gflops']:,.0f}",
        f"{row['share_of_peak']:.0%}",
        f"{row['peak_memory_bytes'] / 2**30:.2f} GiB",
        "" if ratio is None else f"{ratio:.2f}x",
    )


def heading(result: dict[str, Any]) -> str:
    """The shape and the machine in one sentence each."""
    s, m = result["shape"], result["machine"]
    found = ", ".join(f"{key} {peak['gflops']:,.1f}" for key, peak in result["peaks"].items())
    return (
        f"{s['layers']} layers x {s['width']}, vocabulary {s['vocab']:,}, {s['batch']} x {s['context']} tokens;"
        f" {m['cpu']}, {m['cores']} cores.\nMatmul peak in GFLOP/s: {found}."
    )


def markdown(result: dict[str, Any]) -> str:
    """The table for the README."""
    lines = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *map(cells, result["rows"])]
    return heading(result) + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(result: dict[str, Any]) -> None:
    """The table on a terminal, or as aligned text into a pipe."""
    lines = [cells(row) for row in result["rows"]]
    if not sys.stdout.isatty():
        print(heading(result))
        widths = [max(len(line[i]) for line in [HEADINGS, *lines] if line[2] or i != 1) for i in range(len(HEADINGS))]
        for line in [HEADINGS, *lines]:
            first, *rest = (f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
            print("  ".join([f"{first.strip():<{widths[0]}}", *rest]).rstrip())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=heading(result), title_justify="left")
    for index, name in enumerate(HEADINGS):
        table.add_column(name, justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    Console(highlight=False).print(table)


def main() -> int:
    """Measure, then print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--updates", type=int, default=12, help="timed updates of each contender (default 12)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, every round's times included")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        serve(given.child, contender)
        return 0
    shape = Shape(given.layers, given.width, given.vocab, given.batch, given.context)

    def say(text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)

    result = bench(given.only, shape, max(1, given.updates), say)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(markdown(result)) if given.markdown else show(result)
    return 1 if any(row["status"].startswith("failed") for row in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
