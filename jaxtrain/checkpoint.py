"""jaxtrain's own checkpoints: Orbax, written in the background, sharded as the arrays are."""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import math
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from coretrain.adapters.targets import trainable_parameters
from coretrain.base.errors import UserError, exits_cleanly
from coretrain.base.files import short_hash
from coretrain.checkpoint.interchange import save_interchange
from coretrain.checkpoint.manifest import verify
from jaxtrain.adapters import partition
from jaxtrain.arrays import dotted, exported
from jaxtrain.model import abstract_model
from jaxtrain.optimizer import Optimizer

STATE = "state"


def save_native(folder: Path, state: Mapping[str, Any]) -> Future[None]:
    """Start writing trees of arrays into `folder`; the future ends with the writing, and raises what went wrong.

    On a CPU the arrays are written from where they lie, and must not be given to a computation until then.
    """
    _hush()
    with contextlib.ExitStack() as opened, _sparing(state):
        place = opened.enter_context(_plain(folder))
        response = ocp.save_async(place / STATE, _flat(state))
        until_written = opened.pop_all()
    future: Future[None] = Future()

    def wait() -> None:
        try:
            with until_written:
                response.result()
            future.set_result(None)
        except BaseException as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))  # of a full disk, which tensorstore has words for
            future.set_exception(OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) if code else error)

    threading.Thread(target=wait, daemon=True).start()  # Orbax's own response can't be asked whether it has ended
    return future


def load_native(folder: Path, state: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """What `save_native` wrote, in the form, dtypes and shardings of `state`, arrays or their abstract forms.

    Without "moments" in `state` parameters alone are read. Beyond the `vocabulary` it may be padded otherwise. Raises
    `UserError` where it is another model's.
    """
    # Torch needs no such template: its state holds plain tensors by name, without padding.
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _flat(state))
    with _plain(folder) as place:
        held = ocp.metadata(place / STATE).metadata
    for group, leaves in template.items():
        for key, leaf in leaves.items():
            _check_shape(f"{folder} (group {group}): {key}", tuple(held[group][key].shape), leaf.shape, vocabulary)
    loaded = _load(folder, template, part="moments" not in state)
    return {
        group: jax.tree_util.tree_map_with_path(lambda path, _, group=group: loaded[group][_key(path)], tree)
        for group, tree in state.items()
    }


def _check_shape(where: str, held: tuple[int, ...], wanted: tuple[int, ...], vocabulary: int) -> None:
    if held != wanted and (held[1:] != wanted[1:] or min(held[0], wanted[0]) < vocabulary):
        raise UserError("jax/checkpoint-shape-wrong", f"{where} has shape {held}, the config says {wanted}")


def export_interchange(run: Path, name: str) -> Path:
    """Turn the native checkpoint `name` of a run into an interchange checkpoint, which either stack reads.

    Whatever mesh wrote it, it goes through this host's memory one array at a time. Raises
    `DamagedCheckpoint` before anything is written.
    """
    folder = run / "checkpoints" / name
    sealed = verify(folder)
    config = sealed.config
    if config.precision.compute == "float64":
        jax.config.update("jax_enable_x64", True)
    params = partition(config, abstract_model(config, "plain", jax.devices("cpu")[0])[1])[0]
    optimizer = Optimizer(config, params)
    moments = optimizer.abstract(params)
    forms = _flat({"parameters": params, "moments": moments})
    keys = {id(leaf): (group, key) for group, tree in forms.items() for key, leaf in tree.items()}

    def read(leaf: Any) -> jax.Array:
        group, key = keys[id(leaf)]
        return _load(folder, {group: {key: leaf}}, part=True)[group][key]

    leaves = {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    parameters = exported(trainable_parameters(config), leaves, lambda path: read(leaves[path]))
    groups = {"parameters": parameters, **optimizer.moments(moments, read)}
    target = run / "interchange" / name
    save_interchange(target, config, groups, sealed.progress, "jax")
    return target


@exits_cleanly
def main() -> None:
    """`python -m jaxtrain.checkpoint RUN NAME`: how the other stack has a checkpoint of this one translated."""
    jax.config.update("jax_platforms", "cpu")  # the run that asks for it may hold the accelerators
    print(export_interchange(Path(sys.argv[1]), sys.argv[2]))


def _load(folder: Path, template: Any, part: bool = False) -> Any:
    """The arrays of `template`; with `part`, of a checkpoint that holds more."""
    context = _sparing(template)
    context.pytree.loading.partial_load = part
    context.array.loading.enable_padding_and_truncation = True  # of the vocabulary: zeros, which `_check_shape` lets by
    with context, _plain(folder) as place:
        return ocp.load(place / STATE, template)


@functools.cache
def _hush() -> None:
    """Keep Orbax's threads from printing, with 300 lines of where they were, what the save's future raises anyway."""
    logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())
    never = re.compile("Task exception was never retrieved.*/orbax/", re.DOTALL)
    logging.getLogger("asyncio").addFilter(lambda record: not never.match(record.getMessage()))
    shown = sys.unraisablehook

    def show(what: sys.UnraisableHookArgs) -> None:
        if not (what.exc_type is RuntimeError and str(what.exc_value) == "Event loop is closed"):
            shown(what)  # that one is of threads that go on writing after one of them has failed

    sys.unraisablehook = show


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """`folder` under a name that orbax finds again: it takes brackets, asterisks and question marks for patterns."""
    whole = folder.absolute()
    odd = [place for place in (whole, *whole.parents) if glob.escape(place.name) != place.name]
    if not odd:
        yield whole
        return
    with contextlib.ExitStack() as opened:
        if jax.process_count() == 1:
            link = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="twintrain-")), "run")
        else:  # all processes must give Orbax one name, and none knows when the last has done with it: it stays
            link = Path(tempfile.gettempdir(), f"twintrain-{os.getuid()}-{short_hash(str(odd[0]))}")
        with contextlib.suppress(FileExistsError):
            link.symlink_to(odd[0], target_is_directory=True)
        if link.readlink() != odd[0]:
            raise UserError("jax/link-is-anothers", f"{link} is in the way: remove it, then go on with --resume")
        yield link / whole.relative_to(odd[0])


def _sparing(state: Any) -> ocp.Context:
    """Orbax, with buffers for an eighth of this state's bytes at a time, or for its largest array: else for all."""
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)]
    context = ocp.Context()
    most = max(max(sizes), sum(sizes) // 8) + 1  # it takes less than that
    context.memory.write_concurrent_bytes = context.memory.read_concurrent_bytes = most
    return context


def _flat(state: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    return {
        group: {_key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for group, tree in state.items()
    }


def _key(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


if __name__ == "__main__":
    main()
