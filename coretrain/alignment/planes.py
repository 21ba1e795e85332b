"""The planes of a batch, by objective: which it needs, which it takes where they are there, and their shapes.

Where a plane is of rows and tokens its index is that of the label: plane[b, t] is about labels[b, t].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from coretrain.base.errors import UserError
from coretrain.data.batch import Batch

TOKENS = ("reference", "share", "old", "advantages", "correction", "values", "returns")
"""Planes [B, T]; all others are [B, P] of pairs, or [B, S] of sequences."""

MEASURED = ("reference", "old", "advantages", "correction", "values", "returns", "kl_baseline")
"""Planes of numbers that a model gave, or that are made of such: their last bits are a machine's own."""


class Planes(NamedTuple):
    """The names of an objective's planes."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


PLANES: Mapping[str, Planes] = {
    "cross_entropy": Planes(()),
    "reward": Planes(("pair_share",), ("margin",)),
    "dpo": Planes(("pair_share", "reference"), ("margin",)),
    "ipo": Planes(("pair_share", "reference")),
    "simpo": Planes(("pair_share",)),
    "orpo": Planes(("pair_share",)),
    "kto": Planes(("sequence_share", "desirable", "reference", "kl_baseline")),
    "grpo": Planes(("share", "advantages"), ("old", "reference", "correction")),
    "ppo": Planes(("share", "advantages", "values", "returns"), ("old", "reference", "correction")),
}
"""share, pair_share, sequence_share: what each token, pair or sequence counts; 0 where there is none. margin: by how
much a pair should differ. reference, old: log-probabilities of the labels under the reference, and under the policy
that sampled (none: the policy as it is, so that every ratio is 1). correction: weight of a token against a sampler that
isn't the trainer. values, returns: of the value head before the rollout, and what it should have said."""


def as_read(batch: Batch) -> Batch:
    """A batch without what a model has said of it: alike in both stacks and on any devices, where its ids are."""
    return replace(batch, planes={name: plane for name, plane in batch.planes.items() if name not in MEASURED})


def check_planes(objective: str, batch: Batch) -> None:
    """Raise `UserError` where a batch hasn't the planes of an objective, or has others."""
    planes, found = PLANES[objective], set(batch.planes)
    missing = [name for name in planes.needed if name not in found]
    odd = sorted(found - {*planes.needed, *planes.optional})
    if missing or odd:
        what = f"no plane {missing[0]}" if missing else f"a plane {odd[0]}, which nobody reads"
        raise UserError(
            "alignment/planes-of-another-objective",
            f"train.objective = {objective} got a batch with {what}: give it one of its own data.format",
        )
