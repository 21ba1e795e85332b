"""Prompts from people's files: the forms that are read, what is refused or dropped, and what is told of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from coretrain.data.open import open_data
from coretrain.data.prompts.open import prompts_of
from tests.support.corpora import write_rows
from tests.support.refusal import refused
from tests.support.rewarding import asking

GOOD = [{"prompt": f"What is {n}?", "answer": str(n)} for n in range(9)]


def opened(tmp_path, rows, **more):
    fields = {"model__context": 64, "data__validation_fraction": 0.3} | more
    config = asking(tmp_path, write_rows(tmp_path / "rows.jsonl", rows), **fields)
    return open_data(config, lambda line: None), config


@pytest.mark.parametrize(
    ("row", "code", "names"),
    [
        ("What is 3?", "data/prompt-row-not-an-object", ()),
        ({"answer": "3", "prompt": None}, "data/prompt-missing", ("answer",)),
        ({"prompt": "3?", "messages": [{"role": "user", "content": "3?"}]}, "data/row-of-two-prompts", ()),
        ({"prompt": " \n"}, "data/prompt-blank", ()),
        ({"prompt": 3}, "data/prompt-unreadable", ("prompt",)),
        ({"prompt": []}, "data/messages-not-a-list", ()),
        ({"messages": []}, "data/messages-not-a-list", ()),
        ({"messages": "3?"}, "data/prompt-unreadable", ("messages",)),
        ({"messages": [{"role": "usr", "content": "3?"}]}, "data/message-role-unknown", ("usr",)),
        ({"prompt": "3?", "image": "a.png"}, "data/prompt-field-refused", ("image",)),
        ({"prompt": "3?", "completions": ["3"]}, "data/prompt-field-taken", ("completions",)),
        ({"prompt": "3?", "ended": True}, "data/prompt-field-taken", ("ended",)),
        (
            {"messages": [{"role": "user", "content": "3?"}, {"role": "assistant", "content": "3"}]},
            "data/prompt-ends-with-answer",
            ("messages",),
        ),
        (
            {"prompt": [{"from": "human", "value": "3?"}, {"from": "gpt", "value": "3"}]},
            "data/prompt-ends-with-answer",
            ("prompt",),
        ),
        ({"prompt": "x" * 57}, "data/sample-refused", ("57 tokens", "56", "align.tokens")),
        ({"prompt": "3?", "tools": [{"name": "search"}]}, "data/sample-refused", ("tools",)),
    ],
)
def test_a_row_that_is_no_prompt_is_refused_with_its_line(tmp_path, row, code, names):
    with refused(code, "rows.jsonl, line 10", *names):
        opened(tmp_path, [*GOOD, row])


def test_rows_that_can_not_be_used_are_dropped_and_counted(tmp_path):
    bad = [
        {"answer": "3"}, {"prompt": ""}, {"prompt": "x" * 57}, {"prompt": "y" * 99}, {"prompt": "3?", "tools": [{}]},
        {"messages": [{"role": "assistant", "content": "3"}]},
    ]  # fmt: skip
    data, config = opened(tmp_path, [*GOOD, *bad], data__misfits="drop")
    asked = prompts_of(data, config)
    assert asked.number + len(asked.validation(99)) == 9
    told = " ".join(value for name, value in data.summary() if name in ("train", "validation"))
    counts = dict.fromkeys(("too long to be answered", "of a row that is no usable prompt", "refused by"), 0)
    for reason in counts:
        counts[reason] = sum(int(words.split()[-1]) for words in told.split(f" {reason}")[:-1])
    assert list(counts.values()) == [2, 3, 1]


def test_fields_are_never_dropped_even_where_rows_are(tmp_path):
    with refused("data/prompt-field-taken", "prompts"):
        opened(tmp_path, [*GOOD, {"prompt": "3?", "prompts": 1}], data__misfits="drop")


def test_all_rows_dropped(tmp_path):
    rows = [{"prompt": "x" * (60 + n)} for n in range(9)]
    with refused("data/no-usable-prompt", "too long", "align.tokens"):
        opened(tmp_path, rows, data__misfits="drop")


def test_answers_need_less_than_the_context(tmp_path):
    _, config = opened(tmp_path, GOOD, align__tokens=60, data__misfits="drop", model__context=90)
    with refused("data/answers-fill-context", "align.tokens = 60", "model.context = 60"):
        open_data(config.changed(model__context=60), lambda line: None)  # as a base's context may be


def test_text_asks_no_prompts(tmp_path, small_config):
    config = small_config(data__source="task:sort?rows=9", data__format="chat", data__chat_template="bare",
                          data__tokenizer="bytes", model__vocab=257, data__prepare_processes=1)  # fmt: skip
    with refused("data/format-without-prompts", "cross_entropy", "chat"):
        prompts_of(open_data(config, lambda line: None), config)


def test_a_text_is_a_users_message_unless_there_is_no_template(tmp_path):
    for template, head in (("bare", "What is 1?"), ("none", "### User:\nWhat is 1?\n\n### Assistant:\n")):
        data, config = opened(tmp_path, GOOD, data__chat_template=template)
        asked = prompts_of(data, config)
        found = [asked.prompt(n) for n in [*range(asked.number), *map(int, asked.validation(99))]]
        assert [asked.decoded(ids) for ids, fields in found if fields["answer"] == "1"] == [head]


def test_fields_of_a_template_reach_it_and_the_reward(tmp_path):
    source = tmp_path / "template.jinja"
    source.write_text(
        "{{ mood }}|{% for message in messages %}{{ message.role }}: {{ message.content }}{% if message.role =="
        " 'assistant' %}{{ eos_token }}{% endif %};{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    rows = [
        {"prompt": f"{n}?", "system": "Count.", "chat_template_kwargs": {"mood": "glad"}, "gold": n} for n in range(9)
    ]
    data, config = opened(tmp_path, rows, data__chat_template=str(source))
    ids, fields = prompts_of(data, config).prompt(0)
    assert bytes(ids).decode() == f"glad|system: Count.;user: {fields['prompt']};assistant: "
    assert fields == rows[fields["gold"]]


def test_a_changed_file_is_another_fingerprint_and_the_same_file_the_same(tmp_path):
    first, _ = opened(tmp_path, GOOD)
    again, _ = opened(tmp_path, GOOD, data__cache=str(tmp_path / "other"))
    other, _ = opened(tmp_path, [*GOOD[:-1], GOOD[-1] | {"answer": "10"}])  # a field alone
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_limits_of_length_are_part_of_what_is_kept(tmp_path):
    rows = [*GOOD, {"prompt": "x" * 50}]
    counts = []
    for tokens in (8, 20):
        data, config = opened(tmp_path, rows, align__tokens=tokens, data__misfits="drop")
        counts.append(prompts_of(data, config).number + len(prompts_of(data, config).validation(99)))
    assert counts == [10, 9]


def test_a_prompt_that_is_not_there(tmp_path):
    data, config = opened(tmp_path, GOOD)
    for number in (-1, 9):
        with pytest.raises(IndexError):
            prompts_of(data, config).prompt(number)


def test_the_split_survives_being_sent_to_another_process(tmp_path):
    import pickle

    data, _ = opened(tmp_path, GOOD)
    sent = pickle.loads(pickle.dumps(data.train))
    assert [sent.prompt(n) for n in range(len(sent))] == [data.train.prompt(n) for n in range(len(data.train))]


def test_a_prompt_as_a_row_has_no_target(tmp_path):
    data, _ = opened(tmp_path, GOOD)
    batch = data.train.read(0, 64)
    ids, _ = data.train.prompt(0)
    assert batch.tokens.tolist() == ids + [0] * (64 - len(ids))
    assert batch.targets == 0


def test_a_trained_tokenizer_learns_what_is_asked(tmp_path):
    data, config = opened(tmp_path, GOOD, data__tokenizer="trained", data__tokenizer_vocab=270, model__vocab=270)
    ids, fields = prompts_of(data, config).prompt(0)
    assert data.tokenizer.decode(ids) == fields["prompt"]
    assert len(ids) < len(fields["prompt"])


def test_what_is_told_of_prompts(tmp_path):
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "a.jsonl", [{"prompt": "x" * (n % 3 + 4) + str(n % 10)} for n in range(20)])
    (tmp_path / "rows" / "notes.txt").write_text("not read")
    config = asking(tmp_path, tmp_path / "rows", data__validation_fraction=0.4)
    data = open_data(config, lambda line: None)
    told = dict(data.summary())
    assert " prompts of 5 to 7 tokens" in told["train"]
    assert "dropped" not in told["train"]
    assert ".txt" in told["not read"]
    assert told["template"] == "the bare chat template"


def test_the_clock_of_a_template_is_the_configs(tmp_path):
    source = tmp_path / "dated.jinja"
    source.write_text(
        "{{ strftime_now('%Y') }}{% for message in messages %}{{ message.content }}{% if message.role =="
        " 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    data, config = opened(tmp_path, GOOD, data__chat_template=str(source), data__chat_date="1999-01-02")
    assert bytes(prompts_of(data, config).prompt(0)[0]).startswith(b"1999What")


def test_an_answer_ends_at_the_templates_mark_as_at_the_tokenizers(tmp_path):
    """A policy that was taught another end than its tokenizer's would never end an answer."""
    data, config = opened(tmp_path, GOOD)
    assert prompts_of(data, config).stop == (data.tokenizer.eot,)
    marked = replace(data, template=SimpleNamespace(end=lambda: 65))
    assert prompts_of(marked, config).stop == (data.tokenizer.eot, 65)
