"""The map of a pair: which torch tensors, through which steps, make each leaf of JAX; which modules are compared.

A TOML file, read and written here. `*` in a JAX path and in its torch name stands for the same number; in a torch name
alone, for all numbers there are, in order (stacked layers).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coretrain.base.errors import UserError, meant
from coretrain.base.files import write_atomically
from coretrain.base.parse import from_toml, read_bytes, shown
from parity.pairs.steps import carried_out, joined

LARGEST = 2**20
SECTIONS = ("confirmed", "parameters", "unused", "inputs", "arguments", "output", "taps")
ABOUT = """\
# How a JAX model's leaves are made of a torch model's tensors. Look at it, then set confirmed = true.
#   "jax.leaf" = "torch.name"
#   "jax.leaf" = { torch = "torch.name", steps = ["transpose"] }
#   "jax.leaf" = { torch = ["a", "b"], steps = [...], join = "stack 0", then = [...] }
# [taps] says whose outputs are compared: "jax.module" = "torch.module".
"""


@dataclass(frozen=True)
class Entry:
    """One leaf of JAX, or one tap: the torch names, what is done to each, how they are joined, what is done then."""

    torch: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...] = ((),)
    """For each torch name, or one for all."""
    join: str = ""
    then: tuple[str, ...] = ()
    note: str = ""
    """Why a proposal says so; written as a comment."""

    def made(self, tensors: Mapping[str, Tensor], where: str) -> Tensor:
        """The leaf."""
        steps = self.steps if len(self.steps) == len(self.torch) else self.steps * len(self.torch)
        parts = [carried_out(tensors[name], own, where) for name, own in zip(self.torch, steps, strict=True)]
        return carried_out(joined(parts, self.join, where), self.then, where)


@dataclass
class Map:
    """A whole map."""

    parameters: dict[str, Entry] = field(default_factory=dict)
    unused_torch: dict[str, str] = field(default_factory=dict)
    unused_jax: dict[str, str] = field(default_factory=dict)
    taps: dict[str, Entry] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    """JAX's name of an input: torch's name of it."""
    arguments_torch: dict[str, Any] = field(default_factory=dict)
    arguments_jax: dict[str, Any] = field(default_factory=dict)
    output_torch: str | None = None
    output_jax: str | None = None
    confirmed: bool = True

    def leaves(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """JAX's leaves, made of torch's tensors; other names of a tensor may be among them."""
        return {leaf: entry.made(tensors, leaf) for leaf, entry in self.parameters.items()}

    def checked(self, tensors: Mapping[str, Any], aliases: Mapping[str, str], leaves: Mapping[str, Any]) -> Map:
        """The map with each `*` spelled out. Raises `UserError` for a name that isn't there, a shape, a leaf forgotten.

        `leaves` are JAX's; where a function shows none of them, torch's side alone is checked.
        """
        known = [*tensors, *aliases]
        parameters = dict(_spelled_out(self.parameters, leaves or None, known, "parameters"))
        used = {name for entry in parameters.values() for name in entry.torch}
        for name in (*used, *self.unused_torch):
            if name not in known:
                raise UserError(
                    "parity/map-torch-name-unknown",
                    f"the map names {shown(name)}, which the torch model hasn't: {meant(name, known)}correct it",
                )
        if leaves:
            for name in (*parameters, *self.unused_jax):
                if name not in leaves:
                    raise UserError(
                        "parity/map-jax-name-unknown",
                        f"the map names {shown(name)}, which the JAX model hasn't: {meant(name, list(leaves))}correct "
                        "it",
                    )
        for side, names, given in (
            ("torch", tensors, {aliases.get(name, name) for name in (*used, *self.unused_torch)}),
            ("jax", leaves, {*parameters, *self.unused_jax}),
        ):
            left = [name for name in names if name not in given]
            if left:
                raise UserError(
                    "parity/map-leaf-missing",
                    f"the map has nothing for {len(left)} of the {side} model's tensors, as {shown(left[0])}: give "
                    f"each its row in [parameters], or its reason in [unused.{side}]",
                )
        empty = {name: torch.zeros(tuple(np.shape(tensors[aliases.get(name, name)]))) for name in used}
        for leaf, entry in parameters.items():
            shape = tuple(entry.made(empty, leaf).shape)
            if leaves and shape != tuple(leaves[leaf].shape):
                raise UserError(
                    "parity/map-shape-wrong",
                    f"the map makes {shown(leaf)} in shape {list(shape)}, and JAX has {list(leaves[leaf].shape)}: "
                    "correct its steps",
                )
        for name in self.unused_jax:
            if leaves and not hasattr(leaves[name], "__array__"):
                raise UserError(
                    "parity/map-leaf-without-value",
                    f"the map leaves {shown(name)} as JAX has it, and no value of it is given: map it, or give --jax "
                    "or --params with values",
                )
        return Map(**(vars(self) | {"parameters": parameters}))

    def tap_pairs(self, torch_modules: Collection[str]) -> dict[str, Entry]:
        """The taps with each `*` spelled out: by JAX's path, torch's."""
        return dict(_spelled_out(self.taps, None, list(torch_modules), "taps"))


def _spelled_out(
    entries: Mapping[str, Entry], leaves: Collection[str] | None, known: Collection[str], section: str
) -> Iterator[tuple[str, Entry]]:
    for leaf, entry in entries.items():
        starred = [name for name in entry.torch if "*" in name]
        if not starred:
            yield leaf, entry
            continue
        pattern = re.compile(re.escape(starred[0]).replace(r"\*", r"(\d+)"))
        found = sorted(
            (tuple(map(int, match.groups())), name) for name in known if (match := pattern.fullmatch(name)) is not None
        )
        if not found:
            raise UserError(
                "parity/map-star-empty",
                f"[{section}] has {shown(starred[0])}, which no name of the torch model is like: correct it",
            )
        if "*" in leaf:
            for numbers, _ in found:
                names = tuple(_filled(name, numbers) for name in entry.torch)
                yield _filled(leaf, numbers), Entry(names, entry.steps, entry.join, entry.then)
        else:
            yield leaf, Entry(tuple(name for _, name in found), entry.steps, entry.join, entry.then)


def _filled(text: str, numbers: tuple[int, ...]) -> str:
    for number in numbers:
        text = text.replace("*", str(number), 1)
    return text


def read_map(path: Path) -> Map:
    """A map out of a file. Raises `UserError` naming the file and what is wrong in it."""
    try:
        table = from_toml(read_bytes(path, LARGEST).decode())
    except (OSError, ValueError) as error:
        raise UserError(
            "parity/map-unreadable", f"{path} can't be read as a map ({error}): write one with --propose"
        ) from None
    unknown = [key for key in table if key not in SECTIONS]
    if unknown:
        raise UserError(
            "parity/map-field-unknown",
            f"{path}: {shown(unknown[0])} is no part of a map: {meant(unknown[0], SECTIONS)}the parts are "
            f"{', '.join(SECTIONS)}",
        )

    def part(*names: str, values: type | tuple[type, ...] = object) -> dict[str, Any]:
        found: Any = table
        for name in names:
            found = found.get(name, {}) if isinstance(found, dict) else None
        if not isinstance(found, dict) or not all(isinstance(value, values) for value in found.values()):
            wanted = "a table of texts" if values is str else "a table"
            raise UserError("parity/map-field-wrong", f"{path}: {'.'.join(names)} is no map's: write {wanted} there")
        return found

    for section, keys in (("unused", ("torch", "jax")), ("arguments", ("torch", "jax")), ("output", ("torch", "jax"))):
        odd = [key for key in part(section) if key not in keys]
        if odd:
            raise UserError(
                "parity/map-side-unknown", f"{path}: {section}.{shown(odd[0])} is neither torch nor jax: correct it"
            )
    confirmed = table.get("confirmed", False)
    if not isinstance(confirmed, bool):
        raise UserError("parity/map-confirmed-wrong", f"{path}: confirmed is {shown(confirmed)}: write true or false")
    output = part("output", values=str)
    return Map(
        {name: _entry(path, name, value) for name, value in part("parameters").items()},
        part("unused", "torch", values=str),
        part("unused", "jax", values=str),
        {name: _entry(path, name, value) for name, value in part("taps").items()},
        part("inputs", values=str),
        part("arguments", "torch"),
        part("arguments", "jax"),
        output.get("torch"),
        output.get("jax"),
        confirmed,
    )


def _entry(path: Path, name: str, value: Any) -> Entry:
    def texts(given: Any) -> tuple[str, ...]:
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, list) or not given or not all(isinstance(item, str) for item in given):
            raise ValueError
        return tuple(given)

    try:
        if isinstance(value, (str, list)):
            return Entry(texts(value))
        if not isinstance(value, dict) or set(value) - {"torch", "steps", "join", "then"}:
            raise ValueError
        names, steps, join = texts(value["torch"]), value.get("steps", []), value.get("join", "")
        nested = bool(steps) and isinstance(steps, list) and all(isinstance(item, list) for item in steps)
        own = tuple(texts(item) if item else () for item in steps) if nested else (texts(steps) if steps else (),)
        if not isinstance(join, str) or (nested and len(own) != len(names)):
            raise ValueError
        return Entry(names, own, join, texts(value["then"]) if value.get("then") else ())
    except (ValueError, KeyError):
        raise UserError(
            "parity/map-entry-wrong",
            f"{path}: the row of {shown(name)} is {shown(value)}: write a torch name, or "
            '{ torch = "NAME", steps = ["transpose"] }, or { torch = ["A", "B"], join = "stack 0" }',
        ) from None


def write_map(path: Path, made: Map) -> None:
    """A map as a file that a person reads; what a proposal isn't sure of stands in its comments."""
    lines = [ABOUT, f"confirmed = {str(made.confirmed).lower()}", "", "[parameters]"]
    lines += [_row(name, entry) for name, entry in made.parameters.items()]
    for side, reasons in (("torch", made.unused_torch), ("jax", made.unused_jax)):
        if reasons:
            lines += ["", f"[unused.{side}]", *(f"{_text(name)} = {_text(why)}" for name, why in reasons.items())]
    if made.inputs:
        lines += ["", "[inputs]", *(f"{_text(name)} = {_text(other)}" for name, other in made.inputs.items())]
    for side, given in (("torch", made.arguments_torch), ("jax", made.arguments_jax)):
        if given:
            lines += ["", f"[arguments.{side}]", *(f"{_text(name)} = {json.dumps(v)}" for name, v in given.items())]
    if made.output_torch or made.output_jax:
        lines += ["", "[output]"]
        lines += [f"torch = {_text(made.output_torch)}"] * bool(made.output_torch)
        lines += [f"jax = {_text(made.output_jax or '')}"] * bool(made.output_jax)
    lines += ["", "[taps]", *(_row(name, entry) for name, entry in made.taps.items())]
    write_atomically(path, "\n".join(lines) + "\n")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _row(name: str, entry: Entry) -> str:
    torch_names = _text(entry.torch[0]) if len(entry.torch) == 1 else _text(list(entry.torch))
    fields = [f"torch = {torch_names}"]
    if any(entry.steps):
        steps = list(entry.steps[0]) if len(entry.steps) == 1 else [list(own) for own in entry.steps]
        fields.append(f"steps = {_text(steps)}")
    fields += [f"join = {_text(entry.join)}"] * bool(entry.join)
    fields += [f"then = {_text(list(entry.then))}"] * bool(entry.then)
    plain = len(fields) == 1 and len(entry.torch) == 1
    value = torch_names if plain else f"{{ {', '.join(fields)} }}"
    return f"{_text(name)} = {value}" + (f"  # {entry.note}" if entry.note else "")
