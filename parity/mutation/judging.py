"""A mutant is judged: its tests in stages, until one fails."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from coretrain.base.errors import UserError
from parity.mutation.known import Known
from parity.mutation.places import Place, is_alive
from parity.mutation.sample import CORE_FILES, STACKS
from parity.mutation.seen import Seen
from parity.mutation.worker import Worker

FIRST, MOST = 8.0, 40
"""Seconds, and tests, of the first stage: most mutants end there."""
SLACK, SLOWER = 15.0, 2.0
"""Seconds that a stage may take beyond so many times what its tests took when they were recorded; a hang is a kill.

These were often recorded while another test had compiled what they need."""
KILLED = "known.toml lists it as a survivor, and it is killed: remove the entry"
GROWTHS, LATE = 3, "time limit"
MORE = 10
"""Where no mutant may live, an unknown survivor is worth so many times the limit more: it turns CI red."""
TRACED = (
    "TracerBoolConversionError",
    "ConcretizationTypeError",
    "TracerIntegerConversionError",
    "TracerArrayConversionError",
)
"""Errors by which JAX refuses a condition on what it traces: the edit is none that anybody could make."""


@dataclass
class Verdict:
    """What became of a mutant, as the results file has it."""

    id: str
    key: str
    file: str
    line: int
    room: str
    operator: str
    about: str
    status: str
    """killed, survived, stillborn (it doesn't compile, or can't be imported), equivalent, elsewhere, unrecorded (no
    recorded test executes it, and not all were recorded)
    """
    killed_by: str | None = None
    kind: str = ""
    """The exception that the killing test ended with."""
    tests: int = 0
    """Tests that were run against it."""
    left: int = 0
    """Tests that may see it and did not judge it, for lack of time, or since they failed as they were recorded."""
    seconds: float = 0.0
    reason: str = ""
    diff: str = ""

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass
class Judge:
    """Judges mutants with one worker. `kills` is shared by all of them: tests that have killed in a file go first."""

    seen: Seen
    known: Known
    against: str
    limit: float
    """Seconds of tests, as they were recorded, that a mutant is worth."""
    kills: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def judge(self, place: Place, source: bytes, worker: Worker) -> Verdict:
        """The verdict on a place of a file."""
        verdict = Verdict(
            place.id, place.key, place.file, place.line, place.room, place.operator, place.about, "survived"
        )
        if not is_alive(place, source):
            verdict.status = "stillborn"
            return verdict
        known = self.known.of(place)
        if known and known[0] != "survivor":
            verdict.status, verdict.reason, verdict.diff = known[0], known[1], place.diff(source)
            return verdict
        text = place.applied(source).decode()
        stages, rest = self._stages(place)
        verdict.left = len(rest) + len(self.seen.lost(place))
        more = self._within(rest, MORE * self.limit)[0] if place.file in CORE_FILES and not known else []
        for tests in (*stages, *([more] if more else [])):
            found = self._run(tests, place.file, text, worker)
            verdict.seconds += found["wall"]
            verdict.tests += len(tests)
            verdict.left -= len(tests) * (tests is more)
            verdict.left += found.get("undecided", 0)
            if "failed" in found or found.get("code"):
                verdict.kind = found.get("kind", "")
                verdict.killed_by = found.get("failed", "no such tests") or verdict.kind
                at_import = not place.function and found.get("at") == "import"
                verdict.status = "stillborn" if at_import or verdict.kind in TRACED else "killed"
                verdict.reason = KILLED if known and verdict.status == "killed" else ""
                if verdict.status == "killed":
                    self.kills[place.file][verdict.killed_by] += 1
                break
        verdict.seconds = round(verdict.seconds, 2)
        if verdict.status == "survived" and not verdict.tests and not self.seen.whole():
            verdict.status = "unrecorded"
        if verdict.status in ("survived", "unrecorded"):
            verdict.diff, verdict.reason = place.diff(source), known[1] if known else ""
        return verdict

    def _run(self, tests: list[str], file: str, text: str, worker: Worker) -> dict[str, Any]:
        """The verdict of a stage. A mutant that ends without a failed test, at its time limit or by a signal, is only
        killed where the tree as it is gets through the same tests within the same time; if not, all get more time.
        """
        seconds = SLACK + SLOWER * sum(self.seen.seconds[test] for test in tests)
        found: dict[str, Any] = {}
        for _ in range(GROWTHS):
            found = worker.run(tests, seconds, file, text)
            unclear = found.get("kind") == LATE or str(found.get("kind")).startswith("signal")
            if not unclear and not found.get("code"):
                return found
            clean = worker.run(tests, seconds)
            if clean.get("code"):
                raise UserError(
                    "parity/mutation-lines-are-old",
                    f"tests that were recorded are no longer there, one of {', '.join(tests[:3])}: record them again "
                    "with --record",
                )
            if "failed" not in clean:
                return found
            seconds *= 4
        return {"wall": found["wall"], "undecided": len(tests)}  # this machine can't tell: no kill

    def plan(self, place: Place) -> tuple[list[list[str]], list[list[str]]]:
        """Tests that may see a place, those that execute it before those that may share what these have made; for a
        stack the judge's in the first list and all others in the second, for the contract all in one.
        """
        direct = self.seen.tests(place)
        wanted = {"parity": ("parity/",), "tests": ("tests/",)}.get(self.against, ("parity/", "tests/"))
        groups = [direct, self.seen.shared(place, direct)]
        groups = [[test for test in group if test.startswith(wanted)] for group in groups]
        if place.file.startswith(STACKS):
            judges = [[test for test in group if test.startswith("parity/")] for group in groups]
            return judges, [[test for test in group if not test.startswith("parity/")] for group in groups]
        return groups, []

    def _stages(self, place: Place) -> tuple[list[list[str]], list[str]]:
        """Tests in stages, and those that are left out."""
        stages: list[list[str]] = []
        rest: list[str] = []
        for groups in self.plan(place):
            taken, left = self._within([test for group in groups for test in self._order(group, place)], self.limit)
            stages += self._cut(taken)
            rest += left
        return stages, rest

    def _within(self, tests: Sequence[str], limit: float) -> tuple[list[str], list[str]]:
        """(tests that take so many seconds together, at least one; those beyond)."""
        taken: list[str] = []
        left: list[str] = []
        for test in tests:
            limit -= self.seen.seconds[test]
            (left if limit < 0 and taken else taken).append(test)
        return taken, left

    def _order(self, tests: Sequence[str], place: Place) -> list[str]:
        kills = self.kills[place.file]
        return sorted(tests, key=lambda test: ((self.seen.seconds[test] + 0.05) / (1 + kills[test]), test))

    def _cut(self, tests: Sequence[str]) -> Iterator[list[str]]:
        """A first stage of quick tests, then the rest."""
        first = 0
        time = FIRST
        while first < min(len(tests), MOST) and (time > 0 or not first):
            time -= self.seen.seconds[tests[first]]
            first += 1
        yield from (list(part) for part in (tests[:first], tests[first:]) if part)
