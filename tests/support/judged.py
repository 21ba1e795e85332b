"""What a session of the judge leaves, and one of mutation testing, made up."""

from __future__ import annotations


def gate(name="logits", error=6e-16, cap=1e-13, floor=9e-16, rung="identity", status=None):
    status = status or ("not run" if error is None else "ok" if error <= cap else "FAIL")
    more = {"catches": "a <bias>", "where": "blocks.<0>"}
    return {"name": name, "rung": rung, "cap": cap, "floor": floor, "error": error, "status": status, **more}


def results(gates, **more):
    return {
        "versions": {"torch": "2", "jax": None},
        "machine": {
            "processor": "a <chip>",
            "torch_instructions": ["AVX2", "FMA"],
            "limits": {"XLA_FLAGS": "--x=1"},
            "amx": False,
            "cuda": None,
        },
        "devices": [{"name": "cpu"}],
        "gates": gates,
        "failures": [],
        "not_run": [["CUDA", "none here"], ["MPS", "none here"]],
    } | more


def score(**more):
    edit = {
        "id": "jaxtrain/a.py:3:1:compare:1", "file": "jaxtrain/a.py", "line": 3, "room": "jaxtrain", "tests": 0,
        "operator": "compare", "about": "<= for <", "status": "survived", "killed_by": None, "seconds": 0.1,
        "reason": "", "diff": "--- a/jaxtrain/a.py\n+++ b/jaxtrain/a.py\n@@ -3 +3 @@\n-a < b\n+a <= b\n",
    }  # fmt: skip
    same = {"status": "equivalent", "reason": "<max> of equals", "tests": 4}
    return {
        "date": "2026-01-01 12:00", "seed": 13, "against": "all", "places": 12345, "minutes": 4.2,
        "groups": [{"name": "all", "judged": 40, "killed": 39, "by_parity": 30, "low": 0.87, "high": 0.995}],
        "table": [
            {"room": "torchtrain", "operator": "compare", "judged": 30, "killed": 30, "stillborn": 2},
            {"room": "jaxtrain", "operator": "compare", "judged": 10, "killed": 9},
            {"room": "jaxtrain", "operator": "cast", "judged": 0, "killed": 0},
        ],
        "mutants": [edit, edit | same, edit | {"status": "killed", "diff": "", "about": "not shown"}],
    } | more  # fmt: skip
