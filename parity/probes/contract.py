"""What the contract computes for both stacks, against others' code; and the table against each stack's own tree."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
import optax
import torch

import coretrain.contract.schedule
import jaxtrain.arrays
from coretrain.contract.parameters import padded_vocab, parameter_table
from parity.errors import mismatches
from parity.gates import (
    CLIP,
    RATE,
    TABLE,
    Gate,
)
from parity.pair import VARIANTS, make_config
from parity.probes.sides import (
    TORCH,
    Seen,
    Side,
    largest,
    weights_of,
)

START_LR, COOLDOWN = 5e-5, 20
KINDS: dict[str, dict[str, object]] = {
    **{kind: {} for kind in ("cosine", "linear", "constant", "wsd")},
    "rewarm": {"schedule.start_lr": START_LR},
    "infinite": {"schedule.cooldown_updates": COOLDOWN},
}
"""Every kind of schedule, and what it needs."""
WARMUP, UPDATES, NORMS = 7, 60, (0.1, 0.9999995, 1.0, 1.0000005, 7.0)


def others_rates(
    kind: str, peak: float, low: float, warmup: int, updates: int
) -> tuple[list[float], list[float | None]]:
    """Rates of updates 0 to `updates` by optax and by torch (None where it has no such schedule)."""
    first = {"rewarm": START_LR}.get(kind, 0.0)
    ramp = optax.linear_schedule(first + (peak - first) / (warmup + 1), peak, warmup)
    start = updates - round(0.2 * updates)
    held, cooled = (peak + low) / 2, COOLDOWN
    fall = optax.cosine_decay_schedule(peak, cooled, held / peak)
    last = optax.exponential_decay(held, updates - start, low / held, start - warmup - cooled, end_value=low)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, updates - warmup, low / peak),
        "linear": optax.linear_schedule(peak, low, updates - warmup),
        "constant": optax.constant_schedule(peak),
        "wsd": optax.linear_schedule(peak, low, updates - start, start - warmup),
        "rewarm": optax.cosine_decay_schedule(peak, updates - warmup, low / peak),
        "infinite": optax.join_schedules([fall, last], [cooled]),
    }[kind]
    by_optax = optax.join_schedules([ramp, after], [warmup])
    found = [float(by_optax(n)) for n in range(updates + 1)]
    if kind == "infinite":
        return found, [None] * (updates + 1)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=peak)
    schedulers = torch.optim.lr_scheduler
    decay = {
        **dict.fromkeys(("cosine", "rewarm"), lambda: schedulers.CosineAnnealingLR(optimizer, updates - warmup, low)),
        "linear": lambda: schedulers.LinearLR(optimizer, 1.0, low / peak, updates - warmup),
        "constant": lambda: schedulers.ConstantLR(optimizer, 1.0, 1),
        "wsd": lambda: schedulers.SequentialLR(
            optimizer,
            [
                schedulers.ConstantLR(optimizer, 1.0, 1),
                schedulers.LinearLR(optimizer, 1.0, low / peak, updates - start),
            ],
            [start - warmup],
        ),
    }[kind]()
    by_torch: list[float | None] = [None] * warmup
    for _ in range(warmup, updates + 1):
        by_torch.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        decay.step()
    return found, by_torch


def clipped_by_torch(gradients: Mapping[str, np.ndarray], limit: float) -> float:
    """Norm [float64] of what torch.nn.utils.clip_grad_norm_ leaves of `gradients`."""
    parameters = []
    for gradient in gradients.values():
        parameters.append(torch.nn.Parameter(torch.zeros(gradient.shape, dtype=torch.float64)))
        parameters[-1].grad = torch.tensor(gradient, dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    return float(np.sqrt(sum(float((p.grad**2).sum()) for p in parameters if p.grad is not None)))


def run_rates(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """The contract's rates of every kind of schedule."""
    seen = {}
    for kind, more in KINDS.items():
        given = {"schedule.kind": kind, "schedule.warmup_updates": WARMUP, "train.updates": UPDATES}
        config = make_config(given | more)
        seen[kind] = [coretrain.contract.schedule.learning_rate(config, update) for update in range(UPDATES + 1)]
    return seen | {"peak": config.optimizer.lr, "low": config.schedule.min_lr}


def judge_rates(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """Against optax and torch, over the peak."""
    errors = []
    for kind in KINDS:
        for others in others_rates(kind, ours["peak"], ours["low"], WARMUP, UPDATES):
            errors += [abs(a - b) / ours["peak"] for a, b in zip(ours[kind], others, strict=True) if b is not None]
    return {RATE: largest(errors)}


def run_clip(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """The contract's clip factor of a few norms."""
    return {"factors": [coretrain.contract.schedule.clip_factor(norm, 1.0) for norm in NORMS]}


def judge_clip(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """Against torch's own clip of one gradient of that norm."""
    errors = []
    for norm, factor in zip(NORMS, ours["factors"], strict=True):
        clipped = clipped_by_torch({"one": np.array([norm])}, 1.0)
        errors.append(abs(norm * factor - clipped) / clipped)
    return {CLIP: largest(errors)}


def run_table(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Names and shapes as the stack has them, and the MLP's first matrices as it keeps them, in torch's layout."""
    config = make_config(VARIANTS[variant])
    stack = s.trainer.Trainer(config, weights_of(config, state))
    if s is TORCH:
        shapes = {name: tuple(p.shape) for name, p in stack.model.named_parameters()}
        kept = [block.mlp.up.weight.detach().numpy() for block in stack.model.blocks]
    else:
        leaves = {jaxtrain.arrays.dotted(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(stack.params)}
        shapes = {name: leaf.shape for name, leaf in leaves.items()}
        # said without the table's help: a kernel is the transpose, and layers are stacked in order
        kept = [kernel.T for kernel in np.asarray(leaves["blocks.mlp.up.kernel"])]
    return {"side": s.name, "shapes": shapes, "up": kept}


def judge_table(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """Against the table and the weights that were given."""
    config = make_config(VARIANTS[variant])
    rows = padded_vocab(config.model, config.execution.vocab_multiple)
    wanted = {}
    for row in parameter_table(config.model):
        shape = (rows, *row.shape[1:]) if row.axes[0] == "vocab" else row.shape
        if ours["side"] == "torch":
            wanted[row.name] = shape
        else:
            shape = shape[::-1] if row.transposed else shape
            wanted[row.jax_path] = shape if row.layer is None else (config.model.layers, *shape)
    weights = weights_of(config, state)
    given = [weights[f"blocks.{i}.mlp.up.weight"].astype(np.float64) for i in range(config.model.layers)]
    moved = sum(mismatches(kept, weight) for kept, weight in zip(ours["up"], given, strict=True))
    return {TABLE: len(ours["shapes"].items() ^ wanted.items()) + moved}
