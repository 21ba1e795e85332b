"""`python -m jaxtrain.serve RUN`: a trained run as a server."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coretrain.base.errors import exits_cleanly
from coretrain.base.interrupts import loading_modules
from coretrain.serving.options import options
from coretrain.training.help import asks_for_help


def main(argv: Sequence[str] | None = None, program: str = "") -> int:
    """Serve a run until Ctrl-C or SIGTERM; see `--help`. `program` is what was typed."""
    words = sys.argv[1:] if argv is None else argv
    if asks_for_help(words):  # before the framework is imported, which takes seconds
        options(program or "python -m jaxtrain.serve").print_help()
        return 0
    with loading_modules():
        from coretrain.serving.run import serve
        from jaxtrain.trainer import Trainer

    return serve(words, "jax", Trainer, program)


if __name__ == "__main__":
    exits_cleanly(main)()
