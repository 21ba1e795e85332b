"""A session of the engine: mutants in turn, results kept as they come, a control at the end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import write_atomically
from coretrain.base.parse import from_json
from parity.mutation.judging import GROWTHS, KILLED, LATE, SLACK, SLOWER, Judge, Verdict
from parity.mutation.places import Place
from parity.mutation.score import by_room_and_operator, groups
from parity.mutation.worker import Worker

EVERY = 20.0
"""Seconds between two writings of the results."""


@dataclass
class Session:
    """What is judged, and how far it has come."""

    root: Path
    results: Path
    judge: Judge
    turn: Sequence[Place]
    """The sample, in its order."""
    facts: Mapping[str, Any]
    """Seed and the like, for the results file."""
    minutes: float
    tell: Callable[[Verdict], None]
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """By the place's id."""
    control: list[str] = field(default_factory=list)
    """Tests that have killed, and fail without any mutant."""
    unsteady: list[str] = field(default_factory=list)
    """Those of them that passed when they were run again, alone."""
    sources: dict[str, bytes] = field(default_factory=dict)

    def source(self, file: str) -> bytes:
        """A file's text."""
        if file not in self.sources:
            self.sources[file] = (self.root / file).read_bytes()
        return self.sources[file]

    def resume(self, again: bool) -> int:
        """Take over what an earlier session has found of the same edits; survivors are judged `again` if asked for."""
        if not self.results.is_file():
            return 0
        try:
            rows = {row["key"]: Verdict(**row) for row in from_json(self.results.read_bytes()).get("mutants", ())}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                "parity/mutation-results-unreadable",
                f"--results {self.results}: not the results of an earlier session ({error}); name another file, or "
                "move it away",
            ) from None
        for place in self.turn:
            row = rows.get(place.key)
            lived = row is not None and row.status == "survived" and row.tests and not again
            known = self.judge.known.of(place)
            if known and known[0] != "survivor":
                continue  # what known.toml says now counts, and costs nothing
            if row is not None and (row.status == "killed" or lived):
                reason = "" if not known else known[1] if lived else KILLED
                verdict = replace(row, id=place.id, line=place.line, reason=reason)
                self.verdicts[place.id] = verdict
                self.judge.kills[place.file][verdict.killed_by or ""] += verdict.status == "killed"
        return len(self.verdicts)

    def run(self, workers: Sequence[Worker]) -> None:
        """Judge until the sample or the time is at its end; then run the tests that have killed without a mutant."""
        end = time.monotonic() + 60 * self.minutes
        open_places = iter([place for place in self.turn if place.id not in self.verdicts])
        lock = threading.Lock()
        written = time.monotonic()
        failures: list[BaseException] = []

        def work(worker: Worker) -> None:
            nonlocal written
            while time.monotonic() < end and not failures:
                with lock:
                    place = next(open_places, None)
                if place is None:
                    return
                try:
                    verdict = self.judge.judge(place, self.source(place.file), worker)
                except BaseException as error:
                    failures.append(error)
                    return
                with lock:
                    self.verdicts[place.id] = verdict
                    self.tell(verdict)
                    if time.monotonic() > written + EVERY:
                        self.write()
                        written = time.monotonic()

        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        self.check(workers[0])
        self.write()

    def check(self, worker: Worker) -> None:
        """The control: every test that has killed must pass on the tree as it is, in the same kind of process.

        Where one fails, its verdicts are taken back, whether it fails again or not. A time that doesn't do is
        given again, four times as long.
        """
        killers = {one.killed_by for one in self.verdicts.values() if one.status == "killed" and one.killed_by}
        tests = sorted(test for test in killers if test in self.judge.seen.seconds)
        more = 1
        while tests:
            seconds = 4**more * (SLACK + SLOWER * sum(self.judge.seen.seconds[test] for test in tests))
            found = worker.run(tests, seconds)
            failed = found.get("failed")
            if failed not in tests:
                more += 1
                if found.get("kind") == LATE and more <= GROWTHS:
                    continue
                return
            self.control.append(failed)
            if "failed" not in worker.run([failed], seconds):
                self.unsteady.append(failed)
            tests.remove(failed)
            self.verdicts = {name: one for name, one in self.verdicts.items() if one.killed_by != failed}

    def write(self) -> None:
        """The results file, whole."""
        found = list(self.in_order())
        rest = {"groups": groups(found), "table": by_room_and_operator(found), "control": self.control}
        facts = {"date": time.strftime("%Y-%m-%d %H:%M"), **self.facts, "judged": len(found), **rest}
        facts["mutants"] = [one.row() for one in found]
        self.results.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.results, json.dumps(facts, indent=1))

    def in_order(self) -> Iterator[Verdict]:
        """Verdicts in the sample's order."""
        return (self.verdicts[place.id] for place in self.turn if place.id in self.verdicts)


def alive(verdicts: Iterable[Verdict], files: frozenset[str]) -> list[Verdict]:
    """Survivors in `files` of which nothing is known, and that all tests let live which may see them.

    On a slow machine fewer tests fit into the limit: what these would have killed is no fault of the tree.
    """
    return [
        one for one in verdicts if one.status == "survived" and one.file in files and not one.reason and not one.left
    ]
