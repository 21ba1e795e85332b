"""Preferences as a source of batches: what each pair or answer counts, the reference's scores, KTO's baseline.

What a pair counts is 1 over the pairs of the whole batch of an update, so that all count alike however they are packed
into rows, micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.alignment.figures import counted, named
from coretrain.alignment.kept import MOST, Kept, Score, scored
from coretrain.alignment.planes import PLANES
from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch, stacked
from coretrain.data.batches import updates_of, validation_batches, validation_rows
from coretrain.data.preferences.split import LabelSplit
from coretrain.data.splits import Data, Split

Rows = Callable[[int, int], Iterator[Batch]]
Measure = Callable[[Batch], Sequence[float]]


class Pairs:
    """The batches of pairs or labelled answers, in the order of the data."""

    def __init__(
        self,
        rows: Rows,
        data: Data,
        config: RunConfig,
        measure: Measure,
        reference: Score | None = None,
        policy: Score | None = None,
        most: int = MOST,
    ) -> None:
        """`rows` gives the global batches of [start, stop) of the data order, as the stack's own loader does.

        `measure` gives of a batch the loss and the figures of its objective, without dropout: sums over what it counts.
        `reference` scores labels under the reference, which dpo, ipo and kto need; `policy` under the weights as they
        are, which kto needs. At most `most` bytes of the reference's scores are kept.
        """
        self.rows, self.data, self.config, self.measure = rows, data, config, measure
        self.objective, self.align = config.train.objective, config.align
        self.wide = config.precision.compute == "float64"
        self.updates = updates_of(data, config)
        self.reference = reference if "reference" in PLANES[self.objective].needed else None
        if "reference" in PLANES[self.objective].needed and reference is None:
            raise ValueError(f"{self.objective} needs the scores of a reference")
        self.policy = policy
        if self.follows_weights and policy is None:
            raise ValueError(f"{self.objective} needs the scores of the policy")
        self.kept = self._keeping(self.updates.batch, most)
        self.kept_mismatched = self._keeping(self.mismatched, most)

    def _keeping(self, make: Callable[[int], Batch], most: int) -> Kept | None:
        return Kept(self.reference, self.updates, make, self.wide, most) if self.reference else None

    @property
    def follows_weights(self) -> bool:
        """Whether a batch depends on the weights that it is for: KTO's, whose baseline is the policy's."""
        return self.objective == "kto"

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Global batches of the indices [start, stop) of the data order, with their planes."""
        for update, batch in enumerate(self.rows(start, stop), start):
            planes = {}
            if self.kept:
                planes["reference"] = self.kept.plane(update, batch)
            whole = self.shared(batch, count(batch)).with_planes(self.wide, **planes)
            if self.follows_weights and self.kept_mismatched:
                other = self.mismatched(update)
                baseline = self.baseline([(other, self.kept_mismatched.plane(update, other))])
                whole = self.with_baseline(whole, baseline)
            yield whole

    def shared(self, batch: Batch, total: float) -> Batch:
        """`batch` as the split gives it, with what each pair or answer counts of `total` that there are."""
        planes = dict(batch.planes)
        if "desirable" in planes:
            good = planes["desirable"] > 0
            weights = np.where(good, self.align.desirable_weight, self.align.undesirable_weight)
            planes["sequence_share"] = planes["sequence_share"] * weights / total
        else:
            planes["pair_share"] = np.asarray(planes["pair_share"], np.float64) / total
        return replace(batch, planes={}).with_planes(self.wide, **planes)

    def baseline(self, others: Sequence[tuple[Batch, NDArray[Any]]]) -> float:
        """KTO's z0 (Ethayarajh et al. 2024): the policy's mean distance from the reference in answers to other prompts,
        nats an answer, and at least 0. No gradient goes through it.

        `others` are batches of such answers, each with the reference's log-probabilities.
        """
        assert self.policy is not None, "asked for with this objective alone"
        distance, answers = 0.0, 0.0
        for other, reference in others:
            policy = np.asarray(scored(self.policy, other), np.float64)
            learnt = other.labels != IGNORED
            distance += float((policy[learnt] - reference[learnt]).sum(dtype=np.float64))
            answers += count(other)
        return max(0.0, distance / answers) if answers else 0.0

    def with_baseline(self, batch: Batch, baseline: float) -> Batch:
        """`batch` with the same z0 for each of its answers."""
        return batch.with_planes(self.wide, kl_baseline=np.full(batch.planes["desirable"].shape, baseline))

    def mismatched(self, update: int) -> Batch:
        """The batch of an update with other samples' answers behind its prompts."""
        return _mismatched(self.updates.splits, self.updates.rows(update).tolist(), self.config)

    def evaluate(self) -> tuple[float, dict[str, float]]:
        """Loss of the validation set, a mean over its pairs or answers, and the objective's figures by name."""
        batches = self._validation
        if self.follows_weights:
            baseline = self.baseline(self._validation_mismatched)
            batches = [self.with_baseline(batch, baseline) for batch in batches]
        sums = np.sum([np.asarray(self.measure(batch), np.float64) for batch in batches], 0)
        parts = [counted(batch) for batch in batches]
        totals = {name: sum(part[name] for part in parts) for name in parts[0]}
        return float(sums[0]), named(self.objective, sums[1:].tolist(), totals)

    @cached_property
    def _validation(self) -> list[Batch]:
        batches = validation_batches(self.data, self.config)
        total = sum(map(count, batches))
        shared = [self.shared(batch, total) for batch in batches]
        if not self.reference:
            return shared
        return [batch.with_planes(self.wide, reference=scored(self.reference, batch)) for batch in shared]

    @cached_property
    def _validation_mismatched(self) -> list[tuple[Batch, NDArray[Any]]]:
        assert self.reference is not None, "asked for with KTO alone"
        rows, size = validation_rows(self.data, self.config), self.config.train.batch_size
        splits = [part.validation for part in self.data.parts]
        others = [_mismatched(splits, rows[at : at + size], self.config) for at in range(0, len(rows), size)]
        return [(other, scored(self.reference, other)) for other in others]

    def figures(self) -> dict[str, float]:
        """None beside those of the update itself."""
        return {}

    def answers(self) -> Sequence[Mapping[str, Any]]:
        """None: nothing is sampled."""
        return ()

    def fault(self) -> str:
        """None."""
        return ""

    def state(self) -> dict[str, Any]:
        """None: a batch is a pure function of its index, and of the weights where it follows them."""
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """None."""
        return {}

    def load(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Nothing to take up."""


def count(batch: Batch) -> float:
    """The pairs or answers of a batch as the split gives it."""
    planes = batch.planes
    name = "pair_share" if "pair_share" in planes else "sequence_share"
    return float(np.sum(planes[name] > 0))


def _mismatched(splits: Sequence[Split], rows: Sequence[Sequence[int]], config: RunConfig) -> Batch:
    found = []
    for part, window in rows:
        split = splits[part]
        assert isinstance(split, LabelSplit), "the kind that data.format = labels has"
        found.append(split.mismatched(window, config.row_tokens))
    return stacked(found)
