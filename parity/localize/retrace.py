"""Updates of a run trained again with the code as it is: do they come out as the run's folder says?

A run is followed from checkpoint to checkpoint, each stretch from the run's own state, so that nothing adds up. What
comes out bit for bit was made by this code on such a machine. What doesn't is measured by what the smallest change of
the weights (1 ULP) makes of the same stretch: rounding grows with the run's own spikes, and no fixed curve knows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coretrain.base.arrays import Tensors
from coretrain.checkpoint.interchange import Interchange
from coretrain.data.splits import Data
from parity.errors import nrel
from parity.localize.course import (
    Bench,
    Course,
    Point,
    alone,
    as_configured,
    beginning,
    course_of,
    in_float64,
    state_of,
)
from parity.localize.history import History, relative
from parity.localize.rows import WORDS
from parity.pair import noise_only

FACTOR = 30
"""A run may be so many times as far from its replay as one whose weights were changed by 1 ULP."""
BASE = {"float64": 1e-14, "float32": 1e-7, "float16": 2e-4, "bfloat16": 1e-3}
"""The least that 1 ULP of the weights is taken to make of a loss: a single one may come out alike by chance."""
NORM = 10
"""The same of a gradient norm, and of a moment: so many times as much."""
WAY = 100
"""The same of the way that a parameter has come."""
PERTURBED = 2
"""Trainings from changed weights beside the one that is compared."""


Opener = Callable[[str | None], Interchange | None]
"""A run's checkpoint by its name; nothing for its beginning or its end."""


@dataclass(frozen=True)
class Stretch:
    """Updates [first, stop) of a run, from its own checkpoint, or its beginning, to the next of its checkpoints."""

    first: int
    stop: int
    begins: str | None
    """The checkpoint's name; None: the run's beginning."""
    ends: str | None
    """None: there is no checkpoint after its last update."""

    def __contains__(self, update: int) -> bool:
        return self.first <= update < self.stop


@dataclass
class Retraced:
    """How a stretch came out."""

    stretch: Stretch
    stop: int
    """The first update that wasn't trained again."""
    equal: bool
    """Every loss, norm, evaluation and tensor bit for bit."""
    worst: float = 0.0
    """The largest share of what rounding may make."""
    what: str = ""
    """What of the run isn't what comes out: "" where all does, within rounding."""
    stage: str = ""
    """loss, norm, evaluation, state or data."""
    update: int = 0
    """Of `what`."""
    error: float = 0.0
    allowed: float = 0.0
    before: Point | None = None
    """The state that the update before `update` began from."""
    widened: bool = False
    """The other stack's training was taken as a measure of rounding too, which hides what only one of them does."""


def stretches(history: History, names: Sequence[str]) -> list[Stretch]:
    """The run's updates from each of its checkpoints (`names`) to the next; before the first only from update 0."""
    done = max(history.updates, default=-1) + 1
    marks: list[tuple[int, str | None]] = [(0, None), *sorted((int(name.split("-")[1]), name) for name in names)]
    marks = [mark for mark in marks if mark[0] <= done]
    ends = [*marks[1:], (done, None)]
    found = [Stretch(a, b, begin, end) for (a, begin), (b, end) in zip(marks, ends, strict=True) if a < b]
    return [one for one in found if all(update in history.updates for update in range(one.first, one.stop))]


def exactly(
    bench: Bench, history: History, some: Sequence[Stretch], open_named: Opener, data: Data, stop: int
) -> list[Retraced]:
    """Stretches that follow each other, trained again in one go up to `stop`: those before the first odd bit.

    Every loss, norm and evaluation, and the state at each checkpoint, are as the run's folder says.
    """
    stack, config = history.stack(some[0].first), alone(history.config)
    found: list[Retraced] = []
    with as_configured(config):
        course = course_of(bench, history, stack, config, data, beginning(open_named(some[0].begins)))
        for stretch in some:
            end = min(stop, stretch.stop)
            if not all(_exact(history, course) for _ in range(stretch.first, end)):
                return found
            last = open_named(stretch.ends) if end == stretch.stop else None
            if last is not None and not _same(course.trainer.export(), last.groups):
                return found
            found.append(Retraced(stretch, end, True))
            if end == stop:
                break
    return found


def retrace(
    bench: Bench,
    history: History,
    stretch: Stretch,
    ends: tuple[Interchange | None, Interchange | None],
    data: Data,
    stop: int,
    beside: bool = False,
) -> Retraced:
    """Updates of a stretch up to `stop`, in the run's own stack and precision, against what its folder says.

    `ends` are the checkpoints at its two ends. With `beside` the other stack's training is a measure of rounding too.
    """
    with as_configured(alone(history.config)):
        last = ends[1] if stop == stretch.stop else None
        found = _measured(bench, history, stretch, (beginning(ends[0]), last), data, stop, beside)
    found.widened = beside
    return found


def _exact(history: History, course: Course) -> bool:
    """Whether the next update, and the evaluation after it, come out bit for bit."""
    row = history.updates[course.at.update]
    if any(relative(found, row[key]) for found, key in zip(course.step(), ("loss", "grad_norm"), strict=True)):
        return False
    done = course.at.update
    return done not in history.evaluations or not relative(course.evaluate(), history.evaluations[done])


def _same(ours: Mapping[str, Tensors], theirs: Mapping[str, Tensors]) -> bool:
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[group][name], theirs[group][name], equal_nan=True) for group in ours for name in ours[group]
    )


def _measured(
    bench: Bench,
    history: History,
    stretch: Stretch,
    ends: tuple[Point, Interchange | None],
    data: Data,
    stop: int,
    beside: bool,
) -> Retraced:
    """The first figure of the run that is further from its replay than rounding takes the others."""
    (at, last), config, stack = ends, alone(history.config), history.stack(stretch.first)
    course = course_of(bench, history, stack, config, data, at)
    others = [course_of(bench, history, stack, config, data, at, seed) for seed in range(1, PERTURBED + 1)]
    if beside:
        others.append(course_of(bench, history, {"torch": "jax", "jax": "torch"}[stack], config, data, at))
    begin = Point(at.update, at.applied, state_of(course.trainer), at.scale)
    found, gauge = Retraced(stretch, stop, False), Gauge(config.precision.compute)
    for update in range(stretch.first, stop):
        row = history.updates[update]
        figures, apart = course.step(), [other.step() for other in others]
        for n, (stage, key) in enumerate((("loss", "loss"), ("norm", "grad_norm"))):
            name = f"{'loss' if n == 0 else 'gradient norm'} of update {update}"
            gauge.learn(stage, figures[n], [one[n] for one in apart])
            if gauge.parts(found, name, stage, update, relative(row[key], figures[n])):
                found.before = _led_to(course_of(bench, history, stack, config, data, at), update - 1)
                return found
        done = update + 1
        if done in history.evaluations:
            value = course.evaluate()
            gauge.learn("evaluation", value, [other.evaluate() for other in others])
            error = relative(history.evaluations[done], value)
            if gauge.parts(found, f"evaluation after {done} updates", "evaluation", update, error):
                found.before = _led_to(course_of(bench, history, stack, config, data, at), update)
                return found
    if last is not None:
        _compare_ends(found, gauge, begin, course, others, last)
        if found.what:
            found.before = _led_to(course_of(bench, history, stack, config, data, at), stop - 1)
    return found


def stacks_apart(
    bench: Bench, history: History, stretch: Stretch, start: Interchange | None, data: Data, stop: int
) -> Retraced:
    """A stretch's updates in both stacks in float64, from the same state: the first figure in which they part.

    Of the run it takes config, data and decisions. Rounding is measured as in `retrace`.
    """
    config, at = in_float64(history.config), beginning(start)
    with as_configured(config):
        ours, theirs = (course_of(bench, history, stack, config, data, at) for stack in ("torch", "jax"))
        others = [course_of(bench, history, "jax", config, data, at, seed) for seed in range(1, PERTURBED + 1)]
        begin = Point(at.update, at.applied, state_of(ours.trainer), at.scale)
        found = Retraced(stretch, stop, False, before=begin)
        first, second = begin.state or {}, state_of(theirs.trainer)
        for name, value in first["parameters"].items():
            if not np.array_equal(value, second["parameters"][name]):
                error = _distance(np.asarray(second["parameters"][name], np.float64), np.asarray(value, np.float64))
                found.what, found.stage, found.error = f"initial weight {name}", "initial", error
                return found
        gauge = Gauge("float64")
        for update in range(stretch.first, stop):
            figures, mirrored, apart = ours.step(), theirs.step(), [other.step() for other in others]
            for n, stage in enumerate(("loss", "norm")):
                name = f"{'loss' if n == 0 else 'gradient norm'} of update {update}"
                gauge.learn(stage, mirrored[n], [one[n] for one in apart])
                if gauge.parts(found, name, stage, update, relative(mirrored[n], figures[n])):
                    found.before = _led_to(course_of(bench, history, "torch", config, data, at), update - 1)
                    return found
            if update + 1 in history.evaluations:
                mirror = theirs.evaluate()
                gauge.learn("evaluation", mirror, [other.evaluate() for other in others])
                error = relative(ours.evaluate(), mirror)
                if gauge.parts(found, f"evaluation after {update + 1} updates", "evaluation", update, error):
                    found.before = _led_to(course_of(bench, history, "torch", config, data, at), update)
                    return found
    return found


def _led_to(course: Course, update: int) -> Point:
    """Where a training stands before an update, or where it begins if that is later: made again from its beginning."""
    while course.at.update < update:
        course.step()
    return course.point()


class Gauge:
    """How far rounding takes trainings apart that begin 1 ULP from each other, up to now."""

    def __init__(self, precision: str) -> None:
        base = BASE[precision]
        self.most = {"loss": base, "norm": NORM * base, "evaluation": base, "moment": NORM * base, "way": WAY * base}

    def learn(self, stage: str, figure: float, others: Sequence[float]) -> None:
        """What the others make of a figure; one that isn't finite teaches nothing."""
        errors = [relative(other, figure) for other in others]
        self.most[stage] = max([self.most[stage], *(error for error in errors if math.isfinite(error))])
        if stage == "loss":
            self.most["evaluation"] = max(self.most["evaluation"], self.most["loss"])

    def parts(self, found: Retraced, name: str, stage: str, update: int, error: float, kind: str = "") -> bool:
        """Whether an error is more than rounding makes; then `found` has it."""
        allowed = FACTOR * self.most[kind or stage]
        found.worst = max(found.worst, error / allowed)
        if error <= allowed:
            return False
        found.what, found.stage, found.update, found.error, found.allowed = name, stage, update, error, allowed
        return True


def _compare_ends(
    found: Retraced, gauge: Gauge, begin: Point, course: Course, others: Sequence[Course], last: Interchange
) -> None:
    """The state at the end of a stretch: parameters by the way that they have come, then moments."""
    ours, apart = state_of(course.trainer), noise_only(course.config)
    states = [state_of(other.trainer) for other in others]
    start = begin.state or {}
    for group in sorted(ours, key=lambda name: name != "parameters"):
        kind = "way" if group == "parameters" else "moment"
        names = sorted(ours[group].keys() - apart)

        def moved(state: Mapping[str, Tensors], name: str, group: str = group) -> np.ndarray:
            value = np.asarray(state[group][name], np.float64)
            return value - start["parameters"][name] if group == "parameters" else value

        for name in names:
            errors = [_distance(moved(state, name), moved(ours, name)) for state in states]
            gauge.most[kind] = max([gauge.most[kind], *(error for error in errors if math.isfinite(error))])
        for name in names:
            error = _distance(moved(last.groups, name), moved(ours, name))
            title = f"{WORDS.get(group, group + ' ')}{name} after {last.progress.update} updates"
            if gauge.parts(found, title, "state", last.progress.update, error, kind):
                return


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return (
        nrel(a, b) if np.isfinite(a).all() and np.isfinite(b).all() else 0.0 if np.array_equal(a, b, True) else math.inf
    )
