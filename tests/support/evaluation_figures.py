"""What the figures of an evaluation must come to: intervals, differences, CORE; beside `evaluation_probes`."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.evaluation_probes import (
    PROBES,
    Bigrams,
    byte_tokenizer,
    choice,
    outcome_of,
    predicted,
    probe,
    task_of,
    written,
)

__all__ = ["PROBES"]


@probe
def intervals_hold_what_they_promise(folder: Path) -> None:
    """Wilson's known bounds; a paired difference is narrower than its parts, and says which way it goes."""
    from coretrain.evaluation.intervals import difference, ratio, share

    ten = np.array([1.0] * 8 + [0.0] * 2)
    found = share(ten)
    assert np.allclose((found.value, found.low, found.high), (0.8, 0.4901625, 0.9433178), atol=1e-6)
    drawn = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        sizes, nats = drawn.integers(5, 50, 60).astype(float), drawn.gamma(2.0, 1.0, 60)
        one = ratio(nats * sizes, sizes, seed)
        covered += one.low <= 2.0 <= one.high
    assert 176 <= covered <= 199  # of 200 at 95%: 4 standard errors; a bootstrap of 60 rows is a little too narrow
    before = (drawn.random(300) < 0.5).astype(float)
    after = np.maximum(before, drawn.random(300) < 0.1)
    gain = difference(after, before)
    assert gain.low > 0
    assert gain.value == (after - before).mean()
    assert gain.high - gain.low < share(after).high - share(after).low


@probe
def a_gain_is_told_from_forgetting(folder: Path) -> None:
    """Also where less is better; runs that were asked otherwise aren't compared."""
    import pytest

    from coretrain.base.errors import UserError
    from coretrain.evaluation.compare import compare, forgetting
    from coretrain.evaluation.task import read_task

    good, bad = Bigrams(), Bigrams()
    (folder / "t.txt").write_text("abcabcabc" * 40)
    for one, two in ("ab", "bc", "ca"):
        good.table[ord(one), ord(two)] = -0.01
        bad.table[ord(one), ord(two)] = -4.0
    text = read_task(folder / "t.txt", {})
    found = compare(outcome_of(text, good), outcome_of(text, bad))
    assert found.gain.low > 0
    assert found.verdict == "gained"
    back = compare(outcome_of(text, bad), outcome_of(text, good))
    assert math.isclose(back.gain.value, -found.gain.value)
    assert forgetting([back]) == "forgotten: t"
    rows = [choice(f"q{n}", ("a", "b"), 0) for n in range(4)]
    asked = [outcome_of(task_of(folder, rows, few_shot=n), good) for n in (0, 1)]
    with pytest.raises(UserError, match="wasn't asked alike"):
        compare(*asked)
    with pytest.raises(UserError, match="wasn't asked alike"):
        compare(asked[0], outcome_of(task_of(folder, rows[:3]), good))


@probe
def core_is_scored_as_nanochat_scores_it(folder: Path) -> None:
    """A bundle in miniature, beside the same computed from its rows by hand."""
    from coretrain.evaluation.core import core, core_tasks

    stack, tokenizer = Bigrams(sharpness=1.0), byte_tokenizer()
    drawn = random.Random(5)

    def word() -> str:
        return "".join(drawn.choice("abcdefgh") for _ in range(drawn.randrange(3, 7)))

    choices = [{"query": word(), "choices": [word() for _ in range(3)], "gold": n % 3} for n in range(12)]
    schema = [{"context_options": [word(), word()], "continuation": word(), "gold": n % 2} for n in range(10)]
    ends = [{"context": word() + " ", "continuation": word()[:1]} for n in range(9)]
    (folder / "eval_data").mkdir()
    for name, rows in (("choices", choices), ("schema", schema), ("ends", ends)):
        written(folder / "eval_data" / f"{name}.jsonl", rows)
    listed = [("choices", "multiple_choice", 2), ("schema", "schema", 1), ("ends", "language_modeling", 0)]
    (folder / "core.yaml").write_text(
        "icl_tasks:\n"
        + "".join(
            f"-\n  label: {name}\n  dataset_uri: {name}.jsonl\n  num_fewshot: [{shots}]\n  icl_task_type: {kind}\n"
            for name, kind, shots in listed
        )
    )
    (folder / "eval_meta_data.csv").write_text(
        "Eval Task,Task Category,Random baseline\nchoices,x,33.333\nschema,x,50\nends,x,0\n"
    )
    found = [outcome_of(task, stack, 256) for task in core_tasks(folder)]
    expected_rows: set[tuple[tuple[int, ...], int]] = set()

    def ids(text: str) -> list[int]:
        return [tokenizer.eot, *text.encode()]

    def mean(row: list[int], start: int) -> float:
        expected_rows.add((tuple(row), len(row) - start))
        return -stack.of(row[start - 1 :]) / (len(row) - start)

    def worked(rows: list[Any], place: int, shots: int) -> list[Any]:
        free = [other for other in range(len(rows)) if other != place]
        return [rows[other] for other in random.Random(1234 + place).sample(free, shots)]

    def accuracy(name: str, rows: list[Any], shots: int) -> float:
        rows = list(rows)
        random.Random(1337).shuffle(rows)
        right = 0
        for place, row in enumerate(rows):
            before = ""
            for one in worked(rows, place, shots):
                said = (
                    f"{one['query']} {one['choices'][one['gold']]}"
                    if name == "choices"
                    else f"{one['context_options'][one['gold']]} {one['continuation']}"
                )
                before += said + "\n\n"
            if name == "choices":
                texts = [ids(f"{before}{row['query']} {one}") for one in row["choices"]]
                start = next(n for n, column in enumerate(zip(*texts, strict=False)) if len(set(column)) > 1)
                losses = [mean(text, start) for text in texts]
            elif name == "schema":
                texts = [ids(f"{before}{one} {row['continuation']}") for one in row["context_options"]]
                back = zip(*(text[::-1] for text in texts), strict=False)
                shared = next(n for n, column in enumerate(back) if len(set(column)) > 1)
                losses = [mean(text, len(text) - shared) for text in texts]
            else:
                text, start = ids(f"{row['context'].strip()} {row['continuation']}"), len(ids(row["context"].strip()))
                mean(text, start)
                right += all(stack.table[text[at - 1]].argmax() == text[at] for at in range(start, len(text)))
                continue
            right += losses.index(min(losses)) == row["gold"]
        return right / len(rows)

    expected = []
    for (name, rows), (_, _, shots), one, chance in zip(
        (("choices", choices), ("schema", schema), ("ends", ends)), listed, found, (0.33333, 0.5, 0.0), strict=True
    ):
        assert math.isclose(one.value.value, accuracy(name, rows, shots)), name
        expected.append((one.value.value - chance) / (1 - chance))
    assert math.isclose(core(found), sum(expected) / 3)
    assert stack.before == predicted(expected_rows)
