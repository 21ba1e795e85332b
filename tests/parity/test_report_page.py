"""Parts of the judge's page: gates beside their caps, the machine, mutants of the source, what was not run."""

from __future__ import annotations

import json
import math

import pytest

from parity.page import facts, ladder, mutants
from parity.report import write_report
from parity.results import read, read_mutants
from tests.support.judged import gate, results, score
from tests.support.pages import BROWSER, in_browser, walked
from tests.support.refusal import refused


def page(tmp_path, *args, **more):
    write_report(args[0], tmp_path / "report.html", *args[1:], **more)
    return walked((tmp_path / "report.html").read_text())


def test_every_gate_is_on_the_page_and_no_name_breaks_out_of_it(tmp_path):
    gates = [
        gate(f"{rung} <gate> {n}", error, rung=rung)
        for rung in (*ladder.RUNGS, "a <new> rung")
        for n, error in enumerate((0, 1e-15, 8e-14, 1e-3, math.inf, None))
    ]
    gates += [gate("equal", 0, 0, 0), gate("unequal", 7, 0, 0), gate("nan", math.nan)]
    shown = page(tmp_path, results(gates, failures=["a <test>"]))
    assert [one["name"] for one in gates if one["name"] not in shown.text] == []
    for words in ("A <new> rung", "would catch a <bias>", "blocks.<0>", "a <test>", "a <chip>", "7 where none may be"):
        assert words in shown.text, words
    assert "limits: XLA_FLAGS--x=1" in shown.text
    assert "torch instructionsAVX2, FMA" in shown.text


@pytest.mark.parametrize(
    ("error", "cap", "look", "mark", "margin", "spot"),
    [
        (1e-16, 1e-13, "fine", "ok", "1,000 times below", 42.9),
        (4e-14, 1e-13, "fine", "ok", "2.5 times below", 80.0),
        (6e-14, 1e-13, "near", "near its cap", "60% of its cap", 82.5),
        (1e-13, 1e-13, "near", "near its cap", "100% of its cap", 85.7),
        (3e-13, 1e-13, "over", "FAILS", "3 times its cap", 92.5),
        (math.nan, 1e-13, "over", "FAILS", "no number", 100.0),
        (math.inf, 4.0, "over", "FAILS", "no number", 100.0),
        (0, 1e-13, "fine", "ok", "no error at all", 0.0),
        (1e-30, 1e-13, "fine", "ok", "100,000,000,000,000,016 times below", 0.0),
        (1.5, 4.0, "fine", "ok", "2.7 times below", 79.6),
        (0, 0, "fine", "ok", "equal", None),
        (3, 0, "over", "FAILS", "3 where none may be", None),
        (None, 1e-13, "none", "not run", "", None),
    ],
)
def test_a_gate_says_how_near_its_cap_it_is(error, cap, look, mark, margin, spot):
    shown = ladder.row(gate(error=error, cap=cap))
    assert (shown["look"], shown["mark"], shown["spot"]) == (look, mark, spot)
    assert shown["margin"] == margin or error == 1e-30


def test_the_gates_nearest_to_their_caps_come_first():
    gates = [gate("far", 1e-16), gate("near", 9e-14), gate("equal", 0, 0), gate("over", 1e-9), gate("nan", math.nan)]
    assert [row["name"] for row in ladder.nearest([*gates, gate("none", None)])] == ["nan", "over", "near", "far"]


def test_what_was_not_run_is_listed_by_its_reason(tmp_path):
    found = dict(facts.not_run(results([gate(), gate("lost <gate>", None)])))
    assert found == {"none here": ["CUDA", "MPS"], facts.UNSELECTED: ["identity: lost <gate>"]}
    assert "none here" in page(tmp_path, results([gate()])).text


def test_places_of_an_operation_that_are_alike_are_one_row(tmp_path):
    row = {"stack": "jax", "site": "mlp", "dtypes": ["float32", "float32"], "ok": True, "variant": "a"}
    rows = [row, row | {"site": "norm"}, row | {"variant": "b"}, row | {"ok": False}]
    found = facts.operations(rows)
    assert [(one["ok"], one["places"], one["sites"]) for one in found] == [("no", 1, "mlp"), ("yes", 3, "mlp, norm")]
    assert found[1]["dtypes"] == "float32"
    assert "mlp, norm" in page(tmp_path, results([gate()], dtypes=rows)).text


def test_mutants_and_their_survivors_are_shown(tmp_path):
    (tmp_path / "mutants.json").write_text(json.dumps(score(more=1)))
    shown = page(tmp_path, results([gate()]), score=read_mutants(tmp_path / "mutants.json"))
    for words in (
        "12,345 places", "drawn with seed 13", "97.5% all", "39 of 40 killed, 30 by the ladder", "87.0% to 99.5%",
        "jaxtrain9 of 10 1 left", "compare39 of 40 1 left", "1 survivors", "jaxtrain/a.py:3 <= for < compare, no test",
        "-a < b +a <= b", "<max> of equals", "2 more could not even be imported",
    ):  # fmt: skip
        assert words in shown.text, words
    assert "not shown" not in shown.text
    empty = mutants.shown(score(groups=[{"name": "all", "judged": 0, "killed": 0}], table=[], mutants=[]))
    assert (empty["rooms"], empty["groups"][0]["share"]) == ([], None)
    (tmp_path / "mutants.json").write_text(json.dumps(score(groups=[], table=[], mutants=[])))
    assert "No survivors" in page(tmp_path, results([gate()]), score=read_mutants(tmp_path / "mutants.json")).text
    assert "Not measured here" in page(tmp_path, results([gate()])).text


@pytest.mark.parametrize(
    "wrong",
    [
        "torn", {"groups": 1}, {"table": [{}]}, {"mutants": [{"id": 3}]}, {"seed": "x"}, {"places": -1},
        {"groups": [{"name": "more killed than judged", "judged": 1, "killed": 2}]},
    ],
)  # fmt: skip
def test_what_is_no_score_is_refused(tmp_path, wrong):
    text = json.dumps(score())[:-5] if wrong == "torn" else json.dumps(score(**wrong))
    (tmp_path / "mutants.json").write_text(text)
    with refused("parity/mutants-unreadable", "mutants.json", *([] if wrong == "torn" else wrong)):
        read_mutants(tmp_path / "mutants.json")


def test_figures_that_are_no_numbers_are_read(tmp_path):
    """A gate that met a NaN, which Python's JSON has; and a curve that others wrote, with null in it."""
    curve = {key: [1.0, math.nan, None, 2.0] for key in ("difference", "yardstick", "loss_torch", "loss_jax")}
    session = results([gate(error=math.nan)], trajectory={"<a>": curve})
    (tmp_path / "results.json").write_text(json.dumps(session))
    shown = page(tmp_path, read(tmp_path / "results.json")).text
    assert "no number" in shown
    assert "Loss, <a>" in shown


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="chromium isn't installed: nothing shows the page")
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_no_window_has_to_scroll_sideways(tmp_path, width):
    """Everything is unfolded for it."""
    gates = [gate(f"{rung} {n}", 1e-15, rung=rung) for rung in ladder.RUNGS for n in range(3)]
    row = {"stack": "jax", "site": "mlp", "dtypes": ["float32", "float32"], "reason": "it needs CUDA, " * 9, "ok": True}
    bug = {"name": "a bug" * 9, "side": "jax", "area": "model", "about": "x", "declared": "logits", "killed_by": []}
    bug |= {"equivalent": False, "expected_tap": "embed", "localized_tap": "blocks.0.attention.query.bias"}
    (tmp_path / "mutants.json").write_text(json.dumps(score()))
    session = results([*gates, gate(error=None), gate(error=1)], dtypes=[row], kernels=[row], mutants=[bug])
    write_report(session, tmp_path / "report.html", None, read_mutants(tmp_path / "mutants.json"))
    text = (tmp_path / "report.html").read_text().replace("<details", "<details open")
    seen = in_browser(text, tmp_path, width)
    assert seen["wide"] <= seen["window"] == width
