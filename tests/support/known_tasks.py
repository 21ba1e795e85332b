"""What is known of tasks: a planted bug must break one of these facts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.rewarding import Facts, task

FACTS = fact = Facts()


@fact
def sorting_by_hand(folder: Path) -> None:
    """Prompts of six digits, answered by them in order; a wrong answer has two of them swapped."""
    sort = task("sort?rows=300")
    for index in range(sort.rows):
        row = sort.row("prompts", index)
        digits, separator = row["prompt"][:-1], row["prompt"][-1]
        assert (len(digits), separator) == (6, ">")
        assert row["answer"] == "".join(sorted(digits))
        assert list(row["answer"]) == sorted(row["answer"])
        wrong = sort.row("pairs", index)["rejected"]
        assert sum(a != b for a, b in zip(wrong, row["answer"], strict=True)) == 2
        assert sorted(wrong) == sorted(digits)
    digits = "".join(sort.row("prompts", index)["prompt"][:-1] for index in range(sort.rows))
    assert set(digits) == set("0123456789")
    swapped = {
        tuple(n for n in range(6) if row["chosen"][n] != row["rejected"][n])
        for row in (sort.row("pairs", index) for index in range(sort.rows))
    }
    assert len(swapped) == 15  # all pairs of six places
    # 1,800 digits: 180 of each, give or take 13; 5 times that is 65
    assert all(abs(digits.count(one) - 180) < 65 for one in "0123456789")


@fact
def strings_turned_round(folder: Path) -> None:
    """The other tasks of strings, by Python's own words for them."""
    for word, right in (("copy", lambda text: text), ("reverse?length=4", lambda text: text[::-1])):
        row = task(word).row("chat", 5)
        assert row == {"prompt": row["prompt"], "completion": right(row["prompt"][:-1])}


@fact
def a_share_of_worked_answers_is_wrong(folder: Path) -> None:
    """65% of sort's, for supervised training and as labels alike; the same rows; none where that is asked for."""
    sort = task("sort?rows=2000")
    rows = [sort.row("chat", index) for index in range(sort.rows)]
    wrong = [row["completion"] != "".join(sorted(row["prompt"][:-1])) for row in rows]
    assert abs(np.mean(wrong) - 0.65) < 0.055  # 2,000 draws: 0.011 is one standard deviation
    labels = [sort.row("labels", index) for index in range(sort.rows)]
    assert [not one["label"] for one in labels] == wrong
    assert [one["completion"] for one in labels] == [row["completion"] for row in rows]
    right = task("sort?rows=200&wrong=0")
    assert all(right.score(row["completion"], right.prompt(n)[1]) == 1.0 for n, row in _rows(right, "chat"))
    never = task("sort?rows=200&wrong=1")
    assert all(never.score(row["completion"], never.prompt(n)[1]) == 0.0 for n, row in _rows(never, "chat"))


def _rows(one: Any, form: str) -> Any:
    return enumerate(row for _, row in one.generated(form))


@fact
def rows_depend_on_seed_and_number_alone(folder: Path) -> None:
    """Not on how many there are, in which order they are asked for, or which answers are wrong."""
    many, few = task("sort?rows=40"), task("sort?rows=4&wrong=0.1")
    assert [many.prompt(index) for index in (3, 2, 1, 0)] == [few.prompt(index) for index in (3, 2, 1, 0)]
    assert len({many.prompt(index)[0] for index in range(40)}) == 40
    other = task("sort?rows=40&seed=1")
    assert not {other.prompt(index)[0] for index in range(40)} & {many.prompt(index)[0] for index in range(40)}
    # what other machines and versions must give too: made once, here
    assert [row["prompt"] for _, row in task("sort?rows=3").generated("prompts")] == ["626235>", "350679>", "395499>"]


@fact
def rows_are_the_same_everywhere(folder: Path) -> None:
    """On any machine and in any version: hashes of rows in all forms, and numbers of a stream, made once, here."""
    from coretrain.base.files import short_hash
    from coretrain.tasks.draw import Draw

    forms = ("chat", "pairs", "labels", "prompts")
    made = {
        word: short_hash([task(word).row(form, n) for form in forms for n in range(40)])
        for word in ("sort", "copy?length=20&wrong=0.5", "reverse?seed=7", "sums?wrong=0.5")
    }
    assert made == {
        "sort": "c0628ab10755fe24ed3dcae4b3929778",
        "copy?length=20&wrong=0.5": "48ef9ee4ee83383421685355e0402ad2",
        "reverse?seed=7": "291ee6b742f6001176686d9e85178056",
        "sums?wrong=0.5": "114cbbf054ddaa56faeaadedc1b54f12",
    }
    draw = Draw("a", 1)
    assert [draw.below(1000) for _ in range(10)] == [816, 699, 110, 715, 244, 644, 878, 889, 40, 669]
    assert draw.fraction() == 0.3709753301712334
    numbers = [draw.below(2**60) for _ in range(100)]
    assert len(set(numbers)) == 100


@fact
def wrong_sums_are_of_both_kinds(folder: Path) -> None:
    """Off by 1 to 9 and never below 0, or right and in a sentence; all numbers up to the largest are added."""
    sums, said, added = task("sums?most=6"), list[tuple[str, int]](), set[str]()
    for index in range(400):
        (message,), fields = sums.prompt(index)
        added |= set(re.findall("[0-9]+", message["content"]))
        said.append((sums.wrong_answer(index, fields), int(fields["answer"])))
    assert added == set("0123456")
    sentences = [(one, right) for one, right in said if not one.isdigit()]
    assert all(one == f"The answer is {right}." for one, right in sentences)
    assert 150 < len(sentences) < 250  # half of 400, give or take five times 10
    off = [int(one) - right for one, right in said if one.isdigit()]
    assert {abs(one) for one in off} == set(range(1, 10))
    assert min(off) < 0
    assert all(one.isascii() and int(one) >= 0 for one, _ in said if one.isdigit())


@fact
def the_right_answer_is_worth_1_and_wrong_ones_less(folder: Path) -> None:
    """Of every task; and an answer that was cut off is no right one."""
    for word in ("sort", "copy", "reverse", "sums?most=99", "sums"):
        one = task(word)
        for index in range(60):
            _, fields = one.prompt(index)
            assert one.score(fields["answer"], fields) == 1.0
            assert one.score(fields["answer"], fields, ended=False) < 1.0
            assert one.score(one.wrong_answer(index, fields), fields) < 1.0
            assert one.score("", fields) < 0.5


@fact
def sums_by_hand(folder: Path) -> None:
    """Half a point for a number alone, half for the right one."""
    sums, fields = task("sums"), {"answer": "7"}
    for completion, form, correct in (
        ("7", 0.5, 0.5), (" 7\n", 0.5, 0.5), ("8", 0.5, 0.0), ("3 + 4 = 7", 0.0, 0.5), ("7 = 3 + 4", 0.0, 0.0),
        ("seven", 0.0, 0.0), ("", 0.0, 0.0), ("07", 0.5, 0.5), ("17", 0.5, 0.0), ("7.", 0.0, 0.5), ("\u0667", 0.0, 0.0),
    ):  # fmt: skip
        assert sums.parts(completion, fields) == {"format": form, "correct": correct}, completion
    assert sums.parts("7", fields, ended=False) == {"format": 0.0, "correct": 0.5}
    for index in range(100):
        (message,), found = sums.prompt(index)
        words = re.fullmatch(r"What is (\d+) plus (\d+)\? Answer with the number only\.", message["content"])
        assert words
        a, b = map(int, words.groups())
        assert (message["role"], found["answer"]) == ("user", str(a + b))
        assert max(a, b) <= 9
