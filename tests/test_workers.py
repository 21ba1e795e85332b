"""The judge over several processes: what goes together, and one table of what all of them saw."""

import json
from unittest.mock import Mock

import pytest

from parity import compare, mutants, workers
from parity.bugs import MUTANTS
from parity.compare import Gate


@pytest.fixture
def session(monkeypatch):
    """A session of its own, which has seen nothing."""
    monkeypatch.setattr(compare, "worst", {})
    monkeypatch.setattr(compare, "held", {})
    monkeypatch.setattr(compare, "facts", {name: type(found)() for name, found in compare.facts.items()})
    monkeypatch.setattr(mutants, "MATRIX", [])
    monkeypatch.setattr(mutants, "LOCATED", {})

    def empty():
        for seen in (compare.worst, compare.held, mutants.LOCATED, mutants.MATRIX, *compare.facts.values()):
            seen.clear()

    return empty


def test_folders_are_shared_out(monkeypatch):
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(workers, "_on_tpu", lambda: False)
    assert workers.count(["parity"]) == workers.count(["/some/where/parity/"]) == workers.MOST
    assert workers.count(["tests", "parity"]) == workers.MOST
    assert not any(map(workers.count, (["tests", "parity/test_exact.py"], ["parity/test_exact.py::x"])))
    monkeypatch.setattr(workers, "_on_tpu", lambda: True)
    assert workers.count(["parity"]) == 0, "a TPU takes one process"


def test_what_shares_a_pair_goes_together():
    updates = [
        f"parity/test_identity.py::test_one_update[gpt2-like, full recompute-{s}]" for s in ("initial", "trained")
    ]
    assert {workers.group(test) for test in updates} == {"gpt2-like, full recompute, float64"}
    assert workers.group("parity/test_rounding.py::test_within[cpu-bfloat16-llama-like]") == "llama-like, bfloat16"
    assert workers.group("parity/test_trajectory.py::test_drift[llama-like]") == "llama-like, float32"
    assert workers.group("parity/test_exact.py::test_rows[jax-2]") == "parity/test_exact.py"
    mutant = MUTANTS[0]
    kinds = [f"parity/test_mutation.py::{test}[{mutant.id}]" for test in ("test_a_few", "test_every")]
    assert {workers.group(test) for test in kinds} == {f"{mutant.probe}, {mutant.variant}"}


def test_one_table_of_all(session):
    """The worst figure of a gate is kept with its place, NaN above all; facts come in the variants' order."""
    gate, other = Gate("a", 1.0, 0.0, "", "exact"), Gate("b", 1.0, 0.0, "", "exact")
    bug = {"name": "bug", "side": "torch", "localized_tap": None}

    def reported(*held, variant, located):
        session()
        for gate, error, where in held:
            compare.note(gate, error, where)
        compare.facts["dtypes"].append({"variant": variant})
        compare.facts["trajectory"][variant] = {"difference": [0.5]}
        if located:
            mutants.LOCATED["torch: bug"] = "norm", "norm"
        else:
            mutants.MATRIX.append(dict(bug))
        return workers.report()

    first = reported((gate, 0.25, "here"), variant="llama-like", located=True)
    second = reported((gate, 0.5, "there"), (other, float("nan"), "nowhere"), variant="gpt2-like", located=False)
    session()
    for text in (first, second):
        workers.merge(text)
    assert compare.worst["a"] == (0.5, "there")
    assert compare.worst["b"][0] != compare.worst["b"][0]
    assert [gate.name for gate in compare.held] == ["a", "b"]
    assert compare.facts["dtypes"] == [{"variant": "gpt2-like"}, {"variant": "llama-like"}]
    assert list(compare.facts["trajectory"]) == ["gpt2-like", "llama-like"]
    found = json.loads(workers.report())
    assert found["matrix"] == [bug | {"localized_tap": "norm"}]
    assert found["located"] == {"torch: bug": ["norm", "norm"]}


@pytest.mark.parametrize(("expression", "kept"), [("", 0), ("scale", 0), ("mutation", 1), ("mutation and one_side", 1)])
def test_every_bug_runs_where_its_marker_is_named(expression, kept):
    config = Mock(args=["parity"], option=Mock(markexpr=expression))
    items = [Mock()]
    mutants.deselect_mutation(config, items)
    assert len(items) == kept
