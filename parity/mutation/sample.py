"""Which places are judged: a sample with a seed, in proportion to rooms and operators."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from coretrain.base.files import short_hash
from parity.mutation.operators import OPERATORS, UNASKED
from parity.mutation.places import Place, places
from parity.mutation.seen import sources

CORE = {
    "attention": ("torchtrain/attention.py", "jaxtrain/attention.py"),
    "loss": ("torchtrain/loss.py", "jaxtrain/loss.py"),
    "optimizer": ("torchtrain/optimizer.py", "jaxtrain/optimizer.py", "coretrain/contract/optimizer.py"),
    "schedule": ("coretrain/contract/schedule.py",),
    "data order": ("coretrain/data/order.py",),
}
"""Where no mutant may live."""
CORE_FILES = frozenset(file for files in CORE.values() for file in files)
STACKS = ("torchtrain", "jaxtrain")


def all_places(root: Path, rooms: Collection[str] = (), operators: Collection[str] = ()) -> list[Place]:
    """Every place in these rooms (folders or files; default: all) of these operators (default: all but `UNASKED`)."""
    found: list[Place] = []
    for file, source in sources(root):
        if not rooms or any(file == room or file.startswith(f"{room}/") for room in rooms):
            found += places(file, source, OPERATORS)
    return [one for one in found if (one.operator in operators if operators else one.operator not in UNASKED)]


def in_turn(found: Iterable[Place], seed: int) -> list[Place]:
    """All places in an order whose every beginning is a sample in proportion to rooms and operators.

    In each stratum of n places, the k-th in a random order gets (k + u) / n, u being the stratum's own random number:
    all are sorted by that. The order is by a hash of seed and edit, so that what is drawn hardly changes with the code.
    """
    strata: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for place in found:
        strata[place.room, place.operator].append(place)
    keyed: list[tuple[float, str, Place]] = []
    for (room, operator), members in sorted(strata.items()):
        members = sorted(members, key=lambda place: (short_hash(seed, place.key), place.start, place.end))
        start = random.Random(f"{seed}/{room}/{operator}").random()
        keyed += [((rank + start) / len(members), place.id, place) for rank, place in enumerate(members)]
    return [place for _, _, place in sorted(keyed, key=lambda row: row[:2])]
