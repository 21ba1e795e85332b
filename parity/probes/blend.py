"""With replay, a mixture in stages and named validation sets: rows of each update, and figures of each set."""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import tempfile
from pathlib import Path

from coretrain.config.run import RunConfig
from coretrain.data.batch import batch_hash
from coretrain.data.open import open_data
from coretrain.data.splits import Data
from coretrain.training.text import Text
from parity.gates import ROWS, SETS, Gate
from parity.pair import VARIANTS, make_config
from parity.probes.sides import Seen, Side, make, weights_of

STARTS = (0, 7, 31)
"""Where a loader begins: with the run, and in the middle of the first and of the second stage."""
SWITCH = 20


@functools.cache
def blend(variant: str) -> tuple[RunConfig, Data]:
    """A run of 60 updates over three small sources, one of them replayed, whose weights change at update 20."""
    folder = Path(tempfile.mkdtemp(prefix="parity-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    words = {
        "old": "the quick brown fox jumps over the lazy dog. ",
        "plain": "caf\u00e9, caf\u00e9, and 0.5 of it! ",
        "new": "def f(x): return x + 1\n",
    }
    for name, said in words.items():
        (folder / name).mkdir()
        for n in range(8):
            (folder / name / f"{n}.txt").write_text(f"{name} {n}: " + said * (2 + n % 5))
    parts = ", ".join(f'{{source = "{folder / name}", weight = {w}}}' for name, w in (("plain", 3), ("new", 1)))
    more = {
        "data.mixture": f"[{parts}]", "data.stages": f"[{{update = {SWITCH}, weights = [1, 3]}}]",
        "data.replay": folder / "old", "data.replay_fraction": 0.2,
        "data.validation": f'[{{name = "exam", source = "{folder / "new"}"}}]', "data.cache": folder / "cache",
        "data.tokenizer": "bytes", "data.validation_fraction": 0.2, "data.prepare_processes": 1,
        "model.layers": 1, "train.updates": 60, "train.eval_batches": 100,
    }  # fmt: skip
    config = make_config(VARIANTS[variant] | more)
    data = open_data(config, lambda _: None)
    return config.with_vocab(data.tokenizer.vocab), data


def run_rows(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config, data = blend(variant)
    return {start: [batch_hash(one) for one in s.trainer.train_batches(data, config, start)] for start in STARTS}


def judge_rows(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    pairs = itertools.chain(*(itertools.zip_longest(ours[start], theirs[start]) for start in theirs))
    return {ROWS: sum(a != b for a, b in pairs)}


def run_sets(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config, data = blend(variant)
    stack = make(s, config, weights_of(config, state), shared)
    return dict(Text(config, stack, data).evaluate()[1])


def judge_sets(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    assert ours.keys() == theirs.keys()
    return {SETS: max(abs(ours[name] / theirs[name] - 1) for name in theirs)}
