"""Bugs in what the contract computes for both stacks at once, which no comparison of the two can see; and layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import coretrain.contract.schedule
from parity.gates import CLIP, RATE, TABLE
from parity.mutants import Patch, mutant, wrap
from parity.probes.sides import Side


@mutant("schedule", RATE, sides=("torch",))
def cosine_over_one_update_less_in_the_contract(patch: Patch, s: Side) -> None:
    """Both stacks get the same wrong rate: only others' schedules show it."""

    def shorter(f: Any) -> Any:
        def rate(config: Any, update: int) -> float:
            horizon = (config.schedule.horizon or config.train.updates) - 1
            return f(config.changed(schedule__horizon=horizon), update)

        return rate

    wrap(patch, coretrain.contract.schedule, "learning_rate", shorter)


def _rates(patch: Patch, kind: str, change: Callable[[Any, int], tuple[Any, int]]) -> None:
    """`change(config, update)` before the contract gives the rate of an update, with this kind of schedule alone."""

    def changed(f: Any) -> Any:
        return lambda config, update: f(*(change(config, update) if config.schedule.kind == kind else (config, update)))

    wrap(patch, coretrain.contract.schedule, "learning_rate", changed)


@mutant("schedule", RATE, sides=("torch",))
def rewarm_from_the_peak(patch: Patch, s: Side) -> None:
    """The warm-up of a continued run starts at its peak: there is none."""
    _rates(patch, "rewarm", lambda c, update: (c.changed(schedule__start_lr=c.optimizer.lr), update))


@mutant("schedule", RATE, sides=("torch",))
def rewarm_from_zero(patch: Patch, s: Side) -> None:
    """The rate falls to nothing before it rises: the last one isn't where it goes on."""
    _rates(patch, "rewarm", lambda c, update: (c.changed(schedule__start_lr=0.0), update))


@mutant("schedule", RATE, sides=("torch",))
def anneal_one_update_late(patch: Patch, s: Side) -> None:
    """The last decay of the infinite schedule begins one update late, and ends above min_lr."""

    def late(config: Any, update: int) -> tuple[Any, int]:
        decays = config.train.updates - round(config.schedule.decay_fraction * config.train.updates)
        return config, update - (update > decays)

    _rates(patch, "infinite", late)


@mutant("clip", CLIP, sides=("torch",))
def clip_without_epsilon_in_the_contract(patch: Patch, s: Side) -> None:
    """optax's clip in both stacks: only torch's own clip_grad_norm_ shows it."""
    patch.setattr(
        coretrain.contract.schedule, "clip_factor", lambda norm, limit: min(1.0, limit / norm) if limit else 1.0
    )


@mutant("layout", TABLE)
def vocabulary_not_padded(patch: Patch, s: Side) -> None:
    """A table of as many rows as there are tokens: right, and slow."""
    patch.setattr(s.model, "padded_vocab", lambda model, multiple: model.vocabulary)
    if s.name == "jax":
        wrap(patch, s.model, "placed", _without_padding)


def _without_padding(f: Any) -> Any:
    def unpadded(*given: Any) -> Any:
        return f(*given[:-1], 1)

    return unpadded


@mutant("layout", TABLE, sides=("jax",))
def layers_stacked_in_reverse(patch: Patch, s: Side) -> None:
    """The last layer first, there and back: a checkpoint goes through unharmed, and so does the sum of all layers."""

    def flipped(f: Any) -> Any:
        def tree(*given: Any) -> dict[str, Any]:
            made = f(*given)
            return {name: value[::-1] if name.startswith("blocks.") else value for name, value in made.items()}

        return tree

    def flipped_back(f: Any) -> Any:
        def tensors(model: Any, tree: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return f(
                model, {name: value[::-1] if name.startswith("blocks.") else value for name, value in tree.items()}
            )

        return tensors

    wrap(patch, s.model, "placed", flipped)
    wrap(patch, s.model, "from_jax_tree", flipped_back)
