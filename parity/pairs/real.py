"""What counts of an array: real tokens alone, where a mask says which they are; and what is no number on one side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coretrain.base.errors import UserError
from parity.localize.recorders import Record


class Real:
    """The elements that count: all, or those of real tokens. `mask` is [batch, positions], not 0 at real tokens."""

    def __init__(self, mask: np.ndarray | None) -> None:
        if mask is not None and (mask.ndim != 2 or not mask.any()):
            raise UserError(
                "parity/mask-wrong",
                f"the mask has shape {list(mask.shape)}{'' if mask.any() else ' and no real token'}: give one of "
                "[batch, positions], not 0 at real tokens",
            )
        self.mask = None if mask is None else mask != 0
        self.whole: set[str] = set()
        """Names of arrays without a token's axis, which count whole."""

    def there(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Which elements of an array of this shape count, in its shape; None where all do."""
        if self.mask is None or not shape:
            return None
        rows, positions = self.mask.shape
        if shape[:2] == (rows, positions):
            there = self.mask.reshape(rows, positions, *(1,) * (len(shape) - 2))
        elif len(shape) > 2 and (shape[0], shape[2]) == (rows, positions):  # heads before positions
            there = self.mask.reshape(rows, 1, positions, *(1,) * (len(shape) - 3))
        elif shape[0] == rows * positions:
            there = self.mask.reshape(-1, *(1,) * (len(shape) - 1))
        else:
            self.whole.add(name)
            return None
        return np.broadcast_to(there, shape)

    def only(self, record: Record) -> Record:
        """A record whose arrays hold what counts, in one row each where a mask cuts them."""

        def cut(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            made = {}
            for name, array in arrays.items():
                there = self.there(name, array.shape)
                made[name] = array if there is None else array[there]
            return made

        return Record(cut(record.values), cut(record.cotangents), record.dtypes, record.parents)


def odd_side(ours: np.ndarray | None, theirs: np.ndarray | None) -> str:
    """What is no number on one side alone, in words; "" where it is on both or on none."""
    if ours is None or theirs is None or ours.shape != theirs.shape:
        if ours is None or theirs is None:
            return f"missing in {'torch' if ours is None else 'JAX'}"
        return f"shape {list(ours.shape)} in torch, {list(theirs.shape)} in JAX"
    for word, test in (("NaN", np.isnan), ("infinite", np.isinf)):
        here, there = test(ours), test(theirs)
        if (here == there).all():
            continue
        alone = [side for side, odd in (("torch", here & ~there), ("JAX", there & ~here)) if odd.any()]
        count, side = int((here != there).sum()), " and ".join(alone)
        return f"{word} in {side}{' alone' if len(alone) == 1 else ''}: {count} of {ours.size} elements"
    return "NaN in both" if np.isnan(ours).any() else ""
