"""Whole training steps of two frameworks as functions: loss, gradients, what the optimizer keeps, parameters.

Both begin each step at torch's state, so that the first step that differs is the one that is wrong, and its first
figure in the order that the functions give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch

from coretrain.base.arrays import Tensors
from coretrain.base.errors import UserError
from parity.localize.rows import Row, Verdict, distance, merged
from parity.localize.show import Report
from parity.localize.traps import size_hint
from parity.pairs.engine import ISLAND, LEAST, allowed
from parity.pairs.through import Opened, Way
from parity.pairs.torch_side import DTYPES, Watch
from parity.pairs.verdict import LEAST_LIKELY

Step = Callable[[dict[str, Any], dict[str, Any]], tuple[Any, Any]]
"""(state, batch) to (state after, other figures); dictionaries of arrays, as deep as one likes."""
CAP, FLOOR = 1e-11, 2e-15
"""Floor: 3.5e-15, Adam's step on a small regression; where a gradient is tiny, a step loses digits."""


def compare_steps(
    torch_step: Step, jax_step: Step, state: Tensors, batch: Tensors, steps: int = 3, title: str = "training steps"
) -> Report:
    """The report on `steps` training steps of two frameworks, from the same state, on the same batch.

    Each step takes (state, batch), dictionaries of its framework's arrays by name, and gives the state after it and
    other figures (loss, gradients): dictionaries with the same names on both sides, in the order of the computation.
    """
    jax.config.update("jax_enable_x64", True)
    rows: list[Row] = []
    here: dict[str, np.ndarray] = {name: np.asarray(value) for name, value in state.items()}
    ways: list[Way] = []
    for at in range(steps):
        watch = Watch("float64") if at == 0 else None
        after, figures = _torch(torch_step, here, batch, "float64", watch)
        if at == 0:
            traced = Opened(jax_step, _cast(here, "float64"), _cast(batch, "float64"))
            ways = [way for way in (_all(watch), traced.whole("float64")) if way.narrow]
        theirs_after, their_figures = _jax(jax_step, here, batch, "float64")
        low = [_torch(torch_step, here, batch, "float32", None), _jax(jax_step, here, batch, "float32")]
        wide = [(after, figures), (theirs_after, their_figures)]
        note = f"step {at + 1}"
        for group, number in (("figure", 1), ("state", 0)):
            ours, theirs = wide[0][number], wide[1][number]
            for name in merged(ours, theirs):
                before = here.get(name) if group == "state" else None
                noises = [distance(_moved(one[number], name, before), _moved(high[number], name, before))
                          for one, high in zip(low, wide, strict=True)]  # fmt: skip
                noise = max((error for error in noises if np.isfinite(error)), default=None)
                cap, floor = allowed(ways, noise, CAP, FLOOR)
                a, b = (_moved(side, name, before) for side in (ours, theirs))
                if a is not None and before is not None and np.linalg.norm(a):
                    cap += 8 * np.finfo(np.float64).eps * float(np.linalg.norm(before) / np.linalg.norm(a))
                stage = "figure" if group == "figure" else "parameter"
                rows.append(Row(stage, name, None, distance(b, a), cap, floor, (), note))
        if any(row.parts for row in rows):
            break
        here = {**here, **after}
    if not rows:
        raise UserError(
            "parity/nothing-to-compare-in-steps", "the steps give no arrays: return (state, figures), two dictionaries"
        )
    return Report(title, rows, _verdict(rows), notes=[f"one side computes in {w.narrow}: {w.where}" for w in ways])


def _verdict(rows: list[Row]) -> Verdict:
    parted = [row for row in rows if row.parts]
    if not parted:
        worst = max(rows, key=lambda row: row.load)
        return Verdict(
            "same", f"nothing parts in {len(rows)} figures: the worst is {worst.title} with {worst.error:.1e}"
        )
    first = parted[0]
    at = rows.index(first)
    text = (
        f"{first.title} of {first.note} is the first that differs: {first.error:.1e}, rounding makes {first.floor:.0e}"
    )
    if at:
        text += f"; {rows[at - 1].title}, before it, agrees ({rows[at - 1].error:.1e})"
    small = all(LEAST_LIKELY <= row.error <= ISLAND * LEAST["float32"] for row in parted)
    kind = "dtype policy" if small else "algorithm"
    hint = size_hint(first.error) if np.isfinite(first.error) else "Missing on one side, of another shape, or a NaN. "
    return Verdict(kind, f"{text}. {hint}".strip(), first.title, first.error, first.floor)


def _moved(arrays: Mapping[str, np.ndarray], name: str, before: np.ndarray | None) -> np.ndarray | None:
    """What a step adds to a state, or a figure as it is."""
    value = arrays.get(name)
    return value if value is None or before is None or value.shape != before.shape else value - before


def _cast(arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    return {n: v.astype(dtype) if np.issubdtype(v.dtype, np.floating) else v for n, v in arrays.items()}


def _torch(step: Step, state: Mapping[str, np.ndarray], batch: Tensors, dtype: str, watch: Watch | None) -> Any:
    def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        made = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        return {n: v.to(DTYPES[dtype]) if v.is_floating_point() else v for n, v in made.items()}

    if watch is None:
        return _named(step(tensors(state), tensors(batch)))
    with watch:
        return _named(step(tensors(state), tensors(batch)))


def _jax(step: Step, state: Mapping[str, np.ndarray], batch: Tensors, dtype: str) -> Any:
    return _named(step(_cast(state, dtype), _cast(batch, dtype)))


def _named(result: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise UserError(
            "parity/step-result-wrong", "a training step gives something else than (state, figures): return both"
        )
    first, second = (dict(_leaves(part, "")) for part in result)
    return first, second


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Leaves by dotted path, in the order that they are given in."""
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        items = list(enumerate(tree))
    else:
        yield path, _number(tree)
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _number(leaf: Any) -> np.ndarray:
    return np.asarray(leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf)


def _all(watch: Watch | None) -> Way:
    way = Way()
    for one in watch.seen.values() if watch is not None else ():
        way = way.and_then(one)
    return way
