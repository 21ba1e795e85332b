"""Mutants judged: in a tree of their own, by tests that see them, by tests that fail without them, and by none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from parity.mutation import known
from parity.mutation.judging import Judge, Verdict
from parity.mutation.operators import OPERATORS
from parity.mutation.places import places
from parity.mutation.sample import CORE_FILES
from parity.mutation.seen import Part, Seen, fingerprints
from parity.mutation.session import Session, alive
from parity.mutation.worker import Worker
from tests.support.commands import ROOT

CODE = """import subprocess
import sys


def total(numbers):
    begun, left = 0, len(numbers)
    while left > 0:
        left = left - 1
        begun = begun + numbers[left]
    return begun


def unused(x):
    return x + 1


LIMIT = 3


if __name__ == "__main__":
    print(total([1, 2]))
"""
TEST = """import subprocess
import sys

from coretrain.sums import LIMIT, total, unused


def test_total():
    assert total([1, 2, LIMIT]) == 6


def test_in_a_program():
    assert subprocess.check_output([sys.executable, "-m", "coretrain.sums"]) == b"3\\n"


def test_unused():
    unused(3)


def test_broken():
    assert total([]) == 1
"""


SUMS = "coretrain/sums.py"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A small tree with one file of code and one of tests."""
    root = tmp_path_factory.mktemp("tree")
    for name, text in (("coretrain/__init__.py", ""), ("coretrain/sums.py", CODE), ("tests/test_sums.py", TEST)):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "parity/mutation").mkdir(parents=True)
    shutil.copy(ROOT / "parity/mutation/serve.py", root / "parity/mutation/serve.py")
    return root


@pytest.fixture(scope="module")
def worker(tree):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUTANTS_PRELOADED", "pytest")
        with Worker(tree, None) as made:
            yield made
    assert not made.folder.exists()


def test_a_mutant_is_killed_and_leaves_nothing_behind(worker):
    wrong = CODE.replace("begun + numbers", "begun - numbers")
    tests = ["tests/test_sums.py::test_unused", "tests/test_sums.py::test_total"]
    found = worker.run(tests, 30, "coretrain/sums.py", wrong)
    assert (found["failed"], found["kind"], found["at"]) == (tests[1], "AssertionError", "call")
    assert "failed" not in worker.run(tests, 30)
    assert (worker.folder / "coretrain/sums.py").read_text() == CODE


def test_a_program_that_a_test_starts_is_mutated_too(worker):
    same_size = CODE.replace("[1, 2]", "[1, 3]")
    test = "tests/test_sums.py::test_in_a_program"
    assert worker.run([test], 30, "coretrain/sums.py", same_size)["failed"] == test
    assert worker.run([test], 30)["done"] == 1


def test_what_cannot_be_imported_is_said(worker):
    found = worker.run(["tests/test_sums.py::test_total"], 30, "coretrain/sums.py", "total = 1 / 0\n")
    assert (found["at"], found["kind"]) == ("import", "ZeroDivisionError")


def test_whoever_stops_in_the_middle_of_a_job_leaves_no_process(tree, monkeypatch):
    """The tests of a mutant run in a session of their own, which no signal to the server's reaches."""
    monkeypatch.setenv("MUTANTS_PRELOADED", "pytest")
    monkeypatch.setattr("parity.mutation.worker.PATIENCE", 0.2)
    hang = f"import os\n{CODE}".replace("left = left - 1", "open('pid', 'w').write(f'{os.getpid()} ')")
    hang = hang.replace("numbers[left]", "0")

    def ask():
        with contextlib.suppress(RuntimeError):  # the server ends without an answer
            made.run(["tests/test_sums.py::test_total"], 600, SUMS, hang)

    with Worker(tree, None) as made:
        asked = threading.Thread(target=ask, daemon=True)
        asked.start()
        while not (pid := made.folder / "pid").is_file() or not (text := pid.read_text()).endswith(" "):
            time.sleep(0.05)
        child = int(text)
    asked.join(60)
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        os.killpg(child, signal.SIGKILL)
        pytest.fail("the tests go on")
    assert not made.folder.exists()


def seen_by(tree, **tests):
    """What is known of the small tree: seconds and lines of its tests."""
    names = {name: f"tests/test_sums.py::test_{name}" for name in tests}
    lines = {}
    for name, (_, executed) in tests.items():
        for line in executed:
            lines.setdefault(line, []).append(names[name])
    seconds = {names[name]: took for name, (took, _) in tests.items()}
    seen = Seen(tree, seconds, [Part({"coretrain/sums.py": lines}, fingerprints(tree))])
    seen.files["another package"].update(names.values())
    return seen


def test_a_judge_with_a_survivor_a_hang_and_a_control(tree, worker, tmp_path, monkeypatch):
    """The test that kills the first mutant fails without it too, nothing sees the second, and a loop never ends."""
    monkeypatch.setattr("parity.mutation.judging.SLACK", 2.0)
    lines = range(6, 11)
    seen = seen_by(tree, total=(0.01, lines), unused=(0.01, [14]), broken=(0.0, lines))
    source = CODE.encode()
    turn = [
        one
        for one in places("coretrain/sums.py", source, OPERATORS)
        if (one.line, one.operator, one.about)
        in {(9, "arithmetic", "sign swapped"), (14, "arithmetic", "sign swapped")}
    ]
    judge = Judge(seen, known.Known([]), "all", 10.0)
    told = []
    session = Session(tree, tmp_path / "mutants.json", judge, turn, {"seed": 1}, 5.0, told.append)
    session.run([worker])
    assert [(one.status, one.tests) for one in told] == [("killed", 2), ("survived", 1)]
    assert session.control == ["tests/test_sums.py::test_broken"], "it fails without a mutant"
    assert session.unsteady == [], "each time"
    written = json.loads((tmp_path / "mutants.json").read_text())
    assert [row["status"] for row in written["mutants"]] == ["survived"], "what it has killed doesn't count"
    assert "+    return (x - 1)" in written["mutants"][0]["diff"]

    again = Session(tree, tmp_path / "mutants.json", judge, turn, {"seed": 1}, 5.0, told.append)
    assert again.resume(again=False) == 1
    assert again.resume(again=True) == 1, "what has been taken over stays"
    for kind, taken in (("survivor", 1), ("equivalent", 0)):  # an entry that came after the session counts
        (tmp_path / "known.toml").write_text(
            f'[[{kind}]]\nfile = "coretrain/sums.py"\nline = "return x + 1"\nreason = "for the test"\n'
        )
        later = Judge(seen, known.load(tmp_path / "known.toml"), "all", 10.0)
        session = Session(tree, tmp_path / "mutants.json", later, turn, {"seed": 1}, 5.0, told.append)
        assert session.resume(again=False) == taken
        assert [one.reason for one in session.verdicts.values()] == ["for the test"] * taken
    hang = CODE.replace("numbers[left]", "0").replace("left - 1", "left")
    found = judge._run(["tests/test_sums.py::test_total"], "coretrain/sums.py", hang, worker)
    assert found["kind"] == "time limit"


class Deaf:
    """A worker whose tests see nothing, or can't be run in time."""

    def __init__(self, answer):
        self.answer, self.given = answer, []

    def run(self, tests, *_):
        self.given.append(list(tests))
        return {"wall": 0.1, **self.answer}


@pytest.mark.parametrize(
    ("file", "answer", "stages", "left"),
    [
        ("torchtrain/loss.py", {"done": 1, "code": 0}, [1, 9], 0),  # 10 times the limit, where no mutant may live
        ("torchtrain/model.py", {"done": 1, "code": 0}, [1], 9),
        ("torchtrain/loss.py", {"failed": "", "kind": "time limit"}, [1] * 6 + [9] * 6, 10),
    ],
)
def test_what_turns_red_was_let_live_by_all_tests(tree, file, answer, stages, left):
    tests = [f"parity/ladder/test_x.py::test_{n}" for n in range(10)]
    seen = Seen(tree, dict.fromkeys(tests, 1.0), [Part({file: {2: tests}}, {})])
    seen.__dict__["_now"] = {file: ("", {})}
    place = next(one for one in places(file, b"def f(x):\n    return x + 1\n", OPERATORS) if one.line == 2)
    worker = Deaf(answer)
    verdict = Judge(seen, known.Known([]), "all", 1.0).judge(place, b"def f(x):\n    return x + 1\n", worker)
    assert (verdict.status, [len(given) for given in worker.given], verdict.left) == ("survived", stages, left)
    assert bool(alive([verdict], CORE_FILES)) == (file in CORE_FILES and not left)


def test_a_control_that_fails_once_is_told_and_not_red(tree, tmp_path):
    """As where a slow machine didn't answer in time; what it has killed is no longer counted."""
    test = "tests/test_sums.py::test_total"
    seen = seen_by(tree, total=(0.01, [9]))
    session = Session(tree, tmp_path / "none", Judge(seen, known.Known([]), "all", 1.0), [], {}, 1.0, print)
    session.verdicts = {"a": Verdict("a", "", SUMS, 9, "coretrain", "number", "", "killed", test)}
    answers = iter([{"failed": "", "kind": "time limit"}, {"failed": test, "kind": "OSError"}, {"done": 1, "code": 0}])
    session.check(SimpleNamespace(run=lambda *_: next(answers)))
    assert (session.control, session.unsteady, session.verdicts) == ([test], [test], {})
    assert next(answers, None) is None


def test_tests_of_a_place(tree):
    seen = seen_by(tree, total=(0.5, [6, 9]), unused=(0.1, [9]))
    found = places("coretrain/sums.py", CODE.encode(), OPERATORS)
    by_line = {place.line: seen.tests(place) for place in found}
    assert by_line[9] == ["tests/test_sums.py::test_unused", "tests/test_sums.py::test_total"], "the quickest first"
    assert by_line[14] == []
    assert by_line[17] == by_line[9], "a number that nothing but a file of tests reads: its tests"
    assert not seen.whole(), "so that it may be another test that executes it"
    seen.recorded.add("tests/test_sums.py")
    assert seen.whole()
    seen.parts[0] = Part(seen.parts[0].lines, {"coretrain/sums.py": ("another", {"total": (5, 7), "unused": (9, 9)})})
    assert {place.line: seen.tests(place) for place in found}[14] == by_line[9], "an edited file: the function's tests"


def test_tests_of_what_a_fixture_lets_run(tree):
    """What the first of them has started is executed in its name; the others only read what came of it."""
    seen = seen_by(tree, total=(0.5, [6]), unused=(0.1, []))
    seen.files["another package"].remove("tests/test_sums.py::test_unused")
    seen.seconds["tests/test_other.py::test_unused"] = 0.1
    place = places("coretrain/sums.py", CODE.encode(), OPERATORS)[0]
    assert seen.shared(place, ["tests/test_sums.py::test_total"]) == ["tests/test_sums.py::test_unused"]
