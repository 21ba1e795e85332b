"""Rows of preferences that few expect: each is taken, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from coretrain.data.preferences.encode import open_encoder, preference_source, said_in
from coretrain.tokenizers.registry import bytes_tokenizer
from tests.support.corpora import configure, write_rows
from tests.support.fuzzing import damaged, ends_well, fuzzed, replaced

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "A"), ("assistant", "B")))
PAIRS = [
    {"prompt": "q", "chosen": "A", "rejected": "B", "margin": 0.5, "score_chosen": 2, "score_rejected": 1},
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "system": "s", "tools": []},
    {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"chosen": "\n\nHuman: q\n\nAssistant: A", "rejected": "\n\nHuman: q\n\nAssistant: B"},
    {"input": {"messages": [USER], "tools": []}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "A"}, "rejected": {}},
]
LABELS = [
    {"prompt": "q", "completion": "A", "label": True},
    {"prompt": [USER], "completion": [GOOD], "label": 0},
    {"messages": [USER, GOOD], "label": 1.0},
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    """What takes long is given up sooner."""
    monkeypatch.setattr("coretrain.tokenizers.template_limits.SECONDS", 0.3)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("preferences")


@fuzzed(8)
def test_rows_of_preferences(place, random):
    form, objective, rows = random.choice((("pairs", "dpo", PAIRS), ("labels", "kto", LABELS)))
    path = write_rows(place / "rows.jsonl", random.sample(rows, 2))
    misfits = random.choice(("refuse", "drop"))
    fields = {"data.format": form, "train.objective": objective, "data.misfits": misfits}
    config = configure(place, path, **fields)

    def read() -> None:
        coder, source = open_encoder(config, bytes_tokenizer()), preference_source(str(path), form, misfits)
        assert source.split_key is not None
        for document in source.documents():
            said_in(document)
            source.split_key(document)
            try:
                coder.encode(document)
            except Exception as error:  # which `located` gives a line
                if type(error).__name__ != "TemplateError":
                    raise

    with replaced(path, damaged(random, path)):
        ends_well("rows of preferences", read)
