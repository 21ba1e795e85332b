"""Training batches in PyTorch: a DataLoader carries the contract's order (twin: jaxtrain/data.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset

from coretrain.base.interrupts import end_with_parent
from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from coretrain.data.batches import updates_of
from coretrain.data.splits import Data

PREFETCH = 2


def train_batches(
    data: Data,
    config: RunConfig,
    start_update: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    stop_update: int | None = None,
) -> Iterator[Batch]:
    """This process's B/process_count rows of each global batch, from `start_update` to `stop_update` or the run's end.

    Row for row the twin's, for any number of workers and processes; a later `start_update` replays nothing. With
    `data.workers` 0 it reads in this process and thread; otherwise so many workers keep PREFETCH batches each ahead,
    and end when the iterator is closed or dropped. Raises `UserError` when process_count does not divide B.
    """
    updates = updates_of(data, config, process_index, process_count, stop_update)

    def batches() -> Iterator[Batch]:
        workers = min(config.data.workers, max(0, len(updates) - start_update))
        # The sampler is the order itself; batch_size None because an item already is a batch.
        yield from DataLoader(
            cast("Dataset[Any]", updates),
            batch_size=None,
            sampler=range(start_update, len(updates)),
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_worker,
        )

    return batches()


def _worker(index: int) -> None:
    end_with_parent()  # torch's workers with batches in their pipe outlive a killed trainer otherwise


def _as_it_is(batch: Any) -> Any:
    return batch  # by default torch would turn it into a tensor
