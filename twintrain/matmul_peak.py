"""`python -m twintrain.matmul_peak torch float32`: speed of a square matmul here, as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

BUDGET = 2.0
"""Seconds of measuring."""
LARGEST = 2048


def multiplier(framework: str, dtype: str, size: int) -> Callable[[], object]:
    """A function that multiplies two matrices and waits for the result."""
    if framework == "torch":
        import torch

        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        a = torch.randn(size, size, dtype=getattr(torch, dtype), device=device)
        return lambda: (a @ a)[0, 0].item()
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(lambda x: x @ x)
    return lambda: product(x).block_until_ready()


def measure(framework: str, dtype: str) -> dict[str, float]:
    """GFLOP/s at the largest size that the time budget allows: a CPU without bf16 units takes minutes for 2048."""
    size, result = 128, {}
    started = time.perf_counter()
    while size <= LARGEST:
        multiply = multiplier(framework, dtype, size)
        multiply()
        times = list[float]()
        while not times or (sum(times) < BUDGET / 4 and len(times) < 50):
            begun = time.perf_counter()
            multiply()
            times.append(time.perf_counter() - begun)
        result = {"size": size, "gflops": 2 * size**3 / min(times) / 1e9}
        if 8 * min(times) > BUDGET or time.perf_counter() - started > 3 * BUDGET:
            break
        size *= 2
    return result


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
