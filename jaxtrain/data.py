"""Training batches in JAX: grain carries the contract's order (twin: torchtrain/data.py)."""

from __future__ import annotations

from collections.abc import Iterator

import grain
from absl import flags

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
    and end when the iterator is closed or dropped. Workers are spawned: guard the program with `if __name__ ==
    "__main__"`. Raises `UserError` when process_count does not divide B.
    """
    updates = updates_of(data, config, process_index, process_count, stop_update)

    def batches() -> Iterator[Batch]:
        if start_update >= len(updates):
            return
        # No threads: a batch is read in less than a millisecond from the memory map. Grain's own are 16.
        dataset = grain.MapDataset.source(updates)[start_update:].to_iter_dataset(grain.ReadOptions(0, 0))
        workers = min(config.data.workers, len(updates) - start_update)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which only absl's own app.run parses
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=PREFETCH)
            # Through a pipe: grain's shared memory is small in containers, and a killed run leaves it behind.
            pipe = grain.experimental.DatasetOptions(min_shm_size=2**62)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, pipe).mp_prefetch(options, _worker)
        iterator = iter(dataset)
        try:
            yield from iterator
        finally:
            iterator.close()

    return batches()


def _worker(index: int, count: int) -> None:
    end_with_parent()  # grain's workers outlive a killed trainer otherwise
