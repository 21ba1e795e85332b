"""Rollouts as a source of batches: prompts, answers that the policy samples, their rewards, and what an update needs.

Rollout r is made of the weights that stand when its first update begins; it gives align.epochs x align.minibatches
updates. Which prompts it asks and which random numbers it draws is a pure function of the data, train.seed and r. Its
arrays are kept in a checkpoint that falls between its updates, so that a run goes on with the same bits.

Every process makes the same rollout: the stack's methods give all of them the same numbers, and the first alone asks
the reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.alignment.answering import Answering
from coretrain.alignment.gap import gap_figures
from coretrain.alignment.kl import Controller, coefficient_state, read_coefficient, sequence_kl
from coretrain.alignment.rollout import (
    layout,
    minibatches,
    read_arrays,
    rollout_arrays,
    rollout_figures,
    sampled_plane,
)
from coretrain.alignment.sums import Floats
from coretrain.base.files import short_hash
from coretrain.config.run import RunConfig
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import IGNORED, Batch

GAP_PART = 8
"""Where the trainer's log-probabilities are wanted for the gap to the sampler's alone, one answer in so many is scored:
the others would cost a forward pass."""


class Rollouts:
    """The source of batches of `train.objective` = ppo and grpo."""

    follows_weights = True

    def __init__(
        self,
        config: RunConfig,
        answering: Answering,
        reference: Callable[[Batch, float], NDArray[np.generic]] | None = None,
    ) -> None:
        """`reference` gives the log-probabilities of a batch's labels at a temperature."""
        self.config, self.answering, self.reference = config, answering, reference
        self.policy, self.at = answering.policy, answering.at
        align = config.aligned
        self.controller = Controller(align.kl_controller == "adaptive", align.kl_target, align.kl_horizon)
        self.coefficient = float(align.kl_coefficient or 0.0)
        self.number = -1
        self.index = -1
        self.rollout: dict[str, Floats] = {}
        self.updates: list[Batch] = []
        self.seen: dict[str, float] = {}
        self.trouble = ""
        self.shown: list[dict[str, Any]] = []

    @property
    def updates_each(self) -> int:
        """Updates that a rollout gives."""
        return self.config.align.epochs * self.config.align.minibatches

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the indices [start, stop); a rollout is made when the first of its batches is asked for."""
        for index in range(start, stop):
            number, place = divmod(index, self.updates_each)
            if number != self.number:
                self._make(number)
            self.index = index
            yield self.updates[place]

    def _make(self, number: int) -> None:
        """Rollout `number`, with the weights as they are."""
        config, align = self.config, self.config.aligned
        rows, group = config.train.batch_size * align.minibatches, align.group or 1
        self.at(f"rollout {number}")
        chosen = np.repeat(self.answering.prompts.of_rollout(number, rows // group), group)
        seed = int(short_hash("rollout", config.train.seed, number), 16)
        asked = self.answering.ask([int(n) for n in chosen], align.tokens, Sampling(align.temperature, 0, 1.0, seed))
        self.at(f"the scores of rollout {number}")
        batch = layout(asked.prompts, asked.sampled, config.row_tokens)
        # a rollout's only update has the policy that sampled it: every ratio is 1, exactly where none is computed
        alone = self.updates_each == 1 and align.kl_place != "reward" and align.correction == "none"
        some = slice(0, math.ceil(rows / GAP_PART) if alone else rows)
        trainer = self._wide(self.policy.token_logprobs(batch.rows(some), align.temperature))
        reference = None if self.reference is None else self._wide(self.reference(batch, align.temperature))
        values = self._wide(self.policy.values(batch)) if align.advantage == "gae" else None
        old = sampled_plane(batch, asked.sampled) if align.replay else None if alone else trainer
        arrays = rollout_arrays(
            config, batch, asked.sampled, asked.rewards, np.arange(rows) // group, old,
            reference, values, np.full(rows, not asked.fault), self.coefficient,
        )  # fmt: skip
        used, mask = self.coefficient, batch.labels != IGNORED
        self.seen = rollout_figures(arrays) | gap_figures(trainer, arrays["sampled"][some], mask[some])
        if group == 1:
            self.seen.pop("without_spread", None)  # one answer has none
        self.seen |= {f"reward_{name}": value for name, value in asked.parts.items()}
        if reference is not None and align.kl_place == "reward":
            self.seen["kl_coefficient"] = used
            nats = sequence_kl("k1", arrays["old"], arrays["reference"], mask)
            self.coefficient = self.controller.after(used, nats, rows)
        self._take(number, arrays, asked.fault)

    def _take(self, number: int, arrays: dict[str, Floats], fault: str) -> None:
        self.number, self.rollout, self.trouble = number, arrays, fault
        self.updates = minibatches(arrays, self.config, number)

    @staticmethod
    def _wide(plane: NDArray[Any]) -> Floats:
        return np.asarray(plane, np.float64)

    def evaluate(self) -> tuple[float, dict[str, float]]:
        """Less the mean reward of held-out prompts' sampled answers, and figures of these."""
        align = self.config.aligned
        figures, self.shown = self.answering.examine(align.tokens, align.temperature)
        return -figures["reward"], figures

    def answers(self) -> Sequence[Mapping[str, Any]]:
        """What the last evaluation's prompts were answered: prompt, answer, reward, ended."""
        return self.shown

    def fault(self) -> str:
        """Why the batch that was handed out last isn't to be learnt from, or ''."""
        return self.trouble

    def figures(self) -> dict[str, float]:
        """The figures of the rollout in progress, at each of its updates."""
        return dict(self.seen)

    def state(self) -> dict[str, Any]:
        """The weight of the KL in the next rollout, and which one is in progress."""
        state: dict[str, Any] = coefficient_state(self.coefficient)
        if self._in_progress():
            seen = {name: value for name, value in self.seen.items() if math.isfinite(value)}
            state |= {"rollout": self.number, "index": self.index, "figures": seen, "fault": self.trouble}
        return state

    def _in_progress(self) -> bool:
        return self.number >= 0 and (self.index + 1) % self.updates_each != 0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The rollout in progress; nothing where all of its updates have been handed out."""
        return dict(self.rollout) if self._in_progress() else {}

    def load(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up the rollout in progress, if there is one."""
        start = float(self.config.aligned.kl_coefficient or 0.0)
        self.coefficient, self.number, self.index = read_coefficient(state, start), -1, -1
        self.rollout, self.updates, self.seen, self.trouble = {}, [], {}, ""
        if arrays and "rollout" in state:
            self.seen = {str(name): float(value) for name, value in state.get("figures", {}).items()}
            self.index = int(state["index"])
            self._take(int(state["rollout"]), read_arrays(arrays, self.config), str(state.get("fault", "")))
