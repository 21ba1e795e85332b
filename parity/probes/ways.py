"""One stack against itself, however its gradients are computed; and attention where every score is far below zero."""

from __future__ import annotations

import numpy as np

from parity.errors import nrel, worst_tensor
from parity.forms import Fields
from parity.gates import (
    DEEP,
    KERNEL_16,
    KERNEL_32,
    KEY_BIAS,
    SPLIT,
    Gate,
)
from parity.pair import (
    GPT2,
    batches,
    make_config,
    noise_only,
)
from parity.probes.sides import (
    JAX,
    Seen,
    Side,
    gradients_of,
    largest,
    make,
    weights_of,
)

WAYS: dict[str, Fields] = {
    "split and recomputed": {
        "train.accumulation": 4,
        "execution.loss_chunk": 7,
        "execution.checkpoint_activations": "full",
    },
    "unrolled": {"execution.scan_layers": "false"},
}


def run_split(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Loss and gradients of one batch as they are, and in other ways (the last is JAX's alone)."""
    seen: Seen = {}
    for name, more in {"plain": {}, **WAYS}.items():
        if name == "unrolled" and s is not JAX:
            continue
        config = make_config(GPT2 | {"train.accumulation": 1} | more)
        stack = make(s, config, weights_of(config, state), frozenset())
        loss, _ = stack.gradients(batches(config, 1)[0], 5, 1.0)
        seen[name] = {"loss": np.array(loss), **gradients_of(s, stack)}
    return seen


def judge_split(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """On one side alone."""
    apart = noise_only(make_config(GPT2))
    return {SPLIT: largest(worst_tensor(ours[way], ours["plain"], apart)[0] for way in WAYS if way in ours)}


def run_key_bias(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Gradients of one batch."""
    config = make_config(GPT2)
    stack = make(s, config, weights_of(config, state), shared)
    stack.gradients(batches(config, 1)[0], 0, 1.0)
    return gradients_of(s, stack)


def judge_key_bias(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """Where positions are learned it has none."""
    names = noise_only(make_config(GPT2))
    sizes = {name: [np.linalg.norm(ours[n]) for n in (name, name.replace(".k.", ".q."))] for name in names}
    return {KEY_BIAS: largest(key / query for key, query in sizes.values())}


def deep_scores() -> list[np.ndarray]:
    """q, k, v and the output's cotangent: whole numbers in q and k, so that scores near -3e4 are exact."""
    rng = np.random.default_rng(0)
    q = np.full((1, 6, 2, 4), 128.0)
    k = -rng.integers(100, 104, (1, 6, 2, 4)).astype(np.float64)
    assert (np.einsum("bthc,bshc->bhts", q, k) / 2).max() < -2e4
    return [q, k, *(rng.standard_normal((1, 6, 2, 4)) for _ in range(2))]


def run_deep(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Output of plain attention."""
    return {"output": np.asarray(s.attention.attention("plain", *map(s.array, deep_scores()[:3])))}


def judge_deep(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {DEEP: nrel(ours["output"], theirs["output"])}


def run_narrow_kernels(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Plain attention in two precisions, and in float64 from the same inputs."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 48, h, 8)) for h in (4, 2, 2)]
    seen: Seen = {}
    for dtype in ("float32", "bfloat16"):
        inputs = [s.cast(s.array(x), dtype) for x in arrays]
        for compute in (dtype, "float64"):
            output = s.attention.attention("plain", *(s.cast(x, compute) for x in inputs))
            seen[dtype, compute] = np.asarray(s.cast(output, "float64"))
    return seen


def judge_narrow_kernels(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """Against the other's float64."""
    errors = {dtype: nrel(ours[dtype, dtype], theirs[dtype, "float64"]) for dtype in ("float32", "bfloat16")}
    return {KERNEL_32: errors["float32"], KERNEL_16: errors["bfloat16"]}
