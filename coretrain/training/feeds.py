"""What a run's batches come from, by its objective: text, preferences, or rollouts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from coretrain.alignment.sources import Source
from coretrain.base.errors import UserError
from coretrain.config.objectives import POLICY
from coretrain.config.run import RunConfig
from coretrain.data.open import open_data
from coretrain.data.splits import Data
from coretrain.processes.world import World
from coretrain.runs.base import BaseTensors
from coretrain.runs.start import StartTensors
from coretrain.tasks.registry import is_task
from coretrain.training.references import MakeStack, Reference, RunScores, open_reference
from coretrain.training.stack import Stack
from coretrain.training.text import Text


class Feed(NamedTuple):
    """A source of batches, and what of it a checkpoint remembers beside its state."""

    source: Source
    kept: dict[str, Any]
    close: Callable[[], None] = lambda: None


def open_feed(
    config: RunConfig,
    data: Data,
    stack: Stack,
    make_stack: MakeStack,
    base: BaseTensors | None,
    start: StartTensors | None,
    world: World,
    at: Callable[[str], None],
) -> Feed:
    """The source of a run's batches. Raises `UserError` where its reference or its reward can't be used."""
    objective = config.train.objective
    if objective == "cross_entropy":
        return _judged(Feed(Text(config, stack, data), {}), config, stack, world, at)
    reference = open_reference(config, data, make_stack, base, start)
    kept = {"reference": reference.fingerprint} if reference else {}
    if objective in POLICY:
        return _rollouts(config, data, stack, make_stack, reference, world, at, kept)
    from coretrain.alignment.pairs import Pairs

    scorer = reference.stack.token_logprobs if reference else None
    policy = stack.token_logprobs if objective == "kto" else None
    rows = functools.partial(stack.batches, data)
    pairs = Pairs(rows, data, config, stack.measure, scorer, policy)
    return _judged(Feed(pairs, kept), config, stack, world, at)


def check_reference(kept: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise `UserError` where a run would go on beside another reference than the one that it was trained with."""
    before, now = found.get("reference"), kept.get("reference")
    if before is not None and before != now:
        raise UserError(
            "training/reference-changed",
            f"the checkpoint was trained with a reference of fingerprint {before}, and train.start, adapter.base or "
            f"align.reference now has {now}: give the same one",
        )


def _rollouts(
    config: RunConfig,
    data: Data,
    stack: Stack,
    make_stack: MakeStack,
    reference: Reference | None,
    world: World,
    at: Callable[[str], None],
    kept: dict[str, Any],
) -> Feed:
    from coretrain.alignment.answering import Answering
    from coretrain.alignment.rewards.open import open_reward
    from coretrain.alignment.rollouts import Rollouts
    from coretrain.data.prompts.open import prompts_of

    runs = RunScores(config, data, make_stack)
    reward = open_reward(config, runs.open)
    scorer = reference.stack.token_logprobs if reference else None
    # what a task itself says of answers that something else rewards
    beside = config.align.reward is not None and is_task(config.data.source) and not config.data.mixture
    truth = open_reward(config.changed(align__reward=None)) if beside else None
    answering = Answering(config, prompts_of(data, config), reward, stack, world, at, runs.prepare, truth)

    def close() -> None:
        for one in filter(None, (reward, truth)):
            one.close()

    return Feed(Rollouts(config, answering, scorer), kept, close)


def _judged(feed: Feed, config: RunConfig, stack: Stack, world: World, at: Callable[[str], None]) -> Feed:
    """`feed` with what the model answers among its evaluations, where the data are a task's."""
    if not is_task(config.data.source) or config.train.objective == "reward" or config.data.mixture:
        return feed
    from coretrain.alignment.answering import Answering
    from coretrain.alignment.judged import Judged
    from coretrain.alignment.rewards.open import open_reward
    from coretrain.data.prompts.open import prompts_of

    tokens = max(1, config.model.context // 2)
    asking = config.changed(data__format="prompts", data__misfits="drop", align__tokens=tokens)
    prompts, reward = prompts_of(open_data(asking), asking), open_reward(asking)
    answering = Answering(config, prompts, reward, stack, world, at)
    return Feed(Judged(feed.source, answering, tokens), feed.kept, reward.close)
