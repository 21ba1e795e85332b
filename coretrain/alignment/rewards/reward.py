"""Answers and their scores, and what all kinds of rewards have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.base.parse import shown

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """An answer that a policy gave."""

    prompt: str
    """What was asked, as the text of its ids."""
    completion: str
    """The answer's text without its end token."""
    fields: Mapping[str, Any]
    """Those of the prompt's row, `prompt` as it was given among them."""
    ended: bool
    """Whether it has an end token; otherwise it was cut off."""
    tokens: int
    """Its tokens, the end token included."""
    ids: list[int] = field(default_factory=list)
    """Prompt and answer, the end token included, where the reward needs them: a reward model does."""


@dataclass(frozen=True)
class Scored:
    """Rewards of answers, in their order."""

    rewards: Floats
    """[N]; zeros where there is a fault."""
    parts: dict[str, Floats]
    """What the rewards are made of, by name, each [N] and without its weight; nothing where there is a fault."""
    fault: str | None = None
    """Why these answers have no rewards, where the run goes on without them."""


class Fault(UserError):
    """A reward that failed on some answers: `align.reward_failure` says what becomes of it."""


class Term(Protocol):
    """One of the rewards of a sum."""

    name: str

    def score(self, answers: Sequence[Answer]) -> dict[str, Floats]:
        """Named parts [N], which add up to the term's value. Raises `Fault` that names an answer."""

    def close(self) -> None:
        """End what it has started."""


class Reward:
    """A weighted sum of terms."""

    def __init__(self, terms: Sequence[tuple[float, Term]], stops: bool = True) -> None:
        """`stops`: whether a failing term raises, or is told in `Scored.fault`."""
        self.terms, self.stops = list(terms), stops

    def score(self, answers: Sequence[Answer]) -> Scored:
        """Rewards of answers, one for each. Raises `UserError` where a term fails and the run is to stop."""
        total, parts = np.zeros(len(answers)), dict[str, Floats]()
        try:
            for weight, term in self.terms:
                found = {name: _checked(values, term, answers) for name, values in term.score(answers).items()}
                value = np.asarray(sum(found.values(), np.zeros(len(answers))), np.float64)
                total = total + weight * value
                if len(self.terms) > 1:
                    parts[_free(term.name, parts)] = value
                if len(self.terms) == 1 or len(found) > 1:
                    prefix = "" if len(self.terms) == 1 else f"{term.name}_"
                    parts |= {_free(prefix + name, parts): values for name, values in found.items()}
        except Fault as fault:
            if self.stops:
                raise UserError(
                    fault.code, f"{fault}: mend it, or let the run go on without them by align.reward_failure = skip"
                ) from None
            return Scored(np.zeros(len(answers)), {}, str(fault))
        return Scored(total, parts)

    def close(self) -> None:
        """End what the terms have started."""
        for _, term in self.terms:
            term.close()


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}_{number}"
    return free


def _checked(values: Floats, term: Term, answers: Sequence[Answer]) -> Floats:
    """`values`, which are as many as answers, and finite."""
    if values.shape != (len(answers),):
        raise Fault(
            "alignment/reward-count-wrong",
            f"reward {term.name} gave {len(values)} numbers for {len(answers)} answers",
        )
    if not np.isfinite(values).all():
        wrong = int(np.flatnonzero(~np.isfinite(values))[0])
        raise Fault(
            "alignment/reward-not-finite", f"reward {term.name} gave {values[wrong]} for {described(answers[wrong])}"
        )
    return values


def described(answer: Answer) -> str:
    """An answer in a sentence, with its prompt."""
    return f"the answer {shown(answer.completion, True)} to the prompt {shown(answer.prompt, True)}"
