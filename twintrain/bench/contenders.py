"""Who is compared, at which shape, and why some can't be run here. Importing this is quick."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coretrain.base.errors import UserError

if TYPE_CHECKING:
    from coretrain.config.run import RunConfig

PARTS = ("training", "generation")
SHORT = {"float32": "f32", "bfloat16": "bf16"}
NO_UNITS = 0.05
"""A bfloat16 peak below this share of the float32 one is a reference path, not hardware."""
MAXTEXT = (
    "MaxText was not run: its trainer has no call for one update, and it needs a Python and a jax of its own, so that "
    "it can't take turns here"
)


@dataclass(frozen=True)
class Maker:
    """A stack, or somebody else's trainer."""

    title: str
    framework: str
    package: str = ""
    """What must be installed for it, and by which words."""
    install: str = ""
    unlike: str = ""
    """How its model isn't the one that the stacks have, where it can't be made so."""


MAKERS = {
    "torch": Maker("torch", "torch"),
    "jax": Maker("JAX", "jax"),
    "transformers": Maker("transformers", "torch", "transformers", "pip install 'twintrain[bench]'"),
    "nanogpt": Maker("nanoGPT", "torch", install="clone it and give its folder, as --nanogpt FOLDER"),
    "litgpt": Maker(
        "litgpt",
        "torch",
        "litgpt",
        "pip install litgpt",
        "litgpt has no learned positions, so its model has rotary ones",
    ),
}
OURS = ("torch", "jax")
PEERS = tuple(name for name in MAKERS if name not in OURS)


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    maker: str
    dtype: str
    compiled: bool = False

    @property
    def name(self) -> str:
        """As `--only` and JSON have it."""
        return "-".join([self.maker, SHORT[self.dtype], *(["compiled"] if self.compiled else [])])

    @property
    def label(self) -> str:
        """As the table has it, beside its dtype."""
        return MAKERS[self.maker].title + (", compiled" if self.compiled else "")

    @property
    def framework(self) -> str:
        """torch or jax."""
        return MAKERS[self.maker].framework

    @property
    def peer(self) -> bool:
        """Whether it is somebody else's."""
        return self.maker in PEERS


def contenders(part: str) -> dict[str, Contender]:
    """All that can be compared in training, or in generation; of one dtype after the other.

    JAX always compiles. Generation is compared as each comes: a new length would be compiled anew.
    """
    forms = (False, True) if part == "training" else (False,)
    found = [
        Contender(maker, dtype, compiled)
        for dtype in SHORT
        for maker in MAKERS
        for compiled in (forms if MAKERS[maker].framework == "torch" else (False,))
    ]
    return {one.name: one for one in found}


def chosen(part: str, words: Sequence[str] | None) -> dict[str, Contender]:
    """Those that are meant by `--only`: by a name, or by a part of names as torch, f32 or compiled; else all."""
    every = contenders(part)
    if words is None:
        return every
    meant = set[str]()
    for word in words:
        found = {name for name in every if word == name or word in name.split("-")}
        if not found:
            raise UserError(
                "bench/only-means-nothing",
                f"--only {word} means nothing of {part}: give a name, or a part of names: {', '.join(every)}",
            )
        meant |= found
    return {name: one for name, one in every.items() if name in meant}


@dataclass(frozen=True)
class Shape:
    """What is trained; heads are 64 wide where the width allows it."""

    layers: int = 6
    width: int = 384
    vocab: int = 50257
    batch: int = 8
    context: int = 256

    @property
    def heads(self) -> int:
        """Heads of the model."""
        return self.width // 64 if self.width % 64 == 0 else 1

    @property
    def prompt(self) -> int:
        """Tokens of the text that generation goes on from."""
        return min(32, self.context // 2)

    @property
    def new(self) -> int:
        """Tokens that follow it."""
        return min(64, self.context - self.prompt)

    def tokens(self, part: str) -> int:
        """Tokens of one step: an update's batch, or one generated text."""
        return self.batch * self.context if part == "training" else self.new

    def config(self, dtype: str = "float32", compiled: bool = False) -> RunConfig:
        """The run that the stacks are given: a GPT-2 of this shape, all else at its default."""
        from coretrain.config.load import load_config

        fields = {
            "model.layers": self.layers,
            "model.width": self.width,
            "model.heads": self.heads,
            "model.vocab": self.vocab,
            "model.context": self.context,
            "model.norm": "layernorm",
            "model.position": "learned",
            "model.mlp": "gelu",
            "model.bias": True,
            "model.tied": True,
            "train.batch_size": self.batch,
            "precision.compute": dtype,
            "execution.compile": "on" if compiled else "off",
        }
        return load_config("tiny", [(key, str(value)) for key, value in fields.items()])


def obstacle(one: Contender, peaks: Mapping[str, Mapping[str, float]], nanogpt: Path | None) -> str | None:
    """Why a contender can't be run here, or None. `peaks` are GFLOP/s of matmuls, by "framework dtype"."""
    maker = MAKERS[one.maker]
    there = nanogpt is not None if one.maker == "nanogpt" else _installed(maker.package or maker.framework)
    if not there:
        return maker.install or f"pip install {maker.framework}"
    if one.compiled and not (shutil.which("g++") or shutil.which("clang++")) and not _accelerated():
        return "no C++ compiler is installed"
    if one.dtype == "bfloat16":
        half, full = (peaks[f"{one.framework} {dtype}"]["gflops"] for dtype in ("bfloat16", "float32"))
        if half < NO_UNITS * full:
            return f"this CPU has no bf16 units ({half:.1f} GFLOP/s)"
    return None


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _accelerated() -> bool:
    """Whether torch computes on a GPU, whose code needs no C++ compiler; asked only where there is none."""
    import torch

    return torch.cuda.is_available()


def check_nanogpt(folder: Path) -> Path:
    """The file of nanoGPT's model. Raises `UserError` where it isn't in `folder`."""
    path = folder / "model.py"
    if not path.is_file():
        raise UserError(
            "bench/nanogpt-not-there", f"--nanogpt {folder}: there is no model.py: give the folder of its checkout"
        )
    return path
