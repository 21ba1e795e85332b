"""Tasks by their words: what is refused, and the package reasoning-gym beside ours, by a stand-in."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types

import pytest

from coretrain.data.open import open_data
from coretrain.data.rows import open_rows
from coretrain.tasks import gym
from coretrain.tasks.registry import TASKS, is_task, is_task_name, open_task
from coretrain.tasks.sums import Sums
from tests.support.refusal import refused
from tests.support.rewarding import asking


@pytest.mark.parametrize("form", ["chat", "pairs", "labels", "prompts"])
@pytest.mark.parametrize("name", TASKS)
def test_rows_of_every_form(name, form):
    rows = list(open_rows(f"task:{name}?rows=5", form).rows())
    wanted = {
        "chat": {"prompt", "completion"}, "pairs": {"prompt", "chosen", "rejected"},
        "labels": {"prompt", "completion", "label"}, "prompts": {"prompt", "answer"},
    }  # fmt: skip
    assert [where for where, _ in rows] == [f"row {n} of task {name}" for n in range(1, 6)]
    assert all(set(row) == wanted[form] for _, row in rows)
    assert json.loads(json.dumps([row for _, row in rows])) == [row for _, row in rows]


@pytest.mark.parametrize("name", TASKS)
def test_the_better_answer_of_a_pair_is_worth_more(name):
    task = open_task(name)
    for index in range(50):
        row, (_, fields) = task.row("pairs", index), task.prompt(index)
        chosen, rejected = (
            one if isinstance(one, str) else one[0]["content"] for one in (row["chosen"], row["rejected"])
        )
        assert task.score(chosen, fields) == 1.0 > task.score(rejected, fields)


def test_words_of_tasks():
    assert is_task("task:sort?length=3")
    assert not is_task("sort.jsonl")
    assert is_task_name("sums?most=3")
    assert is_task_name("reasoning_gym/chain_sum")
    assert not is_task_name("sorted")
    assert open_task("sums?most=99&seed=3") == Sums(most=99, seed=3)
    # what is kept of one's rows is not taken for another's
    listings = [
        open_rows(word, form).listing
        for word, form in (
            *(("task:sort", "chat"), ("task:sort", "pairs"), ("task:copy", "chat")),
            *(("task:sort?seed=1", "chat"), ("task:sort?length=5", "chat"), ("task:sort?wrong=0.5", "chat")),
        )
    ]
    assert len(set(map(json.dumps, listings))) == len(listings)
    assert open_rows("task:sort", "chat").listing == open_rows("task:sort?length=6", "chat").listing


@pytest.mark.parametrize(
    ("word", "code", "names"),
    [
        ("task:srot", "tasks/unknown-task", ("srot", "sort")),
        ("task:", "tasks/unknown-task", ("sums",)),
        ("sort?lenght=3", "tasks/option-unknown", ("lenght", "length")),
        ("sort?length=many", "tasks/option-value-wrong", ("length",)),
        ("sort?length=1", "tasks/option-value-wrong", ("length", "2")),
        ("sort?length=65", "tasks/option-value-wrong", ("length", "64")),
        ("sort?wrong=nan", "tasks/option-value-wrong", ("wrong",)),
        ("sort?wrong=1.1", "tasks/option-value-wrong", ("wrong",)),
        ("sort?rows=1", "tasks/option-value-wrong", ("rows",)),
        ("sort?rows=1e99", "tasks/option-value-wrong", ("rows",)),
        ("sort?seed=-1", "tasks/option-value-wrong", ("seed",)),
        ("sort?length=3&length=4", "tasks/option-given-twice", ("length",)),
        ("sort?length", "tasks/options-malformed", ()),
        ("sort?=3", "tasks/options-malformed", ()),
        ("sort?length=3&", "tasks/options-malformed", ()),
        ("sort?\0=3", "tasks/option-unknown", ()),
    ],
)
def test_what_is_no_task_is_refused(word, code, names):
    with refused(code, *names):
        open_task(word)


def test_a_task_has_no_running_text(small_config):
    with refused("data/task-as-text", "task:sort", "prompts"):
        open_data(small_config(data__source="task:sort"))


def test_reasoning_gym_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    gym._dataset.cache_clear()
    with refused("tasks/reasoning-gym-missing", "pip install reasoning-gym"):
        list(open_rows("task:reasoning_gym/chain_sum", "prompts").rows())


class Doubling(list):
    """A family of the package: what is twice a number."""

    def score_answer(self, answer, entry):
        return 1.0 if answer == entry["answer"] else 0.01 * (answer is not None)


def create_dataset(name, size, seed, **options):
    assert set(options) <= {"times"}, f"unexpected {set(options)}"
    times = options.get("times", 2)
    return Doubling(
        {"question": f"{times} x {seed + n}?", "answer": str(times * (seed + n)) if name == "doubling" else None}
        for n in range(size)
    )


@pytest.fixture
def package(monkeypatch):
    """A stand-in for reasoning-gym with two families, one of which tells no answers."""
    module, factory = types.ModuleType("reasoning_gym"), types.ModuleType("reasoning_gym.factory")
    factory.DATASETS = {"doubling": None, "silent": None}
    module.factory, module.create_dataset = factory, create_dataset
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.stand-in")
    gym._dataset.cache_clear()
    yield
    gym._dataset.cache_clear()


def test_reasoning_gym_asks_and_scores(package):
    task = open_task("task:reasoning_gym/doubling?rows=4&seed=10&times=3")
    asked = [row for _, row in task.generated("prompts")]
    assert asked[1] == {"prompt": [{"role": "user", "content": "3 x 11?"}], "answer": "33", "index": 1}
    assert task.parts(" 33\n", asked[1]) == {"score": 1.0}
    assert task.parts("34", asked[1]) == {"score": 0.01}
    assert task.parts("33", asked[2]) == {"score": 0.01}
    assert task.parts("33", asked[1], ended=False) == {"score": 0.0}
    pair = task.row("pairs", 3)
    assert [pair[name][0]["content"] for name in ("chosen", "rejected")] == ["39", "30"]
    assert "0.0.stand-in" in task.facts("chat")


@pytest.mark.parametrize(
    ("word", "form", "code", "names"),
    [
        ("reasoning_gym/doublin", "prompts", "tasks/reasoning-gym-family-unknown", ("doublin", "doubling")),
        ("reasoning_gym/", "prompts", "tasks/reasoning-gym-family-unknown", ()),
        ("reasoning_gym/doubling?tiems=3", "prompts", "tasks/reasoning-gym-options-refused", ("tiems",)),
        ("reasoning_gym/silent", "chat", "tasks/reasoning-gym-without-answers", ("silent",)),
    ],
)
def test_what_reasoning_gym_has_not_is_refused(package, word, form, code, names):
    with refused(code, *names):
        list(open_rows(f"task:{word}", form).rows())


def test_the_same_prompts_whatever_the_processes(tmp_path):
    data = [
        open_data(asking(tmp_path / str(count), "task:sort?rows=30", data__prepare_processes=count), lambda line: None)
        for count in (1, 2)
    ]
    assert data[0].fingerprint == data[1].fingerprint
