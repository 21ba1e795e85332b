"""The command for other people's pairs: two models and a map, two functions, or two optimizers, to a report."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from coretrain.base.errors import Options, UserError
from coretrain.base.files import typed_path
from coretrain.base.parse import shown
from parity.localize.show import Report, check_place
from parity.pairs import jax_side, loading
from parity.pairs.judging import PERTURBED, localize, localize_models
from parity.pairs.mapping import Map, read_map, write_map
from parity.pairs.optimizers import STEPS, compare_optimizers
from parity.pairs.propose import proposed
from parity.pairs.training import compare_steps

PROGRAM = "python -m parity.pairs"
PAIR = {
    "torch": ("MODULE:NAME", "or FILE.py:NAME: a model, its class, a function that makes one, or one of the inputs"),
    "jax": ("MODULE:NAME", "the same of JAX"),
    "params": ("MODULE:NAME", "the tree of parameters of a JAX function (parameters, inputs)"),
    "weights": ("MAP", "how JAX's leaves are made of torch's tensors"),
    "inputs": ("FILE", "a .npz of what both are called with, by name"),
    "mask": ("NAME", "the input [batch, positions] that is not 0 at real tokens"),
    "propose": ("MAP", "write such a map, to be looked at: by shapes and names, or by --converter"),
    "converter": ("MODULE:NAME", "a function from torch's state dict to JAX's tree"),
    "output": ("FOLDER", "where page, picture, text and inputs go (default: runs/localize-TIME)"),
    "perturb": ("NUMBER", f"weights are changed by up to this (default: {PERTURBED}; 0 leaves them)"),
    "torch-optimizer": ("MODULE:NAME", "a function of parameters that makes an optimizer"),
    "jax-optimizer": ("MODULE:NAME", "what optax makes; both get the same gradients"),
    "steps": ("N", f"of optimizers (default: {STEPS}); with --torch and --jax, these are training steps"),
}
"""Options of this command, each with its value and its help."""


def options(program: str = PROGRAM) -> argparse.ArgumentParser:
    """The parser."""
    about = "Where do a torch and a JAX model, function or optimizer part? docs/bring-your-own.md shows it."
    parser = Options(prog=program, description=about, allow_abbrev=False)
    for name, (value, text) in PAIR.items():
        parser.add_argument(f"--{name}", metavar=value, help=text)
    return parser


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """0 where nothing parts or a map was proposed, 1 where something parts."""
    typed = list(sys.argv[1:] if argv is None else argv)
    given = options(program).parse_args(typed)
    torch.manual_seed(0)  # a model that is made here begins at the same weights each time
    folder = typed_path(given.output or f"runs/{time.strftime('localize-%Y%m%d-%H%M%S')}")
    check_place(folder)
    if given.torch_optimizer or given.jax_optimizer:
        report = _optimizers(given)
    else:
        if not given.torch or not given.jax:
            raise UserError(
                "parity/pair-side-missing",
                f"a pair has two sides: --{'jax' if given.torch else 'torch'} is missing, name its model or function",
            )
        if given.propose:
            _proposal(given)
            return 0
        report = _judged(given) if given.steps is None else _training(given)
    report.reproduce = f"{program} {shlex.join(typed)}"
    report.save(folder)
    report.show()
    print(f"{folder}: localize.html, localize.png, localize.txt, localize.npz")
    return int(report.verdict.kind != "same")


def _refused(given: argparse.Namespace, name: str, why: str) -> None:
    if getattr(given, name.replace("-", "_")) is not None:
        raise UserError("parity/pair-option-unused", f"--{name} {why}: leave it out")


def _optimizers(given: argparse.Namespace) -> Report:
    for name in PAIR:
        if name not in ("torch-optimizer", "jax-optimizer", "steps", "output"):
            _refused(given, name, "is for models and functions, and two optimizers are given")
    if not given.torch_optimizer or not given.jax_optimizer:
        raise UserError(
            "parity/optimizer-side-missing",
            "--torch-optimizer (a function of parameters) and --jax-optimizer (an optax transformation) go together: "
            "give both",
        )
    steps = STEPS if given.steps is None else _steps(given.steps)
    ours = loading.named("--torch-optimizer", given.torch_optimizer)
    named = loading.named("--jax-optimizer", given.jax_optimizer)
    theirs = _tried(lambda: loading.made(named))
    return _tried(lambda: compare_optimizers(ours, theirs, steps))


def _steps(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 6 or not int(text):
        raise UserError("parity/steps-wrong", f"--steps {shown(text)}: give a whole number from 1 to 999999")
    return int(text)


def _training(given: argparse.Namespace) -> Report:
    """Two functions that are whole training steps; the inputs whose names begin with state. are their state."""
    for name in ("params", "weights", "mask", "converter", "perturb"):
        _refused(given, name, "is for models, and --steps says that both sides are training steps")
    inputs = _inputs(given)
    state = {name.removeprefix("state."): v for name, v in inputs.items() if name.startswith("state.")}
    batch = {name: value for name, value in inputs.items() if not name.startswith("state.")}
    if not state:
        raise UserError(
            "parity/step-state-missing",
            "--steps needs a state to begin with: arrays in --inputs whose names begin with state., as state.weight",
        )
    ours, theirs = loading.named("--torch", given.torch), loading.named("--jax", given.jax)
    title = f"{given.torch} and {given.jax}"
    return _tried(lambda: compare_steps(ours, theirs, state, batch, _steps(given.steps), title))


def _sides(given: argparse.Namespace) -> tuple[Any, Any, Any]:
    sides = [loading.named("--torch", given.torch), loading.named("--jax", given.jax)]
    params = None if given.params is None else loading.named("--params", given.params)
    ours = _tried(lambda: loading.made(sides[0]))
    tree = None if params is None else _tried(lambda: loading.made(params))
    return ours, (sides[1] if tree is not None else _tried(lambda: loading.made(sides[1]))), tree


def _inputs(given: argparse.Namespace) -> dict[str, Any]:
    found = {} if given.inputs is None else loading.arrays("--inputs", given.inputs)
    if given.mask is not None and given.mask not in found:
        raise UserError(
            "parity/mask-not-an-input", f"--mask {shown(given.mask)} is none of the inputs ({', '.join(found)})"
        )
    return found


def _module(ours: Any, why: str) -> nn.Module:
    if not isinstance(ours, nn.Module):
        raise UserError(
            "parity/torch-model-unknown",
            f"--torch gives {type(ours).__name__}, and {why}: name a module, its class, or a function without "
            "arguments that makes one",
        )
    return ours


def _proposal(given: argparse.Namespace) -> None:
    """Write the map that is proposed, for a person to confirm; one that is there is not overwritten."""
    path = typed_path(given.propose)
    for name in ("weights", "perturb", "output", "steps"):
        _refused(given, name, "has nothing to do with --propose")
    if path.exists() or not path.absolute().parent.is_dir():
        reason = "a file is there already" if path.exists() else "its folder is missing"
        raise UserError("parity/map-place-taken", f"--propose {path}: {reason}; name another")
    ours, theirs, tree = _sides(given)
    module = _module(ours, "a map is of a module's tensors")
    convert = None if given.converter is None else loading.named("--converter", given.converter)
    inputs = _inputs(given)
    model = _tried(lambda: jax_side.model_of(theirs, tree, inputs))
    made = _tried(lambda: proposed(module, model, convert))
    write_map(path, made)
    notes = sum(bool(entry.note) for entry in made.parameters.values())
    left = len(made.unused_torch) + len(made.unused_jax)
    print(f"{path}: {len(made.parameters)} leaves, {left} left over, {len(made.taps)} taps")
    if not made.confirmed:
        print(f"it is a guess ({notes} rows say so in a comment): look at it, then set confirmed = true in it")


def _judged(given: argparse.Namespace) -> Report:
    _refused(given, "converter", "is for --propose: it makes the map")
    ours, theirs, tree = _sides(given)
    inputs = _inputs(given)
    if not inputs:
        raise UserError("parity/pair-inputs-missing", "a pair needs its inputs: --inputs FILE.npz, arrays by name")
    if given.weights is None and not isinstance(ours, nn.Module):
        _refused(given, "perturb", "is for a module's weights, and --torch is a function")
        return _tried(lambda: localize(ours, theirs, inputs, title=f"{given.torch} and {given.jax}", mask=given.mask))
    module = _module(ours, "--weights maps a module's tensors")
    made = Map() if given.weights is None else read_map(typed_path(given.weights))
    if not made.confirmed:
        raise UserError(
            "parity/map-not-confirmed",
            f"{given.weights} is a proposal that nobody confirmed: look at it, then set confirmed = true in it",
        )
    perturb = PERTURBED
    if given.perturb is not None:
        try:
            perturb = float(given.perturb)
        except ValueError:
            perturb = -1.0
        if not 0 <= perturb <= 1e3:
            raise UserError("parity/perturb-wrong", f"--perturb {shown(given.perturb)}: give a number from 0 to 1000")
    model = _tried(lambda: jax_side.model_of(theirs, tree, {**inputs, **made.arguments_jax}))
    return _tried(lambda: localize_models(module, model, made, inputs, given.mask, perturb=perturb))


def _tried(run: Any) -> Any:
    """What `run` gives; what a model of the user's raises is one sentence with its last line of code."""
    try:
        return run()
    except (UserError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        trace, place = error.__traceback__, ""
        while trace is not None:
            code = trace.tb_frame.f_code
            if not any(part in code.co_filename for part in ("/torch/", "/jax/", "/parity/", "/flax/", "/numpy/")):
                place = f" at {code.co_filename}:{trace.tb_lineno}"
            trace = trace.tb_next
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(
            "parity/pair-call-failed",
            f"a side of the pair can't be run{place} ({type(error).__name__}: {reason[:300]}): arguments that it needs "
            "go into --inputs, or into [arguments] of the map",
        ) from error
