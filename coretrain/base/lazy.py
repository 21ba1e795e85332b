"""Tensors by name that are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray


class LazyTensors(Mapping[str, NDArray[Any]]):
    """Tensors by name, each made anew when it is asked for, so that no more than one need be held."""

    def __init__(self, names: Iterable[str], make: Callable[[str], NDArray[Any]]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would make the tensor

    def __len__(self) -> int:
        return len(self._names)

    def materialize(self) -> None:
        """Make all of them now and hold them: what they are made of is about to change."""
        self._make = {name: self._make(name) for name in self._names}.__getitem__
