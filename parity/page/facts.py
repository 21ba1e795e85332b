"""What the page shows beside the figures: the machine, what was not run and why, tables of operations and kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

UNSELECTED = "its test wasn't selected, or failed before it was held"
JOINED = ("variant", "site")
"""Columns of the operations' table that are joined where all else is equal."""
Results = Mapping[str, Any]


def machine(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of facts: the machine, whatever the results say of it, then versions and the session."""
    variants, devices = results.get("variants") or [], [device["name"] for device in results["devices"]]
    seconds = results.get("seconds") or 0
    rest = {"date": results.get("date") or None, "seconds": f"{seconds:,.0f}", "devices": devices, "variants": variants}
    lists = [("Machine", results["machine"]), ("Versions", results["versions"]), ("Session", rest)]
    return [(title, list(_facts(facts))) for title, facts in lists]


def _facts(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        name = f"{before}{key if str(key).isupper() else str(key).replace('_', ' ')}"  # variables stay as they are
        if isinstance(value, Mapping):
            yield from _facts(value, f"{name}: ")
        elif value is not None and value != [] and value != "":
            yield name, said(value)


def said(value: Any) -> str:
    """A value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(said, value))
    return str(value)


def not_run(results: Results) -> list[tuple[str, list[str]]]:
    """(reason, what was not run for it), gates among them, in the order in which the reasons come."""
    found: dict[str, list[str]] = {}
    for what, why in results["not_run"]:
        found.setdefault(why, []).append(what)
    for gate in results["gates"]:
        if gate["status"] == "not run":
            found.setdefault(UNSELECTED, []).append(f"{gate['rung']}: {gate['name']}")
    return list(found.items())


def operations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The audit's rows, those that differ in `JOINED` columns only as one, with the number of them."""
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple((name, said(_unique(value))) for name, value in row.items() if name not in JOINED)
        groups.setdefault(key, []).append(row)
    found = []
    for key, alike in groups.items():
        joined = {name: sorted({said(row[name]) for row in alike if name in row}) for name in JOINED}
        places = {f"{name}s": ", ".join(values) for name, values in joined.items() if values}
        found.append(dict(key) | places | {"places": len(alike)})
    return sorted(found, key=lambda row: row.get("ok") != "no")


def _unique(value: Any) -> Any:
    return list(dict.fromkeys(map(said, value))) if isinstance(value, list) else value


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all fields that any row has, in order."""
    return list(dict.fromkeys(name for row in rows for name in row))
