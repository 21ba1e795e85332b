"""The checkpoints that two runs have in common, and between which of them their states part: a binary search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import jaxtrain.checkpoint
import torchtrain.checkpoint
from coretrain.base.errors import UserError
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import Interchange, interchange_of, load_interchange
from coretrain.checkpoint.manifest import DamagedCheckpoint, read_sealed, verify
from coretrain.contract.parameters import initial_parameters
from parity.localize.rows import Row, distance
from parity.pair import noise_only

# Two correct runs part by rounding that grows from update to update. In float32, default run: 1e-6 up to update 16,
# 1e-4 up to 113, 0.046 at worst later (README); at lr 3e-3 1e-4 at update 38. In float64, 200 updates: 1.7e-14.
START = {"float64": 1e-13, "float32": 2e-6, "bfloat16": 2e-2, "float16": 5e-3}
"""Relative difference of loss and norm that rounding may make at the first update."""
DOUBLES = 8
"""Updates in which rounding's difference may double."""
MOST = {"float64": 1e-6, "float32": 0.05, "bfloat16": 0.1, "float16": 0.1}
"""Above this it is no longer called rounding, however late."""
PARAMETER, MOMENT = 100, 10
"""The way that a parameter has come may differ so many times as much as a loss, a moment so many times.

Measured between the stacks, worst tensor, default run: moments 3e-6 up to update 32, 3e-5 at 48; parameters 1.3e-3
after one update, 9e-5 after 8, 2e-5 after 32. The first ones are `FLIPS`.
"""
FLIPS = 4
"""Adam's first step is the sign of a gradient, and some are as small as their rounding: a share of START's size goes
the other way, which as a norm is its root. Later steps thin it out, as 1 / updates.
"""


def allowance(update: int, precision: str) -> float:
    """Relative difference of the loss that rounding may have grown to at `update`."""
    return min(MOST[precision], START[precision] * 2 ** min(update / DOUBLES, 60))


EXPORTS = {"torch": torchtrain.checkpoint.export_interchange, "jax": jaxtrain.checkpoint.export_interchange}
"""How a stack's own checkpoint becomes an interchange one: `translation.translate` without a process each."""


class Snapshots:
    """The checkpoints of one run by name, its own and interchange ones; the run's folder is only read."""

    def __init__(self, run: Path, scratch: Path) -> None:
        self.run, self.scratch = run, scratch
        self.kinds = {
            kind: {path.name: path for path in CheckpointFolder(run / kind).found() if path.suffix != ".old"}
            for kind in ("checkpoints", "interchange")
        }

    @property
    def names(self) -> set[str]:
        """All that can be opened, unless it turns out to be damaged."""
        return {name for found in self.kinds.values() for name in found}

    def open(self, name: str) -> Interchange:
        """A checkpoint's tensors; one that only its own stack can read is translated in a copy of the run's folder.

        Raises `DamagedCheckpoint` or `UserError` where that fails.
        """
        native, ready = (self.kinds[kind].get(name) for kind in ("checkpoints", "interchange"))
        if ready and (native is None or read_sealed(ready).progress == read_sealed(native).progress):
            return load_interchange(ready)
        assert native is not None
        target = interchange_of(self.scratch, name)
        if not target.exists():
            (self.scratch / "checkpoints").mkdir(parents=True, exist_ok=True)
            (self.scratch / "checkpoints" / name).symlink_to(native.resolve(), target_is_directory=True)
            EXPORTS[verify(native).stack](self.scratch, name)
        return load_interchange(target)


@dataclass(frozen=True)
class Interval:
    """Between which of their common checkpoints two runs part."""

    common: int
    """Checkpoints that both hold."""
    begun: int = 0
    """The first update that both have."""
    good: str | None = None
    """The last one known to agree within rounding; None: not even the first."""
    bad: str | None = None
    """The first one known to differ by more; None: not even the newest."""
    rows: list[Row] = field(default_factory=list)
    """The tensors of `bad`, or else of `good`."""
    pair: tuple[Interchange, Interchange] | None = None
    """Both sides of `good`."""
    left_out: list[str] = field(default_factory=list)
    """Checkpoints that were looked at and are damaged on a side, with what is wrong."""

    @property
    def sentence(self) -> str:
        """What the states say, for a verdict."""
        if not self.rows:
            return ""
        worst = max(self.rows, key=lambda row: (row.load, row.error))
        if self.bad is None:
            tensors = [row for row in self.rows if row.stage != "scalar"]
            equal = sum(row.error == 0 for row in tensors)
            rest = f", the worst, {worst.title}, within rounding ({worst.error:.0e})" if equal < len(tensors) else ""
            return (
                f"in {self.good}, the newest of {self.common} common checkpoints, {equal} of {len(tensors)} tensors "
                f"are equal{rest}"
            )
        worst = next(row for row in self.rows if row.parts)
        return (
            f"of {self.common} common checkpoints {self.good or 'none'} is the last that agrees within rounding and "
            f"{self.bad} the first that doesn't: {worst.title} is off by {worst.error:.1e} (rounding: {worst.cap:.0e})"
        )


def bisect(first: Snapshots, second: Snapshots, precision: str, begun: int = 0, origin: int | None = None) -> Interval:
    """The interval in which the states of two runs part; both began with update `begun`, from the same weights.

    Up to update `origin` (default: `begun`) they were equal bit for bit: rounding grows from there.

    About log2 of the number of common checkpoints are opened. One that is damaged on either side is left out, and said.
    """
    common, left_out = sorted(first.names & second.names), list[str]()
    seen: dict[str, tuple[list[Row], tuple[Interchange, Interchange]]] = {}

    def parts(name: str) -> bool:
        pair = first.open(name), second.open(name)
        seen[name] = compare_states(pair, precision, begun if origin is None else origin), pair
        return any(row.parts for row in seen[name][0])

    low, high = -1, len(common) - 1  # what is at `low` agrees; what is above `high` parts, or isn't there
    at = high
    while low < high:
        try:
            if parts(common[at]):
                high = at - 1
            else:
                low = at
        except (DamagedCheckpoint, UserError) as fault:
            left_out.append(f"{common[at]} is left out, {fault}")
            del common[at]
            high -= 1
        at = (low + high + 1) // 2
    good = common[low] if low >= 0 else None
    bad = common[high + 1] if high + 1 < len(common) else None
    shown = bad or good
    rows, pair = seen[shown][0] if shown else [], seen[good][1] if good else None
    return Interval(len(common), begun, good, bad, rows, pair, left_out)


def compare_states(pair: tuple[Interchange, Interchange], precision: str, origin: int) -> list[Row]:
    """A row for each tensor, parameters before moments; those whose gradient is noise are left out.

    Of a parameter the way that it has come from the run's initial weights counts.
    """
    ours, theirs = pair
    config, update = ours.config, ours.progress.update
    apart, allowed = noise_only(config), allowance(max(0, update - origin), precision)
    name, skipped = f"update-{update:08d}", ours.progress.applied != theirs.progress.applied
    rows = [Row("scalar", "applied updates", float(skipped), None, 0, 0, note=name)]
    start = initial_parameters(config.model, config.train.seed)
    for group in sorted(ours.groups, key=lambda name: name != "parameters"):
        cap = MOMENT * allowed
        if group == "parameters":
            cap = min(1.0, PARAMETER * allowed + FLIPS * START[precision] ** 0.5 / max(1, update - origin))
        for tensor in sorted(ours.groups[group].keys() - apart):
            a, b = (_tensor(state.groups.get(group, {}), tensor) for state in pair)
            if group == "parameters" and a is not None and b is not None and a.shape == b.shape:
                a, b = a - start[tensor], b - start[tensor]
            rows.append(Row(group, tensor, distance(b, a), None, cap, allowed, note=name))
    return rows


def _tensor(group: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    return np.asarray(group[name], np.float64) if name in group else None
