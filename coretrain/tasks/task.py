"""What a task is: prompts by number, the right answer, wrong ones, a score; and its rows in each form of data."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from coretrain.config.fields import Count, Countable, Section
from coretrain.tasks.draw import Draw

Prompt = str | list[dict[str, Any]]
"""A text, or messages."""
Fields = Mapping[str, Any]
"""What stands beside a prompt in its row: the right answer, and what else the score needs."""


class Task(Section, abc.ABC):
    """A task with its options; a pure function of these: row n is the same for any number of rows."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """To be raised whenever the rows of a task change: what was prepared of the old ones is not taken for them."""
    foreign: ClassVar[bool] = False
    """Whether its score runs code of a package, which may hang."""

    rows: Annotated[int, Field(ge=2, le=10_000_000), Countable] = Field(20_000, description="Rows that there are.")
    seed: Count = Field(0, description="Other prompts with another seed.")
    wrong: float = Field(0.0, ge=0, le=1, description="Share of wrong answers among worked ones, and among labels.")

    @abc.abstractmethod
    def prompt(self, index: int) -> tuple[Prompt, dict[str, Any]]:
        """Prompt number `index`, and its fields: `answer` is the right answer, a text."""

    @abc.abstractmethod
    def wrong_answer(self, index: int, fields: Fields) -> str:
        """An answer that a learner might give to prompt `index`, of a lower score than the right one."""

    @abc.abstractmethod
    def parts(self, completion: str, fields: Fields, ended: bool = True) -> dict[str, float]:
        """The score of an answer in its named parts, which add up to 1 for the right answer.

        `completion` is its text without the end token; `ended` says whether it has one, or was cut off.
        """

    def score(self, completion: str, fields: Fields, ended: bool = True) -> float:
        """The sum of the parts."""
        return sum(self.parts(completion, fields, ended).values())

    def facts(self, form: str) -> tuple[Any, ...]:
        """All that the rows depend on, for the key of a cache."""
        return (self.name, self.version, form, self.model_dump(mode="json"))

    def generated(self, form: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where, row) for each row, in the form that `data.format` names: chat, pairs, labels or prompts."""
        for index in range(self.rows):
            yield f"row {index + 1} of task {self.name}", self.row(form, index)

    def row(self, form: str, index: int) -> dict[str, Any]:
        """Row number `index` in one of the forms, as a user's file would have it."""
        prompt, fields = self.prompt(index)
        if form == "prompts":
            return {"prompt": prompt, **fields}
        right, wrong = fields["answer"], self.wrong_answer(index, fields)

        def said(answer: str) -> Prompt:
            return answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]

        if form == "pairs":
            return {"prompt": prompt, "chosen": said(right), "rejected": said(wrong)}
        errs = self.draw(index, "errs").fraction() < self.wrong
        worked = {"prompt": prompt, "completion": said(wrong if errs else right)}
        return worked | {"label": not errs} if form == "labels" else worked

    def draw(self, index: int, purpose: str) -> Draw:
        """Random numbers of a row, others for each purpose."""
        return Draw(self.name, self.seed, index, purpose)
