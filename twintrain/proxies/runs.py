"""One small run: trained, or gone on with where it was; and what its model needs for held-out text."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.files import read_json, write_atomically
from coretrain.base.interrupts import loading_modules
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import read_sealed
from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch
from coretrain.tokenizers.tokenizer import Tokenizer
from twintrain.loading import loaded
from twintrain.proxies.held_out import HeldOut

SCORES = "held-out.json"
CURVE = 4
"""Checkpoints of a run that are scored for its curve, beside the last one."""
QUIET = (
    ("train.sample_tokens", "0"),
    ("checkpoint.keep_best", "false"),
    ("journal.tensorboard", "false"),
)
"""Of each run: what it would write beside its model isn't looked at."""


def options_of(updates: int, points: int) -> list[str]:
    """Options of a run by which it keeps as many checkpoints, or one more."""
    interval = max(1, updates // points)
    return [
        f"--checkpoint.interval={interval}",
        f"--checkpoint.keep={points + 1}",
        f"--train.eval_interval={updates}",
    ]


def trained(stack: str, folder: Path, words: Sequence[str]) -> RunConfig:
    """Train the run in `folder`, or go on with it, told in its log; its config. Raises `UserError`, KeyboardInterrupt.

    `words` are those of a command line.
    """
    main = loaded(f"{stack}train.run").main
    begun = (folder / "config.json").is_file()
    if not _finished(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".log"), "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            code = main(["--resume", str(folder)] if begun else [*words, "--output", str(folder)])
        if code:
            raise UserError(
                "command/proxy-stopped", f"{folder} was stopped by its health rules: read {folder.with_suffix('.log')}"
            )
        if not _finished(folder):
            say(f"{folder} has saved where it was: the same command goes on")
            raise KeyboardInterrupt  # it was asked to leave
    from coretrain.runs.folder import open_run

    return open_run(folder)


def _finished(folder: Path) -> bool:
    """Whether a run's newest checkpoint is that of its last update."""
    newest = CheckpointFolder(folder / "checkpoints").newest_sealed()
    return newest is not None and newest[1].progress.update >= newest[1].config.train.updates


def scored(stack: str, folder: Path, config: RunConfig, texts: Sequence[HeldOut], tokenizer: Tokenizer) -> Any:
    """Bits that the run's model needs for each held-out document, at the checkpoints of its curve; kept in a file.

    {"updates": [...], "bits": for each of them, for each text, [D]}. What was scored for the same documents isn't
    scored again.
    """
    path = folder / SCORES
    asked = [list(text.digests) for text in texts]
    if path.is_file():
        with contextlib.suppress(UserError):
            kept = read_json(path, "the scores of a run")
            if kept.get("documents") == asked:
                return kept
    whole = sorted(CheckpointFolder(folder / "checkpoints").complete())
    model = _stack(stack, config)
    rows = [rows_of(text, tokenizer, config.model.context) for text in texts]
    updates, bits = [], []
    for checkpoint in whole:
        progress = read_sealed(checkpoint).progress
        model.load(checkpoint, None)
        updates.append(progress.update)
        bits.append(
            [_bits(model, *one, config.micro_batch, len(text.texts)) for one, text in zip(rows, texts, strict=True)]
        )
        if not np.isfinite([sum(one) for one in bits[-1]]).all():
            raise UserError(
                "command/proxy-not-finite", f"{checkpoint}: its loss on held-out text is no number: lower optimizer.lr"
            )
    result = {"documents": asked, "updates": updates, "bits": bits}
    write_atomically(path, json.dumps(result))
    CheckpointFolder(folder / "checkpoints").prune(keep=1)
    return result


def _stack(stack: str, config: RunConfig) -> Any:
    from coretrain.contract.parameters import BlankParameters

    with loading_modules():
        choose = loaded(f"{stack}train.parallel.choose")
    return choose.make_trainer(config, BlankParameters(config.model))


def rows_of(text: HeldOut, tokenizer: Tokenizer, context: int) -> tuple[Batch, np.ndarray]:
    """Rows of all documents [N, T], and the document of each row [N].

    A document begins after `<|endoftext|>`, as in training; its rows of T targets don't overlap, and each but the first
    begins anew, with the last token of the one before. Every token is a target once.
    """
    tokens, labels, owners = [], [], []
    for number, one in enumerate(text.texts):
        ids = np.array([tokenizer.eot, *tokenizer.encode(one)], np.int32)
        for start in range(0, len(ids) - 1, context):
            row = ids[start : start + context + 1]
            pad = context + 1 - len(row)
            tokens.append(np.pad(row[:-1], (0, pad)))
            labels.append(np.pad(row[1:], (0, pad), constant_values=IGNORED))
            owners.append(number)
    return Batch(np.stack(tokens), np.stack(labels)), np.array(owners)


def _bits(model: Any, batch: Batch, owners: np.ndarray, rows: int, documents: int) -> list[float]:
    """Bits of each document [D]."""
    nats = np.zeros(documents)
    for start, piece in zip(range(0, len(batch), rows), batch.cut(rows), strict=True):
        # padded: a compiled model has one shape
        found = np.asarray(model.token_logprobs(piece.padded(rows)), np.float64)[: len(piece)]
        np.add.at(nats, owners[start : start + len(piece)], -found.sum(1))
    return [float(one) for one in nats / math.log(2)]


def say(line: str) -> None:
    """Print a line for whoever waits."""
    print(line, file=sys.stderr, flush=True)
