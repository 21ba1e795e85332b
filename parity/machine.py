"""What a session computes on: the processor, the instructions that each library takes there, and what limits them.

Other instructions sum in another order, so figures below float64 are figures of a processor too. docs/judge.md has the
floors of several, and `python -m bench.floors` measures them on one machine.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coretrain.base.machine import LIMITS
from coretrain.base.processor import processor

THREADS = 1
"""Of torch, in each process of the judge: its models are so small that threads cost more than they give."""
TOLD = {
    "sse4.2": "SSE4.2", "fma": "FMA", "avx2": "AVX2", "avx512f": "AVX512", "avx512bf16": "AVX512-bf16",
    "avx512fp16": "AVX512-fp16", "amx-bf16": "AMX-bf16", "neon": "NEON", "fullfp16": "fp16", "bf16": "bf16",
    "i8mm": "i8mm", "sve": "SVE", "sve2": "SVE2",
}  # fmt: skip
"""LLVM's names of the instructions that change what floating point gives, and the names that people know."""
ONE_PIECE = "--xla_cpu_parallel_codegen_split_count=1"
"""XLA cuts a function into 32 pieces to compile them in parallel: for small ones on few cores, a loss."""


def xla_flags(*, unless_set: str = "", always: str = "") -> str:
    """The user's XLA_FLAGS with flags of ours: those that give way to the user's, and those that don't.

    Of flags that stand twice XLA takes the last. XLA_FLAGS may name a file of flags instead, which is read here.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    if given and not given.startswith("-") and Path(given).is_file():
        given = " ".join(Path(given).read_text(encoding="utf-8").split())
    return " ".join(filter(None, (unless_set, given, always)))


def facts() -> Mapping[str, Any]:
    """Kind of machine, without its name:

    - `system`, `architecture`, `processor`, `cores`, `cuda` (the GPU's name, or None);
    - `torch_instructions` as torch calls them, `torch_threads`, `torch_blas` ("MKL", or what this build has),
      `bfloat16_units`: whether torch's oneDNN multiplies bfloat16 with them here;
    - `xla_instructions`, as XLA compiles for this processor in this session (names of `TOLD`; empty: it doesn't say);
    - `numpy_instructions`: numpy's groups that are in use;
    - `limits`: as `limits` gives them.
    """
    import torch

    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": THREADS,
        "torch_blas": blas(),
        "bfloat16_units": _bfloat16_units(),
        "xla_instructions": xla_instructions(),
        "numpy_instructions": _numpy(),
        "limits": limits(),
    }


def limits() -> dict[str, str]:
    """The variables of `LIMITS` that a user has set; of XLA_FLAGS what isn't the judge's own."""
    found = {name: os.environ.get(name, "") for name in LIMITS}
    found["XLA_FLAGS"] = " ".join(flag for flag in found["XLA_FLAGS"].split() if flag != ONE_PIECE)
    return {name: value for name, value in found.items() if value}


def blas() -> str:
    """The library that multiplies torch's float32 and float64 matrices, as its build names it."""
    import torch

    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {"mkl": "MKL", "open": "OpenBLAS", "accelerate": "Accelerate"}.get(name := found[1] if found else "", name)


def _bfloat16_units() -> bool:
    import torch

    limit = next(
        (value for name in LIMITS if "_MAX_CPU_ISA" in name and (value := os.environ.get(name))), "ALL"
    ).upper()
    try:
        here = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        used = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # which oneDNN also does without units, by AVX512
    except (AttributeError, RuntimeError):  # a build without oneDNN, or for another kind of processor
        return False
    return bool(here and used) and any(word in limit for word in ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT"))


def xla_instructions() -> list[str]:
    """Those that change what floating point gives and that XLA compiles for here."""
    return [name for feature, name in TOLD.items() if feature in _features()]


def no_float16() -> str | None:
    """Why JAX computes no float16 on this CPU; None where it does."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    lacks = x86 and _features() and "f16c" not in _features()
    return "XLA computes no float16 on an x86 processor without F16C" if lacks else None


@functools.cache
def _features() -> frozenset[str]:
    """LLVM's names of what XLA compiled a small function for, read from what it made; none where it doesn't say."""
    import jax

    try:
        with jax.default_device(jax.devices("cpu")[0]):
            compiled: Any = jax.jit(lambda x: x + 1).lower(1.0).compile()
            made = compiled.runtime_executable().serialize()
    except Exception:  # XLA's own errors, of many kinds: a build that can't tell is no reason to judge nothing
        return frozenset()
    return frozenset(name.decode() for name in re.findall(rb"\+([a-z0-9._-]+)", made))


def _numpy() -> list[str]:
    import numpy as np

    shown: Any = np.show_config(mode="dicts")
    extensions = (shown or {}).get("SIMD Extensions", {})
    return [*extensions.get("baseline", []), *extensions.get("found", [])]


def lines() -> list[str]:
    """`facts` in a line or two for people."""
    m = facts()
    units = "bfloat16 units" if m["bfloat16_units"] else "no bfloat16 units"
    threads = f"{m['torch_threads']} thread" + "s" * (m["torch_threads"] > 1)
    xla = m["xla_instructions"][-1] if m["xla_instructions"] else "instructions that it doesn't tell"
    said = [
        f"on {m['processor']} ({m['architecture']}), {m['cores']} cores: torch {m['torch_instructions']}, "
        f"{m['torch_blas']}, {units}, {threads}; XLA {xla}"
    ]
    if m["limits"]:
        said.append("set in the environment: " + ", ".join(f"{name}={value}" for name, value in m["limits"].items()))
    return said
