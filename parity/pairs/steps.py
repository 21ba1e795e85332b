"""The steps that make a JAX leaf of torch tensors, as words: `transpose 1 0`, `reshape 4 4 16`, `split 0 3 1`, ...

They are carried out on torch tensors, so that torch's autograd takes gradients back through them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from coretrain.base.errors import UserError
from coretrain.base.parse import shown

HELP = (
    "transpose [AXES], reshape SIZES, flip AXES, slice AXIS START STOP, split AXIS PARTS INDEX, add NUMBER, "
    "scale NUMBER"
)


def _transpose(value: Tensor, *axes: int) -> Tensor:
    return value.permute(axes or tuple(reversed(range(value.ndim)))).contiguous()


def _split(value: Tensor, axis: int, parts: int, index: int) -> Tensor:
    if value.shape[axis] % parts or not 0 <= index < parts:
        raise ValueError(f"an axis of {value.shape[axis]} has no part {index} of {parts}")
    size = value.shape[axis] // parts
    return value.narrow(axis, index * size, size)


def _slice(value: Tensor, axis: int, start: int, stop: int) -> Tensor:
    return value.narrow(axis, start, stop - start)


STEPS: dict[str, Callable[..., Tensor]] = {
    "transpose": _transpose,
    "reshape": lambda value, *sizes: value.reshape(sizes),
    "flip": lambda value, *axes: value.flip(axes),
    "slice": _slice,
    "split": _split,
}
AFFINE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "add": lambda value, number: value + number,
    "scale": lambda value, number: value * number,
}
JOINS: dict[str, Callable[[Sequence[Tensor], int], Tensor]] = {
    "stack": lambda values, axis: torch.stack(list(values), axis),
    "concat": lambda values, axis: torch.cat(list(values), axis),
}


def carried_out(value: Tensor, steps: Sequence[str], where: str) -> Tensor:
    """A tensor after these steps. Raises `UserError` naming `where` and the step that can't be done."""
    for step in steps:
        word, *rest = step.split() or [""]
        try:
            if word in AFFINE:
                (number,) = map(float, rest)
                value = AFFINE[word](value, number)
            elif word in STEPS:
                value = STEPS[word](value, *map(int, rest))
            else:
                raise ValueError("there is no such step")
        except (ValueError, TypeError, RuntimeError, IndexError, OverflowError) as error:
            reason = next(iter(str(error).splitlines()), "")
            raise UserError(
                "parity/map-step-wrong",
                f"{shown(where)}: the step {shown(step)} can't be done on shape {list(value.shape)} ({reason}); the "
                f"steps are {HELP}",
            ) from None
    return value


def joined(values: Sequence[Tensor], join: str, where: str) -> Tensor:
    """Tensors as one: `stack AXIS`, `concat AXIS` or `sum`; a single one where nothing is to be joined."""
    if not join and len(values) == 1:
        return values[0]
    word, *rest = join.split() or [""]
    try:
        if word == "sum" and not rest:
            return torch.stack(list(values)).sum(0)
        (axis,) = map(int, rest)
        return JOINS[word](list(values), axis)
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError, OverflowError):
        shapes = ", ".join(str(list(value.shape)) for value in values[:3])
        raise UserError(
            "parity/map-join-wrong",
            f"{shown(where)}: {len(values)} tensors ({shapes}) can't be joined by {shown(join)}; write join = "
            '"stack AXIS", "concat AXIS" or "sum"',
        ) from None
