"""Which document of a cluster is kept: the smallest by (priority of its source, hash of its text, id), never the first.

So the result depends neither on the order of files nor on how they are cut, nor on who was faster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.base.files import write_atomically
from coretrain.base.parse import shown
from coretrain.corpus.dedup.clusters import clusters_of
from coretrain.corpus.dedup.parts import Parts
from coretrain.corpus.dedup.words import Places

TOO_MUCH = 0.5
"""A source that loses more than this share of its documents is warned of."""


@dataclass(frozen=True)
class Kept:
    """What is dropped, and why."""

    parts: Parts = field(repr=False)
    members: Places = field(repr=False)
    """Every document that is in a cluster, in canonical order: clusters by the document kept, it in front."""
    keepers: Places = field(repr=False)
    """For each of them the document that is kept of its cluster."""
    sizes: Mapping[int, int]
    """Clusters by how many documents they have."""
    removed: Mapping[str, int]
    documents: Mapping[str, int]
    removed_bytes: Mapping[str, int]
    """By source: documents dropped, all documents, bytes dropped; of what wasn't known before."""
    priority: Sequence[str] = ()

    @property
    def dropped(self) -> Places:
        """Documents that go, sorted by number."""
        return np.sort(self.members[self.members != self.keepers])

    def rows(self) -> Iterator[tuple[Path, NDArray[np.bool_]]]:
        """For each part that wasn't known before: its file, and which of its documents are kept."""
        gone = self.dropped
        for part in self.parts.parts:
            kept = np.ones(part.documents, np.bool_)
            begin, end = np.searchsorted(gone, [part.first, part.first + part.documents])
            kept[gone[begin:end] - part.first] = False
            if not part.known:
                yield part.path, kept

    def warnings(self) -> list[str]:
        """Sources that lose more than half of their documents; and such as have a priority and no document."""
        known = {name for part in self.parts.parts for name in part.data.facts["sources"]}
        return [
            f"input.priority names {shown(name)}, and no document is from there"
            for name in self.priority
            if name not in known
        ] + [
            f"{source} loses {self.removed[source]:,} of its {total:,} documents as duplicates "
            f"({self.removed[source] / total:.1%}): look at its clusters before you go on"
            for source, total in self.documents.items()
            if self.removed[source] > TOO_MUCH * total
        ]

    def summary(self) -> dict[str, Any]:
        """Numbers for a report, the same however the input was cut."""
        return {
            "clusters": sum(self.sizes.values()),
            "sizes": {str(size): count for size, count in self.sizes.items()},
            "removed": dict(self.removed),
            "removed_bytes": dict(self.removed_bytes),
            "documents_by_source": dict(self.documents),
            "warnings": self.warnings(),
        }


def keep(parts: Parts, left: Places, right: Places, priority: Sequence[str] = ()) -> Kept:
    """Decide on the clusters that the pairs `left`-`right` make.

    `priority` has names of sources, the most wanted first; those not named come after them. A document known before
    comes before all others, and all others of its cluster go.
    """
    members, labels = clusters_of(left, right)
    order = smallest_first(parts, members, labels, priority)
    members, labels = members[order], labels[order]
    first = np.ones(len(members), np.bool_)
    first[1:] = labels[1:] != labels[:-1]
    heads, cluster = members[first], np.cumsum(first) - 1
    order = np.argsort(ranks(parts, heads, priority)[cluster], kind="stable")
    members, keepers = members[order], heads[cluster][order]
    stays = (members < parts.known) & (members != keepers)  # of several that were known before all stay
    members, keepers = members[~stays], keepers[~stays]
    counts = np.bincount(np.bincount(cluster)) if len(members) else np.zeros(0, np.int64)
    sizes = {size: int(count) for size, count in enumerate(counts.tolist()) if count}
    return Kept(parts, members, keepers, sizes, *_by_source(parts, members[members != keepers]), tuple(priority))


def smallest_first(parts: Parts, members: Places, groups: Places, priority: Sequence[str]) -> Places:
    """Positions of documents sorted by group, and within it by what decides which of them is kept."""
    if not len(members):
        return np.zeros(0, np.int64)
    source, names = parts.sources(members)
    wanted = {name: rank for rank, name in reversed(list(enumerate(priority)))}
    rank = np.array([wanted.get(name, len(priority)) for name in names], np.int64)[source]
    rank[members < parts.known] = -1
    hashes = parts.column("hash", members)
    order = np.lexsort((hashes[:, 1], hashes[:, 0], rank, groups))
    keys = np.stack([groups[order], rank[order], *hashes[order].T.view(np.int64)])
    same = np.all(keys[:, 1:] == keys[:, :-1], axis=0)
    borders = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(order)]])
    for run in np.flatnonzero(np.diff(borders) > 1).tolist():  # equal texts: by id
        begin, end = borders[run : run + 2].tolist()
        order[begin:end] = sorted(order[begin:end].tolist(), key=lambda at: parts.id_of(int(members[at])))
    return order


def ranks(parts: Parts, numbers: Places, priority: Sequence[str]) -> Places:
    """The rank of each document among all that `numbers` names, by what decides which one is kept."""
    every, which = np.unique(numbers, return_inverse=True)
    rank = np.empty(len(every), np.int64)
    rank[smallest_first(parts, every, np.zeros_like(every), priority)] = np.arange(len(every))
    return rank[which]


def _by_source(parts: Parts, dropped: Places) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    names = sorted({name for part in parts.parts if not part.known for name in part.data.facts["sources"]})
    total = dict.fromkeys(names, 0)
    for part in parts.parts:
        if not part.known:
            counts = np.bincount(part.data["source"], minlength=len(part.data.facts["sources"]))
            for name, count in zip(part.data.facts["sources"], counts.tolist(), strict=True):
                total[name] += count
    source, every = parts.sources(dropped)
    size = parts.column("bytes", dropped)
    removed, removed_bytes = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for at in np.unique(source).tolist():
        removed[every[at]] = int((source == at).sum())
        removed_bytes[every[at]] = int(size[source == at].sum())
    return removed, total, removed_bytes


def write_clusters(kept: Kept, path: Path) -> None:
    """Write each cluster as a line of JSON, in canonical order: ids of the one that is kept and of those dropped."""
    lines, begin = [], 0
    keepers, names = kept.keepers.tolist(), kept.parts.ids_of(kept.members)
    while begin < len(keepers):
        end = begin + 1
        while end < len(keepers) and keepers[end] == keepers[begin]:
            end += 1
        line = {"kept": names[begin], "dropped": names[begin + 1 : end]}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        begin = end
    write_atomically(path, *lines)
