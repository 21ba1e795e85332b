"""`python -m jaxtrain.run [CONFIG] [--section.field value ...]`: train in JAX."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coretrain.base.errors import RESUME, exits_cleanly
from coretrain.training.runner import run
from jaxtrain.parallel.choose import make_trainer
from jaxtrain.parallel.processes import join


def main(argv: Sequence[str] | None = None, program: str = "") -> int:
    """Train, or go on with `--resume RUN`; see `--help`. `program` is what was typed."""
    return run(sys.argv[1:] if argv is None else argv, "jax", make_trainer, join, program)


if __name__ == "__main__":
    exits_cleanly(main, RESUME)()
