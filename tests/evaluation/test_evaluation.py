"""What an evaluation must come to; the same checks find planted bugs in `test_evaluation_bugs.py`."""

from __future__ import annotations

import pytest

from coretrain.base.errors import UserError
from coretrain.evaluation.core import core_tasks
from coretrain.evaluation.registry import OWN, known_tasks, open_tasks
from coretrain.evaluation.task import read_task
from tests.support.evaluation_figures import PROBES
from tests.support.evaluation_probes import choice, outcome_of, written


@pytest.mark.parametrize("name", list(PROBES))
def test_it_holds(name, tmp_path):
    PROBES[name](tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q"}, "the fields"),
        (choice(answer=2), "answer 2 is none of the 2 choices"),
        (choice(answer="c"), "none of the 2 choices"),
        (choice(answer=True), "none of the 2 choices"),
        (choice(choices=("a",)), "two or more"),
        (choice(choices=("a", 3)), "choices = 3 is no text"),
        ({"context": "c", "continuation": ""}, "continuation is empty"),
        ({"prompt": "p", "answer": []}, "answer names none"),
        ([1], "no object"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, said, tmp_path):
    with pytest.raises(UserError, match=said) as found:
        read_task(written(tmp_path / "t.jsonl", [row]), {})
    assert "t.jsonl" in str(found.value)
    assert "1" in str(found.value)


def test_answers_by_number_letter_and_text(tmp_path):
    rows = [choice(choices=("x", "y", "z"), answer=answer) for answer in (2, "2", "C", "z")]
    assert [row.right for row in read_task(written(tmp_path / "t.jsonl", rows), {}).rows] == [2] * 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("fewshot = 2", "no setting fewshot: did you mean few_shot"),
        ("few_shot = -1", "few_shot"),
        ("few_shot = 2", "too few for few_shot = 2"),
        ('examples = "no.jsonl"\nfew_shot = 1', "no.jsonl is no file of rows"),
        ("form = ", "can't be read"),
    ],
)
def test_settings_are_obeyed_or_refused(settings, said, tmp_path):
    path = written(tmp_path / "t.jsonl", [choice(), choice()], settings)
    with pytest.raises(UserError, match=said):
        read_task(path, {})


def test_worked_rows_of_a_file(tmp_path):
    from coretrain.evaluation.ask import prompt_of

    written(tmp_path / "more.jsonl", [choice("w1"), choice("w2")])
    path = written(tmp_path / "t.jsonl", [choice("q")], 'examples = "more.jsonl"\nfew_shot = 2\ndescription = "D: "')
    task = read_task(path, {})
    assert prompt_of(task, task.rows[0]) in ("D: w1 a\n\nw2 a\n\n", "D: w2 a\n\nw1 a\n\n")


def test_a_metric_of_another_form_is_refused(tmp_path):
    task = read_task(written(tmp_path / "t.jsonl", [choice()]), {"metric": "exact"})
    with pytest.raises(UserError, match="judged by exact, which its form choice hasn't got"):
        outcome_of(task)


def test_names_of_tasks(tmp_path):
    written(tmp_path / "mine.jsonl", [choice()])
    written(tmp_path / "basics.jsonl", [choice()])
    assert {"mine", "basics", "endings", "outcomes"} <= set(known_tasks(tmp_path))
    (task,) = open_tasks(["basics"], tmp_path, {})
    assert len(task.rows) == 1  # the folder's, not the package's
    assert len(open_tasks([str(tmp_path)], None, {})) == 2
    with pytest.raises(UserError, match="no task basic: did you mean basics"):
        open_tasks(["basic"], None, {})
    with pytest.raises(UserError, match="named twice"):
        open_tasks(["mine", "mine"], tmp_path, {})
    with pytest.raises(UserError, match="core needs DCLM's files"):
        open_tasks(["core"], tmp_path, {})


def test_the_packages_own_tasks():
    """Each right answer is there, and guessing is what it says."""
    tasks = open_tasks([path.stem for path in sorted(OWN.glob("*.jsonl"))], None, {})
    assert [(task.name, task.form) for task in tasks] == [
        ("basics", "choice"),
        ("endings", "continuation"),
        ("outcomes", "schema"),
    ]
    assert tasks[0].chance == 0.25
    assert len({row.question for row in tasks[0].rows}) == len(tasks[0].rows)


def test_a_generated_task_asks_held_out_rows():
    (task,) = open_tasks(["task:sort?rows=900"], None, {})
    assert (task.form, len(task.rows)) == ("generation", 500)
    assert all("".join(sorted(row.question[:-1])) == row.answers[0] for row in task.rows)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("core.yaml", "icl_tasks: 3", "core.yaml can't be read"),
        ("core.yaml", "icl_tasks:\n- {label: a, icl_task_type: other}", "of type other"),
        ("core.yaml", "icl_tasks:\n- {label: a, icl_task_type: schema}", "no random baseline of a"),
        ("eval_meta_data.csv", "a,b\n1,2\n", "eval_meta_data.csv can't be read"),
    ],
)
def test_a_bundle_that_is_not_whole(file, text, said, tmp_path):
    (tmp_path / "core.yaml").write_text("icl_tasks: []")
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nb,50\n")
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=said):
        core_tasks(tmp_path)
