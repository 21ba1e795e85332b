"""What the page shows of the planted bugs: by area, who had to kill each, who did, and at which tap it was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MUST_MATCH = ("torch", "jax", "jaxlib", "flax", "optax", "numpy")
"""Packages whose versions must be alike, or the two sessions judged different programs."""
Bug = Mapping[str, Any]
Results = Mapping[str, Any]


def lives(bug: Bug) -> bool:
    """Whether the judge was wrong: a bug that its gate let through, or an equivalent that a gate told apart."""
    return bool(bug["killed_by"]) if bug["equivalent"] else bug["declared"] not in bug["killed_by"]


def areas(bugs: Sequence[Bug]) -> list[dict[str, Any]]:
    """The bugs by area, those with survivors open."""
    found = []
    for name in dict.fromkeys(bug["area"] for bug in bugs):
        rows = [_row(bug) for bug in bugs if bug["area"] == name]
        wrong = sum(row["wrong"] for row in rows)
        misplaced = sum(bool(row["expected"]) for row in rows)
        found.append({"name": name, "rows": rows, "right": len(rows) - wrong, "wrong": wrong, "misplaced": misplaced})
    return found


def _row(bug: Bug) -> dict[str, Any]:
    gates, tap, expected = bug["killed_by"], bug.get("localized_tap"), bug.get("expected_tap")
    wrong = lives(bug)
    outcome = ("false alarm" if wrong else "let through") if bug["equivalent"] else "LIVES" if wrong else "killed"
    return {
        **bug,
        "declared": bug.get("declared") or "nothing: equivalent",
        "wrong": wrong,
        "outcome": outcome,
        "more": len(gates) - 1 if outcome == "killed" else 0,
        "place": "nowhere" if tap == "" else tap or "",
        "expected": expected if expected and tap is not None and tap != expected else "",
    }


def score(bugs: Sequence[Bug]) -> dict[str, int]:
    """Counts: planted, dead, sought (searched for by the localizer), right (found at the right tap)."""
    planted = [bug for bug in bugs if not bug["equivalent"]]
    sought = [bug for bug in planted if bug.get("expected_tap") and bug.get("localized_tap") is not None]
    return {
        "planted": len(planted),
        "dead": sum(bug["declared"] in bug["killed_by"] for bug in planted),
        "sought": len(sought),
        "right": sum(bug["localized_tap"] == bug["expected_tap"] for bug in sought),
        "lives": sum(lives(bug) for bug in bugs),
    }


def session(mutation: Results | None) -> str:
    """When and with what the bugs were planted, where that was another session."""
    if mutation is None:
        return ""
    versions = ", ".join(f"{name} {mutation['versions'][name]}" for name in MUST_MATCH if name in mutation["versions"])
    failures = len(mutation["failures"])
    return f"Planted {mutation.get('date') or 'at an unknown time'} with {versions}" + (
        f"; {failures} tests of that session failed." if failures else "."
    )


def other_versions(results: Results, mutation: Results) -> str:
    """The packages that the two sessions had in other versions, as text."""
    pairs = {name: (results["versions"].get(name), mutation["versions"].get(name)) for name in MUST_MATCH}
    return ", ".join(f"{name} {theirs}, not {ours}" for name, (ours, theirs) in pairs.items() if ours != theirs)
