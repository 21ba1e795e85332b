"""Simple rewards of answers' texts and lengths: `exact`, `number`, `format?pattern=REGEX`, `length?buffer=N`."""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from coretrain.config.fields import Positive, Section

NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?|-?\.[0-9]+")
DIGITS = 1000
"""Python reads no number of many thousands."""


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"a regular expression ({error})") from None
    return text


class Rule(Section, abc.ABC):
    """A reward of one answer by itself."""

    name: ClassVar[str]
    foreign: ClassVar[bool] = False
    """Whether it may take for ever, as a regular expression of a user's may."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields that a row must have."""
        return ()

    @abc.abstractmethod
    def value(self, completion: str, fields: Mapping[str, Any], ended: bool, tokens: int) -> float:
        """What an answer of so many tokens is worth; `ended` says whether it wasn't cut off."""


class Exact(Rule):
    """1 for an answer that is a field's text, blanks around both aside, and ends; else 0."""

    name = "exact"
    field: str = Field("answer", description="The row's field that holds the right answer.")

    @property
    def needs(self) -> tuple[str, ...]:
        """The right answer's field."""
        return (self.field,)

    def value(self, completion: str, fields: Mapping[str, Any], ended: bool, tokens: int) -> float:
        """1 or 0."""
        return float(ended and completion.strip() == str(fields[self.field]).strip())


class Number(Exact):
    """1 where the last number that an answer says is the last one in a field, as `#### 72`; else 0."""

    name = "number"

    def value(self, completion: str, fields: Mapping[str, Any], ended: bool, tokens: int) -> float:
        """1 or 0. 1,000 is 1000, and 0.50 is 0.5."""
        right = last_number(str(fields[self.field]))
        return float(right is not None and last_number(completion) == right)


class Format(Rule):
    """1 for an answer that the regular expression matches from its first to its last character, and ends; else 0."""

    name = "format"
    foreign = True
    pattern: Annotated[str, AfterValidator(_pattern)] = Field(description="Of Python; `&` is written \\x26.")

    def value(self, completion: str, fields: Mapping[str, Any], ended: bool, tokens: int) -> float:
        """1 or 0."""
        return float(ended and re.fullmatch(self.pattern, completion) is not None)


class Length(Rule):
    """DAPO's soft overlong punishment (Yu 2025, eq. 13): 0 up to limit - buffer tokens, then down to -1 at limit."""

    name = "length"
    limit: Positive = Field(description="Tokens, the end token included, at which it is -1.")
    buffer: Positive = Field(description="Tokens before the limit in which it falls.")

    def value(self, completion: str, fields: Mapping[str, Any], ended: bool, tokens: int) -> float:
        """Between -1 and 0."""
        over = tokens - (self.limit - self.buffer)
        return -min(max(over / self.buffer, 0.0), 1.0)


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Exact, Number, Format, Length)}


def last_number(text: str) -> Fraction | None:
    """The last number that a text says, exactly; None where it says none, or one of more than `DIGITS`."""
    found = NUMBER.findall(text)
    return Fraction(found[-1].replace(",", "")) if found and len(found[-1]) <= DIGITS else None
