"""Tasks that a run is asked while it trains: the figures of its checkpoints, and the same run with and without them."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

from coretrain.journal.metrics import read_metrics
from tests.support.whole_runs import arguments, rows, run, state

QUESTIONS = [
    {"question": f"def f{n}(x):", "choices": [" return x", " pass", " x = 1"], "answer": n % 3} for n in range(9)
]
ANSWERS = [{"prompt": "import ", "answer": "os"}] * 2


@pytest.mark.whole
@pytest.mark.parametrize("stack", ["torch", "jax"])
def test_tasks_change_nothing_and_say_what_evaluate_says(stack, corpus, tmp_path):
    for name, lines in (("questions", QUESTIONS), ("answers", ANSWERS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "answers.toml").write_text("tokens = 4\n")
    (tmp_path / "words.txt").write_text("import os\nimport sys\n" * 9)
    words = [str(tmp_path / name) for name in ("questions.jsonl", "answers.jsonl", "words.txt")]
    asking = (f"--eval.tasks={json.dumps(words)}", "--eval.limit=6", "--schedule.horizon=12")
    plain, asked = tmp_path / "plain", tmp_path / "asked"
    run(stack, *arguments(corpus, "--output", str(plain), "--schedule.horizon=12"))
    run(stack, *arguments(corpus, "--output", str(asked), *asking, "--train.updates=8"))
    said = run(stack, "--resume", asked, "--train.updates=12")
    assert "questions acc_norm 0." in said
    assert "Task questions" in (asked / "report.html").read_text()

    def without(found):
        return [{key: value for key, value in row.items() if not key.startswith("task/")} for row in found]

    assert without(rows(asked)) == rows(plain)
    wanted, got = state(plain), state(asked)
    assert wanted.keys() == got.keys()
    assert [name for name in wanted if not np.array_equal(wanted[name], got[name])] == []
    evaluations = read_metrics(asked)[1]
    assert [row["update"] for row in evaluations] == [4, 8, 12]
    best = min(evaluations, key=lambda row: row["val_loss"])
    main = importlib.import_module(f"{stack}train.evaluate").main
    main([str(asked), "--tasks", ",".join(words), "--limit", "6", "--output", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())["tasks"]
    told = {f"task/{name}/{one['metric']}": one["figures"][one["metric"]]["value"] for name, one in found.items()}
    # torch: the same bits; JAX in float32: 4e-12, another update's weights: 1e-3
    assert told == pytest.approx({key: row for key, row in best.items() if key.startswith("task/")}, rel=1e-7)
    assert len(told) == 3
