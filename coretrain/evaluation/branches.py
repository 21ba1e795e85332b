"""Continuations that begin alike are put into one row, so that a stack computes their beginning once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coretrain.contract.branches import PADDING, Branches
from coretrain.data.batch import IGNORED

Row = tuple[tuple[int, ...], int]
"""Ids, and how many of the last of them are scored (`coretrain.evaluation.text.cut`)."""


@dataclass(frozen=True)
class Group:
    """Rows of which the first `shared` ids are the same."""

    rows: tuple[int, ...]
    """Their places in the list that was grouped."""
    shared: int
    width: int
    """Tokens that the group takes: the beginning once, and each row's others but the last, which predicts nothing."""


def grouped(rows: Sequence[Row], most: int) -> list[Group]:
    """Rows that begin alike together, where that spares a quarter of a row and takes at most `most`; the widest first.

    In the order of their ids the rows that share most are neighbours, so each is compared with one group alone.
    """
    groups: list[Group] = []
    for place in sorted(range(len(rows)), key=lambda place: rows[place][0]):
        ids = rows[place][0]
        alone = Group((place,), len(ids) - 1, len(ids) - 1)
        joined = _joined(groups[-1], rows, place) if groups else alone
        spared = groups[-1].width + alone.width - joined.width if groups else 0
        if spared * 4 > alone.width and joined.width <= most:  # for less, longer rows have more to attend to
            groups[-1] = joined
        else:
            groups.append(alone)
    return sorted(groups, key=lambda group: group.width, reverse=True)


def _joined(group: Group, rows: Sequence[Row], place: int) -> Group:
    first, ids = rows[group.rows[0]][0], rows[place][0]
    most = min(group.shared, len(ids) - 1)
    shared = next((at for at in range(most) if first[at] != ids[at]), most)
    lost = (group.shared - shared) * (len(group.rows) - 1)
    return Group((*group.rows, place), shared, group.width + lost + len(ids) - 1 - shared)


def branches(groups: Sequence[Group], rows: Sequence[Row], shape: tuple[int, int], most: int) -> Branches:
    """A batch of groups, in `shape` [B, T], with room for `most` labels; those of each row lie together, in order."""
    tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    branch = np.full(shape, PADDING, np.int32)
    places, labels = np.zeros(most, np.int32), np.full(most, IGNORED, np.int32)
    wanted = 0
    for line, group in enumerate(groups):
        shared = group.shared
        tokens[line, :shared] = rows[group.rows[0]][0][:shared]
        positions[line, :shared], branch[line, :shared] = np.arange(shared), 0
        start = shared
        for number, place in enumerate(group.rows, 1):
            ids, scored = rows[place]
            stop = start + len(ids) - 1 - shared
            tokens[line, start:stop] = ids[shared:-1]
            positions[line, start:stop], branch[line, start:stop] = np.arange(shared, len(ids) - 1), number
            at = np.arange(len(ids) - 1 - scored, len(ids) - 1)  # the place in the text before each label
            part = slice(wanted, wanted + scored)
            places[part] = line * shape[1] + np.where(at < shared, at, at - shared + start)
            labels[part] = ids[-scored:]
            start, wanted = stop, part.stop
    return Branches(tokens, positions, branch, places, labels)


def told(groups: Sequence[Group], rows: Sequence[Row]) -> Iterator[tuple[int, slice]]:
    """Each row's place in the list, and which of the labels of `branches` are its own."""
    start = 0
    for place in (place for group in groups for place in group.rows):
        yield place, slice(start, start + rows[place][1])
        start += rows[place][1]
