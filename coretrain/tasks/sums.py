"""Sums for chat models: a question in words, whose answer is to be a number and nothing else."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from coretrain.tasks.task import Fields, Prompt, Task

NUMBER = re.compile(r"[0-9]+")
ALONE = re.compile(r"\s*[0-9]+\s*")


class Sums(Task):
    """`What is 3 plus 4? Answer with the number only.`: half a point for the form, half for the number."""

    name = "sums"
    most: Annotated[int, Field(ge=1, le=10**9)] = Field(9, description="The largest number that is added.")

    def prompt(self, index: int) -> tuple[Prompt, dict[str, Any]]:
        """A question as the user's message."""
        draw = self.draw(index, "prompt")
        a, b = draw.below(self.most + 1), draw.below(self.most + 1)
        question = f"What is {a} plus {b}? Answer with the number only."
        return [{"role": "user", "content": question}], {"answer": str(a + b)}

    def wrong_answer(self, index: int, fields: Fields) -> str:
        """A number that is off by 1 to 9, or the right one in a sentence, one as often as the other."""
        draw, right = self.draw(index, "wrong"), int(fields["answer"])
        if draw.below(2):
            return f"The answer is {right}."
        off = 1 + draw.below(9)
        return str(right - off if draw.below(2) and right >= off else right + off)

    def parts(self, completion: str, fields: Fields, ended: bool = True) -> dict[str, float]:
        """Half for a number alone that ends; half where the last number said is the right one."""
        said = NUMBER.findall(completion)
        return {
            "format": 0.5 * (ended and ALONE.fullmatch(completion) is not None),
            "correct": 0.5 * (bool(said) and (said[-1].lstrip("0") or "0") == fields["answer"]),
        }
