"""An engine by the word that a user types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.corpus.engine.on_ray import OnRay
from coretrain.corpus.engine.pool import Pool
from coretrain.corpus.engine.run import Engine, Here
from coretrain.corpus.engine.slurm import Slurm


def open_engine(word: str, workers: int, command: Sequence[str]) -> Callable[[Path], Engine]:
    """What makes an engine for a work folder; `workers` 0 is this process alone, of the pool. `command` is what goes on
    after a stage that was submitted. Raises `UserError`.
    """
    if word == "pool":
        return (lambda folder: Pool(folder, workers)) if workers else Here
    if word == "slurm":
        return lambda folder: Slurm(folder.resolve(), workers, command)
    if word.startswith("ray://"):
        return lambda folder: OnRay(folder, word, workers)
    raise UserError(
        "corpus/engine-unknown", f"--engine {shown(word)}: give pool, slurm, or ray://HOST:PORT of a cluster's head"
    )
