"""What is known of prompts and rewards: a planted bug must break one of these facts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.configs import small_config
from tests.support.corpora import write_rows
from tests.support.rewarding import Facts, answers, asking, prompts_of, scored

FACTS = fact = Facts()


@fact
def all_forms_hold_out_the_same_prompts(folder: Path) -> None:
    """What is validated in supervised training is trained on neither there nor by reinforcement learning."""
    from coretrain.data.open import open_data

    source = "task:sort?rows=60"
    asked = prompts_of(asking(folder, source, data__validation_fraction=0.2))
    held_out = {asked.prompt(int(number))[1]["prompt"] for number in asked.validation(1000)}
    trained = {asked.prompt(number)[1]["prompt"] for number in range(asked.number)}
    assert len(held_out) + len(trained) == 60
    chat = open_data(
        small_config(
            folder, data__source=source, data__format="chat", data__chat_template="bare", data__tokenizer="bytes",
            model__vocab=257, data__validation_fraction=0.2, data__prepare_processes=1,
        ),
        lambda line: None,
    )  # fmt: skip
    seen = set()
    for window in range(chat.validation.windows(24)):
        text = bytes(int(token) for token in chat.validation.read(window, 24).tokens if 0 < token < 256).decode()
        seen |= set(re.findall(r"[0-9]{6}>", text))
    assert seen == held_out


ROWS = [
    {"prompt": f"{n}+{n}=", "answer": str(2 * n), "weight": n / 8, "deep": {"list": [n, None, "\u00e9\U0001f600"]}}
    for n in range(39)
]
ROWS.append({"prompt": "39+39=", "note": "a long one, " * 400})


@fact
def prompts_and_fields_come_back(folder: Path) -> None:
    """Each row once, its ids those of the prompt alone, its fields as they were, of any kind."""
    asked = prompts_of(asking(folder, write_rows(folder / "rows.jsonl", ROWS)))
    numbers = [*range(asked.number), *map(int, asked.validation(1000))]
    found = [asked.prompt(number) for number in numbers]
    assert sorted(map(json.dumps, (fields for _, fields in found))) == sorted(map(json.dumps, ROWS))
    assert [bytes(ids).decode() for ids, _ in found] == [fields["prompt"] for _, fields in found]
    assert 0 < asked.number < 40
    assert asked.stop == (256,)


@fact
def rollouts_walk_through_all_prompts(folder: Path) -> None:
    """Each prompt once in a walk, each walk in another order, other orders with other seeds; held-out ones never."""
    config = asking(folder, write_rows(folder / "rows.jsonl", ROWS), data__validation_fraction=0.3)
    asked = prompts_of(config)
    count = asked.number // 4
    walks = [int(n) for rollout in range(12) for n in asked.of_rollout(rollout, count)]
    first, second = walks[: asked.number], walks[asked.number : 2 * asked.number]
    assert sorted(first) == sorted(second) == list(range(asked.number))
    assert first != second
    assert first != sorted(first)
    assert [int(n) for n in asked.of_rollout(5, count)] == walks[5 * count : 6 * count]
    other = prompts_of(config.changed(train__seed=1))
    assert [int(n) for n in other.of_rollout(0, count)] != first[:count]
    held_out = [int(n) for n in asked.validation(5)]
    assert held_out == list(range(asked.number, asked.number + 5))
    assert len(asked.validation(1000)) == 40 - asked.number


@fact
def mixtures_are_asked_by_weight(folder: Path) -> None:
    """Three of four prompts of the one source, one of the other."""
    parts = '[{source = "task:sort?rows=50", weight = 3}, {source = "task:copy?rows=50", weight = 1}]'
    asked = prompts_of(asking(folder, "task:sort", data__mixture=parts))
    chosen = [asked.prompt(int(n))[1]["prompt"][:-1] for n in asked.of_rollout(3, 40)]
    assert sum(one.isdigit() for one in chosen) == 30
    held_out = [asked.prompt(int(n))[1]["prompt"][:-1] for n in asked.validation(1000)]
    trained = [asked.prompt(n)[1]["prompt"][:-1] for n in range(asked.number)]
    assert not set(held_out) & set(trained)
    assert {one.isdigit() for one in held_out} == {True, False}


@fact
def messages_are_asked_by_the_template(folder: Path) -> None:
    """What is asked ends with the head of an answer, as in supervised training; special tokens of users are text."""
    from coretrain.tokenizers.chat_template import open_template
    from coretrain.tokenizers.conversation import Conversation
    from coretrain.tokenizers.registry import named_tokenizer

    said = "What is <|endoftext|> for?"
    system = {"role": "system", "content": "Be brief."}
    rows = [{"messages": [system, {"role": "user", "content": f"{n}: {said}"}], "n": n} for n in range(4)]
    source = write_rows(folder / "rows.jsonl", rows)
    asked = prompts_of(asking(folder, source, data__chat_template="none", model__context=200))
    template = open_template(None, named_tokenizer("bytes"))
    for number in range(asked.number):
        ids, fields = asked.prompt(number)
        talk = Conversation([*fields["prompt"], {"role": "assistant", "content": "4"}])
        whole, learnt = template.sample(talk)
        assert ids == whole[: int(np.argmax(learnt))].tolist()
        assert 256 not in ids
        assert fields == {"prompt": rows[fields["n"]]["messages"], "n": fields["n"]}


@fact
def a_prompt_leaves_room_for_its_answer(folder: Path) -> None:
    """As many tokens as the context has beside align.tokens; with one more it is dropped, and counted."""
    rows = [{"prompt": f"{n:02d}" + "x" * (14 if n % 2 else 15)} for n in range(40)]  # a context of 24, 8 for answers
    asked = prompts_of(asking(folder, write_rows(folder / "rows.jsonl", rows), data__misfits="drop"))
    total = asked.number + len(asked.validation(1000))
    assert total == 20
    assert all(len(asked.prompt(number)[0]) == 16 for number in range(total))


@fact
def rewards_are_fractions(folder: Path) -> None:
    """A sum with weights in float64, nothing cut or rounded: 0.1 x 1 + 0.7 x 0.5 + ..., to the last bit."""
    word = "0.1*exact + 0.7*sums + -0.3*length?limit=8&buffer=6"
    found = scored(folder, word, answers("012345", "9", "12345", answer="012345"))
    exact, sums, length = np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.5, 0.5]), -np.array([5, 0, 4]) / 6
    assert found.rewards.dtype == np.float64
    assert found.rewards.tolist() == (0.1 * exact + 0.7 * sums + -0.3 * length).tolist()
    assert {name: values.tolist() for name, values in found.parts.items()} == {
        "exact": exact.tolist(), "sums": sums.tolist(), "sums_format": [0.5, 0.5, 0.5],
        "sums_correct": [0.0, 0.0, 0.0], "length": length.tolist(),
    }  # fmt: skip


@fact
def parts_are_named(folder: Path) -> None:
    """Of one reward by the names of its parts, of several by theirs; no name twice."""
    given = answers("012345")
    for word, wanted in (
        ("exact", ["exact"]),
        ("sums", ["format", "correct"]),
        ("exact + sums", ["exact", "sums", "sums_format", "sums_correct"]),
        ("exact + number + exact + exact?field=prompt", ["exact", "number", "exact_2", "exact_3"]),
    ):
        assert list(scored(folder, word, given).parts) == wanted
    assert scored(folder, "exact + 2*exact", given).rewards.tolist() == [3.0]
    assert scored(folder, "exact", []).rewards.tolist() == []


@fact
def rules_by_hand(folder: Path) -> None:
    """Each rule on answers that are right, wrong, cut off."""
    from coretrain.alignment.rewards.single import single_of

    def given(word: str, *completions: str, **more: Any) -> list[float]:
        (values,) = single_of(word).parts([vars(one) for one in answers(*completions, **more)]).values()
        return values

    assert given("exact", "012345", " 012345 ", "0123456", "12345") == [1, 1, 0, 0]
    assert given("exact", "012345", ended=False) == [0]
    assert given("exact?field=gold", "a", gold="a") == [1]
    said = ("72", "so it is 72.", "72 or 73", "7 2", "$72.00", "-72", "72,000", "no")
    assert given("number", *said, answer="#### 72") == [1, 1, 0, 0, 1, 0, 0, 0]
    assert given("number", "1,000", "1000.0", "9" * 9999, answer=1000) == [1, 1, 0]
    assert single_of("sums").parts([vars(one) for one in answers("7", answer=7)]) == {"format": [0.5], "correct": [0.5]}
    assert given("format?pattern=[0-9]{2}", "12", "123", "1", "12 ") == [1, 0, 0, 0]
    assert given("format?pattern=[0-9]{2}", "12", ended=False) == [0]
    lengths = ["x" * n for n in (0, 3, 4, 5, 7, 8, 20)]  # and the end token
    assert given("length?limit=8&buffer=4", *lengths) == [0, 0, -0.25, -0.5, -1, -1, -1]


@fact
def a_function_gets_lists_by_name(folder: Path) -> None:
    """As TRL calls it: prompts, completions, and each field of the rows; only what it takes."""
    from coretrain.alignment.rewards.calling import call

    rows = [
        {"prompt": "1+1=", "completion": "2", "fields": {"prompt": "1+1=", "gold": 2}, "ended": True, "ids": [50, 256]},
        {"prompt": [{"role": "user", "content": "?"}], "completion": "x", "fields": {"note": "n"}, "ended": False,
         "ids": None},
    ]  # fmt: skip
    seen: dict[str, Any] = {}

    def takes_all(**columns: Any) -> list[float]:
        seen.update(columns)
        return [0.25, 1]

    assert call(takes_all, rows, "f") == [0.25, 1.0]
    assert seen == {
        "prompts": ["1+1=", [{"role": "user", "content": "?"}]],
        "completions": ["2", [{"role": "assistant", "content": "x"}]],
        "completion_ids": [[50, 256], None],
        "ended": [True, False],
        "gold": [2, None],
        "note": [None, "n"],
    }

    def takes_two(completions: list[str], gold: list[int], other: int = 3) -> Any:
        return np.array([len(completions), gold[0] + other], np.float32)

    assert call(takes_two, rows, "f") == [2.0, 5.0]
    assert call(lambda prompts: (True, None), rows, "f") == [1.0, {"kind": "None"}]


@fact
def numbers_are_held_to_their_answers(folder: Path) -> None:
    """As many as answers, each a finite number; the first that isn't is named with its prompt."""
    from coretrain.alignment.rewards.reward import Fault, Reward

    class Given:
        name = "given"

        def __init__(self, *values: float) -> None:
            self.values = np.array(values)

        def score(self, asked: Any) -> dict[str, Any]:
            return {"score": self.values}

        def close(self) -> None:
            pass

    right = answers("a", "b", "c", prompt="what?")
    assert Reward([(2.0, Given(1, 2, 3.5)), (-1.0, Given(1, 0, 0))]).score(right).rewards.tolist() == [1, 4, 7]
    for values in ((1, np.nan, 3), (1, np.inf, 3), (1, -np.inf, 3), (1, 2), (1, 2, 3, 4)):
        found = Reward([(1.0, Given(*values))], stops=False).score(right)
        assert found.rewards.tolist() == [0, 0, 0]
        assert found.parts == {}
        assert ("'b'" in found.fault and "what?" in found.fault) or "for 3 answers" in found.fault
        with pytest.raises(Exception, match="reward_failure = skip"):
            Reward([(1.0, Given(*values))]).score(right)
    assert issubclass(Fault, Exception)


@fact
def words_of_a_sum(folder: Path) -> None:
    """Weights and names; a regular expression keeps its own signs."""
    from coretrain.alignment.rewards.words import terms_of

    assert terms_of("sort") == [(1.0, "sort")]
    assert terms_of("0.5*sort + my_rewards:exact") == [(0.5, "sort"), (1.0, "my_rewards:exact")]
    assert terms_of(" 2 * a +  -1e-3*b ") == [(2.0, "a"), (-0.001, "b")]
    assert terms_of(r"format?pattern=\d+(a|b)*x") == [(1.0, r"format?pattern=\d+(a|b)*x")]
    assert terms_of(r"0.2*format?pattern=[0-9]+ + runs/a+b") == [(0.2, "format?pattern=[0-9]+"), (1.0, "runs/a+b")]
