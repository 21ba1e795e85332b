"""What an evaluation must come to: checks with known answers, which raise AssertionError.

What is checked is imported where it is used, so that a planted bug is in it.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

Probe = Callable[[Path], None]
PROBES: dict[str, Probe] = {}


def probe(check: Probe) -> Probe:
    """A check, by its name."""
    PROBES[check.__name__] = check
    return check


def byte_tokenizer():
    """One id a byte, and 256 for the beginning and end of a document."""
    from coretrain.tokenizers.registry import named_tokenizer

    return named_tokenizer("bytes")


class Bigrams:
    """A stack that knows one table: log-probabilities of an id after another."""

    def __init__(self, vocab: int = 257, seed: int = 0, sharpness: float = 3.0) -> None:
        logits = sharpness * np.random.default_rng(seed).standard_normal((vocab, vocab))
        self.table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        self.shapes: list[tuple[int, ...]] = []
        self.before: set[tuple[tuple[int, ...], int]] = set()
        """Every id that was scored, behind what it was predicted from."""

    def token_scores(self, batch) -> np.ndarray:
        self.shapes.append(batch.tokens.shape)
        valid = batch.labels >= 0
        for line, at in zip(*valid.nonzero(), strict=True):
            self.before.add((tuple(batch.tokens[line, : at + 1].tolist()), int(batch.labels[line, at])))
        label = np.where(valid, batch.labels, 0)
        found = self.table[batch.tokens, label]
        likeliest = found >= self.table[batch.tokens].max(-1)
        return np.stack([np.where(valid, found, 0), valid & likeliest], -1)

    def branch_scores(self, rows) -> np.ndarray:
        self.shapes.append(rows.tokens.shape)
        valid = rows.labels >= 0
        tokens, label = rows.tokens.reshape(-1)[rows.places], np.where(valid, rows.labels, 0)
        for place, token in zip(rows.places[valid], rows.labels[valid], strict=True):
            self.before.add((self._before(rows, int(place)), int(token)))
        found = self.table[tokens, label]
        likeliest = found >= self.table[tokens].max(-1)
        return np.stack([np.where(valid, found, 0), valid & likeliest], -1)

    @staticmethod
    def _before(rows, place: int) -> tuple[int, ...]:
        """The ids that a place sees, in the order of their positions."""
        line, at = divmod(place, rows.tokens.shape[1])
        seen = rows.seen[line, at].nonzero()[0]
        assert rows.positions[line, seen].tolist() == list(range(len(seen)))
        return tuple(rows.tokens[line, seen].tolist())

    def generate(self, prompts, tokens, sampling, stop, on_tokens=None) -> list[list[int]]:
        answers = []
        for prompt in prompts:
            ids, last = [], prompt[-1]
            while len(ids) < tokens and (last := int(self.table[last].argmax())) not in stop:
                ids.append(last)
            answers.append(ids)
        return answers

    def of(self, ids) -> float:
        """Log-probability of all ids after the first."""
        return float(sum(self.table[one, two] for one, two in itertools.pairwise(ids)))


def scorer(stack: Any = None, context: int = 64, budget: int = 512, shares: bool = True):
    """A scorer over a stack of bigrams."""
    from coretrain.evaluation.scorer import Scorer

    config = SimpleNamespace(model=SimpleNamespace(context=context))
    return Scorer(stack or Bigrams(), config, byte_tokenizer(), budget, shares=shares)


def written(path: Path, rows: list[Any], settings: str = "") -> Path:
    """A task's file, with settings beside it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if settings:
        path.with_suffix(".toml").write_text(settings)
    return path


def task_of(folder: Path, rows: list[Any], **changed: Any):
    """A task of some rows."""
    from coretrain.evaluation.task import read_task

    return read_task(written(folder / "task.jsonl", rows), changed)


def choice(question: str = "q", choices: tuple[str, ...] = ("a", "b"), answer: Any = 0) -> Mapping[str, Any]:
    """A row of form choice."""
    return {"question": question, "choices": list(choices), "answer": answer}


def outcome_of(task: Any, stack: Any = None, context: int = 64, limit: int = 0):
    """What bigrams make of a task."""
    from coretrain.evaluation.evaluate import evaluate

    return evaluate(task, scorer(stack, context), byte_tokenizer(), context, limit)


@probe
def a_pair_is_cut_where_its_tokens_say(folder: Path) -> None:
    """With GPT-2's tokens: a blank belongs to what follows, and a border inside a token goes to its beginning."""
    from coretrain.evaluation.text import encoded_pair
    from coretrain.tokenizers.registry import named_tokenizer

    gpt2 = named_tokenizer("gpt2")

    def cut(context: str, continuation: str, begin: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
        pair = encoded_pair(gpt2, context, continuation, begin)
        return pair.context, pair.ids

    hello, world = tuple(gpt2.encode("Hello").tolist()), tuple(gpt2.encode(" world").tolist())
    assert len(world) == 1
    assert cut("Hello", " world") == cut("Hello ", "world") == (hello, world)
    assert cut("Hello", " world", True) == ((gpt2.eot, *hello), world)
    assert cut("Hello ", "big world") == (hello, tuple(gpt2.encode(" big world").tolist()))
    assert cut("", " world") == ((gpt2.eot,), world)
    whole = tuple(gpt2.encode("understanding").tolist())
    assert cut("underst", "anding")[1][-1:] == whole[-1:]  # one token or more is scored, whatever merges
    assert sum(map(len, cut("underst", "anding"))) in (len(whole), len(whole) + 1)
    assert cut("wor", "ld") == ((gpt2.eot,), tuple(gpt2.encode("world").tolist()))


@probe
def text_is_scored_once_in_windows(folder: Path) -> None:
    """Each id once; one id before a full piece, and as many as fit before the last."""
    from coretrain.evaluation.text import windows

    tokenizer, text = byte_tokenizer(), "abcdefghijk"
    ids = [tokenizer.eot, *text.encode()]
    found = [(list(one.context), list(one.ids)) for one in windows(tokenizer, text, 4)]
    assert found == [(ids[0:1], ids[1:5]), (ids[4:5], ids[5:9]), (ids[7:9], ids[9:12])]
    assert [list(one.ids) for one in windows(tokenizer, text, 11)] == [ids[1:]]


@probe
def scores_are_sums_of_the_continuation(folder: Path) -> None:
    """By hand, in any order and company, and in few shapes."""
    from coretrain.evaluation.requests import Continuation

    drawn = random.Random(1)
    asked = [
        Continuation(
            tuple(drawn.randrange(256) for _ in range(drawn.randrange(1, 50))),
            tuple(drawn.randrange(256) for _ in range(drawn.randrange(1, 14))),
        )
        for _ in range(200)
    ]
    for shares in (True, False):
        stack = Bigrams()
        found = scorer(stack, 640, shares=shares).score(asked)
        for one, told in zip(asked, found, strict=True):
            assert math.isclose(told.logprob, stack.of((one.context[-1], *one.ids)), abs_tol=1e-9)
            assert told.tokens == len(one.ids)
        assert stack.before == predicted([((*one.context, *one.ids), len(one.ids)) for one in asked])
        assert len(set(stack.shapes)) <= 8
        again = scorer(Bigrams(), 640, shares=shares).score(asked[::-1] + asked)
        assert [one.logprob for one in again] == [one.logprob for one in found[::-1] + found]
        assert sum(map(math.prod, stack.shapes)) < 2 * sum(len(one.context) + len(one.ids) for one in asked)


def predicted(rows: Any) -> set[tuple[tuple[int, ...], int]]:
    """Of rows of ids and how many of their last are scored: each of these, behind all that is before it."""
    return {(tuple(ids[:at]), ids[at]) for ids, scored in rows for at in range(len(ids) - scored, len(ids))}


@probe
def beginnings_are_computed_once(folder: Path) -> None:
    """Endings of one question see it and themselves; an ending may begin another, a border may lie in the question."""
    from coretrain.evaluation.requests import Continuation

    drawn = random.Random(2)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(drawn.randrange(256) for _ in range(count))

    description, asked = ids(16), []
    for _ in range(20):
        question, start = (*description, *ids(drawn.randrange(20, 34))), ids(2)
        endings = [start, (*start, *ids(3)), *(ids(drawn.randrange(1, 9)) for _ in range(3))]
        asked += [Continuation(question, ending) for ending in endings]
        asked.append(Continuation(question[:-1], (question[-1], *ids(3))))  # a border that fell into the question
        asked.append(Continuation(question[1:], endings[0]))  # cut off at its beginning
    asked += [Continuation(question, ids(8)) for _ in range(20)]  # more than one row has room for
    drawn.shuffle(asked)
    stack = Bigrams()
    found = scorer(stack, context=64, budget=128).score(asked)
    for one, told in zip(asked, found, strict=True):
        assert math.isclose(told.logprob, stack.of((one.context[-1], *one.ids)), abs_tol=1e-9)
        assert told.tokens == len(one.ids)
    assert stack.before == predicted([((*one.context, *one.ids), len(one.ids)) for one in asked])
    # 20 questions of 42 ids in the mean, twice (once without the first id), with 21 ids behind: 2100, and 300 of the
    # last one's endings; padded by an eighth, and some rows more. 160 rows of their own would have 7700
    assert sum(map(math.prod, stack.shapes)) < 3600
    assert max(shape[0] * shape[1] for shape in stack.shapes) <= 128


@probe
def what_is_too_long_loses_its_beginning(folder: Path) -> None:
    """The last ids are kept, as many as the context has room for, and what is scored of them is told."""
    from coretrain.evaluation.requests import Continuation

    stack = Bigrams()
    long = Continuation(tuple(range(40)), tuple(range(100, 130)))
    longer = Continuation((7,), tuple(range(90)))
    found = scorer(stack, context=32).score([long, longer])
    assert math.isclose(found[0].logprob, stack.of((39, *range(100, 130))), abs_tol=1e-9)
    assert found[0].tokens == 30
    assert math.isclose(found[1].logprob, stack.of(range(57, 90)), abs_tol=1e-9)
    assert found[1].tokens == 32


@probe
def greedy_means_every_id(folder: Path) -> None:
    """One id that isn't the likeliest is enough; none of the context's counts."""
    from coretrain.evaluation.requests import Continuation

    stack = Bigrams()
    best = [5]
    for _ in range(6):
        best.append(int(stack.table[best[-1]].argmax()))
    asked = [
        Continuation((9, best[0]), tuple(best[1:])),
        Continuation((best[0],), (*best[1:3], (best[3] + 1) % 256, *best[4:])),
        Continuation((best[0],), (*best[1:-1], (best[-1] + 1) % 256)),
    ]
    assert [one.greedy for one in scorer(stack).score(asked)] == [True, False, False]


@probe
def the_choice_is_the_likeliest_by_each_measure(folder: Path) -> None:
    """Sum, a character, a byte, a token and less the unconditional: a row where they choose otherwise."""
    from coretrain.evaluation.ask import answered
    from coretrain.evaluation.requests import Scored

    choices = ("a" * 4, "b" * 9, "é" * 6, "dd")
    task = task_of(folder, [choice(choices=choices, answer=2)] * 2, metric="acc_pmi")
    sums = (-8.0, -9.5, -6.2, -6.0)
    scored = [Scored(value, False, tokens) for value, tokens in zip(sums, (4, 3, 6, 2), strict=True)]
    empty = [Scored(value, False, 1) for value in (-30.0, -9.0, -7.0, -6.0)]
    found = answered(task, task.rows[0], scored + empty)
    # sums: dd; a character: é (-1.03; b -1.06); a byte: é (-.52); a token: é (-1.03); less the empty one: a
    assert found.hits == {"acc": 0, "acc_norm": 1, "acc_bytes": 1, "acc_mean": 1, "acc_pmi": 0}
    assert found.chosen == 0
    task = task_of(folder, [choice(choices=choices, answer=3)] * 2)
    scored = [Scored(value, False, 1) for value in (-8.0, -9.5, -6.5, -6.0)]
    found = answered(task, task.rows[0], scored)
    assert found.hits == {"acc": 1, "acc_norm": 0, "acc_bytes": 0, "acc_mean": 1}
    assert found.chosen == 1  # a character: b (-1.056; é -1.083)
    task = task_of(folder, [choice(choices=choices, answer=2)] * 2)
    assert answered(task, task.rows[0], scored).hits == {"acc": 0, "acc_norm": 0, "acc_bytes": 1, "acc_mean": 0}


@probe
def worked_rows_are_others(folder: Path) -> None:
    """Never the question itself; the same in every run; those of nanochat's evaluation where the seed is 1234."""
    from coretrain.evaluation.ask import examples_of, prompt_of

    task = task_of(folder, [choice(f"q{n}", ("a", "b"), n % 2) for n in range(6)], few_shot=5)
    for place, row in enumerate(task.rows):
        found = examples_of(task, row)
        assert row not in found
        assert len(set(found)) == 5
        free = [other for other in range(6) if other != place]
        assert [one.number - 1 for one in found] == random.Random(1234 + place).sample(free, 5)
    text = prompt_of(task, task.rows[0])
    assert text.count("\n\n") == 5
    assert "q1 b\n\n" in text
    assert "q2 a\n\n" in text


@probe
def bytes_are_those_of_the_text(folder: Path) -> None:
    """Bits per byte of a text whose every byte costs one bit or two."""
    from coretrain.evaluation.evaluate import BITS
    from coretrain.evaluation.task import read_task

    stack = Bigrams()
    stack.table = np.full((257, 257), -2 * math.log(2))
    stack.table[:, 120] = -math.log(2)
    (folder / "t.txt").write_text("xxyé" * 20)
    found = outcome_of(read_task(folder / "t.txt", {}), stack, 32)
    assert math.isclose(found.figures[BITS].value, (2 * 1 + 3 * 2) / 5, rel_tol=1e-9)
    assert found.weights.sum() == 100


@probe
def a_schema_scores_what_follows(folder: Path) -> None:
    """The contexts differ, and the same text after them is scored."""
    stack = Bigrams()
    rows = [{"contexts": ["uvw", "xyz"], "continuation": "end", "answer": place} for place in (0, 1)]
    found = outcome_of(task_of(folder, rows), stack)
    expected = [stack.of(list(f"{last} end".encode())) for last in "wz"]
    assert np.allclose(found.rows[0].logprobs, expected, atol=1e-9)
    best = int(np.argmax(expected))
    assert [one.hits["acc"] for one in found.rows] == [float(best == 0), float(best == 1)]


@probe
def generated_answers_end_where_they_should(folder: Path) -> None:
    """Before a text of `until`; right but for capitals, points and blanks."""
    from coretrain.evaluation.ask import judged
    from coretrain.evaluation.scorer import ended
    from coretrain.evaluation.task import Row

    assert ended("one\ntwo. three", (".", "\n")) == "one"
    assert ended("one", ("x",)) == "one"
    row = Row(1, "q", answers=("The  Cat.", "dog"))
    assert [judged(row, said).hits["exact"] for said in ("the cat", " Dog!", "cat", "")] == [1, 1, 0, 0]


@probe
def answers_are_not_made_beyond_their_ends(folder: Path) -> None:
    """The text of a whole answer up to its end; each row by its own; none is made much longer than it is used."""
    from coretrain.evaluation.requests import Generation
    from coretrain.evaluation.scorer import PIECE, ended

    class Counting(Bigrams):
        made = 0

        def generate(self, prompts, tokens, sampling, stop, on_tokens=None):
            found = super().generate(prompts, tokens, sampling, stop)
            self.made += sum(map(len, found))
            return found

    stack, tokenizer = Counting(), byte_tokenizer()
    stack.table[:, :] = -20.0
    stack.table[np.arange(127), np.arange(127) + 1] = 0.0  # each id is followed by the next, and 126 by the end
    stack.table[126, 256] = 1.0
    asked = [
        Generation((50,), ("E",), 200),  # from "3" on
        Generation((50, 51), ("EF", "x"), 200),
        Generation((60, 33), ("never",), 200),  # ended by the id that ends a document, after 93
        Generation((40,), (), 200),
        Generation((41,), ("5", "R"), 90),
        Generation((41,), ("never",), 2 * PIECE),
    ]
    wholes = [tokenizer.decode(Bigrams.generate(stack, [one.prompt], one.tokens, None, {256})[0]) for one in asked]
    said = scorer(stack, context=256).generate(asked)
    assert said == [ended(whole, one.until) for whole, one in zip(wholes, asked, strict=True)]
    assert [len(one) for one in said] == [18, 17, 93, 86, 11, 32]
    assert stack.made == 2 * (PIECE + 2 * PIECE) + 93 + 86 + PIECE + 32  # of 447 without an end
