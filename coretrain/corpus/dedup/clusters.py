"""Connected components: which documents hang together by pairs. Union-find over arrays, whole batches of pairs at a
time."""

from __future__ import annotations

import numpy as np

from coretrain.corpus.dedup.words import Places

NODES_AT_A_TIME = 2**20


def components(count: int, left: Places, right: Places, parent: Places | None = None) -> Places:
    """Of `count` nodes the smallest node that each hangs together with, by the edges `left`-`right` [E].

    `parent` [count] may be a memory map to compute in; it is what comes back. Edges are taken some at a time: what is
    held besides is bounded.
    """
    parent = np.empty(count, np.int64) if parent is None else parent
    parent[:] = np.arange(count)
    for begin in range(0, len(left), NODES_AT_A_TIME):
        _join(parent, left[begin : begin + NODES_AT_A_TIME], right[begin : begin + NODES_AT_A_TIME])
    for begin in range(0, count, NODES_AT_A_TIME):
        parent[begin : begin + NODES_AT_A_TIME] = _roots(parent, parent[begin : begin + NODES_AT_A_TIME])
    return parent


def _join(parent: Places, left: Places, right: Places) -> None:
    """Take in some edges: the larger root hangs below the smaller one, until both ends of each edge have the same."""
    one, two = _roots(parent, left), _roots(parent, right)
    while True:
        open_ = one != two
        if not open_.any():
            return
        one, two = one[open_], two[open_]
        np.minimum.at(parent, np.maximum(one, two), np.minimum(one, two))
        one, two = _roots(parent, one), _roots(parent, two)


def _roots(parent: Places, nodes: Places) -> Places:
    """Pointer jumping: a root is its own parent, and no parent is larger than its node."""
    while True:
        above = parent[nodes]
        if np.array_equal(above, nodes):
            return above
        nodes = above


def clusters_of(left: Places, right: Places) -> tuple[Places, Places]:
    """Every node that is in an edge [N], sorted, and the smallest node that it hangs together with [N]."""
    nodes = np.unique(np.concatenate([left, right]))
    labels = components(len(nodes), np.searchsorted(nodes, left), np.searchsorted(nodes, right))
    return nodes, nodes[labels]
