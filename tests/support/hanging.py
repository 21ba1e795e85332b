"""A run whose processes all hang in update 12, as where a chip is wedged: `python -m tests.support.hanging STACK`."""

from __future__ import annotations

import sys
import time
from importlib import import_module

from coretrain.training.runner import run

STACK = sys.argv[1]
Trainer = import_module(f"{STACK}train.trainer").Trainer


class Hanging(Trainer):
    """A trainer that doesn't come back from one update's gradients."""

    def gradients(self, batch, update, loss_scale):
        if update == 12:
            time.sleep(1000)
        return super().gradients(batch, update, loss_scale)


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], STACK, Hanging, import_module(f"{STACK}train.parallel").join))
