"""`python -m torchtrain.run [CONFIG] [--section.field value ...]`: train in PyTorch."""

from __future__ import annotations

import functools
import sys

from coretrain.base.errors import RESUME, exits_cleanly
from coretrain.training.runner import run
from torchtrain.parallel.choose import make_trainer
from torchtrain.parallel.processes import join


@functools.partial(exits_cleanly, way_out=RESUME)
def main() -> int:
    """Train, or go on with `--resume RUN`; see `--help`."""
    return run(sys.argv[1:], "torch", make_trainer, join)


if __name__ == "__main__":
    main()
