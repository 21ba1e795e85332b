"""Distances of tensors and of sets of tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from coretrain.base.arrays import Tensors


def nrel(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b| in 2-norms over the whole tensor; 0 where they are equal, infinite where only b is zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}: broadcasting would hide a missing axis"
    difference, size = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    return 0.0 if difference == 0 else difference / size if size else float("inf")


def mismatches(a: np.ndarray, b: np.ndarray) -> int:
    """Elements whose values differ, dtype and shape counting too."""
    return int((a != b).sum()) if (a.shape, a.dtype) == (b.shape, b.dtype) else max(a.size, b.size, 1)


def worst_tensor(ours: Tensors, theirs: Tensors, apart: Collection[str] = ()) -> tuple[float, str]:
    """The largest nrel of any tensor but those `apart`, and its name."""
    assert ours.keys() == theirs.keys()
    return _largest({name: nrel(ours[name], theirs[name]) for name in ours if name not in apart})


def displacement(ours: Tensors, theirs: Tensors, start: Tensors, apart: Collection[str] = ()) -> tuple[float, str]:
    """The largest nrel of the way that any parameter but those `apart` has come from `start`."""
    first, second = ({name: np.asarray(t[name], np.float64) - start[name] for name in start} for t in (ours, theirs))
    return worst_tensor(first, second, apart)


def largest_error(states: tuple[Mapping[str, Tensors], Mapping[str, Tensors]], start: Tensors, apart: Collection[str]):
    """(error, name): the worst of the parameters' displacement and of every moment."""
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    errors = [displacement(ours["parameters"], theirs["parameters"], start, apart)]
    for group in ours.keys() - {"parameters"}:
        error, name = worst_tensor(ours[group], theirs[group], apart)
        errors.append((error, f"{group} {name}"))
    return _largest({name: error for error, name in errors})


def _largest(errors: Mapping[str, float]) -> tuple[float, str]:
    name = max(errors, key=lambda n: float("inf") if np.isnan(errors[n]) else errors[n])
    return errors[name], name
