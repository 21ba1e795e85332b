"""Rollouts to test with: prompts, answers, and numbers as a trainer would give them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from coretrain.config.run import RunConfig
from coretrain.contract.decoding import Sampled
from coretrain.data.batch import IGNORED

END = 0
"""The end token, which is also what rows are padded with: nothing may mistake one for the other."""


def rollout() -> Any:
    """The module, as it is now: a planted bug is in a fresh copy of it."""
    return import_module("coretrain.alignment.rollout")


def run_config(objective: str = "grpo", batch: int = 4, compute: str = "float64", **align: Any) -> RunConfig:
    """A run that learns from rollouts of answers of at most 4 tokens."""
    align = {"reward": "sort", "tokens": 4} | ({"group": 2} if objective == "grpo" else {}) | align
    return RunConfig.model_validate(
        {
            "train": {"objective": objective, "batch_size": batch, "seed": 5},
            "data": {"format": "prompts"},
            "model": {"score_head": objective == "ppo"},
            "precision": {"compute": compute},
            "align": align,
        }
    )


class Made:
    """A rollout of 8 answers to 4 prompts: what was sampled, and numbers as a trainer would give them."""

    def __init__(self, seed: int = 0, width: int = 9, count: int = 8) -> None:
        draw = np.random.default_rng(seed)
        self.prompts = [[3] * length for length in draw.integers(1, 5, count // 2).repeat(2)]
        lengths = draw.integers(1, 5, count)
        lengths[:3] = 4, 1, 4
        self.sampled = []
        for row, length in enumerate(lengths):
            ended = bool(row % 3 != 2)
            ids = [*draw.integers(1, 9, length - 1), END if ended else 8]
            self.sampled.append(Sampled([int(one) for one in ids], [*map(float, -draw.random(length))], ended))
        self.groups = np.arange(count) // 2
        self.rewards = draw.normal(size=count)
        self.rows = rollout().layout(self.prompts, self.sampled, width)
        self.mask = self.rows.labels != IGNORED
        self.old, self.reference, self.values = (
            np.where(self.mask, one, np.nan) for one in -draw.random((3, 8, width))
        )

    def arrays(self, config: RunConfig, **more: Any) -> dict[str, np.ndarray]:
        """Those of the rollout."""
        planes = {"old": self.old} | ({"values": self.values} if config.train.objective == "ppo" else {}) | more
        given = {"rewards": self.rewards, "groups": self.groups} | planes
        found: dict[str, np.ndarray] = rollout().rollout_arrays(config, self.rows, self.sampled, **given)
        return found


def same(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> None:
    """Two sets of arrays, to the bit."""
    assert list(one) == list(two)
    for name, array in one.items():
        assert array.dtype == two[name].dtype
        assert array.tobytes() == two[name].tobytes(), name


def bits(batches: list[Any]) -> list[Any]:
    """Batches, as something that can be compared."""
    return [
        (batch.tokens.tobytes(), batch.labels.tobytes(), {name: one.tobytes() for name, one in batch.planes.items()})
        for batch in batches
    ]
