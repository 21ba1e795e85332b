"""What an evaluation is told and has no use for is refused; odd input ends in a sentence."""

from __future__ import annotations

import pytest

from coretrain.base.errors import UserError
from coretrain.evaluation.core import core_tasks
from coretrain.evaluation.registry import open_tasks
from coretrain.evaluation.requests import Continuation
from coretrain.evaluation.task import read_task
from tests.support.evaluation_probes import Bigrams, choice, outcome_of, scorer, written


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("tokens = 3", "tokens has no effect on a task of form choice"),
        ('until = ["x"]', "until has no effect on a task of form choice"),
        ('unconditional = "A:"', "unconditional has no effect on a task of form choice"),
        ('form = "text"', "form should be"),
    ],
)
def test_a_setting_without_effect(settings, said, tmp_path):
    with pytest.raises(UserError, match=said):
        read_task(written(tmp_path / "t.jsonl", [choice(), choice()], settings), {})


def test_settings_of_a_text(tmp_path):
    (tmp_path / "t.txt").write_text("text")
    (tmp_path / "t.toml").write_text("few_shot = 1")
    with pytest.raises(UserError, match="few_shot has no effect on a task of form text"):
        read_task(tmp_path / "t.txt", {})
    (tmp_path / "t.toml").unlink()
    with pytest.raises(UserError, match="few_shot is of tasks with rows"):
        open_tasks([str(tmp_path / "t.txt")], None, {"few_shot": 1})
    beside = open_tasks([str(tmp_path / "t.txt"), "endings"], None, {"few_shot": 1})
    assert [task.settings.few_shot for task in beside] == [0, 1]


def test_pmi_beside_ids_is_refused(tmp_path):
    path = written(tmp_path / "t.jsonl", [choice(), choice()], 'metric = "acc_pmi"\nborder = "ids"')
    with pytest.raises(UserError, match="needs border = text"):
        outcome_of(read_task(path, {}))


def test_an_answer_of_many_digits(tmp_path):
    with pytest.raises(UserError, match="none of the 2 choices"):
        read_task(written(tmp_path / "t.jsonl", [choice(answer="9" * 5000)]), {})


def test_continuations_that_are_the_same_once_cut():
    """Two long contexts that differ where they are cut off: the same score, and no comparison of requests."""
    two = [Continuation((first, *range(60)), (1, 2)) for first in (5, 6)]
    found = scorer(Bigrams(), context=16).score(two)
    assert found[0] == found[1]


def test_a_task_of_ones_own_is_not_in_cores_mean(tmp_path):
    """What CORE is the mean of is marked, whatever settings other tasks have."""
    (tmp_path / "core.yaml").write_text("icl_tasks:\n- {label: a, icl_task_type: schema, dataset_uri: a.jsonl}")
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\na,50\n")
    (tmp_path / "eval_data").mkdir()
    written(tmp_path / "eval_data" / "a.jsonl", [{"context_options": ["p", "q"], "continuation": "r", "gold": 0}])
    assert [task.facts.get("core") for task in core_tasks(tmp_path)] == [True]
    own = read_task(written(tmp_path / "own.jsonl", [choice()], 'border = "ids"'), {})
    assert own.facts.get("core") is None


def test_an_answer_ends_where_the_caller_says(tmp_path):
    """Beside a chat template that is its end of a turn, which the tokenizer may not know for one."""
    stack, asked = Bigrams(), []
    generate = stack.generate
    stack.generate = lambda prompts, tokens, sampling, stop, on_tokens=None: (
        asked.append(tuple(stop)) or generate(prompts, tokens, sampling, stop)
    )
    from coretrain.evaluation.requests import Generation
    from coretrain.evaluation.scorer import Scorer

    plain = scorer(stack)
    own = Scorer(stack, type("Config", (), {"model": type("Model", (), {"context": 64})}), plain.tokenizer, ends=(7,))
    for one in (plain, own):
        one.generate([Generation((1, 2), (), 4)])
    assert asked == [plain.tokenizer.ends, (7,)]
