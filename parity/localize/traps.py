"""What people get wrong at each tap."""

from __future__ import annotations

import re

from parity.localize.rows import Row

TRAPS = {
    "embed": "ids off by one or out of range, positions that start at 1, dropout whose scale or stream differs",
    "norm": "epsilon, variance over n or n - 1, E[x^2] - E[x]^2, gain or bias left out, low precision",
    "q": "weight not transposed (Conv1D, Linear), order of q, k, v in a joint matrix, heads split another way, a bias",
    "k": "weight not transposed (Conv1D, Linear), order of q, k, v in a joint matrix, heads split another way, a bias",
    "v": "weight not transposed (Conv1D, Linear), order of q, k, v in a joint matrix, heads split another way, a bias",
    "rotated": "RoPE interleaved against half-split, its base or scaling, positions off by one, low precision",
    "attention": "scale 1/sqrt(C), the mask's alignment or its window, a finite mask value, which query heads a key "
    "head serves, softmax below float32, attention dropout",
    "out": "weight not transposed, bias left out, heads joined in another order",
    "residual": "post-norm against pre-norm, a branch scaled or dropped, residual dropout's scale or stream",
    "up": "weight not transposed, bias left out, gate and up exchanged",
    "gate": "weight not transposed, bias left out, gate and up exchanged",
    "activation": "GELU tanh against erf, a constant with too few digits, SiLU on the wrong half",
    "down": "weight not transposed, bias left out",
    "logits": "head tied or not, padding of the vocabulary, a head bias, a final scale",
    "loss": "labels shifted twice or not at all, ignored labels that count, padding among the classes, sum for mean, "
    "a mean of means over micro-batches",
    "training loss": "a mean of means over micro-batches, dropout rows counted in a micro-batch, labels",
    "gradient": "a bias or a gain broadcast and not summed back, a tied weight whose second gradient is lost",
    "accumulated": "sum for mean over micro-batches, a tied weight whose second gradient is lost, "
    "a weight frozen by mistake",
    "gradient norm": "norm after the clip, loss scale left in, a tied weight counted twice, sum for mean",
    "clip factor": "epsilon of the clip, clip by value, clip of each tensor alone",
    "learning rate": "first update at 0, warm-up off by one, cosine over N or N - 1, counted in micro-batches",
    "first_moment": "beta1, the clip factor left out or used twice, a count that is off by one",
    "second_moment": "beta2, the square taken before the clip",
    "momentum": "Nesterov or not, momentum's (1 - beta)",
    "parameter": "epsilon inside the root or before the bias correction, decay on biases and gains, decay on the "
    "updated parameter, decay not times the rate, no bias correction, the sign",
}
"""The usual reasons, by kind of tap; met by somebody each."""
ALIASES = {
    "ln": "norm", "layernorm": "norm", "rmsnorm": "norm", "f": "norm", "qkv": "q", "attn": "q", "query": "q",
    "key": "k", "value": "v", "rope": "rotated", "scores": "attention", "proj": "out", "o": "out", "fc": "up",
    "act": "activation", "gelu": "activation", "silu": "activation", "wte": "embed", "embeddings": "embed",
    "head": "logits",
}  # fmt: skip
"""Last parts of names that other models give to the same things."""


def traps_of(row: Row) -> str:
    """The usual reasons for that kind of row; of a cotangent, those of the taps that it comes from."""
    if row.stage not in ("forward", "cotangent"):
        return TRAPS.get(row.name if row.stage == "scalar" else row.stage, "")
    names = row.parents if row.stage == "cotangent" else (row.name,)
    if row.stage == "forward" and {"q", "k", "v"} & {ALIASES.get(_kind(name), _kind(name)) for name in row.parents}:
        names = ("attention", *names)  # what lies between is attention, whatever the tap after it is called
    known = (ALIASES.get(kind, kind) for kind in map(_kind, names))
    return "; ".join(dict.fromkeys(TRAPS[kind] for kind in known if kind in TRAPS))


def _kind(name: str) -> str:
    """The last part of a tap's name, which says what it is: of `h.3.mlp.c_proj` proj, of `q_proj` q."""
    last = re.sub(r"\d+$", "", re.sub(r"_\d+$", "", name)).split(".")[-1]
    return last[0] if last in ("q_proj", "k_proj", "v_proj", "o_proj") else last.split("_")[-1]


def size_hint(error: float) -> str:
    """What an error of this size is the mark of, where it is one."""
    for low, high, what in (
        (5e-4, 5e-3, "bfloat16's rounding (2e-3): look for a cast to bfloat16"),
        (5e-5, 5e-4, "float16's or TF32's rounding (2e-4): look for a cast, or a reduced-precision matmul"),
        (1e-8, 2e-7, "float32's rounding (3e-8): look for a float32 constant or cast"),
    ):
        if low <= error < high:
            return f"The error has the size of {what}. "
    return ""
