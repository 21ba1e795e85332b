"""Measured peak memory of a state's way to disk and back, in this host's memory, each step in a process of its own.

Usage: python -m bench.state [torch|jax] [--layers N] [--width D] [--markdown]   # default: 1.04B parameters

Parameters and two moments are made, saved natively and written as interchange, then read back from either. Each
figure is the process' resident peak over what it held after a small state went the same way, in units of the state's
size. What came back is compared bit for bit.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.memory import resident
from coretrain.checkpoint.interchange import load_interchange, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import InitialParameters, parameter_table

LEGS = (("make", "save", "interchange out"), ("resume",), ("interchange in",))
"""What one process does after the other."""
STEPS = tuple(step for leg in LEGS for step in leg)


def shaped(layers: int, width: int, **more: object) -> RunConfig:
    """A Llama of this size with a vocabulary in proportion; 16 layers x 2048 have 1,038,680,064 parameters."""
    fields = {"model.layers": layers, "model.width": width, "model.mlp_width": 4 * width}
    fields |= {"model.vocab": 1000 * layers * width // 1024}
    fields |= {"execution.device": "cpu", "execution.compile": "off", **more}
    return load_config("llama-1b", [(key, str(value)) for key, value in fields.items()])


def state_bytes(config: RunConfig) -> int:
    """Parameters and two moments in float32."""
    return 12 * sum(row.size for row in parameter_table(config.model))


def digest(groups: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """A hash of every bit of a state, one tensor at a time."""
    found = hashlib.blake2b(digest_size=16)
    for group in sorted(groups):
        for name in sorted(groups[group]):
            found.update(f"{group}/{name}".encode())
            found.update(np.ascontiguousarray(groups[group][name]).data)
    return found.hexdigest()


def _peak() -> int:
    """The resident peak since the last call."""
    found = resident("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return found


def round_trip(stack: str, config: RunConfig, folder: Path, leg: tuple[str, ...]) -> dict[str, Any]:
    """Peak bytes of each step of a leg, which leaves in `folder` what the next ones read; and the hash of the state."""
    trainer = importlib.import_module(f"{stack}train.trainer").Trainer(config)
    peaks: dict[str, Any] = {}
    if "save" in leg:
        groups = ("parameters", "first_moment", "second_moment")
        trainer.adopt({group: InitialParameters(config.model, seed) for seed, group in enumerate(groups)}, 1)
        peaks["make"] = _peak()
        trainer.save(folder).result()
        peaks["save"] = _peak()
        save_interchange(folder / "interchange", config, trainer.export(), Progress(applied=1), stack)
        peaks["interchange out"] = _peak()
    elif "resume" in leg:
        trainer.load(folder, 1)
        peaks["resume"] = _peak()
    else:
        trainer.adopt(load_interchange(folder / "interchange").groups, 1)
        peaks["interchange in"] = _peak()
    return peaks | {"digest": digest(trainer.export())}


def child(stack: str, config: RunConfig, folder: Path, legs: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """Peak bytes of every step over the resident ones after a small state went the same way; the hashes of the state.

    Here, one leg after the other.
    """
    with tempfile.TemporaryDirectory() as scratch:
        small = shaped(1, 64, **{"model.heads": 1, "model.kv_heads": 1})
        for leg in LEGS:
            round_trip(stack, small, Path(scratch), leg)
    found: dict[str, Any] = {"digests": []}
    for leg in legs:
        gc.collect()
        before = resident()
        _peak()
        peaks = round_trip(stack, config, folder, leg)
        found["digests"].append(peaks.pop("digest"))
        found |= {step: peak - before for step, peak in peaks.items()}
    return found


def measure(stack: str, layers: int, width: int, folder: Path, apart: bool = True) -> dict[str, float]:
    """Peak of each step in units of the state's size, each leg in a process of its own or all in one.

    Raises RuntimeError where a bit differs or a process fails.
    """
    peaks: dict[str, float] = {}
    digests: set[str] = set()
    for numbers in ("0", "1", "2") if apart else ("012",):
        command = [sys.executable, "-m", "bench.state", stack, "--layers", str(layers), "--width", str(width)]
        done = subprocess.run([*command, "--child", numbers, str(folder)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{stack}, {numbers}: ended with {done.returncode}\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        digests |= set(found.pop("digests"))
        peaks |= {step: size / state_bytes(shaped(layers, width)) for step, size in found.items()}
    if len(digests) > 1:
        raise RuntimeError(f"{stack}: what came back is not what was saved")
    return peaks


def main() -> None:
    """Measure the steps and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stack", nargs="?", choices=("torch", "jax"), default="torch")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--markdown", action="store_true", help="a table for docs/scale.md")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    config = shaped(given.layers, given.width)
    if given.child:
        numbers, folder = given.child
        print(json.dumps(child(given.stack, config, Path(folder), tuple(LEGS[int(n)] for n in numbers))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        peaks = measure(given.stack, given.layers, given.width, Path(scratch))
    size = state_bytes(config)
    if given.markdown:
        print("|", " | ".join([given.stack, f"{size / 1e9:.2f}", *(f"{peaks[step]:.2f}" for step in STEPS)]), "|")
        return
    table = Table("step", "peak / state", title=f"{given.stack}, a state of {size / 1e9:.2f} GB")
    for step in STEPS:
        table.add_row(step, f"{peaks[step]:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
