"""Where do a torch and a JAX computation part, and why: `python -m parity.localize CONFIG`, or two runs' folders.

    python -m parity.localize                           # both stacks on the preset `tiny`, shrunk
    python -m parity.localize gpt2-124m --layers 3 --width 96 --optimizer.beta2 0.999
    python -m parity.localize runs/torch runs/jax       # where two runs part: data, schedule, rounding or algorithm,
                                                        # between which checkpoints, and the replay from the last good
    python -m parity.localize tiny --inputs FOLDER/localize.npz      # again, with the inputs that were saved

A table and a verdict on the terminal; the picture, the text and the inputs in `--output` (default runs/localize-TIME).

For a pair that isn't ours, `localize` takes any torch function and any JAX function of the same named numpy arrays that
call `tap("name", value)` (`coretrain.taps`) at the same places; `localize_module` takes a torch module as it is, and
`hooked` taps one that is part of something else. `compare` takes what was recorded by other means. `parity/example.py`
is an example.

    report = localize(torch_function, jax_function, {"x": x, "weight": weight})
    report.show()
    report.save(Path("runs/mine"))

Both are run in float64, which decides whether there's a bug, on their own (free) and with JAX seated on torch's values,
where only the segment that makes an error shows it; then backward the same way; and where nothing parts, in float32
against the noise of the other framework.
"""

from __future__ import annotations

import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from coretrain.config import RunConfig, load_config
from coretrain.errors import UserError, exits_cleanly
from coretrain.parameters import parameter_table
from coretrain.taps import tap
from parity.pair import batches
from parity.recorders import LOSS, JaxRecorder, Record, hooked, record_torch
from parity.replay import localize_runs
from parity.rounding import evidence_of, judge_rounding, rounding_rows
from parity.search import UPDATES, jax_recorder, localize_config, localized_tap, search
from parity.verdict import (
    FORWARD,
    GRADIENT,
    GRADIENT_FLOOR,
    Report,
    judge,
    tap_rows,
    tensor_rows,
)

__all__ = [
    "compare",
    "hooked",
    "jax_recorder",
    "localize",
    "localize_config",
    "localize_module",
    "localized_tap",
    "record_torch",
    "search",
]


Tensors = Mapping[str, np.ndarray]
ALWAYS = {"output", LOSS}
"""Taps that `localize` itself puts on both sides."""


# --- any pair ---------------------------------------------------------------------------------------------------------


def compare(torch_tensors: Tensors, jax_tensors: Tensors, cap: float = FORWARD, title: str = "compare") -> Report:
    """The verdict on tensors recorded by any means, by name in the order of the computation."""
    if not torch_tensors and not jax_tensors:
        raise UserError("compare has no tensors on either side: record some first")
    rows = [replace(row, cap=cap) for row in tap_rows(Record(dict(torch_tensors)), Record(dict(jax_tensors)), None)]
    verdict = judge(rows)
    return Report(title, rows, verdict, evidence_of(verdict, Record(dict(torch_tensors)), Record(dict(jax_tensors))))


def localize(
    torch_function: Callable[..., Tensor],
    jax_function: Callable[..., jax.Array],
    inputs: Tensors,
    differentiate: Sequence[str] | None = None,
    title: str = "localize",
    float32: bool = True,
) -> Report:
    """Run both on the same named arrays, free and seated, forward and backward; see the module's own text.

    Each function takes the inputs by name, as tensors of its framework, and returns one array, of which a fixed random
    projection is differentiated with respect to the inputs in `differentiate` (default: all floating ones). Floating
    inputs come in float64, and in float32 for the second look: whatever else the functions hold must follow them.
    """
    jax.config.update("jax_enable_x64", True)
    wanted = [name for name, value in inputs.items() if np.issubdtype(value.dtype, np.floating)]
    wanted = wanted if differentiate is None else list(differentiate)

    def run(dtype: str, seated: bool) -> tuple[Record, Record, Record | None, Tensors, Tensors]:
        cast = {
            name: value.astype(dtype) if np.issubdtype(value.dtype, np.floating) else value
            for name, value in inputs.items()
        }
        tensors = {name: torch.from_numpy(np.array(v)).requires_grad_(name in wanted) for name, v in cast.items()}

        def torch_loss() -> Tensor:
            output = tap("output", torch_function(**tensors))
            return (output * torch.from_numpy(_direction(tuple(output.shape), dtype))).sum()

        def jax_loss(params: dict[str, jax.Array], rest: dict[str, jax.Array]) -> jax.Array:
            output = tap("output", jax_function(**params, **rest))
            return (output * _direction(output.shape, dtype)).sum()

        ours = record_torch(torch_loss)
        recorder = JaxRecorder(jax_loss, forget=True)
        arguments = {n: cast[n] for n in wanted}, {n: v for n, v in cast.items() if n not in wanted}
        theirs, gradients = recorder(*arguments)
        if ours.values.keys() - ALWAYS and not theirs.values.keys() - ALWAYS:
            raise UserError(
                "torch has taps and JAX has none: call coretrain.taps.tap at the same places of the JAX function"
            )
        on_ours = None
        if seated:
            on_ours, gradients = recorder(*arguments, seats=ours)
        torch_gradients = {n: _array(tensors[n].grad, tensors[n]) for n in wanted}
        return ours, theirs, on_ours, torch_gradients, {n: np.asarray(gradients[n]) for n in wanted}

    ours, theirs, seated, our_gradients, their_gradients = run("float64", True)
    rows = tap_rows(ours, theirs, seated)
    rows += tensor_rows("gradient", our_gradients, their_gradients, GRADIENT, GRADIENT_FLOOR)
    verdict = judge(rows)
    if verdict.kind == "same" and float32:
        narrow = run("float32", False)
        below = rounding_rows(ours, narrow[0], narrow[1], "float32")
        verdict = judge_rounding(below, narrow[0], narrow[1], "float32") or verdict
        rows = below if verdict.kind != "same" else rows
    evidence = {f"input/{name}": np.asarray(value) for name, value in inputs.items()}
    return Report(title, rows, verdict, evidence | evidence_of(verdict, ours, seated or theirs))


def localize_module(
    module: torch.nn.Module,
    jax_function: Callable[..., jax.Array],
    inputs: Tensors,
    taps: Sequence[str],
    **options: Any,
) -> Report:
    """`localize` for a torch module called with `inputs` by name, the outputs of its submodules `taps` being tapped.

    Its parameters join the inputs under their own names, scrambled: each element by up to 0.2 (seed 0), so that no bias
    is zero and no gain one. `options` are those of `localize`.
    """
    rng = np.random.default_rng(0)
    weights = {name: p.detach().cpu().numpy() for name, p in module.named_parameters()}
    weights = {name: value + rng.uniform(-0.2, 0.2, value.shape) for name, value in weights.items()}

    def torch_function(**named: Tensor) -> Tensor:
        parameters = {name: named.pop(name) for name in weights}
        with hooked({module.get_submodule(name): name for name in taps}):
            output = torch.func.functional_call(module, parameters, (), named)
        return output[0] if isinstance(output, tuple) else output

    options.setdefault("title", f"{type(module).__name__}, torch and JAX")
    return localize(torch_function, jax_function, {**inputs, **weights}, **options)


def _direction(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def _array(gradient: Tensor | None, like: Tensor) -> np.ndarray:
    return torch.zeros_like(like).numpy() if gradient is None else gradient.to_dense().numpy()


# --- the command line -------------------------------------------------------------------------------------------------


def shrunk(
    name: str | None, overrides: Sequence[tuple[str, str]], layers: int | None, width: int | None
) -> tuple[RunConfig, RunConfig]:
    """The config in float64 and in its own precision (at least as narrow as float32), small enough to be run at once.

    Kept: norms, positions, MLP, biases, tying, groups of heads, dropout, optimizer, schedule, accumulation. Smaller:
    layers (2), width (64), heads (4 at most), context, vocabulary and batch, where no override asks for another figure.
    """
    config = load_config(name, overrides)
    m, given = config.model, {key for key, _ in overrides}
    groups = min(m.heads // m.kv, 4)
    heads = m.heads if width is None and m.heads <= 4 else groups * max(1, 4 // groups)
    heads = m.heads if "model.heads" in given else heads
    width = width or (m.width if "model.width" in given else min(m.width, 16 * heads))
    if width % heads:
        raise UserError(f"--width {width} is no multiple of the {heads} heads: choose one that is")
    accumulation = min(config.train.accumulation, 2)
    small = {
        "model.layers": layers or min(m.layers, 2),
        "model.width": width,
        "model.heads": heads,
        "model.kv_heads": heads // groups,
        "model.head_width": "none",
        "model.mlp_width": "none",
        "model.context": min(m.context, 48),
        "model.vocab": 301,
        "train.batch_size": 2 * accumulation,
        "train.accumulation": accumulation,
        "execution.loss_chunk": 50,
        "execution.compile": "off",
        "execution.device": "cpu",
    }
    fields = [(key, str(value)) for key, value in small.items() if key not in given]
    own = load_config(name, [*fields, *overrides])
    below = (
        own
        if own.precision.compute != "float64"
        else load_config(name, [*fields, *overrides, ("precision.compute", "float32")])
    )
    exact = [("precision.compute", "float64"), ("execution.attention", "plain"), ("execution.device", "cpu")]
    return load_config(name, [*fields, *overrides, *exact]), below


def _read_inputs(path: Path, config: RunConfig) -> tuple[Tensors, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Weights, and batches of which the first is the saved one."""
    give = "give a localize.npz of an earlier call"
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with file:
            weights = {key.removeprefix("weights/"): file[key] for key in file if key.startswith("weights/")}
            batch = file["batch"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"--inputs {path} can't be read ({error}): {give}") from None
    for row in parameter_table(config.model):
        if row.name not in weights or weights[row.name].shape != row.shape:
            raise UserError(f"--inputs {path} is of another model ({row.name}): repeat the command that it comes from")
    m = config.model
    if batch.ndim != 2 or not np.issubdtype(batch.dtype, np.integer) or not 2 <= batch.shape[1] <= m.context + 1:
        raise UserError(f"--inputs {path}: its batch isn't rows of 2 to {m.context + 1} token ids; {give}")
    if len(batch) % config.train.accumulation or not len(batch):
        raise UserError(f"--inputs {path}: {len(batch)} rows don't split into {config.train.accumulation}; {give}")
    if batch[:, :-1].min() < 0 or batch.max() >= m.vocabulary or batch[:, -1].min() < -100:
        raise UserError(f"--inputs {path}: its batch has ids outside of 0 to {m.vocabulary - 1}; {give}")
    made = [batch, *batches(config, UPDATES)[1:]]
    return weights, (made, made)


def _check_place(folder: Path) -> None:
    """Before anything is computed: a place that can't be written to costs no work, and a mistake leaves no folder."""
    if not next(place for place in (folder, *folder.absolute().parents) if place.exists()).is_dir():
        raise UserError(f"--output {folder} is a file, or lies in one: name a folder")


@exits_cleanly
def main() -> int:
    """0 where nothing parts, 1 where something does, 2 for a user's error."""
    words, places, options, overrides = sys.argv[1:], [], {}, []
    if any(word in ("-h", "--help") for word in words):
        print(__doc__)
        return 0
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            places.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"--{key} has no value: give one after it, as in --layers 2")
            value = words.pop(0)
        if key in ("layers", "width", "output", "inputs"):
            options[key] = value
        else:
            overrides.append((key, value))
    folder = Path(options.get("output") or Path("runs") / time.strftime("localize-%Y%m%d-%H%M%S"))
    if len(places) > 2:
        raise UserError(f"{len(places)} names are given: give a config, or the folders of two runs")
    if len(places) == 2:
        if overrides or options.keys() - {"output"}:
            raise UserError(
                "two runs are given: fields, --layers, --width and --inputs are for a config; leave them out"
            )
        _check_place(folder)
        report = localize_runs(Path(places[0]), Path(places[1]))
        report.reproduce = f"python -m parity.localize {places[0]} {places[1]}"
    else:
        for key in ("layers", "width"):
            if key in options and not (options[key].isdecimal() and int(options[key])):
                raise UserError(f"--{key} {options[key]} is not a whole number above 0: give one, as in --{key} 2")
        jax.config.update("jax_enable_x64", True)
        torch.set_num_threads(min(torch.get_num_threads(), 4))  # the models are so small that more cost more
        name = places[0] if places else None
        sizes = (int(options[key]) if key in options else None for key in ("layers", "width"))
        config, below = shrunk(name, overrides, *sizes)
        given: dict[str, Any] = {}
        if "inputs" in options:
            given["weights"], given["feeds"] = _read_inputs(Path(options["inputs"]), config)
        _check_place(folder)
        report = localize_config(config, below=below, **given)
        report.reproduce = _command(sys.argv[1:], folder)
    report.save(folder)
    report.show()
    print(f"{folder}: localize.png, localize.txt, localize.npz")
    return int(report.verdict.kind != "same")


def _command(words: list[str], folder: Path) -> str:
    kept, skip = [], False
    for word in words:
        if skip or word.split("=")[0] in ("--output", "--inputs"):
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return " ".join(["python -m parity.localize", *kept, "--inputs", str(folder / "localize.npz")])


if __name__ == "__main__":
    main()
