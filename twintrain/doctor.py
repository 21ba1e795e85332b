"""`twintrain doctor`: what this machine has, what the trainers would choose here and why, its matmul peak."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coretrain.base.errors import Options, UserError
from coretrain.config.load import load_config
from coretrain.contract.compute import Speeds

PROGRAM = "twintrain doctor"
PACKAGES = ("torch", "jax", "flax", "optax", "orbax-checkpoint", "grain", "chex", "tiktoken", "tokenizers", "numpy")
OPTIONAL = {
    "deepspeed": "deepspeed",
    "flash-attn": "flash",
    "wandb": "wandb",
    "datasets": "datasets",
    "libtpu": "tpu",
    "jax-cuda13-plugin": "cuda",
    "transformers": "bench",
    "fastwarc": "corpus",
    "ray": "ray",
    "uvicorn": "serve",
    "prompt_toolkit": "chat",
    "lm_eval": "evaluate",
    "gguf": "export",
    "onnxruntime": "export",
    "pytest": "parity",
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
    return rows + [(name, version(name) or "missing: pip install twintrain brings it") for name in PACKAGES]


def optional() -> Rows:
    """Optional packages, with the install line of those that are missing."""
    return [
        (name, version(name) or f"not installed: pip install 'twintrain[{extra}]'") for name, extra in OPTIONAL.items()
    ]


def framework(name: str) -> tuple[Any, str]:
    """The imported package, or None and why not: a broken installation is what a doctor is asked about."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # a missing driver's library is an OSError, a wrong version a RuntimeError, ...
        return None, f"{name} can't be imported: {error}"


def devices() -> Rows:
    """CPU, MPS, CUDA and TPU, as torch and JAX see them, or why they don't."""
    compiler = shutil.which("g++") or shutil.which("clang++") or "no C++ compiler: torch.compile is off on the CPU"
    rows = [("CPU", f"{os.cpu_count()} cores, {compiler}")]
    torch, fault = framework("torch")
    if torch:
        rows.append(("instructions", f"{torch.backends.cpu.get_cpu_capability()} (torch)"))
        built = "no Apple GPU here" if torch.backends.mps.is_built() else "this torch is built without it"
        rows.append(("MPS", "present" if torch.backends.mps.is_available() else f"not present: {built}"))
        built = "no NVIDIA GPU or driver here" if torch.version.cuda else "this torch is built without it"
        here = torch.cuda.is_available()
        rows.append(("CUDA (torch)", torch.cuda.get_device_name() if here else f"not present: {built}"))
    else:
        rows += [("MPS", fault), ("CUDA (torch)", fault)]
    jax, fault = framework("jax")
    try:
        found = jax.devices() if jax else []
    except RuntimeError as error:  # a TPU held by another process, a plugin without its driver
        found, fault = [], f"jax finds no device: {error}"
    if not found:
        return [*rows, ("CUDA (jax)", fault), ("TPU", fault)]
    rows.append(("JAX", f"{len(found)} x {found[0].device_kind} ({found[0].platform})"))
    for label, platform_name, package in (("CUDA (jax)", "gpu", "jax-cuda13-plugin"), ("TPU", "tpu", "libtpu")):
        why = "none found" if version(package) else f"{package} is not installed"
        rows.append((label, "present" if found[0].platform == platform_name else f"not present: {why}"))
    return rows


def choices() -> Rows:
    """What each trainer would choose for the default config, with its reasons."""
    config = load_config().with_vocab(4096)
    rows: Rows = []
    for module in ("torchtrain", "jaxtrain"):
        try:
            trainer = importlib.import_module(f"{module}.parallel.choose").make_trainer(config)
            rows += [(f"{module} {label}", value) for label, value in trainer.describe()]
        except (ImportError, OSError, RuntimeError, UserError) as error:
            rows.append((module, f"can't run here: {error}"))
    return rows


def peaks() -> Rows:
    """Measured matmul speed, each in a process of its own."""
    rows: Rows = []
    for framework in ("torch", "jax"):
        speeds = dict[str, float]()
        for dtype in ("float32", "bfloat16"):
            command = [sys.executable, "-m", "twintrain.matmul_peak", framework, dtype]
            try:
                done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                text = f"{found['gflops']:,.1f} GFLOP/s ({found['size']} x {found['size']})"
                speeds[dtype] = found["gflops"]
            except (subprocess.SubprocessError, ValueError, IndexError):
                text = "could not be measured"
            rows.append((f"{framework} {dtype}", text))
        if len(speeds) == 2:
            rows.append(
                (f"{framework} auto", f"precision.compute = auto would take {Speeds(0, **speeds).choice().name}")
            )
    return rows


def show(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """One titled block: a table on a terminal, plain aligned lines in a pipe."""
    if not console.is_terminal:
        width = max(len(label) for label, _ in rows)
        lines = [title, *(f"  {label:<{width}}  {value}" for label, value in rows), ""]
        console.print("\n".join(lines), markup=False, soft_wrap=True)
        return
    table = Table(title=title, title_justify="left", title_style="bold cyan", show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # an extra's brackets are no markup
    console.print(table)
    console.print()


def options(program: str = PROGRAM) -> Options:
    """What can be asked for."""
    parser = Options(prog=program, description="What this machine has, what the trainers would choose, and why.")
    parser.add_argument("--no-peaks", action="store_true", help="leave the measurements out (some 20 seconds)")
    return parser


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Print every block."""
    given = options(program).parse_args(argv)
    console = Console(highlight=False)
    blocks: dict[str, Callable[[], Rows]] = {
        "Versions": versions,
        "Devices": devices,
        "Optional packages": optional,
        "What the trainers would choose here (default config)": choices,
    }
    if not given.no_peaks:
        blocks["Measured matmul peak"] = peaks
    for title, block in blocks.items():
        show(console, title, block())
    return 0
