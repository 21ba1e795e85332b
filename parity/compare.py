"""What counts as equal: errors over whole tensors, and gates derived from the measured floor of a correct pair."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Gate:
    """A cap on an error, the floor that was measured under it, and the mistakes that would show above it."""

    name: str
    cap: float
    floor: float
    catches: str


# Floors: the worst figure over all variants and weight states of this suite, x86 CPU, torch 2.13.0, jax 0.10.2.
TABLE = Gate("names, shapes and layout", 0, 0, "a transposed or misplaced tensor")
INITIAL = Gate("initial weights, elements that differ", 0, 0, "another stream, another rounding, a wrong std")
MASKS = Gate("dropout masks, elements that differ", 0, 0, "a mask that depends on micro-batch, device or sharding")
ROWS = Gate("rows of tokens, batches that differ", 0, 0, "rows permuted, a resume that replays or skips data")
DECAY = Gate("weight decay, tensors treated wrongly", 0, 0, "decay on biases and gains, or none on an embedding")
# Closed forms that group their terms otherwise differ by a few roundings; a step off by one is above 1e-4.
RATE = Gate("learning rate against others' closed forms", 1e-14, 6e-16, "a schedule that is one update late")
LOGITS = Gate("logits", 1e-13, 9e-16, "a constant wrong in its 11th digit, an epsilon, a dropped bias")
LOSS = Gate("loss, in nats", 1e-12, 3e-15, "padding in the loss, a mean of means, an ignored label that counts")
GRADIENTS = Gate("every gradient", 1e-13, 2e-14, "a term left out of one backward pass, a scale, a layout")
NORM = Gate("gradient norm before the clip", 1e-13, 6e-16, "gradients summed for averaged: Adam hides it elsewhere")
UPDATE = Gate("one clipped update, displacement and moments", 1e-11, 9e-13, "clip epsilon, lr, order of the decay")
TRAJECTORY = Gate("50 updates, displacement and moments", 1e-11, 1e-13, "a count off by one, a moment that drifts")
ALONE = Gate("optimizer alone, 200 updates", 1e-12, 5e-14, "Adam's epsilon before the bias correction")
ALONE_32 = Gate(
    "optimizer alone, float32, without decay", 5e-6, 1.1e-6, "bias correction in float32, a bfloat16 moment"
)
# torch.optim.AdamW rounds 1 - lr x decay to float32, always the same way: 1.6e-4 of the decay at lr 1e-3, 1.5e-2 at
# 1e-5. jaxtrain subtracts lr x decay x p, whose roundings cancel: 3e-7. The stacks differ here by torch's own error.
DECAY_32 = Gate(
    "float32 decay, share that rounding takes", 5e-4, 1.7e-4, "decay on the updated parameter, decay x 1.001"
)
KEY_BIAS = Gate("key bias gradient over query bias'", 1e-12, 3e-15, "a key bias that reaches the output")
CACHE = Gate("logits out of the cache", 1e-13, 1e-15, "a slot or a position off by one, a mask that leaks padding")
SAMPLES = Gate("generated tokens that differ", 0, 0, "a tie broken otherwise, a random number used twice")
SPLIT = Gate("gradients however computed", 1e-13, 6e-15, "a mean of means, padding or a chunk that counts")
LOGITS_32 = Gate("logits, float32 against float64", 3e-6, 4e-7, "bfloat16 or TF32 passes inside float32")
# 1e-6 at initial weights; scrambled ones leave more cancellation in the query bias. TF32 would be 1e-3.
GRADIENTS_32 = Gate("worst gradient, float32 against float64", 3e-5, 8.1e-6, "a softmax or a norm below float32")
NORMS_32 = Gate("norms of mean >> std, float32", 5e-4, 7.9e-5, "variance as E[x^2] - E[x]^2")
SPLASH = Gate("splash kernel (interpreted), float32", 1e-5, 5e-7, "a key head that serves the wrong query heads")
COMPILED = Gate("torch.compile, gradients, float32", 1e-5, 6e-7, "a miscompiled kernel")
GATES = (
    TABLE, INITIAL, MASKS, ROWS, DECAY, RATE, LOGITS, LOSS, GRADIENTS, NORM, UPDATE, TRAJECTORY, ALONE, ALONE_32,
    DECAY_32, KEY_BIAS, CACHE, SAMPLES, SPLIT, LOGITS_32, GRADIENTS_32, NORMS_32, SPLASH, COMPILED,
)  # fmt: skip

worst: dict[str, tuple[float, str]] = {}
"""The largest error that each gate has seen in this session, and where."""

killed: dict[str, str] = {}
"""Planted bugs of this session, and what caught each ("": nothing that should have)."""


def nrel(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b| in 2-norms over the whole tensor; 0 where they are equal, infinite where only b is zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}: broadcasting would hide a missing axis"
    difference, size = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    return 0.0 if difference == 0 else difference / size if size else float("inf")


def mismatches(a: np.ndarray, b: np.ndarray) -> int:
    """Elements whose values differ, dtype and shape counting too."""
    return int((a != b).sum()) if (a.shape, a.dtype) == (b.shape, b.dtype) else max(a.size, b.size, 1)


def worst_tensor(ours: Tensors, theirs: Tensors, apart: Collection[str] = ()) -> tuple[float, str]:
    """The largest nrel of any tensor but those `apart`, and its name."""
    assert ours.keys() == theirs.keys()
    return _largest({name: nrel(ours[name], theirs[name]) for name in ours if name not in apart})


def displacement(ours: Tensors, theirs: Tensors, start: Tensors, apart: Collection[str] = ()) -> tuple[float, str]:
    """The largest nrel of the way that any parameter but those `apart` has come from `start`."""
    moved = [{name: np.asarray(t[name], np.float64) - start[name] for name in start} for t in (ours, theirs)]
    return worst_tensor(*moved, apart)


def largest_error(states: tuple[Mapping[str, Tensors], Mapping[str, Tensors]], start: Tensors, apart: Collection[str]):
    """(error, name): the worst of the parameters' displacement and of every moment."""
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    errors = [displacement(ours["parameters"], theirs["parameters"], start, apart)]
    for group in ours.keys() - {"parameters"}:
        error, name = worst_tensor(ours[group], theirs[group], apart)
        errors.append((error, f"{group} {name}"))
    return _largest({name: error for error, name in errors})


def hold(gate: Gate, error: float, where: str) -> None:
    """Record an error under its gate, and fail above the cap (or where it isn't a number)."""
    if not error <= worst.get(gate.name, (-1.0, ""))[0]:
        worst[gate.name] = error, where
    assert error <= gate.cap, f"{gate.name}: {error:.2e} at {where}, cap {gate.cap:.0e}; look for {gate.catches}"


def _largest(errors: Mapping[str, float]) -> tuple[float, str]:
    name = max(errors, key=lambda n: float("inf") if np.isnan(errors[n]) else errors[n])
    return errors[name], name
