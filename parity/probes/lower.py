"""Below float64: the dtype policy, the optimizer alone and its decay, a long run, and JAX with x64 off."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from coretrain.config.run import RunConfig
from coretrain.contract.parameters import parameter_table
from coretrain.contract.randomness import normal_rows
from coretrain.contract.schedule import clip_factor, learning_rate
from parity.audit import (
    audit,
    expected,
    jax_ops,
    seen,
    states,
    torch_ops,
    with_jax_gradients,
)
from parity.errors import displacement, mismatches
from parity.gates import (
    ALONE_32,
    DECAY_32,
    DTYPES,
    X64,
    YARDSTICK,
    Gate,
)
from parity.pair import (
    VARIANTS,
    batches,
    jax_gradients,
    make_config,
    noise_only,
    restart,
    torch_gradients,
)
from parity.probes.parts import bare, give
from parity.probes.sides import (
    JAX,
    TORCH,
    Seen,
    Side,
    gradients_of,
    largest,
    make,
    weights_of,
)

UPDATES = 200
STARTS = 4
"""Runs of each stack that the drift of a long run is measured by. Were drift one random number, a correct pair would be
above the cap of 4 on one machine in 6 with one run and one pair, in 90 with 3 starts, in 1,200 with 4.
"""
Run = tuple[np.ndarray, dict[str, np.ndarray]]
"""Losses by update, and the parameters after the last."""
FED, RATE, WEIGHT_DECAY = 100, 1e-3, 0.1
"""Updates of the optimizer alone, what they go by, and what they decay by."""


def run_dtypes(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """The audit of a bfloat16 trainer: what is against the policy, and what should have been seen and wasn't."""
    config = make_config(VARIANTS[variant] | {"train.accumulation": 2}, precision__compute="bfloat16")
    stack, batch = s.trainer.Trainer(config, weights_of(config, state)), batches(config, 1)[0]
    if s is TORCH:
        found = torch_ops(stack, batch) | states(stack, torch_gradients)
    else:
        found = jax_ops(stack, batch) | states(with_jax_gradients(stack, batch), jax_gradients)
    wrong = [(row["class"], row["site"]) for row in audit(s.name, found, "bfloat16")[1]]
    return {"wrong": wrong + sorted(expected(config.model) - seen(found))}


def judge_dtypes(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """Against the policy, whatever the other stack does."""
    return {DTYPES: len(ours["wrong"])}


def _fed(s: Side, dtype: str, decay: float, shared: frozenset[str]) -> dict[str, np.ndarray]:
    """Parameters after FED updates with given gradients of 1e-1 to 1e-9."""
    config = bare(precision__compute=dtype, optimizer__weight_decay=decay)
    stack, rows = make(s, config, weights_of(config, "perturbed"), shared), parameter_table(config.model)
    kinds = [
        {
            row.name: normal_rows(k, f"gradient/{row.name}", (*row.shape, 1), 10.0 ** -(n % 5 * 2 + 1))[..., 0]
            for n, row in enumerate(rows)
        }
        for k in range(7)
    ]
    for update in range(FED):
        give(s, stack, kinds[update % 7])
        stack.apply(RATE, 0.75, update)
    return stack.export()["parameters"]


def run_alone(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """The optimizer alone in float32: without decay, and with it in both precisions."""
    return {
        "plain": _fed(s, "float32", 0.0, shared),
        "decayed": _fed(s, "float32", WEIGHT_DECAY, shared),
        "exact": _fed(s, "float64", WEIGHT_DECAY, shared),
    }


def judge_alone(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """The way that parameters have come; and of a matrix' decay what is lost along the matrix itself."""
    start, name = weights_of(bare(), "perturbed"), "blocks.0.attention.q.weight"
    along = start[name].astype(np.float64)
    lost = np.vdot(ours["decayed"][name] - theirs["exact"][name], along) / np.vdot(along, along)
    return {
        ALONE_32: displacement(ours["plain"], theirs["plain"], start)[0],
        DECAY_32: float(abs(lost)) / (FED * RATE * WEIGHT_DECAY),
    }


def train(stack: Any, config: RunConfig) -> Run:
    """(losses, parameters) of UPDATES updates on a few batches."""
    losses = []
    for update, batch in enumerate(batches(config, 4) * (UPDATES // 4)):
        loss, norm = stack.gradients(batch, update, 1.0)
        stack.apply(learning_rate(config, update), clip_factor(norm, config.optimizer.clip), update)
        losses.append(loss)
    return np.array(losses), {name: np.array(t) for name, t in stack.export()["parameters"].items()}


def starts(weights: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """`STARTS` times `weights`: as they are, then with each of them one unit in the last place up or down by chance."""
    result = [dict(weights)]
    for seed in range(1, STARTS):
        rng, moved = np.random.default_rng(seed), {}
        for name, value in weights.items():
            up = rng.integers(0, 2, value.shape, dtype=bool)
            ends = np.where(up, np.float32(np.inf), np.float32(-np.inf))
            moved[name] = np.nextafter(value, ends)
        result.append(moved)
    return result


def long_runs(stack: Any, config: RunConfig, weights: Mapping[str, np.ndarray]) -> list[Run]:
    """A run of `stack` from each of the `starts`."""
    runs = []
    for start in starts(weights):
        restart(stack, start)
        runs.append(train(stack, config))
    return runs


def drift(ours: Sequence[Run], theirs: Sequence[Run], config: RunConfig) -> dict[str, float]:
    """How far two stacks part from the same starts, in units of how far one stack's runs part: of the loss, and of the
    tensor that parts most.

    What a bit has done after many updates is a random figure, at times a tenth of its usual size: measured by one run
    and of one pair, a correct pair was anywhere from 0.2 to 9. So the yardstick is the widest of all pairs of a stack's
    own runs, in the stack whose runs lie closer together: a mistake that throws a stack's runs apart must not be
    measured by itself. And what is measured is the pair that parts least: rounding parts some pairs, a mistake all.
    """
    start, excluded = weights_of(config, "initial"), noise_only(config)

    def of_losses(a: Run, b: Run) -> tuple[float, str]:
        return float(np.abs(a[0] - b[0]).max()), "loss"

    def of_parameters(a: Run, b: Run) -> tuple[float, str]:
        return displacement(a[1], b[1], start, excluded)

    # a loss is rounded itself, by some units in the last place of its sum, whatever the weights do
    rounding = 2 * float(np.spacing(np.float32(largest(losses.max() for losses, _ in ours))))
    figures = {}
    for distance, least in ((of_losses, rounding), (of_parameters, 0.0)):
        error, name = _closest(ours, theirs, distance)
        widths = [largest(distance(*pair)[0] for pair in itertools.combinations(runs, 2)) for runs in (ours, theirs)]
        figures[name] = error / max(float(np.min(widths)), least)
    return figures


def _closest(
    ours: Sequence[Run], theirs: Sequence[Run], distance: Callable[[Run, Run], tuple[float, str]]
) -> tuple[float, str]:
    """The least distance of two runs from the same start; NaN where any is."""
    pairs = [distance(*pair) for pair in zip(ours, theirs, strict=True)]
    return pairs[int(np.argmin([error for error, _ in pairs]))]


def run_trajectory(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Float32, from the initial weights and from those a bit away."""
    config = make_config(VARIANTS[variant], precision__compute="float32")
    weights = weights_of(config, "initial")
    return {"runs": long_runs(make(s, config, weights, shared), config, weights)}


def judge_trajectory(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """In units of what one bit of the initial weights does."""
    config = make_config(VARIANTS[variant], precision__compute="float32")
    return {YARDSTICK: largest(drift(ours["runs"], theirs["runs"], config).values())}


def run_x64(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Loss, norm, gradients and a step in float32 with x64 on and with it off; torch has no such switch."""
    if s is not JAX:
        return {}
    config = make_config(VARIANTS[variant], precision__compute="float32")

    def once(wide: bool) -> dict[str, np.ndarray]:
        with jax.enable_x64(wide):
            stack = make(s, config, weights_of(config, state), frozenset())
            loss, norm = stack.gradients(batches(config, 1)[0], 3, 1.0)
            gradients = gradients_of(s, stack)
            stack.apply(1e-3, 0.3, 0)
            stepped = {f"{group}/{name}": t for group, tensors in stack.export().items() for name, t in tensors.items()}
            return {"loss": np.array(loss), "norm": np.array(norm), **gradients, **stepped}

    return {"on": once(True), "off": once(False)}


def judge_x64(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """Bit for bit, on one side alone."""
    return {X64: sum(mismatches(ours["off"][name], value) for name, value in ours.get("on", {}).items())}
