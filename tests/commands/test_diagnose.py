"""`twintrain diagnose` on a run that was trained here, measured in both stacks, and what it refuses."""

import json
import math

import numpy as np
import pytest

import torchtrain.run
from coretrain.config.load import config_from_json
from tests.support.refusal import refused
from tests.support.whole_runs import arguments
from twintrain.diagnose import finite, main

UPDATES = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosed")
    corpus = folder / "text.txt"
    rng = np.random.default_rng(0)
    corpus.write_text("\n".join(" ".join(rng.choice(["ab", "cd", "efg", "h"], 12)) for _ in range(400)))
    more = [
        "--train.updates=40",
        "--precision.compute=float64",
        "--train.eval_batches=4",
        "--output",
        str(folder / "run"),
    ]
    assert torchtrain.run.main(arguments(corpus, *more)) == 0
    return folder / "run"


def test_a_run_is_told_its_verdict_and_its_report_says_the_same(run, capsys):
    assert main([str(run)]) == 0
    said = capsys.readouterr().out.split("\n")
    name = said[0].removeprefix(f"{run}: ")
    assert name == "underfitted"
    assert f"<h2>Diagnosis: {name}</h2>" in (run / "report.html").read_text()


def test_both_stacks_measure_the_same(run, tmp_path, capsys):
    """In float64 to 1e-9; measured 4e-14. A piece whose empty rows counted, or dropout drawn for other rows, would part
    them by a tenth and more."""
    told = {}
    for stack in ("torch", "jax"):
        assert main([str(run), "--measure", "--stack", stack, "--output", str(tmp_path / stack)]) == 0
        told[stack] = json.loads((tmp_path / stack).read_text())["measured"]
    assert "noise scale" in capsys.readouterr().out
    flat = [[*(v for k, v in one.items() if k != "noise"), *one["noise"].values()] for one in told.values()]
    np.testing.assert_allclose(*np.array(flat, float), rtol=1e-9)
    assert told["torch"]["read"] < told["torch"]["at_first_sight"]


def test_the_loss_of_read_rows_is_that_of_the_journal_at_their_sight(run):
    """`at_first_sight` is the mean of journalled losses of eight updates of the first half."""
    from coretrain.data.open import open_data
    from coretrain.inference.diagnose import measure
    from torchtrain.trainer import Trainer

    data = open_data(config_from_json((run / "config.json").read_text()), lambda line: None)
    numbers = [float(at) for at in range(UPDATES)]  # a journal whose losses are the updates' numbers
    found = measure(run, Trainer, data, numbers)
    assert found.at_first_sight == np.mean([0, 2, 5, 8, 11, 14, 17, 20])


def test_numbers_without_an_end_are_null_in_json():
    assert finite({"noise": {"rows": math.inf, "low": 3.0}, "next": ("a", math.nan)}) == {
        "noise": {"rows": None, "low": 3.0},
        "next": ["a", None],
    }


def test_what_it_cannot_do_is_refused(run, tmp_path):
    (tmp_path / "there").write_text("")
    with refused("command/diagnosis-there", "there"):
        main([str(run), "--output", str(tmp_path / "there")])
    with refused("runs/not-a-run"):
        main([str(tmp_path)])


def test_a_run_without_a_journal_or_with_another_loss_is_refused(run, tmp_path):
    import shutil

    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "metrics.jsonl").unlink()
    with refused("command/diagnosis-without-journal", "metrics.jsonl"):
        main([str(copy)])
    (copy / "metrics.jsonl").write_text("")
    with refused("command/diagnosis-of-nothing", "train it first"):
        main([str(copy)])
