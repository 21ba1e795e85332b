"""From a task's rows to what a model is asked, worked rows before each, and from its scores to hits."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coretrain.evaluation.intervals import Floats
from coretrain.evaluation.requests import Continuation, Generation, Scored
from coretrain.evaluation.task import Row, Settings, Task
from coretrain.evaluation.text import differing, encoded_pair
from coretrain.tokenizers.tokenizer import Tokenizer

METRICS = {
    "choice": ("acc", "acc_norm", "acc_bytes", "acc_mean", "acc_pmi"),
    "schema": ("acc", "acc_mean"),
    "continuation": ("acc",),
    "generation": ("exact",),
}
"""What each form is told in. The choice is that of the largest log-probability: acc the sum, acc_norm a character of
the answer, acc_bytes a byte (both without the delimiter), acc_mean a token, acc_pmi less that after an empty
question."""


@dataclass(frozen=True)
class Answered:
    """What a model made of a row."""

    hits: Mapping[str, float]
    """By metric: 1 where it was right."""
    chosen: int | None = None
    """The choice of the task's own metric."""
    said: str | None = None
    """A generated answer."""
    logprobs: tuple[float, ...] = ()
    """Of each choice, the sum in nats."""


def metric_of(task: Task) -> str:
    """What a task is judged by."""
    if task.settings.metric is not None:
        return task.settings.metric
    return {"choice": "acc_norm", "generation": "exact"}.get(task.form, "acc")


def prompt_of(task: Task, row: Row) -> str:
    """What stands before a row's question: the description and the worked rows."""
    s, worked = task.settings, examples_of(task, row)
    return s.description + "".join(_worked(s, task.form, one) + s.between for one in worked)


def examples_of(task: Task, row: Row) -> Sequence[Row]:
    """The worked rows of a question: drawn by seed and row, never the row itself.

    Row i of the task's own gets those that nanochat's evaluation of CORE gives it where the seed is 1234.
    """
    count = task.settings.few_shot
    if not count:
        return ()
    drawn, own = random.Random(task.settings.seed + row.number - 1), task.examples or task.rows
    free = [place for place, one in enumerate(own) if task.examples or one.number != row.number]
    return [own[place] for place in drawn.sample(free, count)]


def _worked(s: Settings, form: str, row: Row) -> str:
    if form == "schema":
        return row.choices[row.right] + s.delimiter + row.answers[0]
    return row.question + s.delimiter + row.answers[0]


def pairs_of(task: Task, row: Row) -> list[tuple[str, str]]:
    """(context, continuation) of each choice of a row; of a continuation the one that there is."""
    s, before = task.settings, prompt_of(task, row)
    if task.form == "schema":
        return [(before + choice, s.delimiter + row.answers[0]) for choice in row.choices]
    options = row.choices or row.answers
    return [(before + row.question, s.delimiter + choice) for choice in options]


def asked_of(task: Task, row: Row, tokenizer: Tokenizer) -> list[Continuation]:
    """What is scored of a row: each choice, and where the task is judged by acc_pmi each after an empty question."""
    s, pairs = task.settings, pairs_of(task, row)
    if s.border == "ids" and row.choices:
        return differing(tokenizer, [context + answer for context, answer in pairs], s.begin, task.form == "schema")
    asked = [encoded_pair(tokenizer, *pair, s.begin) for pair in pairs]
    if task.form == "choice" and metric_of(task) == "acc_pmi":
        asked += [encoded_pair(tokenizer, s.unconditional, s.delimiter + choice, s.begin) for choice in row.choices]
    return asked


Question = Callable[[str], Sequence[int]]
"""The ids that ask a question of a model that was trained on conversations."""


def generation_of(task: Task, row: Row, tokenizer: Tokenizer, question: Question | None = None) -> Generation:
    """What is generated of a row; `question` puts it in a chat template."""
    if question is not None:
        return Generation(
            tuple(question(prompt_of(task, row) + row.question)), task.settings.until, task.settings.tokens
        )
    prompt = prompt_of(task, row) + row.question + task.settings.delimiter.rstrip()
    ids = tuple(int(token) for token in tokenizer.encode(prompt)) or (tokenizer.eot,)
    return Generation(ids, task.settings.until, task.settings.tokens)


def answered(task: Task, row: Row, scored: Sequence[Scored]) -> Answered:
    """A row's hits by its scores, which are in the order of `asked_of`."""
    if task.form == "continuation":
        return Answered({"acc": float(scored[0].greedy)}, logprobs=(scored[0].logprob,))
    count = len(row.choices)
    sums = np.array([one.logprob for one in scored[:count]])
    by: dict[str, Floats] = {"acc": sums, "acc_mean": sums / [max(1, one.tokens) for one in scored[:count]]}
    if task.form == "choice":
        by["acc_norm"] = sums / [max(1, len(choice)) for choice in row.choices]
        by["acc_bytes"] = sums / [max(1, len(choice.encode(errors="replace"))) for choice in row.choices]
    if len(scored) > count:
        by["acc_pmi"] = sums - [one.logprob for one in scored[count:]]
    best = {metric: int(values.argmax()) for metric, values in by.items()}
    hits = {metric: float(best[metric] == row.right) for metric in METRICS[task.form] if metric in best}
    return Answered(hits, best[metric_of(task)], logprobs=tuple(sums.tolist()))


def judged(row: Row, said: str) -> Answered:
    """A generated answer: right where it is one of the row's, but for capitals, punctuation and blanks."""
    return Answered({"exact": float(any(_plain(said) == _plain(right) for right in row.answers))}, said=said)


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())
