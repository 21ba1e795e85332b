"""Whole runs of GRPO and PPO with either stack: prompts, sampled answers, rewards, updates, through the loop itself."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coretrain.alignment.answering import Answering
from coretrain.alignment.rewards.reward import Answer, Reward
from coretrain.alignment.rollouts import Rollouts
from coretrain.base.arrays import Tensors
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import Progress, read_sealed
from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from coretrain.data.open import open_data
from coretrain.data.prompts.open import prompts_of
from coretrain.journal.journal import SilentJournal
from coretrain.training.loop import Loop
from coretrain.training.saver import kept_arrays
from parity.forms import LLAMA_FORM
from parity.pair import make_config, restart

RUN = {
    **LLAMA_FORM,
    "model.width": 16,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.context": 16,
    "model.vocab": 257,
    "data.source": "task:sort?rows=200&length=3",
    "data.format": "prompts",
    "data.tokenizer": "bytes",
    "data.chat_template": "bare",
    "data.validation_fraction": 0.1,
    "data.prepare_processes": 1,
    "train.batch_size": 8,
    "train.accumulation": 2,
    "train.eval_interval": 1000,
    "train.eval_batches": 1,
    "checkpoint.interval": 1000,
    "optimizer.lr": 3e-3,
    "schedule.warmup_updates": 2,
    "schedule.horizon": 200,
    "align.tokens": 6,
    "align.temperature": 0.8,
    "align.kl_coefficient": 0.1,
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {"align.group": 4},
    "ppo": {
        "model.score_head": "true", "align.epochs": 2, "align.minibatches": 2, "align.kl_controller": "adaptive",
        "align.kl_target": 0.5, "align.kl_horizon": 100,
    },
}  # fmt: skip
"""In one rollout GRPO has 1 update and PPO 4, with a coefficient that moves."""


def config_of(objective: str, updates: int, cache: Path) -> RunConfig:
    """A run of so many updates, on a model of random weights."""
    given = {"train.objective": objective, "train.updates": updates, "data.cache": cache}
    return make_config(RUN | OBJECTIVES[objective] | given)


class Spread:
    """A term that rewards every answer, whatever it says, by a fraction: a random model never gets one right."""

    name = "spread"

    def score(self, answers: Sequence[Answer]) -> dict[str, NDArray[np.float64]]:
        """Of the ids of each answer, so that one other id is another reward."""
        sums = [sum((7 * place + 3) * token for place, token in enumerate(answer.ids)) for answer in answers]
        return {"spread": np.array([total % 101 / 101 for total in sums]) + [0.25 * answer.ended for answer in answers]}

    def close(self) -> None:
        """Nothing is open."""


class Noted(SilentJournal):
    """Keeps each update's row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def update(self, *_: Any, **row: Any) -> None:
        """Keep it."""
        self.rows.append(row)


class Watched(Rollouts):
    """Keeps the ids of each update's batch."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """As they are."""
        self.ids = list[list[list[int]]]()
        for batch in super().batches(start, stop):
            self.ids.append(batch.tokens.tolist())
            yield batch


class Left(NamedTuple):
    """Where a run stands after its last update, for whichever stack goes on with it."""

    progress: Progress
    arrays: dict[str, NDArray[Any]]
    groups: dict[str, dict[str, NDArray[Any]]]


class Seen(NamedTuple):
    """What a run came to."""

    rows: list[dict[str, Any]]
    ids: list[list[list[int]]]
    left: Left

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """Of the model, by name."""
        return self.left.groups["parameters"]


@functools.cache
def stacks(make: Any, config: RunConfig) -> tuple[Any, Any]:
    """A stack that trains and one that is its reference, whose programs JAX compiles once."""
    return make(config), make(config)


def trained(
    make: Any, config: RunConfig, folder: Path, start: Tensors, left: Left | None = None, updates: int | None = None
) -> Seen:
    """A run of a stack that `make` makes, from `start` or from where another was left; `start` is its reference.

    It ends after so many `updates`.
    """
    data = open_data(config, lambda text: None)
    stack, reference = stacks(make, config)
    for one in (stack, reference):
        restart(one, start)
    answering = Answering(config, prompts_of(data, config), Reward([(1.0, Spread())]), stack)
    source = Watched(config, answering, reference.token_logprobs)
    journal, progress = Noted(), Progress()
    if left is not None:
        progress = left.progress
        stack.adopt(left.groups, progress.applied)
        source.load(progress.align, left.arrays)
    config = config.changed(train__updates=updates or config.train.updates)
    loop = Loop(config, stack, data, folder, journal, progress, source=source)
    assert loop.train() == "finished"
    saved = CheckpointFolder(folder / "checkpoints").final(config.train.updates)
    groups = {
        group: {name: np.array(each) for name, each in tensors.items()} for group, tensors in stack.export().items()
    }
    return Seen(journal.rows, source.ids, Left(read_sealed(saved).progress, kept_arrays(saved), groups))


def moved(ours: Seen, theirs: Seen, start: Tensors) -> float:
    """The largest distance of two runs' parameters over how far training has moved them, by tensor."""
    apart = []
    for name, value in ours.parameters.items():
        way = float(np.linalg.norm(value - start[name]))
        apart.append(float(np.linalg.norm(value - theirs.parameters[name])) / way)
    return max(apart)
