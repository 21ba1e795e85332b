"""What is compared, one row each: its error, its floor and its cap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from parity.errors import nrel
from parity.localize.recorders import LOSS, Record

# Floors: the worst of a correct pair over the variants and weight states of tests/parity/test_localize.py, x86 CPU,
# torch 2.13.0, jax 0.10.2, float64. Each cap lies under the smallest bug that the tests plant, a GELU constant wrong
# in its 11th digit (3e-11 at its tap).
FORWARD, FORWARD_FLOOR = 1e-13, 9e-16
COTANGENT, COTANGENT_FLOOR = 1e-13, 5e-15
GRADIENT, GRADIENT_FLOOR = 1e-13, 2e-14
STATE, STATE_FLOOR = 1e-12, 5e-14
SCALAR, SCALAR_FLOOR = 1e-13, 1e-15
NOISE = 1e-12
"""A gradient this much smaller than the largest one, in both stacks, is zero in exact arithmetic: not compared."""

WORDS = {
    "cotangent": "cotangent of ",
    "gradient": "gradient of ",
    "accumulated": "accumulated gradient of ",
    "first_moment": "first moment of ",
    "second_moment": "second moment of ",
    "momentum": "momentum of ",
    "parameter": "step of ",
    "parameters": "parameter ",
}
"""How a name is read, by stage."""


@dataclass(frozen=True)
class Row:
    """One compared quantity: its error with both on their own (free), and teacher-forced where that can be."""

    stage: str
    name: str
    free: float | None
    teacher_forced: float | None
    cap: float
    floor: float
    parents: tuple[str, ...] = ()
    note: str = ""

    @property
    def error(self) -> float:
        """The error that decides: teacher-forced where it is known."""
        error = self.teacher_forced if self.teacher_forced is not None else self.free
        return float("inf") if error is None else error

    @property
    def load(self) -> float:
        """Share of the cap that the error takes."""
        return self.error / self.cap if self.cap else 0.0 if self.error == 0 else float("inf")

    @property
    def parts(self) -> bool:
        """Whether the stacks part here."""
        return not self.error <= self.cap

    @property
    def title(self) -> str:
        """The name in words."""
        return WORDS.get(self.stage, "") + self.name


@dataclass(frozen=True)
class Verdict:
    """What it is, and why that is known."""

    kind: str
    """same, algorithm, rounding or kernel, data, schedule, dtype policy; of runs also config, health, other code,
    unconfirmed.
    """
    sentence: str
    tap: str = ""
    error: float = 0.0
    floor: float = 0.0
    predecessor: str = ""
    predecessor_error: float = 0.0
    traps: str = ""


def distance(a: np.ndarray | None, b: np.ndarray | None) -> float:
    """nrel; infinite where one is missing or of another shape, and where a NaN, or an infinity of one alone, is met.

    Infinities that both have at the same places (masked scores) are equal; the rest is compared.
    """
    if a is None or b is None or a.shape != b.shape:
        return float("inf")
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        if not np.array_equal(a[~finite], b[~finite]):
            return float("inf")
        a, b = a[finite], b[finite]
    return nrel(a, b)


def tap_rows(torch: Record, free: Record | None, forced: Record | None) -> list[Row]:
    """Rows of the taps of torch and JAX: values in order, then cotangents from the last to the first."""
    names = merged(torch.values, (free or forced or Record()).values)

    def error(ours: Mapping[str, np.ndarray], record: Record | None, part: str, name: str) -> float | None:
        return None if record is None else distance(getattr(record, part).get(name), ours.get(name))

    rows = [
        Row(
            "forward", name, error(torch.values, free, "values", name), error(torch.values, forced, "values", name),
            FORWARD, FORWARD_FLOOR, torch.parents.get(name, ()),
        )
        for name in names
    ]  # fmt: skip
    children: dict[str, list[str]] = {}
    for name, parents in torch.parents.items():
        for parent in parents:
            children.setdefault(parent, []).append(name)
    for name in reversed([name for name in names if name in torch.cotangents]):
        if name == LOSS:
            continue  # 1 by definition
        ours = torch.cotangents
        rows.append(
            Row(
                "cotangent", name, error(ours, free, "cotangents", name), error(ours, forced, "cotangents", name),
                COTANGENT, COTANGENT_FLOOR, tuple(children.get(name, ())),
            )
        )  # fmt: skip
    return rows


def merged(ours: Iterable[str], theirs: Iterable[str]) -> list[str]:
    """Names of both in torch's order; those that only JAX has follow the name before them."""
    merged, last = list(ours), ""
    for name in theirs:
        if name not in merged:
            merged.insert(merged.index(last) + 1 if last in merged else 0, name)
        last = name
    return merged


def tensor_rows(
    stage: str,
    torch: Mapping[str, np.ndarray],
    jax: Mapping[str, np.ndarray],
    cap: float,
    floor: float,
    apart: Iterable[str] = (),
    forced: bool = True,
) -> list[Row]:
    """Rows of named tensors but those `apart` and those that are noise; `forced`: both were made of the same."""
    sizes = {name: float(np.linalg.norm(value)) for name, value in torch.items()}
    others = {name: float(np.linalg.norm(value)) for name, value in jax.items()}
    largest = max(sizes.values(), default=0.0)
    rows = []
    for name in merged(torch, jax):
        noise = sizes.get(name, np.inf) < NOISE * largest and others.get(name, np.inf) < NOISE * largest
        if name in apart or (noise and sizes[name] > 0):
            continue
        error = distance(jax.get(name), torch.get(name))
        rows.append(Row(stage, name, None if forced else error, error if forced else None, cap, floor))
    return rows
