"""What the page shows of the gates: each error as a share of its cap, on one log scale for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

RUNGS = {
    "exact": "Equal to the last bit: names, first weights, token ids, dropout masks, checkpoints; rates to 1e-14.",
    "identity": "float64 on the CPU: a correct pair agrees to rounding, and almost no mistake hides below that.",
    "rounding": "Each stack in its training precision, on every device here, against float64 from the same weights.",
    "optimizer": "The same sequence of gradients into both optimizers: rounding of the model plays no part.",
    "trajectory": "200 updates in float32, against what a change of one unit in the last place does to one stack.",
    "dtypes": "The precision that each operation really computes in, against the policy.",
    "kernels": "Every attention kernel that runs here against the plain formula, forward and backward.",
    "generation": "Greedy and sampled tokens, with and without the key-value cache.",
    "invariance": "One stack against itself: micro-batches, recomputation, scan, compile, chunks.",
    "scale": "Many devices and processes against one.",
}
LOWEST, HIGHEST = -6, 1
"""Ends of the bars: powers of ten of the error over its cap."""
NEAR = 0.5
"""A gate whose error takes more of its cap than this stands out."""
ABOVE_FLOOR = 2
"""An error of so many recorded floors is said to be: the floor was measured too low, or something moved."""
NEAREST = 5
Gate = Mapping[str, Any]


def rungs(gates: Sequence[Gate]) -> list[dict[str, Any]]:
    """The gates by rung, in the ladder's order; a rung that has no words here comes last."""
    names = [name for name in RUNGS if any(gate["rung"] == name for gate in gates)]
    names += [name for name in dict.fromkeys(gate["rung"] for gate in gates) if name not in RUNGS]
    return [
        {"name": name, "words": RUNGS.get(name, ""), "gates": [row(gate) for gate in gates if gate["rung"] == name]}
        for name in names
    ]


def nearest(gates: Sequence[Gate]) -> list[dict[str, Any]]:
    """The gates that failed or take most of their caps, the worst first."""
    drawn = [gate for gate in gates if gate["cap"] and gate["error"]]
    drawn.sort(key=lambda gate: -gate["error"] / gate["cap"] if math.isfinite(gate["error"]) else -math.inf)
    return [row(gate) for gate in drawn[:NEAREST]]


def row(gate: Gate) -> dict[str, Any]:
    """A gate with the places of its marks, in percent of the bar, and its margin in words."""
    error, cap, floor, status = gate["error"], gate["cap"], gate["floor"], gate["status"]
    ran, bad = status != "not run", status not in ("ok", "not run")
    near = ran and not bad and bool(cap) and error is not None and error > NEAR * cap
    return {
        **gate,
        "look": "over" if bad else "none" if not ran else "near" if near else "fine",
        "mark": "not run" if not ran else "FAILS" if bad else "near its cap" if near else "ok",
        "margin": _margin(error, cap) if ran else "",
        "above_floor": bool(floor and error and math.isfinite(error) and error > ABOVE_FLOOR * floor),
        "spot": spot(error, cap) if error is not None and cap else None,
        "floor_spot": spot(floor, cap) if floor and cap else None,
        "cap_spot": spot(cap, cap) if cap else None,
    }


def spot(value: float, cap: float) -> float:
    """Place of a value on its gate's bar, in percent."""
    if math.isnan(value):
        return 100.0
    power = math.log10(value / cap) if 0 < value < math.inf else math.inf if value else -math.inf
    return round(100 * (min(max(power, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST), 1)


def _margin(error: float | None, cap: float) -> str:
    if error is None:
        return ""
    if not math.isfinite(error):
        return "no number"
    if not cap:
        return "equal" if error == 0 else f"{error:,g} where none may be"
    if error == 0:
        return "no error at all"
    times = cap / error
    if times < 1:
        return f"{1 / times:,.3g} times its cap"
    return f"{100 / times:.0f}% of its cap" if times < 2 else f"{times:,.{0 if times >= 10 else 1}f} times below"
