"""A run whose processes all hang in update 12, as where a chip is wedged: `python -m tests.support.hanging STACK`."""

from __future__ import annotations

import sys
import time
from importlib import import_module

from coretrain.training.runner import run

STACK = sys.argv[1]
PARALLEL = f"{STACK}train.parallel"


def hanging(config, tensors):
    """A trainer that never has the figures of one update."""
    trainer = import_module(f"{PARALLEL}.choose").make_trainer(config, tensors)
    begin = trainer.update

    def slow(batch, update, orders, change):
        read = begin(batch, update, orders, change)

        def wait():
            if update == 12:
                time.sleep(1000)
            return read()

        return wait

    trainer.update = slow
    return trainer


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], STACK, hanging, import_module(f"{PARALLEL}.processes").join))
