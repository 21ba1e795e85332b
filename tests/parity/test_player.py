"""The localizer's player: what its grids keep of a tensor, and that its page says and holds what was recorded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from parity.localize.pairs import compare
from parity.localize.rows import Row, Verdict
from parity.localize.show import Report
from parity.page import film as films
from parity.page.film import FEWEST, LARGEST, MOST_CELLS, edges, film, grid, layout, sheet
from parity.page.player import curves, packed, unpacked, write_player
from tests.support.pages import BROWSER, in_browser, walked


@dataclass
class Record:
    values: dict = field(default_factory=dict)
    cotangents: dict = field(default_factory=dict)
    dtypes: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (5000,), (3, 5), (2, 9, 33), (200, 3), (3, 700), (4, 48, 64), (2, 3, 4, 5), (1000, 1)]
)
def test_each_cell_keeps_the_element_that_differs_most(shape):
    rng = np.random.default_rng(len(shape))
    ours = rng.standard_normal(shape)
    theirs = ours + 1e-9 * rng.standard_normal(shape)
    found = grid(ours, theirs)
    tall, wide = layout(shape)
    assert found.at.shape == (tall, wide)
    assert tall * wide <= MOST_CELLS
    rows, channels = sheet(shape)
    apart = np.abs(theirs - ours).reshape(rows, channels)
    brute = [
        [apart[a:b, c:d].max() for c, d in edges(channels, wide)] for a, b in edges(rows, tall)
    ]  # every element is in one cell
    assert np.array_equal(apart.reshape(-1)[found.at], brute)
    assert np.array_equal(found.torch, np.float32(ours.reshape(-1)[found.at]))
    assert np.array_equal(found.jax, np.float32(theirs.reshape(-1)[found.at]))
    assert np.allclose(np.abs(found.difference), brute, rtol=1e-6)
    if math.prod(shape) <= MOST_CELLS and len(shape) < 2 and found.at.size == math.prod(shape):
        assert sorted(found.at.reshape(-1)) == list(range(math.prod(shape)))


def test_what_is_no_number_is_never_hidden_behind_a_large_difference():
    ours, theirs = np.zeros((64, 64)), np.zeros((64, 64))
    theirs[:, 10] = 1e9
    theirs[3, 11] = np.nan
    ours[5, 60] = theirs[5, 60] = -np.inf
    ours[40, 60] = -np.inf
    ours[9, 9] = theirs[9, 9] = np.nan
    found = grid(ours, theirs)
    broken = {int(at) for at, apart in zip(found.at.flat, found.difference.flat, strict=True) if not np.isfinite(apart)}
    assert broken == {3 * 64 + 11, 40 * 64 + 60}, "what both have alike is no difference"


def test_the_units_keep_what_float32_cannot_hold():
    """Differences of 1e-60 between values of 1e-45, in float64, are seen."""
    ours = {"a": np.array([1e-45, -3e-45]), "b": np.array([1e200])}
    theirs = {"a": ours["a"] * (1 + 1e-15), "b": ours["b"] * (1 + 1e-15)}
    first, second = film(Record(ours), Record(theirs), None)
    assert first.unit == 3e-45
    assert np.allclose(first.grids["free"].difference, [[1e-15 / 3, -1e-15]], rtol=0.3)
    assert np.isfinite(second.grids["free"].torch).all()
    assert (second.grids["free"].difference > 0).all()


def test_frames_go_forward_then_backward_and_say_what_is_missing():
    x = np.ones((2, 3))
    ours = Record({"a": x, "b": x, "loss": np.array(1.0)}, {"a": x, "b": x}, {"a": "float64"})
    theirs = Record({"a": x, "new": x, "b": x.T, "loss": np.array(1.0)}, {"a": x, "b": x}, {"a": "float32"})
    frames = film(ours, theirs, ours)
    assert [(frame.stage, frame.name) for frame in frames] == [
        ("forward", "a"), ("forward", "b"), ("forward", "loss"), ("cotangent", "b"), ("cotangent", "a"),
    ]  # fmt: skip
    frames = film(ours, theirs, None)
    assert [frame.name for frame in frames][:4] == ["a", "new", "b", "loss"]
    assert frames[0].dtypes == ("float64", "float32")
    assert frames[1].shapes == (None, (2, 3))
    assert (frames[2].shapes, frames[2].grids) == (((2, 3), (3, 2)), {})
    assert film(ours, None, None)[0].grids == {}
    assert film(Record({"none": np.zeros((0, 3))}), Record({"none": np.zeros((0, 3))}), None)[0].grids == {}


def test_a_deep_model_has_smaller_grids():
    x = np.zeros((8, 64))
    deep = Record({str(n): x for n in range(300)})
    frames = film(deep, deep, deep)
    size = sum(films.CELL * one.at.size for frame in frames for one in frame.grids.values())
    assert 0.7 * LARGEST < size <= LARGEST
    assert FEWEST <= frames[0].grids["free"].at.size < MOST_CELLS


def reported(names=("a", "<b>&\"'</script>", "loss")):
    """A report of three taps of which the second parts, free and forced."""
    rng = np.random.default_rng(0)
    ours, free = {}, {}
    for name in names:
        ours[name] = rng.standard_normal((4, 50, 40))
        free[name] = ours[name] + 1e-3 * (name == names[1])
    frames = film(Record(ours, dict(ours)), Record(free, dict(ours)), Record(free, dict(ours)))
    errors = {names[1]: 1e-3}
    rows = [Row("forward", name, errors.get(name, 0.0), errors.get(name, 0.0), 1e-13, 1e-15) for name in names]
    rows += [Row("cotangent", name, None, math.inf if name == "a" else 0.0, 1e-13, 1e-15) for name in names]
    rows.append(Row("gradient", "w", None, 3e-16, 1e-13, 1e-15, note="update 1"))
    verdict = Verdict("algorithm", f"{names[1]} parts", names[1], 1e-3, traps="a <wrong> constant")
    return Report("a <model>", rows, verdict, {}, "python -m parity.localize 'a & b'", frames)


def test_the_page_holds_what_was_recorded(tmp_path):
    report = reported()
    write_player(report, tmp_path / "page.html")
    page = walked((tmp_path / "page.html").read_text())
    data = json.loads(page.scripts["film"])
    frames = data["frames"]
    assert [frame["title"] for frame in frames][:3] == ["a", "<b>&\"'</script>", "loss"]
    assert [frame["first"] for frame in frames].count(True) == 1
    assert [frame["parts"] for frame in frames] == [False, True, False, False, False, True]
    assert frames[-1]["title"] == "cotangent of a"
    assert (frames[-1]["forced"], frames[-1]["free"], frames[-1]["parts"]) == ("inf", None, True)
    back = unpacked(frames, data["grids"])
    assert len(back) == len(report.frames) == 6
    for frame, grids in zip(report.frames, back, strict=True):
        assert grids.keys() == frame.grids.keys() == {"free", "forced"}
        for way, one in grids.items():
            for part in ("torch", "jax", "difference", "at"):
                assert np.array_equal(getattr(one, part), getattr(frame.grids[way], part))
    for said in ("a <model>", "<b>&\"'</script> parts", "a <wrong> constant", "localize 'a & b'", "6 of 6 tensors are"):
        assert said in page.text, said
    assert "update 1" in page.text
    assert page.ids.count("play") == 1


def test_what_was_recorded_elsewhere_is_saved_with_its_page(tmp_path):
    x = {"first": np.arange(6.0).reshape(2, 3), "second": np.arange(3.0)}
    compare(x, {"first": x["first"], "second": x["second"] * (1 + 1e-9)}).save(tmp_path)
    page = walked((tmp_path / "localize.html").read_text())
    frames = json.loads(page.scripts["film"])["frames"]
    assert [(frame["title"], frame["first"], list(frame["ways"])) for frame in frames] == [
        ("first", False, ["free"]), ("second", True, ["free"]),
    ]  # fmt: skip
    assert "larger than their picture" not in page.text


def test_two_runs_have_curves_and_nothing_to_play(tmp_path):
    rows = [Row("loss", f"loss of update {u}", 1e-7 * u, None, 1e-5, 1e-6) for u in range(4)]
    rows += [Row("norm", f"norm of update {u}", math.inf, None, 1e-4, 1e-5) for u in range(4)]
    arrays = {f"{side}/loss": np.array([3.0, 2.0, np.nan, 1.0]) for side in ("first", "second")}
    write_player(Report("x and y", rows, Verdict("same", "equal"), arrays), tmp_path / "page.html")
    page = walked((tmp_path / "page.html").read_text())
    assert "film" not in page.scripts
    assert "nothing to play" in page.text
    assert len(curves(rows, arrays)) == 3
    assert packed([], rows) == ([], "")


SCRIPT = """
const the = (id) => document.getElementById(id);
const say = (name) => { seen[name] = [the("name").textContent, the("said").textContent, the("cell").textContent]; };
const key = (name, at = document.body) => at.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
say("begin"); key("Home"); say("home"); key("ArrowRight"); key("ArrowRight"); say("right"); key("End"); say("end");
key("p"); say("p"); document.querySelector("[data-way=free]").click(); say("free");
key("ArrowDown", the("difference")); say("down");
the("seek").value = 0; the("seek").dispatchEvent(new Event("input")); say("seek");
the("play").click();
setTimeout(() => say("played"), 3000);
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="chromium isn't installed: nothing shows the page")
@pytest.mark.parametrize("width", [360, 1280])
def test_the_player_in_a_browser(tmp_path, width):
    """It begins where the two part, steps, plays up to there and stops; and no phone has to scroll sideways."""
    report = reported()
    write_player(report, tmp_path / "page.html")
    seen = in_browser((tmp_path / "page.html").read_text(), tmp_path, width, SCRIPT)
    assert seen["wide"] <= seen["window"] == width
    bad = "<b>&\"'</script>"
    names = {name: said[0] for name, said in seen.items() if isinstance(said, list)}
    assert names == {
        "begin": bad, "home": "a", "right": "loss", "end": "cotangent of a", "p": bad, "free": bad, "down": bad,
        "seek": "a", "played": bad,
    }  # fmt: skip
    assert "parts: error 1e-3, cap 1e-13" in seen["begin"][1]
    assert "the place of the verdict" in seen["begin"][1]
    assert "JAX less torch 1e-3" in seen["begin"][2]
    assert seen["down"][2] != seen["free"][2]
    assert "equal to the last bit" in seen["home"][2]
