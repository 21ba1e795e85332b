"""With text: rows, a resume, and a checkpoint there and back."""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.checkpoint.interchange import load_interchange, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.config.run import RunConfig
from coretrain.contract.schedule import clip_factor
from coretrain.data.batch import batch_hash
from coretrain.data.open import open_data
from coretrain.data.splits import Data
from parity.errors import largest_error, mismatches
from parity.gates import ROUND_TRIP, ROWS, Gate
from parity.pair import VARIANTS, make_config
from parity.probes.sides import (
    Seen,
    Side,
    make,
    weights_of,
)

# Two updates, a checkpoint, two more, against four in one go in the other stack.
RESUME = Gate(
    "resume from a stack's own checkpoint", 1e-11, 6.2e-14, "a moment lost, a count of updates off by one", "identity"
)


@functools.cache
def _text() -> tuple[RunConfig, Data]:
    """A small corpus, and the config of a resume over it."""
    folder = Path(tempfile.mkdtemp(prefix="parity-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"document {n}: " + "the quick brown fox jumps over the lazy dog. " * 8)
    more = {
        "data.source": folder, "data.cache": folder / "cache", "data.tokenizer": "bytes",
        "data.validation_fraction": 0.1, "data.prepare_processes": 1, "model.layers": 1, "train.updates": 150,
    }  # fmt: skip
    config = make_config(VARIANTS["llama-like"] | more)
    return config, open_data(config, lambda _: None)


def run_rows(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config, data = _text()
    assert data.train.windows(config.model.context) < 150 * config.train.batch_size, "the run must go beyond an epoch"
    return {start: [batch_hash(batch) for batch in s.trainer.train_batches(data, config, start)] for start in (0, 73)}


def judge_rows(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    pairs = itertools.chain(*(itertools.zip_longest(ours[start], theirs[start]) for start in theirs))
    return {ROWS: sum(a != b for a, b in pairs)}


def run_resume(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Four updates in one go, and two, a checkpoint, a new trainer and two more."""
    config, data = _text()
    seen: Seen = {}
    stack = make(s, config, weights_of(config, state), shared)
    whole = _train(stack, data, 0, 2)
    with tempfile.TemporaryDirectory() as folder:
        stack.save(Path(folder)).result()
        seen["whole rows"] = whole + _train(stack, data, 2, 4)
        seen["whole"] = stack.export()
        other = make(s, config, None, shared)
        other.load(Path(folder), 2)
    seen["resumed rows"] = whole + _train(other, data, 2, 4)
    return seen | {"resumed": other.export()}


def _train(stack: Any, data: Data, start: int, stop: int) -> list[str]:
    hashes = []
    for update, batch in zip(range(start, stop), stack.batches(data, start, stop), strict=False):
        _, norm = stack.gradients(batch, update, 1.0)
        stack.apply(1e-3, clip_factor(norm, stack.config.optimizer.clip), update)
        hashes.append(batch_hash(batch))
    return hashes


def judge_resume(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    rows = itertools.zip_longest(ours["resumed rows"], theirs["whole rows"])
    both = (ours["resumed"], theirs["whole"])
    start = weights_of(_text()[0], state)
    return {ROWS: sum(a != b for a, b in rows), RESUME: largest_error(both, start, frozenset())[0]}


def run_round_trip(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Random float64 tensors: adopted, exported, written in the interchange form, read, adopted and exported."""
    config = make_config(VARIANTS[variant])
    rng = np.random.default_rng(0)
    stack = s.trainer.Trainer(config, weights_of(config, state))
    given = {g: {n: rng.random(t.shape) for n, t in tensors.items()} for g, tensors in stack.export().items()}
    stack.adopt(given, 3)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "state"
        save_interchange(place, config, written := stack.export(), Progress(), s.name)
        read = {g: dict(tensors) for g, tensors in load_interchange(place).groups.items()}
    stack.adopt(read, 3)
    return {"given": given, "found": stack.export(), "written": written}


def judge_round_trip(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    # What is written counts too: a matrix transposed on the way out, each time, is itself again after two.
    given, found = ours["given"], (ours["written"], ours["found"])
    tensors = [(state[g][n], t) for state in found for g, group in given.items() for n, t in group.items()]
    return {ROUND_TRIP: sum(mismatches(a, b) for a, b in tensors)}
