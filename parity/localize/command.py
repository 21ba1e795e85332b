"""The localizer's command line: a config, or two runs, to a report."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import parity.localize
from coretrain.base.arrays import Tensors
from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.base.help import fitted
from coretrain.base.numbers import whole_number
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import parameter_table
from coretrain.data.batch import Batch, windows
from parity.localize.replay import localize_runs
from parity.localize.search import UPDATES, localize_config
from parity.localize.show import check_place
from parity.pair import batches

PROGRAM = "python -m parity.localize"
OPTIONS = ("layers", "width", "output", "inputs")
"""Beside the config's fields."""
MOST = {"layers": 10_000, "width": 65_536}


def shrunk(
    name: str | None, overrides: Sequence[tuple[str, str]], layers: int | None, width: int | None
) -> tuple[RunConfig, RunConfig]:
    """The config in float64 and in its own precision (at least as narrow as float32), small enough to be run at once.

    Kept: norms, positions, MLP, biases, tying, groups of heads, dropout, optimizer, schedule, accumulation. Smaller:
    layers (2), width (64), heads (4 at most), context, vocabulary and batch, where no override asks for another figure.
    """
    config = load_config(name, overrides)
    m, given = config.model, {key for key, _ in overrides}
    groups = min(m.heads // m.kv, 4)
    heads = m.heads if width is None and m.heads <= 4 else groups * max(1, 4 // groups)
    heads = m.heads if "model.heads" in given else heads
    width = width or (m.width if "model.width" in given else min(m.width, 16 * heads))
    if width % heads:
        raise UserError(
            "parity/width-not-heads-multiple",
            f"--width {width} is no multiple of the {heads} heads: choose one that is",
        )
    if config.precision.compute == "auto":
        raise UserError(
            "parity/compute-not-chosen",
            "precision.compute = auto is chosen where a run begins: say in what to compare, as --precision.compute "
            "bfloat16",
        )
    accumulation = min(config.train.accumulation, 2)
    small = {
        "model.layers": layers or min(m.layers, 2),
        "model.width": width,
        "model.heads": heads,
        "model.kv_heads": heads // groups,
        "model.head_width": "none",
        "model.mlp_width": "none",
        "model.context": min(m.context, 48),
        "model.vocab": 301,
        "train.batch_size": 2 * accumulation,
        "train.accumulation": accumulation,
        "execution.loss_chunk": 50,
        "execution.compile": "off",
        "execution.device": "cpu",
    }
    fields = [(key, str(value)) for key, value in small.items() if key not in given]
    own = load_config(name, [*fields, *overrides])
    below = (
        own
        if own.precision.compute != "float64"
        else load_config(name, [*fields, *overrides, ("precision.compute", "float32")])
    )
    exact = [("precision.compute", "float64"), ("execution.attention", "plain"), ("execution.device", "cpu")]
    return load_config(name, [*fields, *overrides, *exact]), below


def _read_inputs(path: Path, config: RunConfig) -> tuple[Tensors, tuple[list[Batch], list[Batch]]]:
    """Weights, and batches of which the first is the saved one."""
    give = "give a localize.npz of an earlier call"
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with file:
            weights = {key.removeprefix("weights/"): file[key] for key in file if key.startswith("weights/")}
            whole = "batch" in file  # as saved before there were labels of their own
            batch = windows(file["batch"]) if whole else Batch(file["tokens"], file["labels"])
            if not all(isinstance(array, np.ndarray) for array in (*weights.values(), batch.tokens, batch.labels)):
                raise ValueError("what it holds are no arrays")
    except Exception as error:  # numpy, zipfile and Python's own parser of the arrays' headers raise all kinds
        raise UserError("parity/inputs-unreadable", f"--inputs {path} can't be read ({error}): {give}") from None
    for row in parameter_table(config.model):
        if row.name not in weights or weights[row.name].shape != row.shape:
            raise UserError(
                "parity/inputs-model-differs",
                f"--inputs {path} is of another model ({row.name}): repeat the command that it comes from",
            )
    m = config.model
    tokens, labels = batch.tokens, batch.labels
    rows = tokens.ndim == 2 and tokens.shape == labels.shape and 1 <= tokens.shape[1] <= m.context
    if not rows or not all(np.issubdtype(array.dtype, np.integer) for array in (tokens, labels)):
        raise UserError(
            "parity/inputs-rows-wrong",
            f"--inputs {path}: its batch isn't rows of 1 to {m.context} token ids and labels; {give}",
        )
    if len(batch) % config.train.accumulation or not len(batch):
        raise UserError(
            "parity/inputs-rows-not-divisible",
            f"--inputs {path}: {len(batch)} rows don't split into {config.train.accumulation}; {give}",
        )
    if tokens.min() < 0 or labels.min() < -100 or max(tokens.max(), labels.max()) >= m.vocabulary:
        raise UserError(
            "parity/inputs-outside-vocabulary",
            f"--inputs {path}: its batch has ids outside of 0 to {m.vocabulary - 1}; {give}",
        )
    made = [batch, *batches(config, UPDATES)[1:]]
    return weights, (made, made)


def _size(key: str, text: str | None) -> int | None:
    """What --layers or --width says: the models are to be small, and are computed many times in float64."""
    most = MOST[key]
    if text is None:
        return None
    try:
        return whole_number(1, most)(text)
    except argparse.ArgumentTypeError as error:
        raise UserError("parity/option-not-positive", f"--{key} {error}: give one, as in --{key} 2") from None


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """0 where nothing parts, 1 where something does. `program` is what was typed, as the line that repeats it says."""
    typed = sys.argv[1:] if argv is None else argv
    words, places, options, overrides = list(typed), [], {}, []
    if any(word in ("-h", "--help") for word in words):
        print(fitted((parity.localize.__doc__ or "").replace(PROGRAM, program)))
        return 0
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            places.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(
                    "parity/option-without-value", f"--{key} has no value: give one after it, as in --layers 2"
                )
            value = words.pop(0)
        if key in OPTIONS:
            options[key] = value
        else:
            overrides.append((key, value))
    folder = typed_path(options.get("output") or f"runs/{time.strftime('localize-%Y%m%d-%H%M%S')}")
    if len(places) > 2:
        raise UserError(
            "parity/too-many-names",
            f"{len(places)} names are given: give a config, or the folders of two runs",
        )
    if len(places) == 1 and (Path(places[0]) / "config.json").is_file():
        raise UserError(
            "parity/one-run-given",
            f"{places[0]} is a run: name a second one to compare it with, or a config to compare the two stacks",
        )
    if len(places) == 2:
        if overrides or options.keys() - {"output"}:
            raise UserError(
                "parity/fields-with-two-runs",
                "two runs are given: fields, --layers, --width and --inputs are for a config; leave them out",
            )
        check_place(folder)
        report = localize_runs(*map(typed_path, places))
        report.reproduce = f"{program} {shlex.join(places)}"
    else:
        sizes = [_size(key, options.get(key)) for key in ("layers", "width")]
        jax.config.update("jax_enable_x64", True)
        torch.set_num_threads(min(torch.get_num_threads(), 4))  # the models are so small that more cost more
        name = places[0] if places else None
        config, below = shrunk(name, overrides, *sizes)
        given: dict[str, Any] = {}
        if "inputs" in options:
            given["weights"], given["feeds"] = _read_inputs(typed_path(options["inputs"]), config)
        check_place(folder)
        report = localize_config(config, below=below, **given)
        report.reproduce = _command(typed, folder, program)
    report.save(folder)
    report.show()
    print(f"{folder}: localize.html, localize.png, localize.txt, localize.npz")
    return int(report.verdict.kind != "same")


def _command(words: Sequence[str], folder: Path, program: str) -> str:
    kept, skip = [], False
    for word in words:
        if skip or word.split("=")[0] in ("--output", "--inputs"):
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return f"{program} {shlex.join([*kept, '--inputs', str(folder / 'localize.npz')])}"
