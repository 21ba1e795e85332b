"""Names for arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = Mapping[str, NDArray[Any]]
"""Tensors by name, in memory or made when they are asked for."""
