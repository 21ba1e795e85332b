"""Two optimizers on the same gradients: the first step that differs, the state that differs, and the term.

The parameters are three small tensors in float64, near 1e-3, so that their own rounding hides little of a step; the
gradients are random, their size from 1e-8 to 10 by element, so that an epsilon is seen, and one is 0.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch

from coretrain.base.errors import UserError
from parity.localize.rows import Row, Verdict, distance
from parity.localize.show import Report
from parity.pairs.jax_side import dotted

STEPS = 50
SHAPES = {"matrix": (6, 5), "vector": (7,), "cube": (2, 3, 4)}
STEP, STEP_FLOOR = 1e-11, 2e-15
"""Floors over 20 steps: SGD with Nesterov, Adam, Adadelta, Adamax at most 1.7e-15. A wrong epsilon is above 1e-8."""
ROUNDINGS = 8
"""A step may be off by so many roundings of its parameter."""
STATE = 1e-9
"""States that differ by less are the same."""
OTHERS: dict[str, tuple[Any, ...]] = {
    "alpha": (0.9, 0.95, 0.99, 0.999), "rho": (0.9, 0.95, 0.99),
    "eps": (0.0, 1e-15, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3),
    "weight_decay": (0.0, 1e-4, 1e-3, 1e-2, 0.1), "initial_accumulator_value": (0.0, 0.1), "dampening": (0.0,),
    "momentum": (0.0, 0.9), "lr_decay": (0.0,), "betas": ((0.9, 0.999), (0.9, 0.99), (0.95, 0.98), (0.9, 0.95)),
    "nesterov": (True, False), "centered": (True, False), "amsgrad": (True, False),
    "decoupled_weight_decay": (True, False), "momentum_decay": (0.0, 4e-3),
}  # fmt: skip
"""Values of torch's hyperparameters that are tried in place of its own, to see which one is meant."""


@dataclass
class Course:
    """One optimizer's way: parameters before and after each step, and its state after each, flat in one row each."""

    places: list[np.ndarray] = field(default_factory=list)
    states: list[dict[str, np.ndarray]] = field(default_factory=list)

    def step(self, at: int) -> np.ndarray:
        """What step `at` (0 is the first) adds to the parameters."""
        return self.places[at + 1] - self.places[at]


def gradients(steps: int) -> list[dict[str, np.ndarray]]:
    """The gradients that both get."""
    rng = np.random.default_rng(0)
    sizes = {name: 10.0 ** rng.uniform(-8, 1, shape) for name, shape in SHAPES.items()}
    made = [{name: size * rng.standard_normal(size.shape) for name, size in sizes.items()} for _ in range(steps)]
    for one in made:
        one["vector"][0] = 0.0
    return made


def start() -> dict[str, np.ndarray]:
    """The parameters at first."""
    rng = np.random.default_rng(1)
    return {name: 1e-3 * rng.standard_normal(shape) for name, shape in SHAPES.items()}


def compare_optimizers(
    make_torch: Callable[[list[torch.nn.Parameter]], Any], transformation: Any, steps: int = STEPS, title: str = ""
) -> Report:
    """The report on a torch optimizer, made by a function (or class) of parameters, and an optax transformation."""
    jax.config.update("jax_enable_x64", True)
    if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
        raise UserError(
            "parity/jax-optimizer-unknown",
            f"--jax-optimizer gives {type(transformation).__name__}, which has no init and update: give what optax "
            "makes, or a function without arguments that makes it",
        )
    fed = gradients(steps)
    optimizer, ours = torch_course(make_torch, fed)
    theirs = jax_course(transformation, fed)
    rows = [_row(ours, theirs, at) for at in range(steps)]
    title = title or f"{type(optimizer).__name__} in torch, and optax"
    first = next((at for at, row in enumerate(rows) if row.parts), None)
    if first is None:
        worst = max(rows, key=lambda row: row.load)
        verdict = Verdict("same", f"no step of {steps} differs: the worst is {worst.name} with {worst.error:.1e}")
        return Report(title, rows, verdict, measured=True)
    row = rows[first]
    states = list(_states(ours, theirs, first))
    reasons = list(_reasons(ours, theirs, fed, first, optimizer.defaults))
    meant = _meant(make_torch, optimizer, theirs, fed, first)
    sentence = f"{row.name} of {steps} is the first that differs: by {row.error:.1e} of its size"
    if first:
        sentence += f"; step {first} agrees ({rows[first - 1].error:.1e})"
    notes = [*meant, *reasons, *states]
    return Report(
        title, rows, Verdict("algorithm", f"{sentence}.", row.title, row.error, row.floor), notes=notes, measured=True
    )


def torch_course(make: Callable[[list[torch.nn.Parameter]], Any], fed: Sequence[Mapping[str, np.ndarray]]) -> Any:
    """(torch's optimizer, its parameters and states by step)."""
    named = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in start().items()}
    optimizer = make(list(named.values()))
    course = Course([_flat({n: p.detach().numpy() for n, p in named.items()})])
    for one in fed:
        for name, parameter in named.items():
            parameter.grad = torch.from_numpy(one[name].copy())
        optimizer.step()
        course.places.append(_flat({n: p.detach().numpy() for n, p in named.items()}))
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, parameter in named.items():
            for key, value in optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    found.setdefault(key, {})[name] = value.detach().double().numpy()
        course.states.append({key: _flat(value) for key, value in found.items() if len(value) == len(named)})
    return optimizer, course


def jax_course(transformation: Any, fed: Sequence[Mapping[str, np.ndarray]]) -> Course:
    """The parameters and states of an optax transformation by step."""
    place: Any = start()
    state = transformation.init(place)
    update = jax.jit(transformation.update)
    course = Course([_flat(place)])
    for one in fed:
        moved, state = update(dict(one), state, place)
        place = {name: np.asarray(place[name]) + np.asarray(moved[name]) for name in place}
        course.places.append(_flat(place))
        found: dict[str, dict[str, np.ndarray]] = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
            *before, last = dotted(path).split(".")
            if last in SHAPES and np.shape(leaf) == SHAPES[last]:
                found.setdefault(".".join(before), {})[last] = np.asarray(leaf, np.float64)
        course.states.append({key: _flat(value) for key, value in found.items() if len(value) == len(SHAPES)})
    return course


def _flat(arrays: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in SHAPES])


def _row(ours: Course, theirs: Course, at: int) -> Row:
    step = ours.step(at)
    size = float(np.linalg.norm(step))
    rounding = ROUNDINGS * np.finfo(np.float64).eps * float(np.linalg.norm(ours.places[at]))
    cap = STEP + (rounding / size if size else 0.0)
    return Row("step", f"step {at + 1}", distance(theirs.step(at), step), None, cap, STEP_FLOOR)


def _states(ours: Course, theirs: Course, at: int) -> Iterator[str]:
    """Of each state of torch's after a step, the nearest of optax's."""
    for name, value in ours.states[at].items():
        found = []
        for other, candidate in theirs.states[at].items():
            used = np.abs(value) > 0
            ratios = candidate[used] / value[used] if used.any() else np.ones(1)
            ratio = float(np.median(ratios)) if np.isfinite(ratios).all() else 1.0
            found.append((distance(candidate, value), 0, other, 1.0))
            if ratio not in (0.0, 1.0):
                found.append((distance(candidate / ratio, value), 1, other, ratio))
        if not found:
            yield f"state {name}: optax keeps none of that shape"
            continue
        plain = min(found)
        error, scaled, other, ratio = plain
        if error > STATE:
            error, _, other, _ = min(one for one in found if not one[1])
            yield f"state {name}: differs; the nearest of optax's is {other}, off by {error:.1e}"
        else:
            yield f"state {name}: optax's {other} agrees{f' times {ratio:.6g}' if scaled else ''} ({error:.1e})"


def _reasons(
    ours: Course, theirs: Course, fed: Sequence[Mapping[str, np.ndarray]], at: int, own: Mapping[str, Any]
) -> Iterator[str]:
    """What the difference of a step is made of, where it is one term."""
    step, other, gradient = ours.step(at), theirs.step(at), _flat(fed[at])
    if not other.any():
        yield "optax's step is 0 there"
        return
    if at and distance(other, ours.step(at - 1)) < STATE:
        yield "optax's step is torch's step before it: it is one step late"
        return
    for name, value in (("the step itself", step), ("the parameter", ours.places[at]), ("the gradient", gradient)):
        factor = float(value @ (other - step) / (value @ value))
        if distance(factor * value, other - step) < 1e-6:
            yield f"the difference of the steps is {factor:.6g} times {name}" + (
                ": weight decay, on one side or of another size"
                if name == "the parameter"
                else ": a learning rate or a bias correction"
                if name == "the step itself"
                else ""
            )
            return
    forms = [_form(course.step(at), gradient, course.states[at]) for course in (ours, theirs)]
    if all(text for text, *_ in forms) and forms[0] != forms[1]:
        (first, one, root), (second, two, other_root) = forms
        reason = ""
        same_root = distance(theirs.states[at].get(other_root), ours.states[at].get(root)) < STATE
        if one and two and "betas" in own and same_root:
            ratio, correction = (one / two) ** 2, 1 - own["betas"][1] ** (at + 1)
            if min(abs(ratio / correction - 1), abs(ratio * correction - 1)) < 1e-3:
                reason = ": the epsilon is added before the bias correction on one side, after it on the other"
        yield f"torch's step is {first}; optax's is {second}{reason}"


def _form(step: np.ndarray, gradient: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[str, float, str]:
    """A step as numerator over root, its epsilon (inside or outside), the root; ("", 0, "") where it is none such."""
    tops = {"gradient": gradient, **states}
    used = (gradient != 0) & (step != 0)
    found: list[tuple[float, str, float, str]] = []
    for (top, above), (root, below) in itertools.product(tops.items(), states.items()):
        if top == root or (below[used] < 0).any() or not used.any():
            continue
        quotient = np.abs(above[used] / step[used])
        for inside in (False, True):
            x, y = (below[used], quotient**2) if inside else (np.sqrt(below[used]), quotient)
            # errors that are alike in every digit, however large the number
            a, b = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1) / y[:, None], np.ones_like(y), rcond=None)[0]
            if a <= 0:
                continue
            error = float(np.max(np.abs((a * x + b) / y - 1)))
            epsilon = b / a
            inner = f"sqrt({root} + {epsilon:.3g})" if inside else f"(sqrt({root}) + {epsilon:.3g})"
            if abs(epsilon) < 1e-13:
                inner = f"sqrt({root})"
            found.append((error, f"{top} / {inner}", epsilon, root))
    best = min(found, default=(1.0, "", 0.0, ""))
    return best[1:] if best[0] < 1e-5 else ("", 0.0, "")


def _meant(make: Any, optimizer: Any, theirs: Course, fed: Sequence[Any], first: int) -> list[str]:
    """Which other hyperparameters of torch's optimizer make it take optax's steps."""
    kind: Any = type(optimizer)
    group = optimizer.param_groups[0]
    accepted = inspect.signature(kind.__init__).parameters
    own = {name: value for name, value in optimizer.defaults.items() if name in group and name in accepted}
    changes = [(name, value) for name in own if name in OTHERS for value in OTHERS[name] if value != own[name]]
    horizon = min(len(fed), first + 6)
    scored: list[tuple[int, float, tuple[tuple[str, Any], ...]]] = []
    for several in (1, 2):
        for chosen in itertools.combinations(changes, several):
            if len({name for name, _ in chosen}) < several:
                continue
            try:
                changed = {**own, **dict(chosen)}
                _, course = torch_course(functools.partial(kind, **changed), fed[:horizon])
            except (TypeError, ValueError, RuntimeError):
                continue  # a combination that torch refuses
            errors = [_row(course, theirs, at) for at in range(horizon)]
            agreeing = next((at for at, row in enumerate(errors) if row.parts), horizon)
            scored.append((-agreeing, max(row.error for row in errors), chosen))
        best = min(scored, default=None, key=lambda one: one[:2])
        if best is not None and best[0] == -horizon:
            break
    best = min(scored, default=None, key=lambda one: one[:2])
    if best is None:
        return []
    words = " and ".join(f"{name}={value} in place of {own[name]}" for name, value in best[2])
    if best[0] == -horizon:
        return [f"torch with {words} takes optax's steps ({best[1]:.1e} in {horizon} steps): give both the same"]
    own_worst = max(
        row.error for row in (_row(torch_course(make, fed[:horizon])[1], theirs, k) for k in range(horizon))
    )
    if best[1] < 0.05 * own_worst:
        return [f"torch with {words} comes near ({best[1]:.1e} in {horizon} steps), and something is left"]
    return []
