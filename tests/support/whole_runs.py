"""Runs as a user starts them, in processes of their own, for the tests that kill and resume them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from coretrain.checkpoint.interchange import load_interchange, newest_interchange
from coretrain.journal.metrics import read_metrics
from tests.support.commands import environment


def arguments(corpus: Path, *more: str) -> list[str]:
    """The command line of a run of seconds, with `more` on top."""
    small = {
        "model.layers": 2,
        "model.width": 32,
        "model.heads": 4,
        "model.context": 32,
        "model.residual_dropout": 0.1,
        "data.source": corpus,
        "data.tokenizer": "bytes",
        "data.validation_fraction": 0.1,
        "data.cache": corpus.parent / "cache",
        "data.prepare_processes": 1,
        "train.updates": 12,
        "train.batch_size": 4,
        "train.accumulation": 2,
        "train.eval_interval": 4,
        "train.eval_batches": 1,
        "train.sample_tokens": 0,
        "schedule.warmup_updates": 3,
        "checkpoint.interval": 4,
        "journal.tensorboard": "false",
    }
    return [*(f"--{key}={value}" for key, value in small.items()), *more]


def start(stack: str, *argv: object, **options) -> subprocess.Popen:
    """A run that goes on while the test does, found wherever the test is."""
    command = [sys.executable, "-m", f"{stack}train.run", *map(str, argv)]
    options = {"env": environment()} | options
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(stack: str, *argv: object, code: int = 0, within: float = 240) -> str:
    """A run from its start to its end: standard output, or standard error where it must fail."""
    process = start(stack, *argv)
    out, err = process.communicate(timeout=within)
    assert process.returncode == code, out + err
    return err if code else out


def rows(folder: Path) -> list[dict]:
    """What was measured in each update and evaluation, apart from how long it took."""
    updates, evaluations, _ = read_metrics(folder)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in (*updates, *evaluations)]


def state(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a run's newest state."""
    groups = load_interchange(newest_interchange(folder)).groups
    return {f"{group}/{name}": tensors[name] for group, tensors in groups.items() for name in tensors}


def wait_for_updates(folder: Path, count: int, process: subprocess.Popen) -> None:
    """Until a run has noted so many updates, or is over."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if (folder / "metrics.jsonl").exists() and len(read_metrics(folder)[0]) >= count:
            return
        time.sleep(0.002)
