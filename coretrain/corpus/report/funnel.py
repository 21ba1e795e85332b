"""The funnel: how many documents, bytes and tokens are left after each set of rules and each stage; and each rule's
share. Made from what the stages told, so that the command, the report and the data card say the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coretrain.corpus.pipeline.select import LATER, reasons
from coretrain.corpus.recipe import Recipe

SAID = {
    "gate": "stopped by a gate's earlier limit",
    "exact": "copies, word for word",
    "lines": "copied lines cut",
    "near": "near-duplicates",
    "simhash": "near-duplicates, SimHash",
    "substrings": "copied substrings cut",
    "cut": "limits, after the cuts",
}
"""What the later reasons are called."""


@dataclass(frozen=True)
class Row:
    """What is left after a stage."""

    what: str
    documents: int
    bytes: int
    dropped: int = 0
    """Documents that went here."""


@dataclass(frozen=True)
class Share:
    """What one rule drops, of those that no rule before it drops."""

    rule: str
    meaning: str
    source: str
    documents: int
    bytes: int


def totals(facts: Sequence[Mapping[str, Any]], key: str) -> Counter[int]:
    """Sums by reason over the pieces."""
    found: Counter[int] = Counter()
    for one in facts:
        for number, count in one[key].items():
            found[int(number)] += count
    return found


def shares(recipe: Recipe, told: Mapping[str, Any]) -> list[Share]:
    """Every reason with what it drops, in the order in which they are applied."""
    documents, size = totals(told["select"], "dropped"), totals(told["select"], "dropped_bytes")
    rules = recipe.every_rule()
    for stage in LATER[1:]:
        if told.get(stage):
            number = len(rules) + LATER.index(stage)
            documents[number] = sum(told[stage]["dropped"])
            size[number] = sum(told[stage]["removed_bytes"].values())
    found = [Share(r.name, r.meaning, r.source, documents[n], size[n]) for n, r in enumerate(rules)]
    return found + [
        Share(name, SAID[name], "", documents[n], size[n])
        for n, name in enumerate(reasons(recipe))
        if n >= len(rules) and (documents[n] or size[n])
    ]


def funnel(recipe: Recipe, told: Mapping[str, Any]) -> list[Row]:
    """From what was read to what is written."""
    pages, page_bytes = (sum(one[key] for one in told["read"]) for key in ("pages", "page_bytes"))
    read, size = (sum(one[key] for one in told["select"]) for key in ("documents", "bytes"))
    rows = [Row("pages fetched", pages, page_bytes)] if pages else []
    as_read = sum(one.get("bytes_read", one["bytes"]) for one in told["select"])
    rows.append(Row("documents read", read, as_read))
    if as_read != size:
        rows.append(Row("texts edited", read, size))  # by steps such as c4, also in documents that go below
    for name, group in _groups(shares(recipe, told)):
        gone = sum(one.documents for one in group)
        if name in recipe.rules or gone or any(one.bytes for one in group):
            read, size = read - gone, size - sum(one.bytes for one in group)
            rows.append(Row(SAID.get(name, name), read, size, gone))
    rows.append(Row("written", *(sum(one[key] for one in told["documents"]) for key in ("documents", "bytes"))))
    return rows


def _groups(found: Sequence[Share]) -> list[tuple[str, list[Share]]]:
    """Consecutive rules of one set."""
    groups: list[tuple[str, list[Share]]] = []
    for one in found:
        name = one.rule.partition(".")[0]
        if not groups or groups[-1][0] != name:
            groups.append((name, []))
        groups[-1][1].append(one)
    return groups


def troubles(told: Mapping[str, Any]) -> dict[str, int]:
    """What couldn't be read, by kind."""
    found: Counter[str] = Counter()
    for one in told["read"]:
        found.update(one["troubles"])
    return dict(sorted(found.items()))


def words(told: Mapping[str, Any], name: str) -> dict[str, list[int]]:
    """By language or source: documents, bytes, and those of them that the rules keep."""
    found: dict[str, list[int]] = {}
    for one in told["select"]:
        for word, counts in one["words"][name].items():
            before = found.get(word, [0, 0, 0, 0])
            found[word] = [a + b for a, b in zip(before, counts, strict=True)]
    return dict(sorted(found.items(), key=lambda item: (-item[1][0], item[0])))


def as_text(recipe: Recipe, told: Mapping[str, Any]) -> str:
    """The funnel and the rules that drop something, for a terminal."""
    rows = funnel(recipe, told)
    lines = [f"{'':<22} {'documents':>12} {'dropped':>10} {'bytes':>15} {'tokens, est.':>14}"]
    for row in rows:
        tokens = int(row.bytes / recipe.output.bytes_per_token)
        seen = "" if row.what == "pages fetched" else f"{tokens:,}"
        gone = f"{row.dropped:,}" if row.dropped else ""
        lines.append(f"{row.what:<22} {row.documents:>12,} {gone:>10} {row.bytes:>15,} {seen:>14}")
    found = [one for one in shares(recipe, told) if one.documents]
    lines += ["", "dropped by"] if found else []
    for one in found:
        lines.append(f"  {one.documents:>8,}  {one.rule}")
        if one.meaning != one.rule:
            lines[-1] += f": {one.meaning}"
    if odd := troubles(told):
        lines += ["", "not read: " + ", ".join(f"{count:,} {kind}" for kind, count in odd.items())]
    return "\n".join(lines)
