"""Jinja for templates of strangers: a sandbox that also keeps to a time, and to a size of what is made.

Jinja's own sandbox hides what could do harm, but a template can loop without end, and `'a' * 10**11` fills all memory.
Imported where a template is compiled: jinja2 takes a while.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coretrain.base.timing import within

SECONDS = 5.0
"""Of CPU, for one conversation: thousands of turns take less."""
LARGEST = 2**25
"""Characters of a text, or items of a list, that a template makes."""
WIDEST = 1000
"""Columns, digits or items that a filter or a method is asked to fill up to."""
MOST_DIGITS = 10_000
"""Digits of a number."""
FILLING = frozenset(["batch", "center", "indent", "ljust", "rjust", "round", "slice", "tojson", "zfill"])
FORESEEN = FILLING | {"format", "join", "replace"}
"""Filters and methods that may make much of little."""
DENIED = frozenset({"expandtabs", "format_map", "maketrans", "translate"})
WIDE = re.compile(r"\{[^{}]*:[^{}]*\d{4}|%(\([^()]*\))?[-+ #0.\d]*\d{4}")
"""A form of `format` or `%` that fills up to thousands."""
NESTED = re.compile(r"\{[^{}]*:[^{}]*\{|%(\([^()]*\))?[-+ #0.\d]*\*")
"""One whose width is among its values."""


class _Generator(CodeGenerator):
    """Jinja's, whose `~` goes through the environment as its other operators do."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # Jinja's name
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Template(Template):
    """A template whose every rendering starts with the whole of its time and size."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        self.environment.written = 0  # type: ignore[attr-defined]  # of the environment below
        with within(SECONDS):
            return super().render(*args, **kwargs)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. What goes beyond the limits raises `SecurityError` or `TimeoutError`, which say so."""

    code_generator_class = _Generator
    template_class = _Template
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.written = 0
        """Characters of values in what is rendered so far, those of macros and blocks too."""
        self.finalize = self._count
        self.globals.pop("lipsum")  # makes texts of any length
        for name, do in list(self.filters.items()):
            self.add_filter(name, do)

    def add_filter(self, name: str, do: Callable[..., Any]) -> None:
        """Let templates use the filter `do`, within the limits."""
        if name not in FORESEEN:
            self.filters[name] = do
            return

        @functools.wraps(do)
        def filtered(*given: Any, **kwargs: Any) -> Any:
            start = 1 if hasattr(do, "jinja_pass_arg") else 0
            value, args = (given[start], given[start + 1 :]) if len(given) > start else ("", ())
            _foresee(name, value, args, kwargs)
            return do(*given, **kwargs)

        self.filters[name] = filtered

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As Jinja says; besides, not the methods of texts that make much of little."""
        return attr not in DENIED and bool(super().is_safe_attribute(obj, attr, value))

    def joined(self, parts: Iterable[Any]) -> str:
        """What `~` gives."""
        texts = [str(part) for part in parts]
        _check(sum(map(len, texts)))
        return str(str_join(texts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """What an operator gives, where its size can be foreseen to stay within the limits."""
        if operator == "+" and _sized(left) and _sized(right):
            _check(len(left) + len(right))
        elif operator == "*" and (_sized(left) or _sized(right)):
            text, times = (left, right) if _sized(left) else (right, left)
            _check(len(text) * times if isinstance(times, int) else 0)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check(left.bit_length() * max(right, 0), 4 * MOST_DIGITS)
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            _check(left.bit_length() + right.bit_length(), 4 * MOST_DIGITS)
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # as Jinja has it
        """What a call gives; of a text's own methods only where the size stays within the limits."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox has a `format` of its own
        text = getattr(method, "__self__", None)
        if isinstance(text, str):
            _foresee(getattr(method, "__name__", ""), text, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def _count(self, value: Any) -> Any:
        self.written += len(value) if isinstance(value, str) else 0
        _check(self.written)
        return value


def _sized(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _foresee(name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise where a filter or a method of this name would make too much of `value`."""
    given = [*args, *kwargs.values()]
    if name == "format":
        _check_format(str(value), given)
    elif name in FILLING and any(map(_wide, given)):
        raise SecurityError(f"{name} fills up to more than {WIDEST}")
    elif name == "replace" and len(given) >= 2:
        text, old, new = str(value), str(given[0]), str(given[1])
        _check(len(text) + text.count(old) * len(new))
    elif name == "join" and given:  # of a text its method, of a list the filter
        parts, gap = (given[0], value) if isinstance(value, str) and _sized(given[0]) else (value, given[0])
        sizes = [len(part) if isinstance(part, str) else 0 for part in parts] if _sized(parts) else []
        _check(sum(sizes) + len(str(gap)) * len(sizes))
    elif name == "join":
        _check(sum(len(part) for part in value if isinstance(part, str)) if _sized(value) else 0)


def _wide(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > WIDEST


def _check_format(form: str, given: Iterable[Any]) -> None:
    if WIDE.search(form) or (NESTED.search(form) and any(map(_wide, given))):
        raise SecurityError(f"a format fills up to more than {WIDEST} characters")


def _check(size: float, most: int = 0) -> None:
    if size > (largest := most or LARGEST):
        raise SecurityError(f"it makes more than {largest:,} characters or digits")
