"""The reward of a run, from `align.reward`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from coretrain.alignment.rewards.process import Guarded
from coretrain.alignment.rewards.reward import Answer, Floats, Reward, Term
from coretrain.alignment.rewards.rules import RULES
from coretrain.alignment.rewards.single import Single, single_of
from coretrain.alignment.rewards.words import terms_of
from coretrain.base.errors import UserError, meant
from coretrain.base.files import typed_path
from coretrain.base.parse import shown
from coretrain.config.run import RunConfig
from coretrain.tasks.registry import TASKS, WORD, is_task, is_task_name, open_task

RUN = "run:"
Scorer = Callable[[Sequence[Answer]], Floats]
"""A reward model: the score [N] of answers with their ids."""


class Here:
    """A term whose code is ours and quick: it runs in this process."""

    def __init__(self, single: Single) -> None:
        self.name, self._single = single.name, single

    def score(self, answers: Sequence[Answer]) -> dict[str, Floats]:
        """Named parts [N]."""
        parts = self._single.parts([vars(answer) for answer in answers])
        return {name: np.array(values, np.float64) for name, values in parts.items()}

    def close(self) -> None:
        """Nothing is to be ended."""


class Model:
    """A term that a reward model scores."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name, self._scorer = name, scorer

    def score(self, answers: Sequence[Answer]) -> dict[str, Floats]:
        """Its scores [N]."""
        return {"score": np.asarray(self._scorer(answers), np.float64)}

    def close(self) -> None:
        """Whoever gave the scorer ends it."""


def open_reward(config: RunConfig, run_scorer: Callable[[str], Scorer] | None = None) -> Reward:
    """What `align.reward` names; unset, the task of `data.source`. `run_scorer` opens a reward model by its folder.

    Raises `UserError` for what there isn't, or what can't be loaded.
    """
    align = config.align
    if align.reward is None:
        if config.data.mixture or not is_task(config.data.source):
            raise UserError(
                "alignment/reward-missing",
                f"data.source = {config.data.source} is no task that scores its answers: set align.reward to "
                f"module:function of yours, the folder of a reward run, or one of {', '.join([*RULES, *TASKS])}",
            )
        words = [(1.0, config.data.source)]
    else:
        words = terms_of(align.reward)
    opened: list[tuple[float, Term]] = []
    try:
        for weight, word in words:
            opened.append((weight, _term(word, config, run_scorer)))
    except BaseException:
        Reward(opened).close()
        raise
    return Reward(opened, align.reward_failure == "stop")


def _term(word: str, config: RunConfig, run_scorer: Callable[[str], Scorer] | None) -> Term:
    name = word.partition("?")[0]
    if name in RULES or is_task(word) or is_task_name(word):
        single = single_of(word)
        _check_single(single, config)
        return Guarded(single.name, word, "single", config.align.reward_timeout) if single.foreign else Here(single)
    folder = word.removeprefix(RUN)
    if word.startswith(RUN) or "/" in word or typed_path(word).is_dir():
        if run_scorer is None or not typed_path(folder).is_dir():
            raise UserError(
                "alignment/reward-run-missing",
                f"align.reward = {shown(word)}: there is no folder of a run: train one with train.objective = reward",
            )
        return Model(typed_path(folder).name or "run", run_scorer(folder))
    module, _, function = word.rpartition(":")
    if not module:
        known = [*RULES, *TASKS]
        raise UserError(
            "alignment/reward-unknown",
            f"align.reward names {shown(word)}: {meant(name, known)}Known are {', '.join(known)}; or give "
            "module:function of yours, the folder of a reward run, or a sum of these with blanks around each +",
        )
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise UserError(
            "alignment/reward-function-malformed",
            f"align.reward = {shown(word)}: write module:function, as my_rewards:exact for the function exact in "
            "my_rewards.py",
        )
    return Guarded(function, word, "function", config.align.reward_timeout)


def _check_single(single: Single, config: RunConfig) -> None:
    """Raise `UserError` where a length is punished twice, or a task scores answers to another's questions."""
    if single.name == "length" and config.align.overlong_buffer:
        raise UserError(
            "alignment/length-punished-twice",
            f"align.reward = {shown(single.word)} and align.overlong_buffer = {config.align.overlong_buffer} both take "
            "off for length: leave one out",
        )
    if single.foreign and single.name not in RULES:
        source = config.data.source
        if config.data.mixture or not is_task(source) or open_task(source) != single.scores:
            raise UserError(
                "alignment/reward-of-other-task",
                f"align.reward = {shown(single.word)} scores answers to its own questions alone: set data.source = "
                f"{WORD}{single.word.removeprefix(WORD)}",
            )
