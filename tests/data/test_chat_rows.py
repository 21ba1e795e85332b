"""Rows of conversations: each field is obeyed or refused by its name, and rows that can't be used are counted."""

from __future__ import annotations

import datetime
import inspect
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coretrain.data.batch import IGNORED
from coretrain.data.chat import chat_source, open_encoder, said_in
from coretrain.data.chat_rows import ARGUMENTS, MISFITS, READ, REFUSED, conversation_of
from coretrain.data.open import open_data
from coretrain.tokenizers.chat_template import PLAIN
from coretrain.tokenizers.registry import bytes_tokenizer
from tests.support.corpora import chat_rows
from tests.support.refusal import refused
from tests.support.sentences import raised

ASKED = {"role": "user", "content": "x"}
SAID = {"role": "assistant", "content": "y"}
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
# As PLAIN, with tools, calls and reasoning.
TOOLED = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + PLAIN.replace(
    "{{ message['content'] }}",
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message['content'] }}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}",
)


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ([1], "row-not-an-object", []),
        ({"text": "x"}, "row-without-messages", ["only text"]),
        ({"prompt": "x"}, "row-without-messages", ["only prompt"]),
        ({"prompt": "x", "completion": " "}, "answer-empty", []),
        ({"prompt": "x", "completion": 3}, "prompt-not-text", ["completion"]),
        ({"prompt": "x", "completion": [SAID]}, "prompt-not-text", ["completion"]),
        ({"messages": [ASKED, SAID], "conversations": [ASKED, SAID]}, "row-of-two-forms", ["messages and conv"]),
        ({"messages": [ASKED, SAID], "prompt": "x", "completion": "y"}, "row-of-two-forms", ["messages and prompt"]),
        ({"messages": []}, "messages-not-a-list", ["messages"]),
        ({"messages": [ASKED, 3]}, "message-not-an-object", ["message 2", "role"]),
        ({"messages": [{"role": "user"}]}, "message-field-missing", ["message 1", "content"]),
        ({"messages": [ASKED, SAID | {"content": None}]}, "message-field-missing", ["message 2", "content"]),
        ({"messages": [ASKED, {"content": "x"}]}, "message-field-missing", ["message 2", "role"]),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message-role-unknown", ["'robot'", "system", "tool"]),
        ({"messages": [{"from": "bot", "value": "x"}]}, "message-role-unknown", ["'bot'"]),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "message-field-not-text", ["content"]),
        ({"messages": [ASKED]}, "no-assistant-message", []),
        ({"messages": [ASKED, SAID | {"content": ""}]}, "answer-empty", []),
        ({"messages": [ASKED, SAID | {"weight": 0.5}]}, "message-mark-unusable", ["message 2", "weight = 0.5"]),
        ({"messages": [ASKED, SAID | {"train": "no"}]}, "message-mark-unusable", ["train = 'no'"]),
        ({"messages": [ASKED, SAID | {"weight": 1, "train": False}]}, "message-marks-contradict", ["contradict"]),
        ({"messages": [ASKED | {"train": True}, SAID]}, "message-mark-not-an-answers", ["message 1", "train"]),
        ({"messages": [ASKED, SAID | {"weight": 0}]}, "no-answer-to-learn", []),
        ({"messages": [ASKED, SAID], "tools": "add"}, "tools-unusable", ["tools"]),
        ({"messages": [ASKED, SAID], "tools": "[" * 5000}, "tools-unusable", ["tools"]),
        ({"messages": [ASKED, SAID], "documents": ["text"]}, "tools-unusable", ["documents"]),
        ({"messages": [ASKED, SAID], "system": ["x"]}, "row-system-unusable", ["system"]),
        ({"messages": [ASKED | {"role": "system"}, SAID], "system": "z"}, "row-system-unusable", ["system"]),
        ({"messages": [ASKED, SAID], "chat_template_kwargs": [1]}, "template-variables-unusable", []),
        ({"messages": [ASKED, SAID], "chat_template_kwargs": {"tools": 1}}, "template-variables-unusable", ["tools"]),
        ({"messages": [ASKED, SAID], "weight": 0.5}, "row-field-refused", ["weight"]),
        *(({"messages": [ASKED, SAID], name: [1]}, "row-field-refused", [name]) for name in REFUSED),
    ],
)  # fmt: skip
def test_rows_that_are_refused(row, code, words):
    with refused(f"data/{code}", "a.jsonl, line 7", *words):
        conversation_of(row, "a.jsonl, line 7")


def test_every_form_of_a_row():
    """Two lists, one, texts, ShareGPT's names, columns of a table that are null; a system text beside the messages."""
    plain = conversation_of({"messages": [ASKED, SAID]}, "")
    assert plain.dump() == json.dumps([ASKED, SAID]), "the documents of plain rows stay what they were"
    for row in (
        {"messages": None, "prompt": "x", "completion": "y"},
        {
            "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}],
            "weight": 1,
            "tools": "",
            "images": [],
            "add_generation_prompt": False,
        },
        {"messages": [ASKED | {"name": None}, SAID | {"weight": 1.0, "train": None}], "images": [], "prompt": "x"},
        {"prompt": [ASKED], "completion": [SAID]},
    ):
        assert conversation_of(row, "") == plain
    system = {"role": "system", "content": "s"}
    for row in ({"messages": [ASKED, SAID], "system": "s"}, {"messages": [system, ASKED, SAID], "system": "s"}):
        assert conversation_of(row, "").messages == [system, ASKED, SAID]
    asked = conversation_of({"prompt": [ASKED, SAID, ASKED], "completion": [SAID]}, "")
    assert asked.unlearnt == (1,)
    marked = {"messages": [ASKED, SAID | {"weight": 0, "content": ""}, ASKED, SAID | {"train": True}], "system": "s"}
    assert conversation_of(marked, "").unlearnt == (2,)
    assert conversation_of({"messages": [ASKED, SAID], "tools": json.dumps(TOOLS)}, "").tools == TOOLS
    silent = {"role": "assistant", "content": None, "tool_calls": CALL}
    assert conversation_of({"messages": [ASKED, silent]}, "").messages[1] == {"role": "assistant", "tool_calls": CALL}
    assert said_in(conversation_of({"messages": [ASKED, silent]}, "").dump()) == "x\n\n" + json.dumps(CALL)


def test_the_lists_are_those_of_the_reference():
    """What `apply_chat_template` takes in the installed transformers, and what it calls reasoning."""
    transformers = pytest.importorskip("transformers")
    from transformers.utils import chat_template_utils

    from coretrain.tokenizers.conversation import REASONING

    taken = inspect.signature(transformers.PreTrainedTokenizerBase.apply_chat_template).parameters
    assert taken.keys() - {"self", "kwargs"} | {"messages"} == set(ARGUMENTS)
    assert chat_template_utils._REASONING_FIELDS == REASONING
    assert not set(READ) & REFUSED.keys()
    codes = {code for code, _, file in raised() if file.startswith("coretrain/data/chat")}
    assert codes >= MISFITS


def targets_of(chat_config, rows, **more):
    """What is learnt of each conversation, as text, and the data's summary."""
    data = open_data(chat_config(rows, **more), lambda _: None)
    found = []
    for split in (data.train, data.validation):
        for window in range(split.windows(split.context)):
            labels = split.read(window, split.context).labels
            found.append(bytes_tokenizer().decode(labels[labels != IGNORED]))
    return "".join(found), dict(data.summary())


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_answers_marked_as_not_to_be_learnt_are_no_targets(chat_config, mark):
    rows = [
        {"messages": [ASKED, SAID | {"content": f"WRONG {n}."} | mark, ASKED, SAID | {"content": f"It is {n}."}]}
        for n in range(20)
    ]
    learnt, _ = targets_of(chat_config, rows)
    assert "WRONG" not in learnt
    assert sorted(learnt.split("<|endoftext|>")[:-1]) == sorted(f"It is {n}." for n in range(20))
    encoder = open_encoder(chat_config(rows), bytes_tokenizer())
    facts = encoder.encode(conversation_of(rows[0], "").dump())
    assert "WRONG 0." in bytes_tokenizer().decode(facts // 2), "it is read all the same"


def test_fields_that_the_template_writes_are_obeyed_and_others_refused(chat_config, tmp_path):
    (tmp_path / "t.jinja").write_text(TOOLED)
    tooled = {"data__chat_template": tmp_path / "t.jinja", "model__context": 256}
    rows = [
        {"messages": [ASKED | {"content": str(n)}, SAID | {"reasoning": "why", "tool_calls": CALL}], "tools": TOOLS}
        for n in range(8)
    ]
    learnt, _ = targets_of(chat_config, rows, **tooled)
    assert learnt.count(f"<think>why</think>y{json.dumps(CALL[0]['function'])}<|endoftext|>") == 8
    first, talk = rows[0], [ASKED, SAID]
    for row, name in (
        ({"messages": talk, "tools": TOOLS}, "tools"),
        ({"messages": talk, "documents": [{"title": "a", "text": "b"}]}, "documents"),
        ({"messages": talk, "chat_template_kwargs": {"enable_thinking": False}}, "enable_thinking"),
        ({"messages": first["messages"]}, "reasoning of message 2"),
        ({"messages": [ASKED, SAID | {"tool_calls": CALL}]}, "tool_calls of message 2"),
        ({"messages": [ASKED | {"name": "Ann"}, SAID]}, "name of message 1 (user)"),
        ({"messages": [ASKED, SAID | {"rating": 5}]}, "rating of message 2"),
    ):
        with refused("data/sample-refused", "line 1", name):
            open_data(chat_config([row, *chat_rows(2)]), lambda _: None)
    deaf = PLAIN.replace("{{ message['content'] }}", "{{ message['content'] if message['role'] != 'tool' }}")
    (tmp_path / "t.jinja").write_text(deaf)
    row = {"messages": [ASKED, SAID, {"role": "tool", "content": "3 and 4"}, SAID]}
    with refused("data/sample-refused", "content of message 3 (tool)"):
        open_data(chat_config([row, *chat_rows(2)], **tooled), lambda _: None)


def test_fields_that_nothing_reads_are_named(chat_config, tmp_path):
    answer = {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"}
    rows = [{"messages": [ASKED, SAID | {"content": str(n)}, answer, SAID], "id": n, "prompt": "x"} for n in range(8)]
    rows[0]["messages"][1] = SAID | {"content": "zero", "timestamp": "2026-01-01"}
    _, summary = targets_of(chat_config, rows)
    assert summary["not read"] == "fields of the rows: id, message.timestamp, prompt, tool.name, tool.tool_call_id"
    _, summary = targets_of(chat_config, rows)
    assert "id, message.timestamp, prompt" in summary["not read"], "also when the data was there already"
    assert "not read" not in targets_of(chat_config, chat_rows(8))[1]
    (tmp_path / "t.jinja").write_text("{{ date_string or '' }}" + PLAIN)
    rows[3]["date_string"] = "today"
    with refused("data/row-field-is-template-variable", "date_string", "t.jinja", "chat_template_kwargs"):
        targets_of(chat_config, rows, data__chat_template=tmp_path / "t.jinja")


def test_rows_that_cannot_be_used_are_dropped_and_counted(chat_config, tmp_path):
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}## {{ m.role }}\n{{ m.content }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}## assistant\n{% endif %}"
    )
    bad = [
        ({"messages": [SAID, ASKED, SAID]}, "1 refused by the template"),
        ({"messages": [ASKED, SAID | {"content": ""}]}, "1 of a row that is no usable conversation"),
        ({"messages": [ASKED, SAID | {"content": None}]}, "1 of a row that is no usable conversation"),
        ({"messages": [ASKED | {"content": None}, SAID]}, "1 of a row that is no usable conversation"),
        ({"messages": [ASKED, SAID | {"content": "long " * 40}]}, "1 too long"),
    ]
    common = {"data__chat_template": tmp_path / "t.jinja"}
    whole, _ = targets_of(chat_config, chat_rows(8), **common)
    for row, words in bad:
        with refused("data/sample-refused" if "no usable" not in words else _code(row), "line 17", "misfits = drop"):
            targets_of(chat_config, [*chat_rows(8), row], **common)
        learnt, summary = targets_of(chat_config, [*chat_rows(8), row], data__misfits="drop", **common)
        assert f"samples dropped: {words}" in summary["train"] + summary["validation"]
        assert sorted(learnt) == sorted(whole)
    with refused("data/row-tokens-too-few", "samples dropped: ", "no usable conversation"):
        targets_of(chat_config, [bad[1][0], bad[2][0]], data__misfits="drop", **common)


def _code(row):
    return "data/answer-empty" if row["messages"][1]["content"] == "" else "data/message-field-missing"


def test_values_of_a_table_that_json_has_not_got(tmp_path, chat_config):
    said = pa.array([[ASKED | {"at": None}, SAID | {"at": datetime.date(2026, 1, 1)}]])
    pq.write_table(pa.table({"messages": said, "at": [datetime.date(2026, 1, 1)]}), tmp_path / "t.parquet")
    with refused("data/row-not-json", "t.parquet, row 1"):
        list(chat_source(str(tmp_path / "t.parquet")).documents())
    assert len(list(chat_source(str(tmp_path / "t.parquet"), "drop").documents())) == 1
    deep = {"messages": [ASKED, SAID | {"tool_calls": json.loads("[" * 800 + "]" * 800)}]}
    with refused("data/line-nested-too-deep", "line 1"):
        open_data(chat_config([deep, *chat_rows(2)]), lambda _: None)
