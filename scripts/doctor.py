"""`python scripts/doctor.py`: what this machine has, what the trainers would choose here and why, its matmul peak."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coretrain.config import load_config
from coretrain.errors import UserError

PACKAGES = ("torch", "jax", "flax", "optax", "orbax-checkpoint", "grain", "chex", "tiktoken", "tokenizers", "numpy")
OPTIONAL = {
    "deepspeed": "deepspeed",
    "flash-attn": "flash",
    "wandb": "wandb",
    "datasets": "datasets",
    "libtpu": "tpu",
    "jax-cuda13-plugin": "cuda",
    "transformers": "bench",
}
"""Optional package: the extra that installs it."""

Rows = list[tuple[str, str]]


def version(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> Rows:
    """Python, and the packages at the heart."""
    rows = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    return rows + [(name, version(name) or "missing: pip install -e .") for name in PACKAGES]


def optional() -> Rows:
    """Optional packages, with the install line of those that are missing."""
    return [(name, version(name) or f"not installed: pip install -e '.[{extra}]'") for name, extra in OPTIONAL.items()]


def devices() -> Rows:
    """CPU, MPS, CUDA and TPU, as torch and JAX see them."""
    compiler = shutil.which("g++") or shutil.which("clang++") or "no C++ compiler: torch.compile is off on the CPU"
    rows = [("CPU", f"{os.cpu_count()} cores, {compiler}")]
    if importlib.util.find_spec("torch"):
        import torch

        rows.append(("instructions", f"{torch.backends.cpu.get_cpu_capability()} (torch)"))
        rows.append(("MPS", "present" if torch.backends.mps.is_available() else "not present"))
        cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "not present, or torch built without it"
        rows.append(("CUDA (torch)", cuda))
    if importlib.util.find_spec("jax"):
        import jax

        found = jax.devices()
        rows.append(("JAX", f"{len(found)} x {found[0].device_kind} ({jax.default_backend()})"))
        rows.append(("TPU", "present" if jax.default_backend() == "tpu" else "not present to JAX"))
    return rows


def choices() -> Rows:
    """What each trainer would choose for the default config, with its reasons."""
    config = load_config().with_vocab(4096)
    rows: Rows = []
    for module in ("torchtrain", "jaxtrain"):
        try:
            trainer = importlib.import_module(f"{module}.trainer").Trainer(config)
            rows += [(f"{module} {label}", value) for label, value in trainer.describe()]
        except (ImportError, UserError) as error:
            rows.append((module, f"can't run here: {error}"))
    return rows


def peaks() -> Rows:
    """Measured matmul speed, each in a process of its own."""
    rows: Rows = []
    script = Path(__file__).with_name("matmul_peak.py")
    for framework in ("torch", "jax"):
        for dtype in ("float32", "bfloat16"):
            command = [sys.executable, str(script), framework, dtype]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                text = f"{found['gflops']:,.1f} GFLOP/s ({found['size']} x {found['size']})"
            except (subprocess.SubprocessError, ValueError, IndexError):
                text = "could not be measured"
            rows.append((f"{framework} {dtype}", text))
    return rows


def show(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """One titled block."""
    table = Table(title=title, title_justify="left", title_style="bold cyan", show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()


def main() -> None:
    """Print every block."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    blocks: dict[str, Callable[[], Rows]] = {
        "Versions": versions,
        "Devices": devices,
        "Optional packages": optional,
        "What the trainers would choose here (default config)": choices,
        "Measured matmul peak": peaks,
    }
    for title, block in blocks.items():
        show(console, title, block())


if __name__ == "__main__":
    main()
