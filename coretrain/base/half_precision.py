"""Tensors as float16, for exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError


class HalfPrecision(Mapping[str, Array]):
    """Tensors as float16, each when it is asked for. Raises `UserError` where a value is beyond its range."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Array:
        value = np.asarray(self._tensors[name])
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            raise UserError("base/float16-overflow", f"{name} has values that float16 can't hold: give --quantize none")
        return half

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
