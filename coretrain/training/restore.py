"""A run's checkpoints into a stack, and out of it in the interchange form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import interchange_of, load_interchange, newest_interchange, save_interchange
from coretrain.checkpoint.manifest import Progress, read_sealed
from coretrain.checkpoint.translate import translate, translated
from coretrain.config.run import RunConfig
from coretrain.data.splits import Data
from coretrain.processes.world import World
from coretrain.runs.moments import first_progress, moments_of
from coretrain.runs.start import StartTensors
from coretrain.training.stack import Stack


def check_resumable(config: RunConfig, data: Data, progress: Progress) -> None:
    """Raise `UserError` where going on would be another training than the one that was saved."""
    if progress.data_fingerprint != data.fingerprint:
        raise UserError(
            "training/data-fingerprint-differs",
            f"the data's fingerprint is {data.fingerprint}, the checkpoint was trained on {progress.data_fingerprint}: "
            "restore the same files, tokenizer, weights and stages (which follow train.updates where they wait for a "
            "learning rate), or start a new run",
        )
    for field, saved, now in (
        ("train.batch_size", progress.batch_size, config.train.batch_size),
        ("train.seed", progress.seed, config.train.seed),
    ):
        if saved != now:
            raise UserError(
                "training/field-differs-from-checkpoint",
                f"{field} = {now}, the checkpoint was trained with {saved}: keep it, or start a new run",
            )


def export(stack: Stack, config: RunConfig, progress: Progress, folder: Path, world: World | None = None) -> Path:
    """Write the present state as the run's interchange checkpoint, from which either stack and the converter start.

    Where several processes hold parts of the state, the first makes it from the native checkpoint just written.
    """
    world = world or World()
    name = f"update-{progress.update:08d}"
    target = folder / "interchange" / name
    if world.size == 1:
        save_interchange(target, config, stack.export(), progress, stack.name)
    else:
        world.on_rank0(lambda: translate(stack.name, folder, name))
    if world.first:
        CheckpointFolder(target.parent).prune(keep=1)
    return target


def restore(
    stack: Stack, folder: Path, warn: Callable[[str], None], for_text: bool = False, world: World | None = None
) -> Progress:
    """Load a run's newest whole checkpoint into `stack`, whichever stack wrote it.

    `for_text` it is the best one, if that is whole, without moments.
    """
    checkpoints, world = CheckpointFolder(folder / "checkpoints"), world or World()

    def load(path: Path, progress: Progress) -> Progress:
        sealed = read_sealed(path)
        if sealed.stack == stack.name:
            stack.load(path, None if for_text else progress.applied)
            return progress
        if world.broadcast_bool(not translated(folder, path.name)):
            world.on_rank0(lambda: translate(sealed.stack, folder, path.name))
        return adopt(stack, interchange_of(folder, path.name), for_text)

    if not world.broadcast_bool(bool(checkpoints.found())):
        newest = world.broadcast(str(world.collectively(lambda: newest_interchange(folder) if world.first else "")))
        return world.collectively(lambda: adopt(stack, Path(newest), for_text))
    return checkpoints.first_that_loads(load, warn, world, best_first=for_text)[1]


def begin_from(stack: Stack, start: StartTensors, config: RunConfig, progress: Progress, world: World) -> Progress:
    """The `progress` of a new run whose `stack` has its start's weights, with the moments that it asks for in `stack`.

    Raises `UserError` where the start hasn't got them.
    """
    moments = world.collectively(lambda: moments_of(start, config))
    if moments:
        stack.adopt({"parameters": start, **moments}, start.progress.applied)
    return replace(progress, **first_progress(start, config, progress))


def holds_state(folder: Path) -> bool:
    """Whether a run's folder has any checkpoint, of its own or imported, whole or damaged."""
    return any(CheckpointFolder(folder / kind).found() for kind in ("checkpoints", "interchange"))


def adopt(stack: Stack, path: Path, for_text: bool = False) -> Progress:
    """Load an interchange checkpoint into `stack`; `for_text` without moments."""
    interchange = load_interchange(path)
    groups = {name: tensors for name, tensors in interchange.groups.items() if name == "parameters" or not for_text}
    stack.adopt(groups, interchange.progress.applied)
    return interchange.progress
