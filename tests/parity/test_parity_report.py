"""The judge's page from a session's results: what it says, and that nothing in it can break out of the HTML."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from parity.report import main, write_report
from parity.results import read
from tests.support.refusal import refused


def results(**more):
    gate = {
        "rung": "identity",
        "cap": 1e-13,
        "floor": 9e-16,
        "catches": "a <bias>",
        "where": "blocks.0",
        "status": "ok",
    }
    return {
        "versions": {"torch": "2"},
        "machine": {"system": "Linux", "cuda": None},
        "devices": [{"name": "cpu"}],
        "variants": ["gpt2-like"],
        "seconds": 12.3,
        "gates": [
            gate | {"name": "logits", "error": 6.4e-16},
            gate | {"name": "every gradient", "error": None, "status": "not run"},
        ],
        "failures": [],
        "not_run": [["CUDA", "no CUDA device here"]],
        "mutants": [],
    } | more


def page(tmp_path, *args):
    write_report(*args[:1], tmp_path / "report.html", *args[1:])
    return (tmp_path / "report.html").read_text()


def test_where_gates_are_missing_there_is_no_verdict(tmp_path):
    text = page(tmp_path, results())
    assert "no verdict: 1 of 2 gates judged" in text
    assert "the stacks agree" not in text
    whole = results()
    whole["gates"] = whole["gates"][:1]
    assert "the stacks agree<" in page(tmp_path, whole)
    assert "let planted bugs through" in page(tmp_path, whole, results(failures=["parity/ladder/test_mutation.py::x"]))
    assert "6.4e-16" in text
    assert "a &lt;bias&gt;" in text
    assert "no CUDA device here" in text
    assert "<bias>" not in text
    assert "http" not in text.replace("http-equiv", ""), "the page needs no network"


@pytest.mark.parametrize("wrong", ["gate", "test"])
def test_a_failure_is_the_verdict(tmp_path, wrong):
    bad = results()
    if wrong == "gate":
        bad["gates"][0] |= {"error": 1e-3, "status": "FAIL"}
    else:
        bad["failures"] = ["parity/ladder/test_exact.py::test_rows"]
    text = page(tmp_path, bad)
    assert "the stacks differ" in text
    assert "the stacks agree" not in text


def test_survivors_false_alarms_and_wrong_places_are_seen(tmp_path):
    bug = {"side": "jax", "area": "model", "about": "x", "variant": "gpt2-like", "declared": "logits"}
    killed = {"killed_by": ["logits", "loss"], "equivalent": False, "expected_tap": "embed", "localized_tap": "embed"}
    mutants = [
        bug | killed | {"name": "dead"},
        bug | killed | {"name": "survivor", "killed_by": []},
        bug | killed | {"name": "lost", "killed_by": ["loss"], "localized_tap": ""},
        bug | killed | {"name": "misplaced", "localized_tap": "norm"},
        bug | {"name": "same", "declared": None, "killed_by": [], "equivalent": True},
        bug | {"name": "alarm", "declared": None, "killed_by": ["loss"], "equivalent": True},
    ]
    text = page(tmp_path, results(), results(mutants=mutants))
    assert "2 of 4" in text, "killed by the gate declared"
    assert "2 of 4</b><span>model bugs found at their tap" in text, "one is traced to a wrong place, one to none"
    assert text.count("LIVES") == 2
    assert text.count("false alarm") == 1
    assert text.count("let through") == 1
    assert text.count("(expected embed)") == 2


def test_what_is_no_result_is_refused(tmp_path):
    with refused("parity/results-missing"):
        read(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text(json.dumps(results())[:-5])
    with refused("parity/results-unreadable", "torn"):
        read(tmp_path / "torn.json")


def test_what_a_picked_session_leaves_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report"])
    folder = tmp_path / "runs" / "parity"
    folder.mkdir(parents=True)
    with refused("parity/results-missing", "results.json"):
        main()
    scale = {"name": "many", "rung": "scale", "cap": 1e-12, "floor": 1e-15, "catches": "", "where": "mesh"}
    session = results(gates=[*results()["gates"], scale | {"error": 2e-15, "status": "ok"}])
    (folder / "partial.json").write_text(json.dumps(session))
    assert main() == 0
    said = capsys.readouterr().out
    assert "partial.json is of a part of the ladder" in said
    assert said.splitlines()[-1] == "runs/parity/report-partial.html"
    shown = (folder / "report-partial.html").read_text()
    assert "no verdict: 2 of 3 gates judged" in shown
    assert "2e-15" in shown, "the rung of many devices is one of the ladder's"
    (folder / "results.json").write_text(json.dumps(results()))
    os.utime(folder / "partial.json", (1, 1))
    assert main() == 0
    assert capsys.readouterr().out == "runs/parity/report.html\n", "the newest"


@pytest.mark.whole
def test_the_command_line(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results()))
    line = [sys.executable, "-m", "parity.report"]
    done = subprocess.run([*line, str(tmp_path / "results.json")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "report.html")
    (tmp_path / "bad.json").write_text(json.dumps(results(gates=[{}])))
    good = str(tmp_path / "results.json")
    for words in (
        [str(tmp_path / "no.json")],
        [str(tmp_path / "bad.json")],
        [good, "--output", str(tmp_path)],
        [good, "--output", f"{good}/page.html"],
    ):
        failed = subprocess.run([*line, *words], capture_output=True, text=True, check=False)
        assert (failed.returncode, failed.stderr.count("\n")) == (2, 1), failed.stderr
    (tmp_path / "mutation.json").write_text(json.dumps(results(versions={"torch": "1"})))
    done = subprocess.run([*line, good], capture_output=True, text=True, check=True)
    assert "left out" in done.stdout


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("versions",), []),
        (("machine",), None),
        (("devices", 0), "cpu"),
        (("gates",), {}),
        (("gates", 0, "cap"), "1e-13"),
        (("gates", 0, "error"), [1]),
        (("gates", 1, "where"), None),
        (("failures",), [7]),
        (("not_run", 0), ["CUDA"]),
        (("seconds",), "12"),
        (("mutants",), [{"name": "x"}]),
        (("trajectory",), {"gpt2-like": {"difference": [1.0]}}),
        (("trajectory",), {"a": {"difference": [1.0, 2.0], "yardstick": [1.0], "loss_torch": [], "loss_jax": []}}),
        (("trajectory",), {"a": {key: [] for key in ("difference", "yardstick", "loss_torch", "loss_jax")}}),
    ],
)
def test_a_field_of_another_kind_is_one_sentence(tmp_path, place, value):
    wrong = results()
    *parents, leaf = place
    owner = wrong
    for parent in parents:
        owner = owner[parent]
    owner[leaf] = value
    (tmp_path / "results.json").write_text(json.dumps(wrong))
    with refused("parity/results-unreadable", "results.json", str(place[0])):
        read(tmp_path / "results.json")
