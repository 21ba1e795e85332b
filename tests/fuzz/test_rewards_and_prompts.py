"""Rows of prompts, and words of tasks and rewards, that few expect: each is taken, or refused in a sentence."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from coretrain.alignment.rewards import open as opening
from coretrain.alignment.rewards.reward import Answer
from coretrain.alignment.rewards.single import Single, single_of
from coretrain.data.prompts.encode import decoded, open_encoder, prompt_source, said_in
from coretrain.data.rows import open_rows
from coretrain.tokenizers.registry import bytes_tokenizer
from tests.support.corpora import write_rows
from tests.support.fuzzing import damaged, ends_well, fuzzed, mutated, odd, odd_word, replaced
from tests.support.rewarding import asking

ROWS = [
    {"prompt": "351204>", "answer": "012345"},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "gold": {"a": [1, 2.5]}},
    {"prompt": [{"from": "human", "value": "q"}], "system": "s", "answer": 7},
]
PIECES = (
    *("task:", "sort", "sums", "exact", "number", "format", "length", "reasoning_gym/", "chain_sum", "run:", "runs/x"),
    *("?", "&", "=", "rows=3", "length=4", "wrong=0.5", "seed=1", "pattern=[0-9]+", "pattern=(", "limit=8", "buffer=2"),
    *("field=answer", " + ", "+", "*", "0.5*", "-1*", "nan*", ":", "module:function", ".", " ", "~", "/", "1e999*"),
)


class Kept:
    """In the place of a worker: what it would load isn't started."""

    def __init__(self, name: str, word: str, kind: str, seconds: float) -> None:
        self.name = name

    def close(self) -> None:
        """Nothing was started."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    """What takes long is given up sooner, and no process is started."""
    monkeypatch.setattr("coretrain.tokenizers.template_limits.SECONDS", 0.3)
    monkeypatch.setattr(opening, "Guarded", Kept)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prompts")


@fuzzed(6)
def test_rows_of_prompts(place, random):
    path = write_rows(place / "rows.jsonl", random.sample(ROWS, 2))
    misfits, template = random.choice(("refuse", "drop")), random.choice(("bare", "none"))
    config = asking(place, path, data__misfits=misfits, data__chat_template=template, model__context=99)

    def read() -> None:
        coder, source = open_encoder(config, bytes_tokenizer()), prompt_source(str(path), misfits)
        assert source.split_key is not None
        for document in source.documents():
            said_in(document)
            source.split_key(document)
            try:
                facts = coder.encode(document)
            except Exception as error:  # which `located` gives a line
                if type(error).__name__ != "TemplateError":
                    raise
                continue
            if len(facts) > 1:
                ids, fields = decoded(facts, 257)
                assert ids
                assert "prompt" in fields

    with replaced(path, damaged(random, path)):
        ends_well("rows of prompts", read)


def _word(random) -> str:
    if random.random() < 0.2:
        return odd_word(random)
    return "".join(random.choice(PIECES) for _ in range(random.randrange(1, 7)))


@fuzzed(4)
def test_words_of_tasks(random):
    form = random.choice(("chat", "pairs", "labels", "prompts"))
    ends_well("words of tasks", lambda: list(islice(open_rows(f"task:{_word(random)}", form).rows(), 3)))


@fuzzed(4)
def test_words_of_rewards(place, random):
    config = asking(place, "task:sort")
    config = config.changed(align=config.align.model_copy(update={"reward": _word(random)}))
    answer = Answer("351204>", "012345", {"prompt": "351204>", "answer": "012345"}, True, 7)

    def score() -> None:
        reward = opening.open_reward(config, lambda folder: lambda answers: np.zeros(len(answers)))
        if not any(isinstance(term, Kept) for _, term in reward.terms):
            reward.score([answer])

    ends_well("words of rewards", score)


@fuzzed(2)
def test_answers_that_are_scored(random):
    fields = {"answer": "7"} if random.random() < 0.5 else mutated(random, {"answer": "7", "more": [1]})
    said = odd(random)
    one = {
        "completion": said if isinstance(said, str) else odd_word(random),
        "fields": fields if isinstance(fields, dict) else {}, "ended": random.random() < 0.8, "tokens": 3,
    }  # fmt: skip
    rewards: list[Single] = [single_of(word) for word in ("exact", "number", "sums", "sort", "length?limit=3&buffer=1")]
    ends_well("scores", lambda: [reward.parts([one]) for reward in rewards])
