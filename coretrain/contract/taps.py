"""Named values inside a model, for whoever asks: `parity.localize` records them, training leaves them alone.

A model calls `x = tap("norm", x)`. Nothing happens unless `tapped` has switched a function on. In names of values that
occur once a block, `#` stands for the block: `blocks.#.norm1`. Who records puts in how often it has seen the name.

Code that is compiled once and kept (jax.jit) has the taps of the moment when it was traced: trace afresh in `tapped`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_function: Callable[[str, Any], Any] | None = None


def tap(name: str, value: Any) -> Any:
    """`value`, or what the function of `tapped` makes of it."""
    return value if _function is None else _function(name, value)


@contextmanager
def tapped(function: Callable[[str, Any], Any]) -> Iterator[None]:
    """Within, every `tap(name, value)` is `function(name, value)`."""
    global _function
    before, _function = _function, function
    try:
        yield
    finally:
        _function = before
