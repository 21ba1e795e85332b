"""Models beside the one that trains: the reference that a policy is held against, and reward models.

Each is a stack of its own that only scores: no optimizer state is made in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coretrain.adapters.merge import fingerprint
from coretrain.base.arrays import Tensors
from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.checkpoint.interchange import Interchange
from coretrain.config.objectives import POLICY, REFERRED
from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch
from coretrain.data.splits import Data
from coretrain.runs.adapted import with_base
from coretrain.runs.base import BaseTensors
from coretrain.runs.folder import open_run
from coretrain.runs.start import StartTensors, check_same_tokenizer, start_run
from coretrain.runs.translate import best_interchange
from coretrain.training.stack import Stack

MakeStack = Callable[[RunConfig, Tensors | None], Stack]


class Reference(NamedTuple):
    """A stack that scores, and what its weights are known by."""

    stack: Stack
    fingerprint: str


def open_reference(
    config: RunConfig, data: Data, make_stack: MakeStack, base: BaseTensors | None, start: StartTensors | None
) -> Reference | None:
    """What a run is held against: align.reference, or its own start; None where there is none.

    With an adapter the start is the base with the adapter as it begins. A run that has no start began with fresh
    weights, of train.seed.
    """
    named = config.align.reference
    if config.train.objective not in (*REFERRED, *POLICY) or named == "off":
        return None
    if named is None:
        if base is not None:
            return Reference(make_stack(config, base), config.adapter.fingerprint)
        mark = start.fingerprint if start is not None else f"seed {config.train.seed}"
        return Reference(make_stack(config, start), mark)
    check_same_tokenizer(named, "align.reference", data.tokenizer.fingerprint)
    stack, found = open_scorer(config, make_stack, named, "align.reference")
    if found.config.model.vocabulary != config.model.vocabulary:
        raise UserError(
            "training/reference-of-another-vocabulary",
            f"align.reference = {named} has a vocabulary of {found.config.model.vocabulary}, and this run has "
            f"{config.model.vocabulary}: give a run of the same tokenizer",
        )
    return Reference(stack, fingerprint(found.config, found.groups["parameters"]))


class RunScores:
    """Reward models by the run that each is of: the score head at the last token of prompt and answer.

    `prepare` is called by all processes, since a stack's methods are; `open` gives what a reward asks of it.
    """

    def __init__(self, config: RunConfig, data: Data, make_stack: MakeStack) -> None:
        self.config, self.data, self.make_stack = config, data, make_stack
        self.stacks: dict[str, Stack] = {}
        self.scores: dict[str, NDArray[np.float64]] = {}

    def open(self, place: str) -> Callable[[Sequence[Any]], NDArray[np.float64]]:
        """What gives the scores of the rows that were prepared last. Raises `UserError` for what is no reward model."""
        check_same_tokenizer(place, "align.reward", self.data.tokenizer.fingerprint)
        stack, found = open_scorer(self.config, self.make_stack, place, "align.reward")
        if not found.config.model.score_head:
            raise UserError(
                "training/reward-run-without-score-head",
                f"align.reward = {place} has no score head: give a run of train.objective = reward",
            )
        self.stacks[place] = stack
        return lambda answers: self.scores[place]

    def prepare(self, rows: Sequence[Sequence[int]]) -> None:
        """Score rows of ids, each a prompt with its answer."""
        if not self.stacks:
            return
        tokens = np.zeros((len(rows), self.config.row_tokens), np.int32)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
        batch, last = Batch(tokens, np.full_like(tokens, IGNORED)), np.array([len(ids) - 1 for ids in rows])
        for place, stack in self.stacks.items():
            self.scores[place] = np.asarray(stack.values(batch), np.float64)[np.arange(len(rows)), last]


def open_scorer(config: RunConfig, make_stack: MakeStack, place: str, field: str) -> tuple[Stack, Interchange]:
    """The best weights of the run that `field` names, in a stack that scores rows of this run."""
    folder = start_run(place, field)
    theirs = open_run(folder)
    if theirs.model.context < config.row_tokens:
        raise UserError(
            "training/scorer-context-too-short",
            f"{field} = {place} takes {theirs.model.context} tokens, and rows here have {config.row_tokens}: lower "
            "model.context, or give another run",
        )
    found = best_interchange(folder if typed_path(place).resolve() == folder.resolve() else typed_path(place), print)
    own = config.changed(model=theirs.model, adapter=theirs.adapter, train__start=None)
    own, base = with_base(own)
    stack = make_stack(own, base if base is not None else found.groups["parameters"])
    if base is not None:
        stack.adopt({"parameters": found.groups["parameters"]}, 0)
    return stack, found
