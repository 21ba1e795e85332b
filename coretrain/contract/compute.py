"""What `precision.compute = auto` takes: bfloat16 where its matmuls are much faster than float32's, else float32.

The rule is one for both stacks. Each measures its own framework's matmuls, on the device of the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coretrain.contract.choices import Choice

DTYPES = ("float32", "bfloat16")
PAYS_AT = 1.5
"""How many times as fast bfloat16 must be: casts, norms, the loss and the update itself get no faster."""
SIZES = (128, 256, 512, 1024, 2048, 4096)
TIMES = 5
"""Multiplications of each dtype at a size, in turns; the fastest counts."""
BUDGET = 1.5
"""Seconds that one more size may take."""
Multiplier = Callable[[str, int], Callable[[], object]]
"""Of a dtype and a size: a function that multiplies two square matrices and waits for the product."""


@dataclass(frozen=True)
class Matmuls:
    """A stack's matmuls on the device of a run."""

    machine: Mapping[str, str | int]
    """All that their speed depends on: device, library, threads."""
    multiplier: Multiplier


@dataclass(frozen=True)
class Speeds:
    """GFLOP/s of each dtype at one size."""

    size: int
    float32: float
    bfloat16: float

    def choice(self) -> Choice:
        """The dtype to compute in."""
        times = self.bfloat16 / self.float32
        name = "bfloat16" if times >= PAYS_AT else "float32"
        return Choice(
            name,
            f"matmuls here run at {self.bfloat16:,.1f} GFLOP/s in bfloat16 and {self.float32:,.1f} in float32: "
            f"{times:.2g} times as fast, and {PAYS_AT:g} {'is enough' if name == 'bfloat16' else 'would be enough'}",
        )


def measure(multiplier: Multiplier) -> Speeds:
    """Both dtypes at the largest size that the budget allows, in turns, so that a busy machine slows both alike."""
    for size in SIZES:
        multiply = {dtype: multiplier(dtype, size) for dtype in DTYPES}
        for once in multiply.values():
            once()  # compiles, takes memory
        fastest = dict.fromkeys(DTYPES, float("inf"))
        for _ in range(TIMES):
            for dtype, once in multiply.items():
                begun = time.perf_counter()
                once()
                fastest[dtype] = min(fastest[dtype], time.perf_counter() - begun)
        found = Speeds(size, **{dtype: 2 * size**3 / max(seconds, 1e-9) / 1e9 for dtype, seconds in fastest.items()})
        if 8 * (TIMES + 1) * sum(fastest.values()) > BUDGET:  # the next size has 8 times the work
            break
    return found
