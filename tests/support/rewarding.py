"""What tests of tasks, prompts and rewards ask and score. Modules are imported when a check runs, so that it judges a
copy in which a bug may be planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.configs import small_config

Check = Callable[[Path], None]


class Facts(dict[str, Check]):
    """Checks by name, each of which takes an empty folder; a planted bug must break one of them."""

    def __call__(self, check: Check) -> Check:
        """As a decorator: a fact, under its function's name."""
        self[check.__name__] = check
        return check


def asking(folder: Path, source: object, **more: object) -> Any:
    """The config of a run that asks prompts."""
    fields = {"data__source": source, "data__format": "prompts", "data__chat_template": "bare", "align__tokens": 8}
    kind = {"train__objective": "grpo", "data__tokenizer": "bytes", "model__vocab": 257, "data__prepare_processes": 1}
    return small_config(folder, **fields | kind | {"train__batch_size": 8, "align__reward": "exact"} | more)


def prompts_of(config: Any) -> Any:
    """The prompts of a run."""
    from coretrain.data.open import open_data
    from coretrain.data.prompts.open import prompts_of

    return prompts_of(open_data(config, lambda line: None), config)


def answers(*completions: str, prompt: Any = "351204>", ended: bool = True, **fields: Any) -> list[Any]:
    """Answers to one prompt."""
    from coretrain.alignment.rewards.reward import Answer

    row = {"prompt": prompt, "answer": "012345"} | fields
    return [Answer(str(prompt), one, row, ended, len(one) + 1) for one in completions]


def task(word: str) -> Any:
    """A task by its word."""
    from coretrain.tasks.registry import open_task

    return open_task(word)


def scored(folder: Path, word: str | None, given: Any, **more: object) -> Any:
    """What a reward gives."""
    from coretrain.alignment.rewards.open import open_reward

    reward = open_reward(asking(folder, "task:sort", **{"align__reward": word or "none"} | more))
    try:
        return reward.score(given)
    finally:
        reward.close()
