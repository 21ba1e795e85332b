"""Mutants of the source: what an edit is, which are drawn, which tests judge them, and that a kill counts only where
the tests pass without the mutant.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from parity.mutation import known
from parity.mutation.command import ROOMS, main
from parity.mutation.judging import Verdict
from parity.mutation.operators import OPERATORS, UNASKED
from parity.mutation.places import is_alive, places
from parity.mutation.sample import CORE_FILES, all_places, in_turn
from parity.mutation.score import counted, groups, interval, tables
from parity.mutation.seen import CORE_TESTS, files_of_tests, load
from parity.mutation.session import Session, alive
from tests.support.commands import ROOT
from tests.support.refusal import refused


def edits(source: str, file: str = "coretrain/x.py") -> dict[tuple[str, str], set[str]]:
    """By operator and what it does: the lines that come in place of old ones."""
    found: dict[tuple[str, str], set[str]] = {}
    for place in places(file, source.encode(), OPERATORS):
        if is_alive(place, source.encode()):
            lines = place.diff(source.encode()).splitlines()[2:]
            new = "; ".join(line[1:].strip() for line in lines if line.startswith("+"))
            found.setdefault((place.operator, place.about), set()).add(new)
    return found


@pytest.mark.parametrize(
    ("line", "operator", "new"),
    [
        ("x = y < 3", "compare", {"x = (y <= 3)", "x = (y >= 3)"}),
        ("x = y in z", "compare", {"x = (y not in z)"}),
        ("x = 2 * y", "number", {"x = 3 * y", "x = 1 * y"}),
        ("x = 0.5 * y", "nudge", {"x = 0.50000005 * y"}),
        ("x = 0.5 * y", "ulp", {"x = 0.5000000000000004 * y"}),
        ("x = y - z", "arithmetic", {"x = (y + z)"}),
        ("x = y ** -z", "arithmetic", {"x = (y * -z)", "x = y ** z"}),
        ("x = y and not z", "boolean", {"x = (y or not z)", "x = y and z"}),
        ("x = y[1:n]", "bounds", {"x = y[2:n]", "x = y[0:n]", "x = y[1:n - 1]"}),
        ("x = [y for y in range(n)]", "bounds", {"x = [y for y in range(n - 1)]", "x = [y for y in range(1, n)]"}),
        ("x = f(y, out=z)", "argument", {"x = f(y)"}),
        ("x = f(y, z)", "argument", {"x = f(y)"}),
        ("x = y if z else w", "branch", {"x = y if False else w", "x = y if True else w"}),
        ("x = [y for y in z if y]", "branch", {"x = [y for y in z if True]"}),
        ("self.x = y", "state", {"pass"}),
        ("x += y", "state", {"pass"}),
        ("f.add(y)", "state", {"pass"}),
        ('x = {"a": 1, "b": 2}', "key", {"x = {'a': 1}", "x = {'b': 2}"}),
        ('x = f"{y}/{z}"', "key", {"x = f'/{z}'", "x = f'{y}/'"}),
        ("x = config.optimizer.beta1", "config", {"x = (0.9)"}),
        ("x = y.to(wide)", "cast", {"x = y"}),
        ("x = y.to(device)", "cast", set()),
        ("x = jnp.zeros(n, dtype=wide)", "cast", {"x = jnp.zeros(n)"}),
        ("x = y.detach()", "gradient", {"x = y"}),
        ("x = jax.lax.stop_gradient(y)", "gradient", {"x = y"}),
        ("x = jnp.where(m, y, z)", "mask", {"x = y", "x = z"}),
        ("x = y.masked_fill(m, z)", "mask", {"x = y"}),
        ("x = y.clone()", "copy", {"x = y"}),
        ("x = y.transpose(0, 1)", "axes", {"x = y"}),
        ("x = y.sum(-1)", "axes", {"x = y.sum(-2)"}),
        ('x = einsum("btc,cd->btd", y, z)', "axes", {
            "x = einsum('bct,cd->btd', y, z)", "x = einsum('btc,dc->btd', y, z)", "x = einsum('btc,cd->bdt', y, z)",
        }),
    ],
)  # fmt: skip
def test_what_an_operator_makes(line, operator, new):
    found = edits(f"def f(self, config, x, y, z):\n    {line}\n    return x\n")
    assert set().union(*(lines for (name, _), lines in found.items() if name == operator)) == new


def test_behaviour_beyond_something():
    source = "def f(x: Float[Tensor, 'B T'], update: int):\n    for epoch in y:\n        z = x * 2\n    return z\n"
    found = {about: next(iter(new)) for (name, about), new in edits(source).items() if name == "beyond"}
    assert found == {
        "only beyond 320 along an axis": "z = ((x / 2) if max(x.shape, default=0) > 320 else (x * 2))",
        "only below float64": "z = ((x / 2) if not str(x.dtype).endswith('float64') else (x * 2))",
        "only from the second epoch on": "z = ((x / 2) if epoch > 0 else (x * 2))",
        "only from update 1000 on": "z = ((x / 2) if update >= 1000 else (x * 2))",
    }


SILENT = '''"""Text of 3 words."""
from __future__ import annotations
A = Callable[[int], 3]
__all__ = ["a", "b"]
def f(x: Annotated[int, 3] | None) -> Float[Array, "3 4"]:
    """Text."""
    print(1 + 2)
    parser.add_argument("--x", type=g(1), help="x" + "y")
    assert x < 3
    raise UserError("a/b", f"{x} < {3 + 4}")
class C:
    y: Annotated[int, Field(ge=1)]
    def __repr__(self): return 3 * "x"
if __name__ == "__main__":
    f(1 + 2)
'''


def test_annotations_texts_and_errors_are_no_places():
    assert edits(SILENT) == {}


def test_every_beginning_of_a_sample_is_in_proportion():
    found = all_places(ROOT, ["coretrain/contract", "torchtrain/loss.py"])
    turn = in_turn(found, 5)
    assert turn == in_turn(reversed(found), 5) != in_turn(found, 6)
    assert sorted(place.id for place in turn) == sorted({place.id for place in found})
    begun = turn[: len(turn) // 10]
    for room, operator in {(place.room, place.operator) for place in found}:
        total, drawn = (sum((p.room, p.operator) == (room, operator) for p in some) for some in (found, begun))
        assert abs(drawn - total / 10) <= 1
    assert not {place.operator for place in found} & UNASKED


def test_what_is_known_is_known_of_something():
    """An entry whose code has changed argues for nothing."""
    entries = known.load().entries
    sources = {file: (ROOT / file).read_bytes() for file in {entry.file for _, entry in entries}}
    found = {file: places(file, source, OPERATORS) for file, source in sources.items()}
    for _, entry in entries:
        held = [one for one in found[entry.file] if entry.holds(one)]
        assert held, entry
        assert len(entry.reason) > 10


def test_the_score():
    rows = [
        Verdict(f"{file}:{n}", str(n), file, n, file.rpartition("/")[0], "number", "", status, by)
        for n, (file, status, by) in enumerate(
            [
                ("torchtrain/loss.py", "killed", "parity/x"),
                ("torchtrain/loss.py", "killed", "tests/x"),
                ("jaxtrain/loss.py", "survived", None),
                ("jaxtrain/loss.py", "equivalent", None),
                ("coretrain/data/order.py", "stillborn", "x"),
                ("coretrain/data/order.py", "killed", "tests/x"),
            ]
        )
    ]
    score = counted(rows)
    assert [score[name] for name in ("judged", "killed", "by_parity", "equivalent", "stillborn")] == [4, 3, 1, 1, 1]
    assert [row["name"] for row in groups(rows)][:2] == ["stacks", "contract"]
    assert len(tables(rows)) == 3
    assert alive(rows, CORE_FILES) == [rows[2]]
    assert alive([dataclasses.replace(rows[2], left=1)], CORE_FILES) == [], "the test that was left out may kill it"
    assert interval(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-4)
    assert interval(0, 0) == (0, 1)
    low, high = interval(10, 10)
    assert high == pytest.approx(1)
    assert low == pytest.approx(10 / (10 + 1.96**2), abs=1e-4)  # the closed form at a share of 1


@pytest.mark.whole
def test_lines_are_recorded(tmp_path):
    pytest.importorskip("coverage")
    where = {"MUTANTS_LINES": str(tmp_path), "MUTANTS_PART": "some"}
    test = "tests/contract/test_schedule.py::test_clip_factor_at_its_edges"
    command = [sys.executable, "-m", "pytest", test, "-n", "0", "-q", "-p", "parity.mutation.recorder"]
    subprocess.run(command, cwd=ROOT, env=os.environ | where, check=True, capture_output=True)
    seen = load(ROOT, tmp_path)
    assert list(seen.seconds) == [test]
    found = places("coretrain/contract/schedule.py", (ROOT / "coretrain/contract/schedule.py").read_bytes(), OPERATORS)
    assert {place.function for place in found if seen.tests(place)} == {"clip_factor"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.coverage", "some.json"]


def test_files_that_are_recorded():
    every, core = set(files_of_tests(ROOT)), set(files_of_tests(ROOT, ["core"]))
    assert core < every
    assert len(core) >= len(CORE_TESTS) - 4, "nearly every glob finds a file"
    assert files_of_tests(ROOT, ["tests/contract/test_schedule.py"]) == ["tests/contract/test_schedule.py"]
    assert not any(file.startswith("tests/structure") for file in every)


def test_refusals(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with refused("parity/mutation-room-unknown", "--rooms tests"):
        main(["--rooms", "tests"])
    with refused("parity/mutation-operator-unknown", "--operators no"):
        main(["--operators", "no"])
    with refused("parity/mutation-id-unknown", "--show x"):
        main(["--show", "x"])
    with refused("parity/mutation-no-tests", "--record"):
        main(["--record", "configs", "**x", ".", "../elsewhere", ""])
    with refused("parity/mutation-without-lines", "none"):
        main(["--rooms", "coretrain/contract/schedule.py", "--lines", str(tmp_path / "none")])
    assert all((ROOT / room).is_dir() for room in ROOMS)
    for name, text in (("some.json", "{}"), ("some.coverage", "nothing")):
        (tmp_path / name).write_text(text)
    with refused("parity/mutation-lines-unreadable", "some.json"):
        load(ROOT, tmp_path)
    for text in ("[1]", "{", '{"mutants": [{"key": "a"}]}', '{"mutants": 3}'):
        (tmp_path / "mutants.json").write_text(text)
        session = Session(ROOT, tmp_path / "mutants.json", None, [], {}, 1.0, print)
        with refused("parity/mutation-results-unreadable", "mutants.json"):
            session.resume(again=False)
