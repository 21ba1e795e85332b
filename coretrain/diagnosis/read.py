"""A run's verdict from its journal and its data."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coretrain.config.run import RunConfig
from coretrain.data.splits import Data, Part
from coretrain.diagnosis.curves import Row, read_curves
from coretrain.diagnosis.verdict import Verdict, diagnose

LOOKED_AT = 2000
"""Rows of a part."""


def updates_of_an_epoch(config: RunConfig, data: Data) -> float:
    """Updates after which every training row was read once; in a mixture, those of the part that is read most often."""
    rows, read = config.train.batch_size / sum(data.weights), [part for part in data.parts if part.weight]
    return min(part.train.windows(config.row_tokens) / (rows * part.weight) for part in read)


@dataclass(frozen=True)
class Known:
    """What a run's data says beside its journal."""

    epoch: float
    """Updates after which every training row was read once; in a mixture, those of the part read most often."""
    frequencies: float
    """Entropy of the frequencies of the tokens in some of the training rows, nats."""


def known_of(config: RunConfig, data: Data) -> Known:
    """What `verdict_of` wants to know of a run's data; up to `LOOKED_AT` rows of each part are read."""
    # a part of weight 0 waits for a later stage of the mixture
    shares = [part.weight / sum(data.weights) * _frequencies(part, config) for part in data.parts if part.weight]
    share = np.sum(shares, axis=0)
    return Known(updates_of_an_epoch(config, data), float(-(share[share > 0] * np.log(share[share > 0])).sum()))


def _frequencies(part: Part, config: RunConfig) -> NDArray[np.float64]:
    rows = part.train.windows(config.row_tokens)
    read = [part.train.read(at, config.row_tokens) for at in np.linspace(0, rows - 1, min(rows, LOOKED_AT)).astype(int)]
    labels = np.concatenate([row.labels[row.labels >= 0] for row in read])
    counts = np.bincount(labels, minlength=config.model.vocabulary)
    return np.asarray(counts / max(1, counts.sum()), np.float64)


def verdict_of(
    config: RunConfig,
    updates: Sequence[Row],
    evaluations: Sequence[Row],
    events: Sequence[Row],
    known: Known | None = None,
) -> Verdict | None:
    """What the rows of metrics.jsonl say of a run; None without an update, and of a run whose loss isn't that of text.

    `known` is what its data says, where that is at hand.
    """
    if not updates or config.train.objective != "cross_entropy":
        return None
    one_source = len(config.data.mixture) < 2 and config.data.replay is None
    epoch, frequencies = (known.epoch, known.frequencies) if known else (None, None)
    curves = read_curves(updates, evaluations, events, config.train.updates, epoch, one_source, frequencies)
    return diagnose(curves, config)


def in_words(verdict: Verdict) -> str:
    """Lines for a terminal of 80 columns."""
    blocks = [("why", verdict.reasons), ("next", verdict.next)]
    lines = list[str]()
    for label, said in blocks:
        for number, line in enumerate(said):
            lines += in_columns(f"  {label if not number else '':<6}", line)
    return "\n".join(lines)


def in_columns(label: str, text: str, width: int = 80) -> list[str]:
    """A label, and a text beside it in lines of so many columns; options are not cut at their hyphens."""
    return textwrap.wrap(text, width, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False)
