"""Bugs in what the contract computes for both stacks at once, which no comparison of the two can see; and layouts."""

from __future__ import annotations

from collections.abc import Mapping
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
