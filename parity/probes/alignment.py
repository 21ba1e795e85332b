"""Batches of alignment with random numbers in their planes: pairs, labelled answers and sampled answers, in rows that
are packed unevenly, with slots and tokens that don't count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from coretrain.alignment.planes import PLANES, TOKENS
from coretrain.config.objectives import PAIRS, POLICY, SCORED
from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch, stacked

SEQUENCES = ((7, 5, 4, 9), (6, 11), (3, 8, 5, 5), (10, 9))
"""Tokens of the sequences of each row; what is left of a row is padding."""
ANSWERS = ((5, 9), (3, 14), (11, 2), (8, 7))
"""Tokens of prompt and answer of each row of sampled answers."""


def aligned_fields(objective: str) -> dict[str, Any]:
    """Fields of a config for an objective's batches, as they are made here."""
    data = {"kto": "labels"} | dict.fromkeys(POLICY, "prompts")
    fields = {"train.objective": objective, "data.format": data.get(objective, "pairs")}
    fields |= {"model.context": "28", "train.batch_size": "4"}
    fields |= {"model.residual_dropout": "0", "model.embedding_dropout": "0"}
    if objective in POLICY:
        fields |= {"align.reward": "module:function", "align.tokens": "16"}
    if objective == "grpo":
        fields["align.group"] = "2"
    return fields | {"model.score_head": str(objective in SCORED).lower()}


def alignment_batch(config: RunConfig, seed: int = 0) -> Batch:
    """A batch of 4 rows for the run's objective, whose shares sum to 1."""
    objective, rng = config.train.objective, np.random.default_rng(seed)
    batch = sampled_batch(config, rng) if objective in POLICY else packed_batch(config, rng)
    needed, optional = PLANES[objective]
    made = (pair_planes if objective in PAIRS else label_planes if objective == "kto" else policy_planes)(batch, rng)
    wide = config.precision.compute == "float64"
    return batch.with_planes(wide, **{name: made[name] for name in (*needed, *optional)})


def packed_batch(config: RunConfig, rng: np.random.Generator) -> Batch:
    """Rows of whole sequences: of each the first two tokens are the prompt, and the last one has no label."""
    shape = len(SEQUENCES), config.row_tokens
    tokens = rng.integers(0, config.model.vocabulary, shape, dtype=np.int32)
    labels, segments = np.full((2, *shape), IGNORED, np.int32)
    positions, segments[:] = np.zeros(shape, np.int32), -1
    for row, lengths in enumerate(SEQUENCES):
        at = 0
        for number, length in enumerate(lengths):
            labels[row, at + 1 : at + length - 1] = tokens[row, at + 2 : at + length]
            segments[row, at : at + length], positions[row, at : at + length] = number, np.arange(length)
            at += length
        positions[row, at:] = np.arange(shape[1] - at)
    return Batch(tokens, labels, positions, None, segments)


def sampled_batch(config: RunConfig, rng: np.random.Generator) -> Batch:
    """Rows of a prompt and an answer, whose last token is no input."""
    shape = len(ANSWERS), config.row_tokens
    tokens = rng.integers(0, config.model.vocabulary, shape, dtype=np.int32)
    labels = np.full(shape, IGNORED, np.int32)
    for row, (prompt, answer) in enumerate(ANSWERS):
        labels[row, prompt - 1 : prompt + answer - 1] = rng.integers(0, config.model.vocabulary, answer)
        tokens[row, prompt : prompt + answer - 1] = labels[row, prompt - 1 : prompt + answer - 2]
        tokens[row, prompt + answer - 1 :] = 0
    return Batch(tokens, labels)


def about(batch: Batch, rng: np.random.Generator, mean: float, spread: float) -> np.ndarray:
    """Random numbers [B, T], no number at all where there is no label."""
    return np.where(batch.labels != IGNORED, mean + spread * rng.standard_normal(batch.labels.shape), np.nan)


def pair_planes(batch: Batch, rng: np.random.Generator) -> dict[str, Any]:
    """Of pairs, at most 3 in a row; the slots without one hold no numbers."""
    share = np.zeros((len(batch), 3))
    for row, lengths in enumerate(SEQUENCES):
        share[row, : len(lengths) // 2] = 1 / 6
    return {
        "pair_share": share,
        "margin": np.where(share > 0, rng.uniform(0, 1, share.shape), np.nan),
        "reference": about(batch, rng, -5.5, 0.5),
    }


def label_planes(batch: Batch, rng: np.random.Generator) -> dict[str, Any]:
    """Of labelled answers, at most 5 in a row."""
    there = np.array([[number < len(lengths) for number in range(5)] for lengths in SEQUENCES])
    desirable = np.where(there, np.arange(there.size).reshape(there.shape) % 3 > 0, 0)
    return {
        "sequence_share": np.where(there, np.where(desirable, 0.7, 1.6), 0) / there.sum(),
        "desirable": desirable,
        "reference": about(batch, rng, -5.5, 0.5),
        "kl_baseline": np.where(there, 0.37, np.nan),
    }


def policy_planes(batch: Batch, rng: np.random.Generator) -> dict[str, Any]:
    """Of sampled answers; the third row counts nothing."""
    counts = batch.labels != IGNORED
    counts[2] = False
    old = about(batch, rng, -5.7, 0.3)
    return {
        "share": counts / counts.sum(),
        "old": old,
        "advantages": np.where(counts, rng.standard_normal(counts.shape), np.nan),
        "reference": old + 0.2 * rng.standard_normal(counts.shape),
        "correction": np.where(counts, rng.uniform(0.5, 2, counts.shape), np.nan),
        "values": np.where(counts, 0.3 * rng.standard_normal(counts.shape), np.nan),
        "returns": np.where(counts, rng.standard_normal(counts.shape), np.nan),
    }


def near(batch: Batch, logprobs: np.ndarray, values: np.ndarray, seed: int = 1) -> Batch:
    """With old and reference log-probabilities and values around those of a model, so that there are some on both
    sides of every clip."""
    rng, planes = np.random.default_rng(seed), dict(batch.planes)
    for name, spread, middle in (("old", 0.3, logprobs), ("reference", 0.4, logprobs), ("values", 0.3, values)):
        if name in planes:
            moved = middle + spread * rng.standard_normal(middle.shape)
            planes[name] = np.where(np.isnan(planes[name]), np.nan, moved)
    return replace(batch, planes=planes)


def spread(batch: Batch) -> Batch:
    """The same pairs or sequences, each alone in a row of its own."""
    slots = batch.planes["sequence_share" if "sequence_share" in batch.planes else "pair_share"]
    size = 1 if "sequence_share" in batch.planes else 2
    rows = []
    for row, slot in zip(*np.nonzero(slots), strict=True):
        inside = np.isin(batch.segments[row], range(size * slot, size * (slot + 1)))
        order = np.argsort(~inside, kind="stable")  # its tokens first, padding behind
        kept = np.sort(~inside)
        arrays = {"tokens": 0, "labels": IGNORED, "segments": -1}
        moved = {name: np.where(kept, fill, getattr(batch, name)[row][order]) for name, fill in arrays.items()}
        moved["segments"] = np.where(kept, -1, moved["segments"] - size * slot)
        moved["positions"] = np.where(kept, np.cumsum(kept) - 1, batch.positions[row][order])
        planes = {}
        for name, plane in batch.planes.items():
            if name in TOKENS:
                planes[name] = np.where(kept, np.nan, plane[row][order])
            else:
                planes[name] = np.roll(plane[row], -slot)
                planes[name][1:] = 0 if name.endswith("share") else np.nan
        rows.append(Batch(**{n: value.astype(np.int32) for n, value in moved.items()}, planes=planes))
    return stacked(rows)


def wider(batch: Batch, extra: int, left: bool = False) -> Batch:
    """With more padding in each row: behind it, or before it as a sample of its own that nobody sees."""
    sides = (extra, 0) if left else (0, extra)

    def more(array: np.ndarray, fill: float) -> np.ndarray:
        return np.pad(array, ((0, 0), sides), constant_values=fill)

    width = batch.tokens.shape[1]
    places = np.broadcast_to(np.arange(width), batch.tokens.shape) if batch.positions is None else batch.positions
    start = np.broadcast_to(np.arange(extra), (len(batch), extra))
    positions = np.concatenate([start, places] if left else [places, start], 1).astype(np.int32)
    return Batch(
        more(batch.tokens, 3),
        more(batch.labels, IGNORED),
        positions,
        None,
        None if batch.segments is None else more(batch.segments, -1),
        {name: more(plane, np.nan) if name in TOKENS else plane for name, plane in batch.planes.items()},
    )


def shuffled(batch: Batch) -> Batch:
    """The rows in another order."""
    return batch.map(lambda array: array[[2, 0, 3, 1]])
