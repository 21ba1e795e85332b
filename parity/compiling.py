"""How JAX compiles the judge's small models on a CPU: hardly optimized, where the arithmetic isn't what is judged.

With XLA's defaults an eighth of the time goes into these models' arithmetic, and seven eighths into compiling it.
Most of that is LLVM's optimization and the fusion emitters: the gradients of 2 layers of width 48 take 4.7 s in
float64 and 7.4 s in bfloat16; without both 0.7 and 0.5 s. XLA's own passes over a program stay the same.
Gradients and steps of variants that are trained for long, all of float32 and bfloat16, and the kernels are compiled as
a run compiles them.
"""

from __future__ import annotations

import functools

import jax

from parity.machine import ONE_PIECE, xla_flags

QUICK: dict[str, bool | int | str] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
"""XLA's options for a program that runs for milliseconds."""

quick_jit = functools.partial(jax.jit, compiler_options=QUICK)
"""`jax.jit` with these options."""


def quick_flags(devices: int | None = None) -> str:
    """The same as XLA_FLAGS for another process, with so many devices made of this CPU; the user's flags stay."""
    flags = [ONE_PIECE, *(f"--{name}={str(value).lower()}" for name, value in QUICK.items())]
    return xla_flags(always=" ".join(flags + [f"--xla_force_host_platform_device_count={devices}"] * bool(devices)))
