"""Logits, losses and gradients of three batches at the same weights; three updates; evaluation; float32."""

from __future__ import annotations

from coretrain.contract.schedule import clip_factor, learning_rate
from parity.errors import largest_error, nrel, worst_tensor
from parity.gates import (
    GRADIENTS,
    LOGITS,
    LOSS,
    NORM,
    UPDATE,
    Gate,
    budget,
)
from parity.pair import (
    VARIANTS,
    batches,
    make_config,
    noise_only,
)
from parity.probes.budgets import of_rounding
from parity.probes.sides import (
    Seen,
    Side,
    gradients_of,
    largest,
    logits_of,
    make,
    weights_of,
)

LOGITS_32 = budget("cpu", "float32", "logits")

STEPS = 3


def run_gradients(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    stack, made = make(s, config, weights_of(config, state), shared), batches(config, STEPS)
    seen: Seen = {"logits": logits_of(s, stack, made[0].tokens, 0), "losses": [], "norms": []}
    for update, batch in enumerate(made):
        loss, norm = stack.gradients(batch, update, 1.0)
        seen["losses"].append(loss)
        seen["norms"].append(norm)
        seen.setdefault("gradients", gradients_of(s, stack))
    return seen


def judge_gradients(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    apart = noise_only(make_config(VARIANTS[variant]))
    return {
        LOGITS: nrel(ours["logits"], theirs["logits"]),
        LOSS: largest(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
        NORM: largest(abs(a - b) / b for a, b in zip(ours["norms"], theirs["norms"], strict=True)),
        GRADIENTS: worst_tensor(ours["gradients"], theirs["gradients"], apart)[0],
    }


def run_logits(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    stack = make(s, config, weights_of(config, state), shared)
    return {"logits": logits_of(s, stack, batches(config, 1)[0].tokens, 0)}


def judge_logits(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {LOGITS: nrel(ours["logits"], theirs["logits"])}


def run_updates(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    stack = make(s, config, weights_of(config, state), shared)
    seen: Seen = {"losses": [], "norms": []}
    for update, batch in enumerate(batches(config, STEPS)):
        loss, norm = stack.gradients(batch, update, 1.0)
        seen["losses"].append(loss)
        seen["norms"].append(norm)
        seen.setdefault("gradients", gradients_of(s, stack))
        stack.apply(learning_rate(config, update), clip_factor(norm, config.optimizer.clip), update)
    return seen | {"state": stack.export()}


def judge_updates(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    config = make_config(VARIANTS[variant])
    both, apart = (ours["state"], theirs["state"]), noise_only(config)
    return {
        # Only the first is taken at equal weights: later ones show the update's fault, not the loss'.
        LOSS: abs(ours["losses"][0] - theirs["losses"][0]),
        NORM: largest(abs(a - b) / b for a, b in zip(ours["norms"][:1], theirs["norms"][:1], strict=True)),
        GRADIENTS: worst_tensor(ours["gradients"], theirs["gradients"], apart)[0],
        UPDATE: largest_error(both, weights_of(config, state), apart)[0],
    }


def run_evaluation(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    batch = batches(config, 1)[0]
    total = make(s, config, weights_of(config, state), shared).evaluate(batch)
    return {"loss": total / batch.targets}


def judge_evaluation(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {LOSS: abs(ours["loss"] - theirs["loss"])}


def run_float32(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    narrow = make_config(VARIANTS[variant], precision__compute="float32")
    tokens = batches(config, 1)[0].tokens
    return {
        dtype: logits_of(s, make(s, c, weights_of(config, state), shared), tokens, 0)
        for dtype, c in (("float32", narrow), ("float64", config))
    }


def judge_float32(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    unit, _ = of_rounding("float32", variant, state)
    return {LOGITS_32: nrel(ours["float32"], theirs["float64"]) / unit}
