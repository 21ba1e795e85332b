"""What a computation's last bits depend on besides code and config: processor, libraries, the environment."""

from __future__ import annotations

import importlib.metadata
import os

from coretrain.base.processor import processor, usable_cores

LIMITS = (
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE",
    "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES", "XLA_FLAGS",
)  # fmt: skip
"""Variables of the environment by which a user chooses instructions, or a precision that is lower than asked for."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC", "PJRT_NPROC")
LIBRARIES = ("torch", "jax", "jaxlib", "flax", "optax", "numpy", "deepspeed")


def made_with(processes: int = 1) -> dict[str, str]:
    """Facts of this process: where they and the code are the same, a training on a CPU gives the same bits."""
    facts = {"processor": processor(), "cores": str(usable_cores()), "processes": str(processes)}
    facts |= {name: value for name in (*LIMITS, *THREADS) if (value := os.environ.get(name, "").strip())}
    for name in LIBRARIES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts
