"""Measured peak memory of one update against `coretrain.planning.memory`, on this CPU, each case in its own process.

Usage: python -m bench.memory [torch|jax] [--only WORD] [--markdown]

torch: resident peak over the baseline of the same process after a small model has trained (libraries and threads are
in by then), large blocks given back to the system at once. JAX: the compiler's memory_analysis, plus the moments.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.contract.update import Limits, Orders, Standing
from coretrain.data.batch import windows
from coretrain.planning.memory import footprint
from twintrain.bench.turns import updates_of

BASE = {
    "model.layers": 6,
    "model.width": 256,
    "model.heads": 4,
    "model.vocab": 8192,
    "model.context": 256,
    "train.batch_size": 16,
    "execution.loss_chunk": 1024,
    "execution.device": "cpu",
    "execution.compile": "off",
    "execution.scan_layers": "true",
}
GPT2 = {"model.norm": "layernorm", "model.position": "learned", "model.mlp": "gelu", "model.bias": "true"}
FULL, MATMULS = {"execution.checkpoint_activations": "full"}, {"execution.checkpoint_activations": "matmuls"}
LOW, SPLIT = {"precision.compute": "bfloat16"}, {"train.accumulation": 4}
LORA = {"adapter.kind": "lora"}
WIDE = {"model.width": 1024, "model.heads": 8, "model.vocab": 4096, "model.context": 128, "train.batch_size": 2}
CASES: dict[str, dict[str, Any]] = {
    "Llama form": {},
    "Llama form, matmuls": MATMULS,
    "Llama form, full": FULL,
    "Llama form, 4 micro-batches": SPLIT,
    "Llama form, bfloat16": LOW,
    "Llama form, bfloat16, matmuls": LOW | MATMULS,
    "Llama form, bfloat16, full": LOW | FULL,
    "Llama form, untied, 2 kv heads, full, 4 micro-batches": FULL
    | SPLIT
    | {"model.tied": "false", "model.kv_heads": 2},
    "GPT-2 form": GPT2,
    "GPT-2 form, matmuls": GPT2 | MATMULS,
    "GPT-2 form, bfloat16, full": GPT2 | LOW | FULL,
    "GPT-2 form, 512 wide, context 128": GPT2 | {"model.width": 512, "model.heads": 8, "model.context": 128},
    "GPT-2 form, 512 wide, 2 rows (parameters rule)": GPT2
    | {"model.width": 512, "model.heads": 8, "train.batch_size": 2},
    **{
        f"Llama form, 1024 wide, full, {name}": FULL | WIDE | fields
        for name, fields in {
            "all weights": {},
            "LoRA": LORA,
            "QLoRA nf4": LORA | {"adapter.quantize": "nf4"},
            "QLoRA int8": LORA | {"adapter.quantize": "int8"},
            "QLoRA nf4, bfloat16": LORA | LOW | {"adapter.quantize": "nf4"},
        }.items()
    },
}
"""What differs from `BASE`."""
MMAP_THRESHOLD = -3
"""Parameter of glibc's mallopt (malloc.h)."""


@dataclass(frozen=True)
class Measured:
    """One case."""

    name: str
    stack: str
    analytic: float
    measured: float

    @property
    def error(self) -> float:
        """Of the analytic figure, relative to the measured one."""
        return self.analytic / self.measured - 1


def made(case: str, **more: object) -> RunConfig:
    """The run of a case."""
    fields = BASE | CASES[case] | more
    return load_config("tiny", [(key, str(value)) for key, value in fields.items()])


def resident(key: str = "VmRSS") -> int:
    """Resident bytes of this process, or their peak (VmHWM)."""
    found = re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def torch_peak(config: RunConfig) -> float:
    """Bytes that a third update needs, over what the process holds before the model is made."""
    import torchtrain.trainer as module

    libc = ctypes.CDLL(None)
    module.keep_freed_memory = module.give_back_freed_memory = lambda: False
    libc.mallopt(MMAP_THRESHOLD, 65536)  # a fixed threshold: what is freed leaves the process

    def updates(c: RunConfig, count: int) -> None:
        trainer, rng = module.Trainer(c), np.random.default_rng(0)
        update = updates_of(trainer, 1e-4)
        for n in range(count):
            Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
            batch = rng.integers(0, c.model.vocabulary, (c.train.batch_size, c.model.context + 1)).astype(np.int32)
            update(windows(batch), n)

    small = {"layers": 1, "width": 64, "heads": 1, "kv_heads": 1, "vocab": 512, "mlp_width": 128}
    fields = {f"model__{name}": value for name, value in small.items()}
    updates(config.changed(**fields, train__batch_size=2, train__accumulation=1), 2)
    gc.collect()
    libc.malloc_trim(0)
    before = resident()
    updates(config, 3)
    return float(resident("VmHWM") - before)


def jax_peak(config: RunConfig) -> float:
    """Bytes of the compiled update's arguments, results and scratch: weights and moments are among them."""
    from jaxtrain.step import told_of
    from jaxtrain.trainer import Trainer

    trainer = Trainer(config)
    batch = np.zeros((config.train.batch_size, config.model.context + 1), np.int32)
    orders = Orders(1e-4, Limits(math.inf, math.inf), 1.0, Standing(0, 0, False), alone=True)
    told, standing = told_of(config, orders)
    state = trainer.params, trainer.programs.moments, standing
    found = (
        trainer.programs.update.lower(*state, trainer.frozen, windows(batch), None, told).compile().memory_analysis()
    )
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return float(held + found.temp_size_in_bytes)


def measure(stack: str, case: str) -> Measured:
    """One case, in a process of its own."""
    command = [sys.executable, "-m", "bench.memory", stack, "--child", case]
    # fewer scratch buffers of threads, and quicker on a busy machine; oneDNN's AVX512 kernels pack matrices anew
    one = os.environ | {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500, env=one)
    jax = stack == "jax"
    analytic = footprint(made(case), stack="jax" if jax else "torch", scores=jax).total  # on a CPU JAX makes them all
    return Measured(case, stack, analytic, json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stack", nargs="?", choices=("torch", "jax"), default="torch")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name has this word")
    parser.add_argument("--markdown", action="store_true", help="a table for docs/planning.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print((torch_peak if given.stack == "torch" else jax_peak)(made(given.child)))
        return
    rows = []
    for case in CASES:
        if given.only in case:
            found = measure(given.stack, case)
            rows.append((case, f"{found.analytic / 1e6:.0f}", f"{found.measured / 1e6:.0f}", f"{found.error:+.1%}"))
            print("|", " | ".join(rows[-1]), "|", file=sys.stdout if given.markdown else sys.stderr, flush=True)
    if not given.markdown:
        table = Table("case", "analytic MB", "measured MB", "error", title=f"{given.stack}, one update")
        for row in rows:
            table.add_row(*row)
        Console().print(table)


if __name__ == "__main__":
    main()
