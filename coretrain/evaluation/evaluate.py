"""A model's answers to tasks: figures with their intervals, and each row's own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.evaluation.ask import METRICS, Answered, Question, answered, asked_of, generation_of, judged, metric_of
from coretrain.evaluation.intervals import Estimate, Floats, ratio, share
from coretrain.evaluation.requests import Model
from coretrain.evaluation.task import Task
from coretrain.evaluation.text import windows
from coretrain.tokenizers.tokenizer import Tokenizer

BITS = "bits_per_byte"


@dataclass(frozen=True)
class Outcome:
    """What a model made of a task."""

    task: Task
    metric: str
    """What it is judged by; one of `figures`."""
    figures: dict[str, Estimate]
    rows: Sequence[Answered] = ()
    weights: Floats | None = None
    """Of running text: bytes of each piece, whose nats are in `nats`."""
    nats: Floats | None = None

    @property
    def value(self) -> Estimate:
        """The figure that the task is judged by."""
        return self.figures[self.metric]

    @property
    def centred(self) -> float:
        """0 of guessing, 1 of all right (DCLM's centred accuracy)."""
        return (self.value.value - self.task.chance) / (1 - self.task.chance)

    @property
    def key(self) -> str:
        """Of what was asked: two runs are compared on equal keys alone."""
        digest = hashlib.sha256(repr((self.task.form, self.task.settings, self.task.rows, self.task.text)).encode())
        return digest.hexdigest()[:16]


def evaluate(
    task: Task,
    model: Model,
    tokenizer: Tokenizer,
    context: int,
    limit: int = 0,
    say: Callable[[str], None] = lambda _: None,
    question: Question | None = None,
) -> Outcome:
    """A model's outcome on the first `limit` rows of a task (0: all of them).

    `context` is the model's; `question` puts what is generated in a chat template.
    """
    if task.form == "text":
        return _text(task, model, tokenizer, context)
    metric = metric_of(task)
    if metric not in METRICS[task.form]:
        raise UserError(
            "evaluation/metric-of-another-form",
            f"task {task.name} is judged by {metric}, which its form {task.form} hasn't got: choose of "
            f"{', '.join(METRICS[task.form])}",
        )
    if metric == "acc_pmi" and task.settings.border == "ids":
        raise UserError(
            "evaluation/pmi-with-border-ids",
            f"task {task.name}: acc_pmi needs border = text, since it asks an empty question too: set it",
        )
    rows = task.rows[: limit or None]
    say(f"{task.name}: {len(rows):,} rows")
    if task.form == "generation":
        said = model.generate([generation_of(task, row, tokenizer, question) for row in rows])
        found = [judged(row, text) for row, text in zip(rows, said, strict=True)]
    else:
        asked = [asked_of(task, row, tokenizer) for row in rows]
        scored = iter(model.score([one for some in asked for one in some]))
        found = [answered(task, row, [next(scored) for _ in some]) for row, some in zip(rows, asked, strict=True)]
    figures = {name: share(hits_of(found, name)) for name in found[0].hits}
    return Outcome(replace(task, rows=rows), metric, figures, found)


def hits_of(rows: Sequence[Answered], metric: str) -> Floats:
    """1 where a row was right, float64 [rows]."""
    return np.array([row.hits[metric] for row in rows])


def _text(task: Task, model: Model, tokenizer: Tokenizer, context: int) -> Outcome:
    """Bits per byte of running text, in pieces of a context."""
    pieces = list(windows(tokenizer, task.text, context))
    nats = np.array([-one.logprob for one in model.score(pieces)])
    sizes = np.array([sum(len(tokenizer.token_bytes(token)) for token in piece.ids) for piece in pieces], np.float64)
    figure = ratio(nats / math.log(2), sizes)
    perplexity = math.exp(min(700.0, float(nats.sum()) / sum(len(piece.ids) for piece in pieces)))
    figures = {BITS: figure, "token_perplexity": Estimate(perplexity, perplexity, perplexity)}
    return Outcome(task, BITS, figures, weights=sizes, nats=nats)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """What a file keeps of an outcome."""
    figures = {
        name: {"value": one.value, "low": one.low, "high": one.high} if math.isfinite(one.low) else {"value": one.value}
        for name, one in outcome.figures.items()
    }
    told = {
        "form": outcome.task.form,
        "rows": len(outcome.task.rows),
        "metric": outcome.metric,
        "figures": figures,
        "settings": outcome.task.settings.model_dump(mode="json"),
        "key": outcome.key,
    }
    return told | ({} if outcome.task.form == "text" else {"centred": outcome.centred}) | dict(outcome.task.facts)


def samples(outcome: Outcome) -> list[dict[str, Any]]:
    """One object a row: what was asked, what is right, what the model made of it."""
    return [
        {
            "task": outcome.task.name,
            "row": row.number,
            "question": row.question,
            "choices": list(row.choices),
            "right": row.right if row.choices else list(row.answers),
            "chosen": found.chosen if found.said is None else found.said,
            "logprobs": list(found.logprobs),
            "hits": dict(found.hits),
        }
        for row, found in zip(outcome.task.rows, outcome.rows, strict=True)
    ]
