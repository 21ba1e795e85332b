"""What the replay of two runs says, weighed: the kind of a verdict that is confirmed, and all that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coretrain.base.machine import made_with
from coretrain.checkpoint.interchange import Interchange
from coretrain.data.splits import Data
from parity.localize.course import Bench, alone
from parity.localize.history import History
from parity.localize.retrace import FACTOR, Retraced
from parity.localize.rows import Verdict
from parity.localize.runs import ROUNDING, SIDES, UNCONFIRMED, Examined
from parity.localize.show import Report
from parity.localize.snapshots import Snapshots
from parity.localize.traps import TRAPS

OTHER_CODE = "other code"
"""A run is within rounding of what this code makes of it, and not what it makes on the same machine, bit for bit."""
KERNEL = "kernel"
"""Below float64 alone, one stack is much further from float64 than the other."""
FAINT = 1e-11
"""A tap that parts by less in float64, where no update of both stacks does, may be rounding: caps of taps were
measured at a run's beginning, and trained weights, as after a spike, can make more of it."""


@dataclass
class Side:
    """One run, trained again."""

    history: History
    snapshots: Snapshots
    data: Data | None
    retraced: list[Retraced]
    left: str = ""
    """Why not all of it was."""

    def opened(self, name: str | None) -> Interchange | None:
        """A checkpoint of the run by its name. Raises as `Snapshots.open`."""
        return self.snapshots.open(name) if name else None

    @property
    def fault(self) -> Retraced | None:
        """The stretch that doesn't come out again."""
        return next((one for one in self.retraced if one.what), None)

    @property
    def equal(self) -> bool:
        """Whether all of it came out bit for bit."""
        return bool(self.retraced) and all(one.equal for one in self.retraced) and not self.left

    def device_of(self, one: Retraced, bench: Bench) -> str:
        """What a stretch was trained again on."""
        first = one.stretch.first
        return str(bench.trainer(self.history.stack(first), alone(self.history.config)).device_name)

    def of_other_code(self, bench: Bench) -> bool:
        """Whether it isn't equal though processor, libraries and environment are those that it was made with: on a CPU
        the same code gives the same bits then.
        """
        if alone(self.history.config) != self.history.config or not self.history.segments:
            return False  # it was shared by several processes, or made by another engine
        last, here = self.history.segments[-1], made_with()
        # before a resume the config may have been another
        odd = [one for one in self.retraced if not one.equal and one.stretch.first >= last.first]
        alike = last.device == "cpu" and last.made_with == here
        return alike and any(self.device_of(one, bench) == "cpu" for one in odd)

    def covers(self, update: int) -> bool:
        """Whether `update` was trained again."""
        return any(one.stretch.first <= update < one.stop for one in self.retraced)


def weighed(
    seen: Examined, sides: Sequence[Side], bench: Bench, apart: Retraced | None, found: Report | None, how: str
) -> Report:
    """The examined report with the verdict of the replay, and its rows before the others.

    `apart` is where both stacks part in float64 over a run's updates, `found` what they do tap by tap, and `how` that
    was done.
    """
    report, differing = seen.report, seen.differing
    base, look = report.verdict, found.verdict if found else None
    texts = [base.sentence, *(_came_out(name, side) for name, side in zip(SIDES, sides, strict=True))]
    if apart:
        texts.append(f"in float64 the stacks part: {_off(apart)}")
    if look:
        texts.append(f"{how}: {'nothing parts' if look.kind == 'same' else look.sentence}")
    rows = found.rows if found and look and look.kind != "same" else []

    def told(verdict: Verdict) -> Report:
        arrays = report.arrays | (found.arrays if found else {})
        frames = found.frames if found and rows else []
        sentence = "; ".join(texts)
        return Report(report.title, rows + report.rows, replace(verdict, sentence=sentence), arrays, frames=frames)

    faults = [(name, side, side.fault) for name, side in zip(SIDES, sides, strict=True) if side.fault]
    faint = bool(look and look.error < FAINT and look.kind == "algorithm" and not faults and not apart)
    if look and look.kind not in ("same", ROUNDING) and not faint:
        kind = look.kind
        if differing and kind == "algorithm" and not faults:
            kind = "dtype policy" if any(key.startswith("precision.") for key in differing) else "config"
        return told(replace(look, kind=kind))
    if faults:
        name, side, fault = faults[0]
        kind = "algorithm" if _same_device(side, fault, bench) else UNCONFIRMED
        return told(
            Verdict(kind, "", f"{fault.what} of the {name} run", fault.error, fault.allowed, traps=_traps(fault))
        )
    if apart:
        return told(Verdict("algorithm", "", apart.what, apart.error, apart.allowed, traps=_traps(apart)))
    if look and look.kind == ROUNDING and not look.error <= FACTOR * look.floor:
        return told(replace(look, kind=KERNEL))
    other = [name for name, side in zip(SIDES, sides, strict=True) if side.of_other_code(bench)]
    if other and not differing:
        runs = f"the {' and the '.join(other)} run{'s' * (len(other) > 1)}"
        texts.append(
            f"processor, libraries and environment are those that {runs} had, and the bits aren't: made by other code"
        )
        return told(
            replace(base, kind=OTHER_CODE, tap=f"bits of {runs}", traps="another version of twintrain, an edit")
        )
    if differing and base.kind == UNCONFIRMED:
        return told(replace(base, kind="config"))
    around = [update for update in (seen.parting, seen.origin) if update is not None]
    if base.kind == UNCONFIRMED and all(side.covers(update) for side in sides for update in around):
        return told(replace(base, kind=ROUNDING, traps="a spike of the norm, after which rounding grows faster"))
    return told(base)


def _same_device(side: Side, fault: Retraced, bench: Bench) -> bool:
    """Whether the run was made on such a device as it was trained again on."""
    return side.history.device(fault.stretch.first) == side.device_of(fault, bench)


def _came_out(name: str, side: Side) -> str:
    """How a run came out again, in words."""
    if not side.retraced:
        return f"the {name} run wasn't trained again: {side.left}"
    first, last = min(one.stretch.first for one in side.retraced), max(one.stop for one in side.retraced) - 1
    left = f" ({side.left})" if side.left else ""
    if fault := side.fault:
        resumed = next(
            (s.first for s in side.history.segments[1:] if fault.stretch.first <= s.first <= fault.update), 0
        )
        where = f", where it was gone on with at update {resumed}" if resumed else ""
        return f"the {name} run isn't what the code as it is makes of its config{where}: {_off(fault)}"
    share = max(one.worst for one in side.retraced)
    beside = ", the other stack's training being a measure of it" * any(one.widened for one in side.retraced)
    within = f"within rounding (at most {share:.0%} of what it may make{beside})"
    how = "bit for bit" if all(one.equal for one in side.retraced) else within
    return f"trained again from its own states, the {name} run comes out {how} in updates {first} to {last}{left}"


def _off(fault: Retraced) -> str:
    if fault.stage == "initial":
        return f"{fault.what} differs by {fault.error:.1e}"
    return f"{fault.what} is off by {fault.error:.1e} where rounding makes at most {fault.allowed:.1e}"


def _traps(fault: Retraced) -> str:
    """The usual reasons."""
    if fault.stage == "initial":
        return "another seed or stream, a standard deviation, a layout"
    if fault.stage == "evaluation":
        return "dropout that is on in evaluation, another mean over batches, other validation rows"
    if fault.stage == "norm":
        return TRAPS["gradient norm"]
    if fault.stage == "loss" and fault.update == fault.stretch.first:
        return "initial or loaded weights, the forward pass, the loss"
    return TRAPS["parameter"]
