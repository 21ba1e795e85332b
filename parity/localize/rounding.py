"""Below float64: whether two frameworks are as far from float64 as each other, and what it is where they aren't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from parity.localize.judge import judge
from parity.localize.recorders import Record
from parity.localize.rows import Row, Verdict, distance

ROUNDING_FACTOR, ROUNDING_FLOOR = 4.0, 1e-6
"""Below float64 a framework may be so many times as far from float64 as the other, and (in float32) this much more.

Measured on the presets tiny and gpt2-124m, shrunk: more than twice by 6e-8 in float32, by 6e-3 in bfloat16, whose floor
is 8192 times as high. TF32 in one matmul is 2e-4.
"""
MOST = {"float32": 2.4e-5, "bfloat16": 3.6e-1, "float16": 3e-2}
"""Three times the worst gradient of a correct stack, gpt2-124m shrunk to width 32: what is farther off in both stacks
is no rounding, however alike they are."""


def rounding_rows(exact: Record, ours: Record, theirs: Record, precision: str, most: float | None = None) -> list[Row]:
    """Each tap of both in a lower precision against float64: the worse one's error, capped by the better one's.

    Above `most` (unset: `MOST`) it isn't rounding, however alike both are.
    """
    rows = []
    most = MOST[precision] if most is None else most
    for stage, part in (("forward", "values"), ("cotangent", "cotangents")):
        names = list(getattr(exact, part))
        for name in names if part == "values" else reversed(names):
            errors = [
                distance(getattr(record, part).get(name), getattr(exact, part)[name]) for record in (ours, theirs)
            ]
            better, worse = sorted(errors)
            floor = ROUNDING_FLOOR * (1 if precision == "float32" else 2.0**13)
            # what is no number in both agrees with nothing; and what is far off in both is no rounding
            cap, parents = min(ROUNDING_FACTOR * better + floor, most), exact.parents.get(name, ())
            rows.append(
                Row(stage, name, worse, None, cap, max(better, 1e-17), parents, ("torch", "JAX")[errors[1] == worse])
            )
    return rows


def judge_rounding(rows: Sequence[Row], ours: Record, theirs: Record, precision: str) -> Verdict | None:
    """dtype policy, or rounding or kernel, where float64 agrees and a lower precision doesn't; None where it does."""
    for name in ours.dtypes:
        if name in theirs.dtypes and ours.dtypes[name] != theirs.dtypes[name]:
            return Verdict(
                "dtype policy",
                f"float64 agrees, but in {precision} {name} is {ours.dtypes[name]} in torch and "
                f"{theirs.dtypes[name]} in JAX",
                name,
                traps="a cast on one side, a norm or softmax in the compute dtype, promotion of mixed operands",
            )
    verdict = judge(rows, precision)
    if verdict.kind == "same":
        return None
    first = next(row for row in rows if row.parts)
    return replace(
        verdict,
        kind="rounding or kernel",
        sentence=(
            f"float64 agrees, but in {precision} {first.title} is missing or no number that float64 has, in both"
            if not np.isfinite(first.floor)
            else f"float64 agrees, but in {precision} {first.title} of {first.note} is {first.error:.1e} from float64, "
            f"the other framework's {first.floor:.1e} (allowed: {first.cap:.1e})"
        )
        + (f"; {verdict.predecessor}, before it, is within its noise" if verdict.predecessor else ""),
        traps="TF32 or bfloat16 passes in matmuls, an accumulation in low precision, a fused kernel, a softmax or "
        "norm below float32",
    )


def evidence_of(verdict: Verdict, ours: Record, theirs: Record) -> dict[str, np.ndarray]:
    """What both make of the tap that parts, and torch's values of what it is made of."""
    part = "cotangents" if verdict.tap.startswith("cotangent of ") else "values"
    name = verdict.tap.removeprefix("cotangent of ")
    found = {
        f"{side}/{name}": getattr(record, part)[name]
        for side, record in (("torch", ours), ("jax", theirs))
        if name in getattr(record, part)
    }
    return found | {f"from/{parent}": ours.values[parent] for parent in ours.parents.get(name, ())}
