"""Which tests run only where they are asked for, and what asks for them: a mark in `-m`, a test's id."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from _pytest.mark.expression import Expression

LONG = ("slow", "mutation")
"""Marks of tests that take so long that no session has them unasked."""


@functools.cache
def asks_for(expression: str, mark: str) -> bool:
    """Whether `-m EXPRESSION` picks any test for this mark that it wouldn't pick without it.

    So "slow" and "slow and not whole" ask for slow ones; "not slow" and "not whole" don't.
    """
    try:
        compiled = Expression.compile(expression)
    except SyntaxError:
        return False  # pytest says so itself
    others = set(re.findall(r"\w+", expression)) - {mark, "and", "or", "not"}
    held = itertools.chain.from_iterable(itertools.combinations(others, size) for size in range(len(others) + 1))
    return any(_picks(compiled, {mark, *some}) and not _picks(compiled, some) for some in held)


def _picks(compiled: Expression, marks: Iterable[str]) -> bool:
    return compiled.evaluate(lambda name, /, **_: name in marks)


def whole_but(kept: Callable[..., bool], cases: Iterable[Any]) -> list[Any]:
    """`cases` for parametrize: those that aren't kept have the mark `whole`, and the inner loop goes without them."""
    made = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        made.append(case if kept(*values) else pytest.param(*values, marks=pytest.mark.whole))
    return made


def left_out(marks: set[str], expression: str, words: Iterable[str]) -> bool:
    """Whether a test with these marks is left out of a session with this `-m` and these words on its command line.

    The rungs of scale, minutes of processes, run with the whole of `pytest` and where they are asked for; `pytest
    parity` alone is the ladder.
    """
    words = list(words)
    asked = {mark for mark in marks.intersection((*LONG, "scale")) if asks_for(expression, mark)}
    ladder = all(word.rstrip("/").endswith("parity") for word in words)
    by_id = any("::" in word for word in words)
    return bool((marks.intersection(LONG) - asked and not by_id) or ("scale" in marks and ladder and not asked))
