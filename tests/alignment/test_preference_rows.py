"""Rows of preferences: each field is obeyed or refused by its name, and what nothing reads is told."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coretrain.data.chat_rows import REFUSED
from coretrain.data.open import open_data
from coretrain.data.preferences.open import WITH_MARGINS
from coretrain.data.preferences.rows import MISFITS, label_of, pair_of
from tests.support.corpora import write_rows
from tests.support.preferring import config_of, everything, label, many, opened, pair
from tests.support.refusal import refused
from tests.support.sentences import raised

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}
OTHER = {"role": "assistant", "content": "B"}
PAIR = {"prompt": "q", "chosen": "A", "rejected": "B"}
LABEL = {"prompt": "q", "completion": "A", "label": True}


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ([1], "preference-not-an-object", ["chosen"]),
        ({}, "row-without-pair", ["only nothing"]),
        ({"prompt": "q", "completion": "A"}, "row-without-pair", ["only prompt, completion"]),
        ({"prompt": "q", "chosen": "A"}, "row-without-pair", ["prompt, chosen"]),
        (PAIR | {"preferred_output": [SAID], "non_preferred_output": [OTHER]}, "row-of-two-pairs", []),
        ({"chosen": "A", "rejected": "B"}, "row-without-prompt", ["chosen and rejected"]),
        ({"chosen": [SAID], "rejected": [OTHER]}, "row-without-prompt", []),
        (PAIR | {"chosen": 3}, "answer-not-text", ["chosen"]),
        (PAIR | {"rejected": []}, "answer-not-text", ["rejected"]),
        (PAIR | {"chosen": [SAID]}, "answers-of-two-kinds", ["chosen and rejected"]),
        (PAIR | {"rejected": "A"}, "pair-answers-equal", []),
        ({"prompt": "q", "chosen": [SAID], "rejected": [SAID | {"id": 3}]}, "pair-answers-equal", []),
        (PAIR | {"rejected": " "}, "answer-empty", ["rejected"]),
        (PAIR | {"prompt": ""}, "pair-prompt-empty", []),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED | {"content": "p"}, OTHER]}, "pair-prompts-differ", []),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED]}, "pair-prompts-differ", []),
        ({"chosen": [ASKED, SAID], "rejected": [OTHER]}, "pair-prompts-differ", []),
        ({"prompt": "p", "chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]}, "pair-prompt-not-theirs", ["prompt"]),
        (PAIR | {"score_chosen": 1, "score_rejected": 2}, "pair-scores-contradict", ["score_chosen = 1"]),
        (PAIR | {"margin": -1}, "pair-margin-unusable", ["margin = -1"]),
        (PAIR | {"margin": "big"}, "pair-margin-unusable", ["margin = big"]),
        (PAIR | {"margin": True}, "pair-margin-unusable", []),
        (PAIR | {"margin": float("nan")}, "pair-margin-unusable", []),
        (PAIR | {"chosen": [SAID | {"weight": 0}], "rejected": [OTHER]}, "no-answer-to-learn", ["chosen"]),
        (PAIR | {"chosen": [SAID | {"role": "robot"}], "rejected": [OTHER]}, "message-role-unknown", ["robot"]),
        (PAIR | {"tools": "add"}, "tools-unusable", ["tools"]),
        *((PAIR | {name: [1]}, "row-field-refused", [name]) for name in REFUSED),
    ],
)  # fmt: skip
def test_pairs_that_are_refused(row, code, words):
    with refused(f"data/{code}", "a.jsonl, line 7", *words):
        pair_of(row, "a.jsonl, line 7")


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ("x", "preference-not-an-object", ["label"]),
        (PAIR, "row-without-label", ["only prompt, chosen, rejected", "pairs"]),
        ({"prompt": "q", "completion": "A"}, "row-without-label", []),
        (LABEL | {"label": "yes"}, "label-unusable", ["label = yes"]),
        (LABEL | {"label": -1}, "label-unusable", ["-1"]),
        (LABEL | {"label": 0.5}, "label-unusable", ["0.5"]),
        (LABEL | {"completion": ""}, "answer-empty", ["completion"]),
        (LABEL | {"prompt": " "}, "pair-prompt-empty", []),
        (LABEL | {"prompt": None}, "row-without-prompt", []),
    ],
)
def test_labels_that_are_refused(row, code, words):
    with refused(f"data/{code}", "a.jsonl, line 7", *words):
        label_of(row, "a.jsonl, line 7")


@pytest.mark.parametrize("value", [True, False, 1, 0, 1.0, 0.0])
def test_labels_of_every_kind(value):
    one, unread = label_of({"prompt": [ASKED], "completion": [SAID], "label": value, "id": 5}, "")
    assert one.value is bool(value)
    assert unread == {"id"}
    whole, _ = label_of({"messages": [ASKED, SAID], "label": value}, "")
    assert whole.answers == one.answers
    assert whole.asked == one.asked == 1


def test_the_faults_that_may_be_dropped_are_those_that_there_are():
    assert {code for code, _, _ in raised()} >= MISFITS


def test_margins_are_read_by_the_objectives_that_have_a_plane_of_them():
    from coretrain.alignment.planes import PLANES

    assert set(WITH_MARGINS) == {name for name, planes in PLANES.items() if "margin" in planes.optional}


def test_what_stands_beside_a_pair_is_read():
    """A system text, tools and variables of the template go to both answers; OpenAI's tools lie in its input."""
    tools = [{"type": "function", "function": {"name": "add"}}]
    found, unread = pair_of(PAIR | {"system": "s", "tools": json.dumps(tools), "chat_template_kwargs": {"a": 1}}, "")
    assert [talk.messages[0] for talk in found.answers] == [{"role": "system", "content": "s"}] * 2
    assert [talk.tools for talk in found.answers] == [tools] * 2
    assert [talk.variables for talk in found.answers] == [{"a": 1}] * 2
    assert found.asked == 2
    assert not unread
    given = {"messages": [ASKED], "tools": tools, "parallel_tool_calls": True}
    found, unread = pair_of({"input": given, "preferred_output": [SAID], "non_preferred_output": [OTHER], "id": 1}, "")
    assert [talk.tools for talk in found.answers] == [tools] * 2
    assert unread == {"input.parallel_tool_calls", "id"}


def test_scores_may_be_equal_and_are_no_margin():
    """Ties are in people's files, and the pair is what somebody made of them."""
    found, unread = pair_of(PAIR | {"score_chosen": 4, "score_rejected": 4}, "")
    assert found.value is None
    assert not unread
    words = {"score_chosen": "good", "score_rejected": "bad"}
    assert pair_of(PAIR | words, "")[1] == words.keys()


@pytest.mark.parametrize("prompt", ["q", "r", [ASKED], [ASKED, SAID, ASKED | {"content": "r"}]])
def test_a_prompt_beside_whole_conversations_may_be_the_end_of_their_beginning(prompt):
    """Such as one without the system text; or a text that is one of the user's messages."""
    begun = [{"role": "system", "content": "s"}, ASKED, SAID, ASKED | {"content": "r"}]
    row = {"prompt": prompt, "chosen": [*begun, SAID], "rejected": [*begun, OTHER]}
    if prompt == [ASKED]:
        with refused("data/pair-prompt-not-theirs", "here"):
            pair_of(row, "here")
        return
    found, unread = pair_of(row, "here")
    assert found.asked == 4
    assert not unread


def test_all_of_an_answer_of_several_messages_is_behind_the_prompt():
    """So that rows that ask the same are in one split, whatever comes after."""
    more = [SAID, {"role": "user", "content": "and?"}, OTHER]
    found, _ = pair_of({"prompt": [ASKED], "chosen": more, "rejected": [OTHER]}, "")
    assert found.asked == 1
    assert found.prompt() == pair_of(PAIR, "")[0].prompt()
    assert [talk.unlearnt for talk in found.answers] == [(), ()]


def test_a_label_that_is_too_long_is_refused(tmp_path):
    rows, more = [label(n, "yes" * 9, True) for n in range(9)], {"data__format": "labels", "train__objective": "kto"}
    with refused("data/sample-refused", "line 1", "prompt and answer have 30 tokens", "a row's 29"):
        opened(tmp_path, rows, model__context=29, **more)
    assert len(everything(opened(tmp_path, rows, model__context=30, **more)[1])) == 9


def test_the_header_counts_over_shards_and_parts(tmp_path):
    """Pairs, tokens and targets of a mixture whose parts have several shards."""
    (tmp_path / "more").mkdir()
    rows = [pair(n, "y" * 40, "n" * 40) for n in range(10, 90)]
    write_rows(tmp_path / "more" / "b.jsonl", [pair(n, "yes", "no") for n in range(100, 120)])
    config = config_of(tmp_path, rows, model__context=200, data__shard_tokens=1024)
    mixed = [{"source": str(tmp_path / name), "weight": 1.0} for name in ("rows.jsonl", "more")]
    config = type(config).model_validate(config.model_dump() | {"data": config.data.model_dump() | {"mixture": mixed}})
    data = open_data(config, lambda line: None)
    assert len(data.parts[0].train.shards) > 2
    told = [re.findall(r"\d[\d,]*", words) for name, words in data.summary() if name in ("train", "validation")]
    pairs, tokens, targets, packed = (sum(int(one[at].replace(",", "")) for one in told) for at in range(4))
    assert packed == sum(split.windows(200) for split in (data.train, data.validation))
    assert pairs == 80 + 20
    assert tokens == 80 * 2 * (3 + 41) + 20 * (4 + 4 + 4 + 3)
    assert targets == 80 * 2 * 41 + 20 * (4 + 3)


def test_an_answer_may_be_a_tools_call():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    found, _ = pair_of({"prompt": [ASKED], "chosen": [call], "rejected": [SAID]}, "")
    assert found.answers[0].messages[1]["tool_calls"]


def test_fields_that_nothing_reads_are_told(tmp_path):
    """Also those that lie in whole conversations once more."""
    asked = [ASKED | {"content": f"q{n}"} for n in range(12)]
    more = {"messages": [ASKED, SAID], "score_chosen": 5.0, "score_rejected": 1.0}
    rows = [
        {"prompt": one["content"], "chosen": [{**one}, SAID], "rejected": [one, OTHER], "prompt_id": n} | more
        for n, one in enumerate(asked)
    ]
    rows[3]["chosen"][0]["timestamp"] = "now"
    _, data = opened(tmp_path, rows, model__context=60)
    assert dict(data.summary())["not read"] == "fields of the rows: message.timestamp, messages, prompt_id"
    assert len(everything(data)) == 12


def test_a_table_with_columns_of_both_forms(tmp_path):
    """Null is as absent; values that JSON hasn't got are refused only where they would be read."""
    import datetime

    (tmp_path / "rows").mkdir()
    table = {
        "prompt": [f"{n}:" for n in range(20)],
        "chosen": ["yes"] * 20,
        "rejected": ["no"] * 20,
        "preferred_output": pa.nulls(20),
        "margin": [0.5] * 20,
        "at": [datetime.date(2026, 1, 1)] * 20,
    }
    pq.write_table(pa.table(table), tmp_path / "rows" / "t.parquet")
    config = config_of(tmp_path, [], model__context=60).changed(data__source=str(tmp_path / "rows"))
    data = open_data(config, lambda line: None)
    assert everything(data) == sorted([(f"{n}:yes|", "yes|"), (f"{n}:no|", "no|")] for n in range(20))
    assert dict(data.summary())["not read"] == "fields of the rows: at"


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    """One that lies in a folder; where a row can't be used, its number is told."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    table = {"prompt": [f"{n}:" for n in range(20)], "chosen": ["yes"] * 20, "rejected": ["no"] * 19 + ["yes"]}
    pq.write_table(pa.table(table), tmp_path / "set" / "train-00000-of-00001.parquet")
    config = config_of(tmp_path, [], model__context=60).changed(data__source=f"hf:{tmp_path / 'set'}")
    with refused("data/pair-answers-equal", "hf:", "row 20"):
        open_data(config, lambda line: None)
    data = open_data(config.changed(data__misfits="drop"), lambda line: None)
    assert everything(data) == sorted([(f"{n}:yes|", "yes|"), (f"{n}:no|", "no|")] for n in range(19))


def test_margins_of_some_pairs_are_refused(tmp_path):
    rows = [pair(n) for n in range(12)]
    rows[4]["margin"] = 0.5
    with refused("data/margins-of-some-pairs", "11 of 12 pairs"):
        opened(tmp_path, rows, model__context=60)
    opened(tmp_path, rows, model__context=60, train__objective="orpo")


def test_one_prompt_alone_is_refused(tmp_path):
    with refused("data/single-prompt", "rows.jsonl"):
        opened(tmp_path, [{"prompt": "q", "chosen": f"A{n}", "rejected": "B"} for n in range(9)], model__context=60)


def test_rows_too_short_for_any_pair_are_refused(tmp_path):
    with refused("data/row-tokens-too-few-for-preferences", "longer than a row"):
        opened(tmp_path, many(12), model__context=6, data__misfits="drop")
    with refused("data/row-tokens-exceed-context", "data.row_tokens = 90"):
        opened(tmp_path, many(12), data__row_tokens=90)


def test_answers_that_come_to_the_same_tokens_are_refused(tmp_path):
    """By a template that strips what is said."""
    (tmp_path / "strip.jinja").write_text(
        "{% for m in messages %}{{ m.content | trim }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    )
    rows = [*many(9), pair(9, "yes", "yes ")]
    more = {"model__context": 60, "data__chat_template": tmp_path / "strip.jinja"}
    with refused("data/sample-refused", "line 10", "same tokens"):
        opened(tmp_path, rows, **more)
    _, data = opened(tmp_path, rows, data__misfits="drop", **more)
    told = dict(data.summary())
    assert "rows dropped: 1 whose answers come to the same tokens" in told["train"] + told["validation"]


def test_templates_are_put_around_plain_texts(tmp_path):
    """As around those of conversations; where none is named, the plain one."""
    config = config_of(tmp_path, many(12), model__context=200).changed(data__chat_template=None)
    data = open_data(config, lambda line: None)
    asked = "### User:\n3:\n\n### Assistant:\n"
    assert [(f"{asked}yyyy|", "yyyy|"), (f"{asked}n|", "n|")] in everything(data)


def test_a_tokenizer_of_their_own(tmp_path):
    """Trained on what is said in the training split."""
    rows = [pair(n, "banana banana", "cherry cherry") for n in range(40)]
    more = {"data__tokenizer": "trained", "data__tokenizer_vocab": 270, "model__vocab": 270}
    _, data = opened(tmp_path, rows, model__context=60, **more)
    assert {"banana", "cherry"} <= {data.tokenizer.decode([token]).strip() for token in range(269)}


def test_labelled_answers_are_opened(tmp_path):
    rows, more = [label(n, "yes", n % 2 > 0) for n in range(12)], {"data__format": "labels", "train__objective": "kto"}
    _, data = opened(tmp_path, rows, model__context=60, **more)
    assert "labelled answers" in dict(data.summary())["train"]
