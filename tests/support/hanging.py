"""A run whose processes all hang in update 12, as where a chip is wedged: `python -m tests.support.hanging STACK`."""

from __future__ import annotations

import sys
import time
from importlib import import_module

from coretrain.training.runner import run

STACK = sys.argv[1]
PARALLEL = f"{STACK}train.parallel"


def hanging(config, tensors):
    """A trainer that doesn't come back from one update's gradients."""
    trainer = import_module(f"{PARALLEL}.choose").make_trainer(config, tensors)
    gradients = trainer.gradients

    def slow(batch, update, loss_scale):
        if update == 12:
            time.sleep(1000)
        return gradients(batch, update, loss_scale)

    trainer.gradients = slow
    return trainer


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], STACK, hanging, import_module(f"{PARALLEL}.processes").join))
