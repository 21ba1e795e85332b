"""What a model returns: the one array, or the arrays by name, in tuples, dictionaries and objects like them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coretrain.base.errors import UserError

PREFERRED = ("logits", "last_hidden_state", "output", "sample", "loss")
"""Names of the part of an output that counts, where it isn't named."""


def chosen(output: Any, name: str | None, is_array: Callable[[Any], bool], side: str) -> Any:
    """The part `name` of an output (a key, an attribute or a number); unset: the array itself, or the usual part."""
    if name is not None:
        try:
            part = output[int(name)] if name.isdecimal() else _part(output, name)
        except (KeyError, IndexError, TypeError, AttributeError):
            part = None
        if part is None or not is_array(part):
            raise _not_found(output, f"has no array {name}", side)
        return part
    if is_array(output):
        return output
    for part in PREFERRED:
        try:
            found = _part(output, part)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
        if found is not None and is_array(found):
            return found
    if isinstance(output, (tuple, list)) and output and is_array(output[0]):
        return output[0]
    raise _not_found(output, "is no array", side)


def _not_found(output: Any, what: str, side: str) -> UserError:
    return UserError(
        "parity/output-part-not-found",
        f"the output of {side} {what}: name the part that counts under [output] of the map, one of {_parts(output)}",
    )


def _part(output: Any, name: str) -> Any:
    return output[name] if isinstance(output, Mapping) else getattr(output, name)


def _parts(output: Any) -> str:
    if isinstance(output, Mapping):
        return ", ".join(map(str, output))
    if isinstance(output, (tuple, list)):
        return ", ".join(map(str, range(len(output))))
    return type(output).__name__


def replaced_first(output: Any, change: Callable[[Any], Any], is_array: Callable[[Any], bool]) -> Any:
    """An output whose first array is changed: of a tuple or list its first part, of a mapping the first array."""
    if is_array(output):
        return change(output)
    if isinstance(output, (tuple, list)) and output:
        first = replaced_first(output[0], change, is_array)
        rename: Any = getattr(output, "_replace", None)  # a named tuple's
        if rename is not None:
            return rename(**{output._fields[0]: first})  # type: ignore[union-attr]  # a namedtuple
        return type(output)((first, *output[1:]))
    if isinstance(output, Mapping):
        for key, value in output.items():
            if is_array(value):
                try:
                    output[key] = change(value)  # type: ignore[index]  # a mapping that can be written
                except TypeError:
                    return {**output, key: change(value)}
                return output
    return output
