"""Short strings to be put in order, copied or turned round: `351204>` is answered by `012345`.

Small enough for a model of 0.4M parameters, which learns them from bytes in a minute. The worked answers of `sort` are
mostly wrong (65%), so that a model trained on them knows the right answer and often gives another: there is something
left that reinforcement learning can sharpen.
"""

from __future__ import annotations

import abc
from typing import Annotated, Any, ClassVar

from pydantic import Field

from coretrain.tasks.task import Fields, Task

Length = Annotated[int, Field(ge=2, le=64)]
SEPARATOR = ">"


class StringTask(Task):
    """An answer that is a function of the string before the separator; scored 1 where it is that, and ends."""

    letters: ClassVar[str]
    length: Length = Field(6, description="Characters of a string.")

    @abc.abstractmethod
    def answer(self, given: str) -> str:
        """The right answer: the characters of `given` in another order, or the same."""

    def prompt(self, index: int) -> tuple[str, dict[str, Any]]:
        """A string and the separator. No string has all its characters alike: it would have no wrong answer."""
        draw = self.draw(index, "prompt")
        given = ""
        while len(set(given)) < 2:
            given = "".join(self.letters[draw.below(len(self.letters))] for _ in range(self.length))
        return given + SEPARATOR, {"answer": self.answer(given)}

    def wrong_answer(self, index: int, fields: Fields) -> str:
        """The right one with two characters swapped that differ."""
        right = list(fields["answer"])
        places = [(i, j) for i in range(len(right)) for j in range(i) if right[i] != right[j]]
        i, j = places[self.draw(index, "wrong").below(len(places))]
        right[i], right[j] = right[j], right[i]
        return "".join(right)

    def parts(self, completion: str, fields: Fields, ended: bool = True) -> dict[str, float]:
        """1 for the right answer to the letter, its end included."""
        return {"exact": float(ended and completion == fields["answer"])}


class Sort(StringTask):
    """Digits in ascending order."""

    name = "sort"
    letters = "0123456789"
    wrong: float = Field(0.65, ge=0, le=1, description="Share of wrong answers among worked ones, and among labels.")

    def answer(self, given: str) -> str:
        """The digits, the smallest first."""
        return "".join(sorted(given))


class Copy(StringTask):
    """Letters as they stand."""

    name = "copy"
    letters = "abcdefghijklmnopqrstuvwxyz"

    def answer(self, given: str) -> str:
        """The same letters."""
        return given


class Reverse(Copy):
    """Letters from the last to the first."""

    name = "reverse"

    def answer(self, given: str) -> str:
        """The letters turned round."""
        return given[::-1]
