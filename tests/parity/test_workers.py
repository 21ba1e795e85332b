"""The judge over several processes: what goes together, and one table of what all of them saw."""

from __future__ import annotations

import json

import pytest

from parity import mutants, outcomes
from parity.gates import Gate
from parity.mutants import MUTANTS
from parity.workers import scheduler


@pytest.fixture
def session(monkeypatch):
    """A session of its own, which has seen nothing."""
    monkeypatch.setattr(outcomes, "worst", {})
    monkeypatch.setattr(outcomes, "held", {})
    monkeypatch.setattr(outcomes, "facts", {name: type(found)() for name, found in outcomes.facts.items()})
    monkeypatch.setattr(mutants, "MATRIX", [])
    monkeypatch.setattr(mutants, "LOCATED", {})

    def empty():
        for seen in (outcomes.worst, outcomes.held, mutants.LOCATED, mutants.MATRIX, *outcomes.facts.values()):
            seen.clear()

    return empty


def test_folders_are_shared_out(monkeypatch):
    monkeypatch.setattr(scheduler.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(scheduler, "_on_tpu", lambda: False)
    assert scheduler.count(["parity"]) == scheduler.count(["/some/where/parity/"]) == scheduler.MOST
    assert scheduler.count(["tests", "parity"]) == scheduler.MOST
    assert not any(map(scheduler.count, (["tests", "parity/ladder/test_exact.py"], ["parity/ladder/test_exact.py::x"])))
    monkeypatch.setattr(scheduler, "_on_tpu", lambda: True)
    assert scheduler.count(["parity"]) == 0, "a TPU takes one process"


def test_what_shares_a_pair_goes_together():
    updates = [
        f"parity/ladder/test_identity.py::test_one_update[gpt2-like, full recompute-{s}]"
        for s in ("initial", "trained")
    ]
    assert {scheduler.group(test) for test in updates} == {"gpt2-like, full recompute, float64"}
    assert (
        scheduler.group("parity/ladder/test_rounding.py::test_within[cpu-bfloat16-llama-like]")
        == "llama-like, bfloat16"
    )
    assert scheduler.group("parity/ladder/test_trajectory.py::test_drift[llama-like]") == "llama-like, float32"
    assert scheduler.group("parity/ladder/test_exact.py::test_rows[jax-2]") == "parity/ladder/test_exact.py"
    mutant = MUTANTS[0]
    kinds = [f"parity/ladder/test_mutation.py::{test}[{mutant.id}]" for test in ("test_a_few", "test_every")]
    assert {scheduler.group(test) for test in kinds} == {f"{mutant.probe}, {mutant.variant}"}


def test_one_table_of_all(session):
    """The worst figure of a gate is kept with its place, NaN above all; facts come in the variants' order."""
    gate, other = Gate("a", 1.0, 0.0, "", "exact"), Gate("b", 1.0, 0.0, "", "exact")
    bug = {"name": "bug", "side": "torch", "localized_tap": None}

    def reported(*held, variant, located):
        session()
        for gate, error, where in held:
            outcomes.note(gate, error, where)
        outcomes.facts["dtypes"].append({"variant": variant})
        outcomes.facts["trajectory"][variant] = {"difference": [0.5]}
        if located:
            mutants.LOCATED["torch: bug"] = "norm", "norm"
        else:
            mutants.MATRIX.append(dict(bug))
        return scheduler.report()

    first = reported((gate, 0.25, "here"), variant="llama-like", located=True)
    second = reported((gate, 0.5, "there"), (other, float("nan"), "nowhere"), variant="gpt2-like", located=False)
    session()
    for text in (first, second):
        scheduler.merge(text)
    assert outcomes.worst["a"] == (0.5, "there")
    assert outcomes.worst["b"][0] != outcomes.worst["b"][0]
    assert [gate.name for gate in outcomes.held] == ["a", "b"]
    assert outcomes.facts["dtypes"] == [{"variant": "gpt2-like"}, {"variant": "llama-like"}]
    assert list(outcomes.facts["trajectory"]) == ["gpt2-like", "llama-like"]
    found = json.loads(scheduler.report())
    assert found["matrix"] == [bug | {"localized_tap": "norm"}]
    assert found["located"] == {"torch: bug": ["norm", "norm"]}
