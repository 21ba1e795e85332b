"""Bugs in conversations: what is learnt of them, and samples that share a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from coretrain.data.batch import Batch
from coretrain.data.batches import Updates
from coretrain.data.packing import PackedSplit
from parity.gates import LOSS, PACKED, ROWS
from parity.mutants import Patch, mutant, wrap
from parity.probes.sides import TORCH, Side

BATCHES, GRADIENTS = "chat rows", "chat gradients"


def _read(patch: Patch, s: Side, change: Callable[[Batch], Batch]) -> None:
    """`change` on every packed row, of arrays [T]."""

    class Changed(PackedSplit):
        def read(self, window: int, context: int) -> Any:
            return change(super().read(window, context))

    def splits(u: Updates) -> Updates:
        packed = (x for x in u.splits if isinstance(x, PackedSplit))  # all are
        return dataclasses.replace(u, splits=tuple(Changed(x.name, x.shards, x.context) for x in packed))

    wrap(patch, s.data, "updates_of", lambda f: lambda *args: splits(f(*args)))


@mutant("data", ROWS, probe=BATCHES)
def loss_on_the_prompt(patch: Patch, s: Side) -> None:
    """Every next token of a sample is a target, also what the user said."""

    def change(row: Batch) -> Batch:
        inside = np.append(row.positions[1:] > 0, False)
        following = np.append(row.tokens[1:], np.int32(0))
        return dataclasses.replace(row, labels=np.where(inside & (row.labels < 0), following, row.labels))

    _read(patch, s, change)


@mutant("data", ROWS, probe=BATCHES)
def end_of_turn_is_not_learnt(patch: Patch, s: Side) -> None:
    """The mask ends with the answer's text: such a model never stops."""
    _read(patch, s, lambda row: dataclasses.replace(row, labels=np.where(row.labels == 256, -100, row.labels)))


@mutant("data", ROWS, probe=BATCHES)
def samples_number_on(patch: Patch, s: Side) -> None:
    """One sequence of positions for the whole row: all its samples become one."""
    _read(patch, s, lambda row: dataclasses.replace(row, positions=np.arange(len(row), dtype=np.int32)))


@mutant("chat", PACKED, probe=GRADIENTS)
def samples_of_a_row_see_one_another(patch: Patch, s: Side) -> None:
    """A causal mask over the row: a sample looks into those before it."""
    wrap(patch, s.attention, "seen_in_sample", lambda f: lambda at, *p: f(at * 0 + at.shape[1], *p))


@mutant("chat", PACKED, probe=GRADIENTS)
def one_token_of_the_sample_before_is_seen(patch: Patch, s: Side) -> None:
    """The mask's lower edge off by one."""
    wrap(patch, s.attention, "seen_in_sample", lambda f: lambda at, *p: f(at + 1, *p))


@mutant("chat", PACKED, probe=GRADIENTS)
def positions_do_not_restart(patch: Patch, s: Side) -> None:
    """Learned positions by the place in the row. (Rotary ones are relative: there it makes no difference.)"""
    place = s.xp.arange

    def positions(f: Any) -> Any:
        def look_up(self: Any, at: Any) -> Any:
            return f(self, at if isinstance(at, slice) else at * 0 + place(at.shape[1]))

        return look_up

    wrap(patch, s.model.GPT, "_positions", positions)


@mutant("chat", LOSS, probe=GRADIENTS)
def averaged_over_all_tokens(patch: Patch, s: Side) -> None:
    """The sum of the targets' losses over all tokens of the batch, targets or not."""

    def count(f: Any) -> Any:
        return lambda labels, weights: (labels == labels).sum() if s is TORCH else f(labels * 0)

    wrap(patch, s.step, "count_targets", count)
