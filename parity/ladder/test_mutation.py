"""Every planted bug must be killed by its gate, and found by the localizer; what is no bug must be let through.

`pytest parity` plants a few, `pytest parity -m mutation` all of them.
"""

from __future__ import annotations

import functools
import json

import pytest

from parity.bugs import FEW
from parity.gates import (
    APART,
    COMPILED,
    GATES,
    ROLLOUTS,
    SCORED,
    SHARED,
    SHARED_32,
    budget,
)
from parity.machine import no_float16
from parity.mutants import (
    LOCATED,
    MATRIX,
    MUTANTS,
    identity,
    kill,
    locate,
    matrix_lines,
)
from parity.outcomes import hold
from parity.probes import PROBES, unmutated

BUDGETED = "logits", "gradient"
QUICK = [m for m in MUTANTS if m.name in FEW[m.side]]
FOUND = [m for m in MUTANTS if m.tap]
PLACES = {(m.side, m.probe, m.variant, m.state): m for m in MUTANTS}
ORDER = {name: number for number, name in enumerate(dict.fromkeys(m.name for m in MUTANTS))}
BOTH = {m.name for m in MUTANTS if m.side == "torch"} & {m.name for m in MUTANTS if m.side == "jax"}


def names(mutants):
    """Test ids."""
    return [mutant.id for mutant in mutants]


def turns(mutants, ids):
    """Cases of `mutants`; those of one side of each bug, torch's and JAX's in turns, have the marker `one_side`."""
    mine = [m.name not in BOTH or m.side == ("torch", "jax")[ORDER[m.name] % 2] for m in mutants]
    marks = [[pytest.mark.one_side] if one else [] for one in mine]
    return [pytest.param(*case, id=name, marks=mark) for *case, name, mark in zip(mutants, ids, marks, strict=True)]


def possible(mutant):
    """Skip what both stacks can't compute on this processor."""
    if mutant.probe == "budget of float16" and (missing := no_float16()):
        pytest.skip(missing)


def check(mutant):
    """Killed by its gate; or, where it is declared equivalent, by none."""
    possible(mutant)
    killers = kill(mutant)
    if mutant.gate is None:
        assert not killers, f"{mutant.id} is no bug ({mutant.about}), and is killed by {sorted(killers)}"
    else:
        assert mutant.gate.name in killers, f"{mutant.id} ({mutant.about}) lives: {mutant.gate.name} must kill it, " + (
            f"and only {', '.join(sorted(killers))} did" if killers else "and no gate did"
        )


@pytest.mark.whole
@pytest.mark.parametrize("mutant", QUICK, ids=names(QUICK))
def test_a_few_planted_bugs(mutant):
    check(mutant)


@pytest.mark.mutation
@pytest.mark.parametrize("mutant", turns(MUTANTS, names(MUTANTS)))
def test_every_planted_bug(mutant):
    check(mutant)


@functools.cache
def forget(probe, variant):
    """Nothing that was seen before bugs of this kind were planted."""
    unmutated.cache_clear()


@pytest.mark.mutation
@pytest.mark.parametrize("mutant", turns(PLACES.values(), [" ".join(place) for place in PLACES]))
def test_the_unmutated_pair_is_let_through(mutant):
    """Wherever a bug is looked at. It runs after the bugs: nothing of them may be left behind."""
    possible(mutant)
    forget(mutant.probe, mutant.variant)
    caps = {gate.name: gate.cap for gate in PROBES[mutant.probe].gates}
    alarms = {name: error for name, error in identity(mutant).items() if not error <= caps[name]}
    assert not alarms


@pytest.mark.mutation
def test_the_localizer_finds_the_tap():
    """95% are required; a miss stands in the matrix with what was found for it."""
    found = {mutant.id: (mutant.tap, locate(mutant)) for mutant in FOUND}
    missed = {name: taps for name, taps in found.items() if taps[0] != taps[1]}
    assert len(missed) <= 0.05 * len(found), missed


@pytest.mark.whole
@pytest.mark.parametrize("side", ["torch", "jax"])
def test_each_stack_resumes_from_its_own_checkpoint(side):
    """Two updates, a checkpoint, a new trainer and two more, against four in one go in the other stack."""
    other = "jax" if side == "torch" else "torch"
    seen = [unmutated(s, "resume", "llama-like", "perturbed") for s in (side, other)]
    for gate, error in PROBES["resume"].judge(*seen, "llama-like", "perturbed").items():
        hold(gate, error, f"{side}, resumed")


def test_the_set_is_what_it_says():
    """At least 60 bugs, 20 of them in JAX; at least 4 equivalents; no name twice; the default names exist."""
    bugs = [mutant for mutant in MUTANTS if mutant.gate]
    assert len(bugs) >= 60
    assert sum(mutant.side == "jax" for mutant in bugs) >= 20
    assert len({mutant.name for mutant in MUTANTS if not mutant.gate}) >= 4
    assert len(set(names(MUTANTS))) == len(MUTANTS)
    assert len(QUICK) == sum(map(len, FEW.values()))
    for mutant in bugs:
        assert mutant.gate in PROBES[mutant.probe].gates, f"{mutant.id} is run where its gate isn't"
        assert mutant.about
        assert len(mutant.name) < 50
    assert all(mutant.tap for mutant in bugs if mutant.area == "model" and mutant.probe in ("logits", "gradients"))


SPARED = {
    COMPILED: "what a compiler makes of right code can't be planted in Python; it is held against the same code eager",
    SCORED: "its bugs are planted in tests/evaluation, where continuations are made and read",
    ROLLOUTS: "its bugs are planted in what rollouts are made of, by tests/alignment; test_rollouts.py shows it sees",
    **dict.fromkeys((SHARED, SHARED_32, APART), "its bugs are planted in processes of their own, by test_zero.py"),
}
"""Gates that no bug declares, and why."""


def test_every_gate_has_convicted():
    """A gate that nothing is planted for may be blind; every cap of low precision too."""
    caps = [budget("cpu", dtype, what) for dtype in ("float32", "bfloat16", "float16") for what in BUDGETED]
    declared = {mutant.gate for mutant in MUTANTS}
    unproven = [gate.name for gate in (*GATES, *caps) if gate not in declared and gate not in SPARED]
    assert not unproven
    assert not declared & SPARED.keys(), "a gate that a bug declares needs no excuse"


@pytest.mark.whole
def test_bugs_that_only_perturbed_weights_show():
    """Why the weights are perturbed: at the start every bias is zero, and leaving one out changes no logit."""
    by_id = {mutant.id: mutant for mutant in MUTANTS}
    rows = [dict(row) for row in MATRIX]
    initial = type(bug := by_id["torch: value bias dropped"])(**(vars(bug) | {"state": "initial"}))
    killers = kill(initial)
    MATRIX[:] = rows
    assert bug.gate.name not in killers


def test_a_survivor_is_shown():
    """The matrix as text and as JSON, with a bug that lives and an equivalent that is killed."""
    row = {
        "name": "a bug", "side": "torch", "area": "model", "about": "", "variant": "", "state": "",
        "declared": "logits", "killed_by": ["loss, in nats"], "expected_tap": "norm", "localized_tap": "embed",
        "equivalent": False,
    }  # fmt: skip
    before = list(MATRIX)
    located = dict(LOCATED)
    try:
        LOCATED.clear()
        MATRIX[:] = [row, row | {"name": "no bug", "declared": None, "equivalent": True}]
        text = "\n".join(matrix_lines())
        assert json.loads(json.dumps(MATRIX)) == MATRIX
        MATRIX[:] = [row | {"killed_by": ["logits"], "localized_tap": "norm"}]
        assert "LIVES" not in "\n".join(matrix_lines())
        MATRIX.clear()
        assert matrix_lines() == []
    finally:
        MATRIX[:] = before
        LOCATED.update(located)
    assert "LIVES" in text
    assert "KILLED" in text
    assert "WRONG: norm" in text
    assert "0 of 1 killed" in text
