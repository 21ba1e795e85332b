"""The families of the package reasoning-gym: questions with a program that scores their answers."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from coretrain.base.errors import UserError, meant
from coretrain.base.parse import from_json, shown
from coretrain.tasks.task import Fields, Prompt, Task

PREFIX = "reasoning_gym/"


def _package() -> Any:
    try:
        import reasoning_gym
        import reasoning_gym.factory
    except ImportError as error:
        raise UserError(
            "tasks/reasoning-gym-missing",
            f"tasks {PREFIX}NAME need the package reasoning-gym, and {error.name or 'a part of it'} isn't installed: "
            "pip install reasoning-gym",
        ) from None
    return reasoning_gym


@functools.lru_cache(maxsize=8)
def _dataset(family: str, seed: int, size: int, options: str) -> Any:
    """Families are opened once. Raises `UserError` where there is no such family, or it refuses an option."""
    package = _package()
    known = sorted(package.factory.DATASETS)
    if family not in known:
        raise UserError(
            "tasks/reasoning-gym-family-unknown",
            f"reasoning-gym has no family {shown(family)}: {meant(family, known)}It has {len(known)}, as {known[0]}",
        )
    try:
        return package.create_dataset(family, size=size, seed=seed, **json.loads(options))
    except Exception as error:  # of a package: TypeError for a name, AssertionError for a value, others
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            "tasks/reasoning-gym-options-refused",
            f"task {PREFIX}{family}: reasoning-gym refuses its options ({reason}): mend them",
        ) from None


class Gym(Task):
    """One family; options that aren't ours are the family's own, as `max_terms=3`."""

    model_config = ConfigDict(extra="allow")
    name = "reasoning_gym"
    foreign: ClassVar[bool] = True
    family: str = Field(description="Its name in the package.")

    @property
    def _options(self) -> str:
        return json.dumps({key: _value(text) for key, text in (self.model_extra or {}).items()}, sort_keys=True)

    def _entry(self, index: int) -> Any:
        return _dataset(self.family, self.seed, self.rows, self._options)[index]

    def facts(self, form: str) -> tuple[Any, ...]:
        """With the package's version: its questions may change with it."""
        _package()
        return (*super().facts(form), importlib.metadata.version("reasoning-gym"))

    def prompt(self, index: int) -> tuple[Prompt, dict[str, Any]]:
        """The question as the user's message; `index` goes to the score, which needs the whole entry."""
        entry = self._entry(index)
        answer = entry["answer"]
        fields = {"answer": answer if isinstance(answer, str) else "", "index": index}
        return [{"role": "user", "content": entry["question"]}], fields

    def row(self, form: str, index: int) -> dict[str, Any]:
        """As every task; refused where a family doesn't tell its answers."""
        row = super().row(form, index)
        if form != "prompts" and not self._entry(index)["answer"]:
            raise UserError(
                "tasks/reasoning-gym-without-answers",
                f"task {PREFIX}{self.family} tells no answer to its question {index + 1}: take data.format = prompts",
            )
        return row

    def wrong_answer(self, index: int, fields: Fields) -> str:
        """The answer of one of the next questions; where all are the same, the right one with a question mark."""
        for step in range(1, 20):
            other = self._entry((index + step) % self.rows)["answer"]
            if isinstance(other, str) and other and other != fields["answer"]:
                return other
        return f"{fields['answer']}?"

    def parts(self, completion: str, fields: Fields, ended: bool = True) -> dict[str, float]:
        """What the family's own program gives, 0 to 1; an answer that was cut off gets 0."""
        if not ended:
            return {"score": 0.0}
        dataset = _dataset(self.family, self.seed, self.rows, self._options)
        return {"score": float(dataset.score_answer(completion.strip(), dataset[int(fields["index"])]))}


def _value(text: Any) -> Any:
    """An option's value: what its JSON says, such as a number, true or a list; else the text itself."""
    try:
        return from_json(text) if isinstance(text, str) else text
    except ValueError:
        return text
