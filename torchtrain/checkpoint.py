"""torchtrain's own checkpoints: each process's fragments of the state, written in the background."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from coretrain.base.errors import exits_cleanly
from coretrain.base.threads import in_background
from coretrain.checkpoint.fragments import Fragment, read_fragments, write_fragments
from coretrain.checkpoint.interchange import save_interchange
from coretrain.checkpoint.manifest import verify

STATE = "state"


def save_native(folder: Path, state: Sequence[Fragment], rank: int = 0) -> Future[None]:
    """Start writing fragments into `folder`; the future ends with it, and raises what went wrong.

    They must not change until then. Any number of processes, under any layout, reads what all of them have written.
    """
    return in_background(lambda: write_fragments(folder / STATE, rank, state))


def load_native(folder: Path) -> Mapping[str, Mapping[str, np.ndarray]]:
    """What `save_native` wrote, by group and canonical name; each tensor is read when it is asked for."""
    return read_fragments(folder / STATE)


def export_interchange(run: Path, name: str) -> Path:
    """Turn the native checkpoint `name` of a run into an interchange checkpoint, which either stack reads.

    One tensor is in memory at a time. Raises `DamagedCheckpoint` before anything is written.
    """
    folder = run / "checkpoints" / name
    sealed = verify(folder)
    target = run / "interchange" / name
    save_interchange(target, sealed.config, load_native(folder), sealed.progress, "torch")
    return target


@exits_cleanly
def main() -> None:
    """`python -m torchtrain.checkpoint RUN NAME`: how the other stack has a checkpoint of this one translated."""
    print(export_interchange(Path(sys.argv[1]), sys.argv[2]))


if __name__ == "__main__":
    main()
