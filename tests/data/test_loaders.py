"""Both stacks' loaders against the contract's own batches: any workers, any hosts, any start; and they clean up."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.data.batch import batch_hash
from coretrain.data.batches import global_batch
from coretrain.data.open import open_data
from coretrain.data.splits import Data
from tests.support.batches import arrays_of, same
from tests.support.commands import ROOT
from tests.support.refusal import refused

STACKS = pytest.mark.parametrize("stack", ["jaxtrain", "torchtrain"])
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:os.fork"),
]


def settings(folder: Path, **extra: Any) -> list[tuple[str, str]]:
    parts = ", ".join(f'{{source = "{folder / name}", weight = {weight}}}' for name, weight in (("a", 95), ("b", 5)))
    values = {
        "data.mixture": f"[{parts}]",
        "data.tokenizer": "bytes",
        "data.cache": str(folder / "cache"),
        "data.shard_tokens": 1024,
        "data.validation_fraction": 0.1,
        "model.context": 32,
        "train.batch_size": 8,
        "train.updates": 24,
        "schedule.warmup_updates": 1,
    } | extra
    return [(key, str(value)) for key, value in values.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loaders")
    generator = np.random.default_rng(0)
    for name, count in (("a", 30), ("b", 6)):
        (folder / name).mkdir()
        for number in range(count):
            text = bytes(generator.integers(97, 123, 300).astype(np.uint8)).decode()
            (folder / name / f"{number:02d}.txt").write_text(text)
    return folder


def opened(folder: Path, **extra: Any) -> tuple[Data, RunConfig]:
    config = load_config(None, settings(folder, **extra))
    return open_data(config, lambda line: None), config


def batches_of(stack: str) -> Callable[..., Iterator[Any]]:
    found: Callable[..., Iterator[Any]] = importlib.import_module(f"{stack}.data").train_batches
    return found


@STACKS
@pytest.mark.parametrize("workers", [0, 1, 2, pytest.param(4, marks=pytest.mark.whole)])
def test_a_loader_gives_the_contracts_batches(stack: str, workers: int, folder: Path) -> None:
    data, config = opened(folder, **{"data.workers": workers})
    found = list(batches_of(stack)(data, config, 3))
    wanted = [global_batch(data, config, update) for update in range(3, 24)]
    assert [batch_hash(batch) for batch in found] == [batch_hash(batch) for batch in wanted]
    arrays = [array for batch in found for array in arrays_of(batch).values()]
    assert all(type(array) is np.ndarray and array.dtype == np.int32 and array.shape == (8, 32) for array in arrays)
    assert len({batch_hash(batch) for batch in found}) == len(found)


@STACKS
@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 17])
def test_hosts_share_the_rows(stack: str, hosts: int, start: int, folder: Path) -> None:
    data, config = opened(folder)
    shares = [list(batches_of(stack)(data, config, start, host, hosts)) for host in range(hosts)]
    for update, rows in zip(range(start, 24), zip(*shares, strict=True), strict=True):
        whole = global_batch(data, config, update)
        assert all(same(one, two) for one, two in zip(rows, whole.cut(8 // hosts), strict=True))


@STACKS
def test_hosts_with_workers(stack: str, folder: Path) -> None:
    data, config = opened(folder, **{"data.workers": 2})
    found = list(batches_of(stack)(data, config, 20, 3, 4))
    wanted = [global_batch(data, config, update).rows(slice(6, None)) for update in range(20, 24)]
    assert all(same(one, other) for one, other in zip(found, wanted, strict=True))


@STACKS
def test_no_workers_starts_nothing(stack: str, folder: Path) -> None:
    data, config = opened(folder)
    threads = set(threading.enumerate())
    batches = batches_of(stack)(data, config)
    next(batches)
    assert not multiprocessing.active_children()
    assert set(threading.enumerate()) == threads
    start = time.perf_counter()
    count = len(list(batches))
    assert (time.perf_counter() - start) / count < 0.02


@STACKS
def test_dropping_the_iterator_ends_its_workers(stack: str, folder: Path) -> None:
    data, config = opened(folder, **{"data.workers": 2, "train.updates": 5000})
    batches = batches_of(stack)(data, config)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


@pytest.mark.whole
@STACKS
def test_workers_end_with_a_killed_trainer(stack: str, folder: Path) -> None:
    # a batch of 67 kB fills a pipe, so that a worker is stuck in it when its trainer dies
    arguments = settings(folder, **{"data.workers": 2, "train.updates": 100_000, "train.batch_size": 512})
    program = (
        f"import multiprocessing, os\nfrom {stack}.data import train_batches\n"
        "from coretrain.config.load import load_config\nfrom coretrain.data.open import open_data\n"
        f"config = load_config(None, {arguments!r})\n"
        "batches = train_batches(open_data(config, lambda line: None), config)\nnext(batches)\n"
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    # stdout goes to a file: workers hold it open, so a pipe would be waited for
    path = folder / f"{stack}.pids"
    with open(path, "w") as file:
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=file, stderr=subprocess.DEVNULL, timeout=60)
    workers = [int(word) for word in path.read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while (left := [pid for pid in workers if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, 9)
    assert not left


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


@STACKS
def test_batches_that_cannot_be_shared_are_refused(stack: str, folder: Path) -> None:
    data, config = opened(folder)
    with refused("data/batch-size-not-divisible"):
        batches_of(stack)(data, config, 0, 0, 3)


@STACKS
def test_a_start_past_the_end_gives_nothing(stack: str, folder: Path) -> None:
    data, config = opened(folder, **{"data.workers": 1})
    assert list(batches_of(stack)(data, config, 24)) == []


def test_the_twins_have_the_same_names() -> None:
    names = [
        [
            name
            for name in vars(importlib.import_module(f"{stack}.data"))
            if getattr(vars(importlib.import_module(f"{stack}.data"))[name], "__module__", "") == f"{stack}.data"
            and not name.startswith("_")
        ]
        for stack in ("jaxtrain", "torchtrain")
    ]
    assert names[0] == names[1] == ["train_batches"]
