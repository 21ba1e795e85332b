"""What counts as equal: errors over whole tensors, and gates derived from the measured floor of a correct pair."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Gate:
    """A cap on an error, the floor that was measured under it, and the mistakes that would show above it."""

    name: str
    cap: float
    floor: float
    catches: str
    rung: str = ""


RUNGS = (
    "exact", "identity", "rounding", "optimizer", "trajectory", "dtypes", "kernels", "generation", "invariance",
    "scale",
)  # fmt: skip
"""The ladder, from the bottom: what must be equal bit for bit, what in float64, what up to rounding, and so on."""


# Floors: the worst figure over all variants and weight states of this suite, x86 CPU, torch 2.13.0, jax 0.10.2.
TABLE = Gate("names, shapes and layout", 0, 0, "a transposed or misplaced tensor", "exact")
INITIAL = Gate("initial weights, elements that differ", 0, 0, "another stream, another rounding, a wrong std", "exact")
MASKS = Gate(
    "dropout masks, elements that differ", 0, 0, "a mask that depends on micro-batch, device or sharding", "exact"
)
ROWS = Gate("rows of tokens, batches that differ", 0, 0, "rows permuted, a resume that replays or skips data", "exact")
# Sums of a few hundred losses, divided: two stacks add them up in another order.
SETS = Gate(
    "named sets, nats a token and bits per byte, relative",
    1e-13,
    0,
    "a last batch that counts as a whole one",
    "identity",
)
DECAY = Gate(
    "weight decay, tensors treated wrongly", 0, 0, "decay on biases and gains, or none on an embedding", "exact"
)
ROUND_TRIP = Gate(
    "checkpoint there and back, elements that differ", 0, 0, "a moment lost, transposed or narrowed", "exact"
)


# Closed forms that group their terms otherwise differ by a few roundings; a step off by one is above 1e-4.
RATE = Gate("learning rate against others' closed forms", 1e-14, 6e-16, "a schedule that is one update late", "exact")


# The optimizer's own division of its moments is between the rate and what is seen of it.
RATE_USED = Gate(
    "learning rate really used, every update", 1e-14, 2e-15, "a rate counted by applied updates, or rounded", "exact"
)
LOGITS = Gate("logits", 1e-13, 9.2e-16, "a constant wrong in its 11th digit, an epsilon, a dropped bias", "identity")
LOSS = Gate(
    "loss, in nats", 1e-12, 1.5e-14, "padding in the loss, a mean of means, an ignored label that counts", "identity"
)
GRADIENTS = Gate("every gradient", 1e-13, 2e-14, "a term left out of one backward pass, a scale, a layout", "identity")
NORM = Gate(
    "gradient norm before the clip", 1e-13, 6e-16, "gradients summed for averaged: Adam hides it elsewhere", "identity"
)
CLIP = Gate("clip factor", 1e-13, 6e-16, "a clip with another epsilon, or of another norm", "identity")
UPDATE = Gate(
    "one clipped update, displacement and moments", 1e-11, 9e-13, "clip epsilon, lr, order of the decay", "identity"
)
HEALTH = Gate(
    "health policy, verdicts that differ",
    0,
    0,
    "a window that holds skipped updates, a spike of another norm",
    "identity",
)
TRAJECTORY = Gate(
    "200 updates, displacement and moments",
    1e-11,
    2.7e-13,
    "a count or a moment that a resume loses",
    "identity",
)
KEY_BIAS = Gate("key bias gradient over query bias'", 1e-12, 3e-15, "a key bias that reaches the output", "identity")


# What is seen is the rounding of the mean. Summed in the worst order, one number after the other, 1.8e-4 over 200
# draws; in 4, 8 or 16 lanes and in halves 0.7e-4 to 1.1e-4. E[x^2] - E[x]^2 is at 2e-2 to 0.2, in whatever order.
NORMS_32 = Gate("norms of mean >> std, float32", 1e-3, 7.9e-5, "variance as E[x^2] - E[x]^2", "rounding")


# Errors of the logits against float64, in units of rounding; a share of the budget's measured figure is added to the
# better one. Instruction sets move a stack's figure by 5%. In float32, where sums are rounded too, the stacks sum
# unlike: torch 5.5 and JAX 8.7 at 512 wide, so all of the figure is added; faults are above 300, which the budget sees.
EVEN = Gate(
    "logits below float64, the worse stack over the better",
    2,
    0.95,
    "in float16 a norm or a residual stream through bfloat16, 2.6; finer faults of dtype are the audit's",
    "rounding",
)
SLACK = {"float32": 1.0, "bfloat16": 0.15, "float16": 0.15}
ALONE = Gate("optimizer alone, 200 updates", 1e-12, 5e-14, "Adam's epsilon before the bias correction", "optimizer")


# The same from SSE4.2 to AVX512; the nearest planted bug is at 2.4e-3.
ALONE_32 = Gate(
    "optimizer alone, float32, without decay",
    5e-6,
    6.1e-7,
    "a bfloat16 moment, gradients through bfloat16",
    "optimizer",
)


# The same on every processor: it is the rounding of one constant, and what elements round apart averages out (1e-5).
# torch.optim.AdamW rounds 1 - lr x decay to float32, always the same way: 1.6e-4 of the decay at lr 1e-3, 1.5e-2 at
# 1e-5. jaxtrain subtracts lr x decay x p, whose roundings cancel: 3e-7. The stacks differ here by torch's own error.
DECAY_32 = Gate(
    "float32 decay, share that rounding takes",
    5e-4,
    1.7e-4,
    "decay x 1.001, a decay factor in bfloat16",
    "optimizer",
)


# Over 101 pairs, of 6 instruction sets or threads of torch, 5 of JAX and 5 seeds (gpt2-like 2): llama-like is up to 1.7
# in the loss and 1.0 in the parameters, gpt2-like 1.5, which is the loss's own rounding, and 0.5. The nearest bug,
# weights rounded towards zero, is at 9.3 to 19 by instruction set; no master weights are above 7,000.
YARDSTICK = Gate(
    "float32, 200 updates, in units of 1 ULP's effect", 4, 1.7, "a bias in rounding that one update hides", "trajectory"
)
DTYPES = Gate("operations in another dtype than the policy's", 0, 0, "a norm, softmax or sum in bfloat16", "dtypes")
KERNEL_64 = Gate("kernels alone, float64", 1e-13, 1.5e-15, "causal mask aligned top-left, key heads tiled", "kernels")


# 40 draws under SSE4.2 and AVX512: 3.4e-7 at most, and 7.5e-3 in bfloat16.
KERNEL_32 = Gate("kernels alone, float32", 1e-5, 5e-7, "a key head that serves the wrong query heads", "kernels")


# A softmax summed in bfloat16 is 4e-3 to 1e-2, a scale off by 3% 1.9e-2: the audit and KERNEL_64 see these.
KERNEL_16 = Gate("kernels alone, bfloat16", 2e-2, 6e-3, "inputs cut to float8 (3.6e-2), a wrong mask (0.4)", "kernels")


# sdpa's backward takes exp(score - logsumexp) of numbers near 3e4, whose last place is 3.6e-12: one rounding is the
# floor, kernels that count in powers of two have three. A finite mask is an error of 1, float32 one of 2e-3.
DEEP = Gate("attention, all scores below -1e4", 1e-10, 1.7e-12, "a finite mask value: the future leaks in", "kernels")
CACHE = Gate(
    "logits out of the cache", 1e-13, 1e-15, "a slot or a position off by one, a mask that leaks padding", "generation"
)
SAMPLES = Gate("generated tokens that differ", 0, 0, "a tie broken otherwise, a random number used twice", "generation")
SAMPLED = Gate(
    "sampler's log-probabilities against the trainer's, nats a token",
    1e-13,
    1e-14,
    "another row's, another temperature's, the last token's; positions that count padding",
    "generation",
)
SCORED = Gate(
    "scores of continuations against the formulas, nats a token",
    1e-13,
    2e-15,
    "labels shifted, another row's padding, an id of the context counted",
    "generation",
)
SPLIT = Gate("gradients however computed", 1e-13, 6e-15, "a mean of means, padding that counts", "invariance")
X64 = Gate("float32 with x64 off, elements that differ", 0, 0, "a constant that is float64 in tests only", "invariance")
# Inductor's code for AVX2 and for AVX512 is as far off; bfloat16 anywhere is above 1e-3.
COMPILED = Gate("torch.compile, gradients, float32", 1e-5, 6e-7, "a miscompiled kernel", "invariance")
SHARED = Gate(
    "torch processes, float64, 20 updates",
    1e-12,
    2e-14,
    "gradients averaged, rows or masks of another process",
    "scale",
)


# An error of float32 against float64 over that of one process: each is a draw of the same rounding.
SHARED_32 = Gate(
    "torch ZeRO, float32, in one process's rounding", 4, 1.0, "a norm of the shard, a tied weight untied", "scale"
)
APART = Gate("torch processes, figures that differ between them", 0, 0, "a decision taken on a part", "scale")
FROZEN = Gate("base weights that an adapter's updates change", 0, 0, "a base that decays or trains along", "exact")


# Both sides are sums of the same numbers in another order: B (A x) and (B A) x, logits after all layers.
MERGED = Gate(
    "logits with an adapter merged, and taken out again", 1e-12, 1e-15, "a merge without the scale", "invariance"
)


# Sums over a row of samples are grouped otherwise than over a sample alone.
PACKED = Gate(
    "packed rows against one sample a row",
    1e-13,
    8e-15,
    "attention across samples, positions that run on, an average over rows",
    "identity",
)
OBJECTIVES = Gate(
    "objectives of alignment, loss and gradients",
    1e-13,
    5e-15,
    "a KL outside its mask, a clip on the wrong side, lengths that count a token more, chosen and rejected swapped",
    "identity",
)
FIGURES = Gate(
    "objectives of alignment, figures", 1e-12, 5e-15, "a figure of padding, an entropy of other logits", "identity"
)
ROLLOUTS = Gate(
    "GRPO and PPO with their rollouts, displacement",
    1e-11,
    8e-15,
    "an advantage, a value or a random number that isn't the other stack's; a rollout that a resume makes anew",
    "identity",
)
GATES = [
    TABLE, INITIAL, MASKS, ROWS, SETS, DECAY, ROUND_TRIP, RATE, RATE_USED, LOGITS, LOSS, GRADIENTS, NORM, CLIP, UPDATE,
    HEALTH, TRAJECTORY, KEY_BIAS, FROZEN, PACKED, OBJECTIVES, FIGURES, ROLLOUTS,
    NORMS_32, EVEN, ALONE, ALONE_32, DECAY_32, YARDSTICK,
    DTYPES, KERNEL_64, KERNEL_32, KERNEL_16, DEEP, CACHE, SAMPLES, SAMPLED, SCORED, SPLIT, MERGED, X64, COMPILED,
    SHARED, SHARED_32, APART,
]  # fmt: skip
"""Every gate but those of `budget`."""
BUDGETS = Path(__file__).with_name("budgets.toml")
"""Caps of low precision, each beside the figure it comes from and the machine that gave it; changed only by review."""


@functools.cache
def budget(device: str, dtype: str, what: str) -> Gate:
    """The gate of a `dtype`'s logits or gradients on `device`, in units of what rounding each value once costs.

    Where the device has no figures of its own, the CPU's.
    """
    caps: dict[str, Any] = tomllib.loads(BUDGETS.read_text(encoding="utf-8"))
    own = caps.get(device, {}).get(dtype, {}).get(what)
    figures = own or caps["cpu"][dtype][what]
    borrowed = "" if own else " (the CPU's cap)"
    name = f"{device} {dtype} {what}, in units of rounding{borrowed}"
    return Gate(name, figures["cap"], figures["measured"], figures["catches"], "rounding")
