"""What a run takes of this machine: the device, and whether to compile, each with its reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch

from coretrain.base.errors import UserError
from coretrain.base.processor import processor
from coretrain.config.run import RunConfig
from coretrain.contract.choices import Choice
from coretrain.contract.compute import Matmuls
from coretrain.planning.flops import run_flops

COMPILE_PAYS_AFTER = 1e13
"""FLOPs of a CPU run for each of its layers, about a minute on 2 cores, above which compiling them is repaid.

It takes half a minute for 6 layers, and two minutes for 30 with adapters: they are unrolled.
"""


def choose_device(config: RunConfig) -> Choice:
    """The device to train on; `UserError` where the one asked for isn't there."""
    wanted = {"gpu": "cuda"}.get(config.execution.device, config.execution.device)
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    double = config.precision.compute == "float64"
    if wanted == "auto":
        usable = [name for name, here in present.items() if here and not (name == "mps" and double)]
        missing = ", ".join(f"no {name}" for name in ("cuda", "mps") if name not in usable)
        return Choice(usable[0], missing or "the fastest present")
    if wanted not in present:
        raise UserError(
            "torch/unknown-device",
            f"execution.device = {wanted} is not a torch device: choose auto, cpu, mps or cuda",
        )
    if not present[wanted]:
        raise UserError(
            "torch/device-not-available",
            f"execution.device = {wanted} is not available to torch here: use auto, or see twintrain doctor",
        )
    if wanted == "mps" and double:
        raise UserError(
            "torch/mps-without-float64",
            "execution.device = mps has no float64: use cpu for precision.compute = float64",
        )
    return Choice(wanted, "asked for by execution.device")


def choose_compile(config: RunConfig, device: torch.device) -> Choice:
    """Whether to use torch.compile, and why: on or off."""
    wanted = config.execution.compile
    obstacle = None
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        obstacle = "no C++ compiler is installed"
    if config.parallel.tensor > 1 or config.parallel.pipeline > 1:
        obstacle = "tensor and pipeline parallelism communicate inside the model"
    if config.parallel.zero == 3 and config.parallel.zero_engine == "deepspeed":
        obstacle = "DeepSpeed's ZeRO 3 gathers weights by hooks on modules"
    if device.type == "mps":
        obstacle = "compiled LayerNorm gradients are wrong on MPS in torch 2.13"
    if wanted == "on" and obstacle:
        raise UserError(
            "torch/compile-not-available", f"execution.compile = on can't be done here: {obstacle}; use auto"
        )
    if wanted != "auto":
        return Choice(wanted, "asked for by execution.compile")
    if obstacle:
        return Choice("off", obstacle)
    if device.type == "cpu" and run_flops(config) < COMPILE_PAYS_AFTER * config.model.layers:
        why = f"the run's {run_flops(config):.1e} FLOPs are too few to repay compiling {config.model.layers} layers"
        return Choice("off", why)
    return Choice("on", "the run is long enough to repay it")


def matmuls(config: RunConfig) -> Matmuls:
    """Square matmuls on the run's device, for `precision.compute = auto`."""
    device = choose_device(config).name
    torch.set_float32_matmul_precision("high" if config.precision.fast_matmul else "highest")

    def multiplier(dtype: str, size: int) -> Callable[[], object]:
        a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
        return lambda: (a @ a)[0, 0].item()

    return Matmuls(
        {
            "library": f"torch {torch.__version__}",
            "device": torch.cuda.get_device_name() if device == "cuda" else f"{device}, {processor()}",
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "fast_matmul": config.precision.fast_matmul,
        },
        multiplier,
    )
