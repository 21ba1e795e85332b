"""What the page shows of mutation testing: the score with its interval, by room and by operator, and each survivor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LOOKS = {"+": "add", "-": "del", "@": "at"}
Score = Mapping[str, Any]


def shown(score: Score) -> dict[str, Any]:
    """A session of mutation testing, ready for the template."""
    table, mutants = score["table"], score["mutants"]
    by_status = {
        status: sorted((m for m in mutants if m["status"] == status), key=lambda m: (m["room"], m["file"], m["line"]))
        for status in ("survived", "equivalent")
    }
    stillborn = sum(row.get("stillborn", 0) for row in table)
    return {
        **{name: score.get(name) for name in ("date", "seed", "against", "places", "sample", "minutes")},
        "groups": [_group(group) for group in score["groups"]],
        "rooms": _summed(table, "room"),
        "operators": _summed(table, "operator"),
        "judged": sum(row["judged"] for row in table),
        "killed": sum(row["killed"] for row in table),
        "stillborn": stillborn,
        "survivors": [_mutant(mutant) for mutant in by_status["survived"]],
        "equivalents": [_mutant(mutant) for mutant in by_status["equivalent"]],
    }


def _group(group: Score) -> dict[str, Any]:
    judged, killed = group["judged"], group["killed"]
    low, high = group.get("low"), group.get("high")
    return {**group, "share": killed / judged if judged else None, "low": low, "high": high}


def _summed(table: Sequence[Score], key: str) -> list[dict[str, Any]]:
    """Rows of one room (or operator) together, the one with most survivors first."""
    found: dict[str, dict[str, Any]] = {}
    for row in table:
        sums = found.setdefault(row[key], {"name": row[key], "judged": 0, "killed": 0})
        for name in ("judged", "killed"):
            sums[name] += row[name]
    rows = [row | {"left": row["judged"] - row["killed"]} for row in found.values() if row["judged"]]
    return sorted(rows, key=lambda row: (-row["left"], row["name"]))


def _mutant(mutant: Score) -> dict[str, Any]:
    lines = mutant.get("diff", "").splitlines()
    kept = [line for line in lines if not line.startswith(("--- ", "+++ "))]
    return {**mutant, "lines": [(LOOKS.get(line[:1], ""), line) for line in kept]}
