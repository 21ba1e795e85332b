"""torchtrain's own checkpoints: one `state.pt` of plain tensors, read back with `weights_only`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from coretrain.checkpoint import read_sealed, save_interchange
from coretrain.errors import exits_cleanly

STATE = "state.pt"


def save_native(folder: Path, state: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write parameters and moments, by group and canonical name, into `folder`, synced to disk."""
    tensors = {group: {name: torch.from_numpy(value) for name, value in tree.items()} for group, tree in state.items()}
    with open(folder / STATE, "wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())


def load_native(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """What `save_native` wrote. Nothing but tensors is unpickled."""
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return {group: {name: value.numpy() for name, value in tree.items()} for group, tree in state.items()}


def export_interchange(run: Path, name: str) -> Path:
    """Turn the native checkpoint `name` of a run into an interchange checkpoint, which either stack reads."""
    folder = run / "checkpoints" / name
    sealed = read_sealed(folder)
    target = run / "interchange" / name
    save_interchange(target, sealed.config, load_native(folder), sealed.progress, "torch")
    return target


@exits_cleanly
def main() -> None:
    """`python -m torchtrain.checkpoint RUN NAME`: how the other stack has a checkpoint of this one translated."""
    print(export_interchange(Path(sys.argv[1]), sys.argv[2]))


if __name__ == "__main__":
    main()
