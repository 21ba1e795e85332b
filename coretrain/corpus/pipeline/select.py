"""The second stage: rules over the signals, without a look at the texts; and the histogram of each rule's signal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.applied import Applied
from coretrain.corpus.document import Signal
from coretrain.corpus.pipeline.annotate import GATED
from coretrain.corpus.rules import Rule, first_broken
from coretrain.corpus.store import read_columns

if TYPE_CHECKING:
    from coretrain.corpus.recipe import Recipe

BINS = 40
LATER = ("gate", "exact", "lines", "near", "simhash", "substrings", "cut")
"""Why a document may go besides the rules: a gate of the first run, whose limit is another now, or a later stage."""


def reasons(recipe: Recipe | Applied) -> list[str]:
    """Every reason to drop a document, by its number."""
    return [rule.name for rule in recipe.every_rule()] + list(LATER)


def percentiles(arguments: Mapping[str, Any], inputs: list[Path], outputs: list[Path]) -> dict[str, float]:
    """The task: for each limit of the recipe that is a percentile its value, over all documents that the other rules
    keep and that have the signal.
    """
    recipe = Applied(arguments["recipe"])
    asked = recipe.percentiles()
    others = [rule for rule in recipe.every_rule() if rule.name not in asked]
    held: dict[str, list[Signal]] = {name: [] for name in asked}
    for path in inputs:
        columns = read_columns(path)
        kept = (first_broken(others, columns, len(columns[GATED])) < 0) & (columns[GATED] < 0)
        for name, (signal, _) in asked.items():
            values = columns[signal][kept]
            held[name].append(values[~np.isnan(values)])
    found = {}
    for name, (_, fraction) in asked.items():
        every = np.concatenate(held[name])
        found[name] = float(np.quantile(every, fraction, method="higher")) if len(every) else 0.0
    return found


def select_piece(arguments: Mapping[str, Any], inputs: list[Path], outputs: list[Path]) -> dict[str, Any]:
    """The task: `arguments` has `recipe`; it reads signals and writes for each document the number of the reason why
    it goes, int16; -1 where it stays.
    """
    recipe = Applied(arguments["recipe"])
    rules = recipe.every_rule()
    columns = read_columns(inputs[0])
    count = len(columns[GATED])
    broken = first_broken(rules, columns, count).astype(np.int16)
    unknown = (broken < 0) & (columns[GATED] >= 0)
    broken[unknown] = len(rules)
    with open(outputs[0], "wb") as file:
        np.save(file, broken, allow_pickle=False)
    kept = broken < 0
    size = columns["text.bytes"]
    return {
        "documents": count,
        "kept": int(kept.sum()),
        "bytes": int(size.sum()),
        "bytes_read": int(columns["text.bytes_read"].sum()),
        "dropped": _by(broken, np.ones(count)),
        "dropped_bytes": _by(broken, size),
        "histograms": {name: _histogram(rules, name, columns, broken) for name in sorted({r.signal for r in rules})},
        "not_computed": {rule.name: int(np.isnan(columns[rule.signal][~_stopped(columns)]).sum()) for rule in rules},
        "examples": _examples(rules, columns, broken, arguments["recipe"]["output"]["examples"]),
        "words": {name: _words(columns[name], kept, size) for name in ("source", "language")},
    }


def _stopped(columns: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Documents for which later signals weren't computed."""
    stopped: NDArray[np.bool_] = (columns[GATED] >= 0) | (columns["text.extracted"] < 1)
    return stopped


def _by(broken: NDArray[np.int16], weights: NDArray[Any]) -> dict[str, int]:
    sums = np.bincount(broken[broken >= 0], weights[broken >= 0])
    counts = np.bincount(broken[broken >= 0])
    return {str(number): int(sums[number]) for number in np.flatnonzero(counts).tolist()}


def edges(rules: Sequence[Rule], signal: str) -> NDArray[np.float64]:
    """Borders of the bins of a signal's histogram, fixed by the limits that it is held to; the last bin has no end."""
    limits = [limit for rule in rules if rule.signal == signal for limit in (rule.least, rule.most) if limit]
    top = max(limits, default=1.0)
    if top < 1:
        return np.linspace(0, min(1.0, max(3 * top, 0.02)), BINS + 1)
    if top == 1:  # of a count
        return np.linspace(0, 10, BINS + 1)
    if top <= 20:
        return np.linspace(0, 3 * top, BINS + 1)
    return np.concatenate([[0], np.logspace(0, np.log10(20 * top), BINS)])


def _histogram(rules: Sequence[Rule], signal: str, columns: Mapping[str, Signal], broken: NDArray[np.int16]) -> Any:
    """Counts by bin of all documents, and of those that no rule drops."""
    values = columns[signal]
    known = ~np.isnan(values)
    borders = edges(rules, signal)
    at = np.clip(np.searchsorted(borders, values, "right") - 1, 0, BINS - 1)
    every = np.bincount(at[known], minlength=BINS)
    kept = np.bincount(at[known & (broken < 0)], minlength=BINS)
    return [every.tolist(), kept.tolist()]


def _examples(
    rules: Sequence[Rule], columns: Mapping[str, Signal], broken: NDArray[np.int16], most: int
) -> dict[str, dict[str, list[list[float]]]]:
    """For each rule rows near its limit, with their values: of those that it drops, and of those that are kept."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for number, rule in enumerate(rules):
        values = columns[rule.signal]
        limit = rule.least if rule.least is not None else rule.most
        near = np.abs(values - (limit or 0.0))
        found[rule.name] = {}
        for side, rows in (("dropped", np.flatnonzero(broken == number)), ("kept", np.flatnonzero(broken < 0))):
            rows = rows[~np.isnan(values[rows])]
            first = rows[np.argsort(near[rows], kind="stable")[:most]]
            found[rule.name][side] = [[int(row), float(values[row])] for row in first.tolist()]
    return found


def _words(column: Sequence[str | None], kept: NDArray[np.bool_], size: NDArray[Any]) -> dict[str, list[int]]:
    """Documents, bytes, and those of them that are kept, by word."""
    total: dict[str, Counter[str]] = {}
    for word, stays, bytes_ in zip(column, kept.tolist(), size.tolist(), strict=True):
        one = total.setdefault(word or "", Counter())
        one.update({"all": 1, "bytes": int(bytes_), "kept": stays, "kept_bytes": int(bytes_) * stays})
    return {word: [one["all"], one["bytes"], one["kept"], one["kept_bytes"]] for word, one in sorted(total.items())}
