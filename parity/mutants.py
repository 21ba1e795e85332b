"""Does the judge see anything? Bugs that people made, planted into one stack; the gate named beside each must catch it.

A bug is a function that patches one stack at run time, in torchtrain or in jaxtrain; the other stack is the judge's
reference. Most are planted on either side in turn. Declared equivalents change how something is computed and not what:
no gate may tell them from the original.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from coretrain.training.stack import InStep
from parity.compiling import quick_jit
from parity.gates import LOGITS, Gate
from parity.localize.search import jax_recorder, localized_tap
from parity.pair import VARIANTS, WEIGHTS, make_config
from parity.probes import PROBES, unmutated
from parity.probes.sides import (
    JAX,
    SIDES,
    TORCH,
    UNMUTATED,
    Seen,
    Side,
    make,
)

GPT, LLAMA = "gpt2-like", "llama-like"
BIASED, RECOMPUTED = "llama-like with biases, tied, muon", "gpt2-like, full recompute"

_PROBE_OF = {gate: name for name in reversed(PROBES) for gate in PROBES[name].gates}
_UNTOUCHED = {
    "optimizer": {"gradients"},
    "sampling": {"decode"},
    **{area: {"gradients", "step", "update"} for area in ("clip", "schedule", "data", "checkpoint", "init", "health")},
}
"""What of JAX's compiled work the bugs of an area leave alone; elsewhere all is traced afresh."""

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """A bug in one stack, or a change that is none (`gate` None): how to plant it and who must see it."""

    name: str
    side: str
    area: str
    about: str
    plant: Callable[[Patch, Side], None]
    variant: str
    state: str
    probe: str
    gate: Gate | None
    tap: str | None
    shared: frozenset[str]

    @property
    def id(self) -> str:
        """Name of the test."""
        return f"{self.side}: {self.name}"


MUTANTS: list[Mutant] = []
"""Filled by `parity.bugs`: take it from there."""

MATRIX: list[dict[str, Any]] = []
"""The kill matrix of this session, as JSON has it: what `kill` has planted, and where `locate` found it."""

LOCATED: dict[str, tuple[str, str | None]] = {}
"""By the bug's id: the tap that the localizer named, and the right one."""


def mutant(
    area: str,
    gate: Gate | None,
    variant: str = GPT,
    tap: str | None = None,
    sides: tuple[str, ...] = ("torch", "jax"),
    state: str = "perturbed",
    probe: str | None = None,
    retraced: bool = False,
) -> Callable[[Callable[[Patch, Side], None]], Callable[[Patch, Side], None]]:
    """Register a bug for each of `sides`; its docstring is the mistake as people make it."""

    def register(plant: Callable[[Patch, Side], None]) -> Callable[[Patch, Side], None]:
        about, name = " ".join((plant.__doc__ or "").split()), plant.__name__.replace("_", " ")
        shared = frozenset() if retraced else frozenset(_UNTOUCHED.get(area, ()))
        for side in sides:
            how = probe or (_PROBE_OF[gate] if gate else "gradients")
            if gate is LOGITS and side == "jax" and probe is None:
                how = "logits"  # compiling the gradients too would cost four times as much
            MUTANTS.append(Mutant(name, side, area, about, plant, variant, state, how, gate, tap, shared))
        return plant

    return register


def identity(mutant: Mutant) -> dict[str, float]:
    """Errors of the unmutated pair where `mutant` is looked at; any above its cap is a false alarm."""
    return _errors(mutant, unmutated(mutant.side, mutant.probe, mutant.variant, mutant.state))


def kill(mutant: Mutant) -> set[str]:
    """Names of the gates that tell the mutated stack from the other one; noted in `MATRIX`."""
    row = entry(mutant)  # it lives until it is killed
    identity(mutant)  # first, so that nothing shared is traced while the bug is planted
    with pytest.MonkeyPatch.context() as patch:
        mutant.plant(patch, SIDES[mutant.side])
        seen = PROBES[mutant.probe].run(SIDES[mutant.side], mutant.variant, mutant.state, mutant.shared)
    caps = {gate.name: gate.cap for gate in PROBES[mutant.probe].gates}
    killers = {name for name, error in _errors(mutant, seen).items() if not error <= caps[name]}
    row["killed_by"] = sorted(killers)
    return killers


def locate(mutant: Mutant) -> str:
    """The tap at which the localizer finds the bug, "" where it finds none; noted in `MATRIX`."""
    config, weights, jax_trainer, recorder = _correct(mutant.variant, mutant.state)
    with pytest.MonkeyPatch.context() as patch:
        mutant.plant(patch, SIDES[mutant.side])
        torch_trainer = make(TORCH, config, weights, UNMUTATED)
        if mutant.side == "jax":
            jax_trainer = make(JAX, config, weights, mutant.shared)
            recorder = _recorder(jax_trainer)
        found = localized_tap(config, weights, torch_trainer, jax_trainer, recorder=recorder)
    LOCATED[mutant.id] = found, mutant.tap
    for row in MATRIX:
        if (row["name"], row["side"]) == (mutant.name, mutant.side):
            row["localized_tap"] = found
    return found


@functools.cache
def _correct(variant: str, state: str) -> tuple[Any, Any, Any, Any]:
    """(config, weights, JAX's trainer as it is, its recorder), all traced before any bug is planted."""
    config = make_config(VARIANTS[variant])
    weights = WEIGHTS[state](config)
    stack = make(JAX, config, weights, UNMUTATED)
    recorder = _recorder(stack)
    false_alarm = localized_tap(config, weights, make(TORCH, config, weights, UNMUTATED), stack, recorder=recorder)
    assert not false_alarm, f"the localizer finds {false_alarm} in a correct pair"
    return config, weights, stack, recorder


def _recorder(stack: Any) -> Any:
    recorder = jax_recorder(stack)
    recorder._compiled = quick_jit(recorder._run)
    return recorder


def entry(mutant: Mutant) -> dict[str, Any]:
    """The row of `mutant` in `MATRIX`."""
    for row in MATRIX:
        if (row["name"], row["side"]) == (mutant.name, mutant.side):
            return row
    row = {name: getattr(mutant, name) for name in ("name", "side", "area", "about", "variant", "state")}
    row |= {"declared": mutant.gate.name if mutant.gate else None, "killed_by": []}
    row |= {"expected_tap": mutant.tap, "localized_tap": LOCATED.get(mutant.id, (None,))[0]}
    MATRIX.append(row | {"equivalent": mutant.gate is None})
    return MATRIX[-1]


def _errors(mutant: Mutant, seen: Seen) -> dict[str, float]:
    other = unmutated("jax" if mutant.side == "torch" else "torch", mutant.probe, mutant.variant, mutant.state)
    judged = PROBES[mutant.probe].judge(seen, other, mutant.variant, mutant.state)
    return {gate.name: error for gate, error in judged.items()}


def matrix_lines() -> list[str]:
    """The kill matrix as text: mutants by area, who must kill each, how many gates did, and where it was found."""
    lines = []
    if MATRIX:
        lines.append(f"{'area':<11}{'planted bug':<50}{'side':<7}{'must be killed by':<48}{'gates':>5}  found at")
    for row in sorted(MATRIX, key=lambda row: (row["equivalent"], row["area"], row["name"], row["side"])):
        count, declared = len(row["killed_by"]), row["declared"] or "nothing: it is equivalent"
        caught = declared in row["killed_by"] if not row["equivalent"] else not count
        mark = str(count) if caught else "KILLED" if row["equivalent"] else "LIVES"
        place = "nowhere" if row["localized_tap"] == "" else row["localized_tap"] or ""
        if place and place != row["expected_tap"]:
            place += f" (WRONG: {row['expected_tap']})"
        lines.append(f"{row['area']:<11}{row['name']:<50}{row['side']:<7}{declared:<48}{mark:>5}  {place}".rstrip())
    if bugs := [row for row in MATRIX if not row["equivalent"]]:
        dead = sum(row["declared"] in row["killed_by"] for row in bugs)
        lines.append(f"mutation score: {dead} of {len(bugs)} killed by the gate declared")
    if LOCATED:
        hits = sum(found == expected for found, expected in LOCATED.values())
        lines.append(f"localizer: {hits} of {len(LOCATED)} found at the right tap")
    return lines


def wrap(patch: Patch, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put `make(what is there)` in its place, where a stack's runs come by it."""
    patch.setattr(owner, name, make(getattr(owner, name)))
    for s in (TORCH, JAX):
        if owner is s.trainer.Trainer and name in ("gradients", "apply"):
            in_step(patch, s)


def in_step(patch: Patch, s: Side) -> None:
    """Have a stack make its updates of `gradients` and `apply`: a bug in what they call is in its runs too."""
    patch.setattr(s.trainer.Trainer, "update", InStep.update)
    patch.setattr(s.trainer.Trainer, "in_step", InStep.in_step)
