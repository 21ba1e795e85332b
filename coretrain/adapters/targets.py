"""Adapters in the contract: which tensors they have, how they start, what trains, and what they add to W.

y = W x + scale B A drop(x) (Hu et al. 2021), names and starts as PEFT has them: of a linear layer A [rank, in] is
U(+-1/sqrt(in)) and B [out, rank] zero; of an embedding [V, D], A [rank, V] is zero and B [D, rank] normal, and its rows
change by scale (B A)^T. The other kinds stand in `adapter_kinds`. Only an adapter's tensors, the biases that
`adapter.bias` asks for and a score head train, have moments and are saved.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from coretrain.adapters.kinds import (
    MERGEABLE,
    bottleneck_rows,
    magnitude_row,
    magnitudes,
    prefix_rows,
)
from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.contract.dropout import dropout_keys, uses_dropout
from coretrain.contract.parameters import SCORE, Parameter, initial_value, parameter_table
from coretrain.contract.randomness import MASK_32, stream_key

PARTS = ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.gate", "mlp.up", "mlp.down")
"""A block's matrices in the order of their dropout sites."""


@dataclass(frozen=True)
class Target:
    """A matrix with an adapter, or a sublayer with a prefix or bottleneck."""

    row: Parameter
    """The matrix W itself, in the base; of a sublayer one of its own."""
    tensors: tuple[Parameter, ...]
    """A, B and DoRA's m; a prefix' k and v; down and up of a bottleneck, each with its bias where the model has any."""

    @property
    def a(self) -> Parameter:
        """A [rank, in]."""
        return self.tensors[0]

    @property
    def b(self) -> Parameter:
        """B [out, rank]."""
        return self.tensors[1]

    @property
    def module(self) -> str:
        """Name of the module that it stands at: `blocks.0.attention.q`, `embed`, `head`, `blocks.0.mlp`."""
        return self.tensors[0].name.rsplit(".", 2)[0]

    @property
    def slot(self) -> str:
        """The module's attribute for it: adapter or prefix."""
        return self.tensors[0].name.rsplit(".", 2)[1]

    @property
    def embedding(self) -> bool:
        """W is looked up, not multiplied by."""
        return self.row.name == "embed.token"

    @property
    def part(self) -> int:
        """Index of the dropout site among its layer's; the head's is counted from the end of all sites."""
        return PARTS.index(self.module.split(".", 2)[2]) if self.row.layer is not None else -1


@functools.cache
def adapter_targets(config: RunConfig) -> tuple[Target, ...]:
    """The matrices that `adapter.targets` names, in the order of the parameter table; none without adapters.

    Raises `UserError` for a pattern that matches nothing, a rank above a matrix, and what can't be merged or held.
    """
    c = config.adapter
    if c.kind == "none":
        return ()
    possible = [row for row in parameter_table(config.model) if _can_have_one(row, c.kind)]
    for pattern in c.targets:
        if not any(fnmatch.fnmatchcase(row.name, pattern) for row in possible):
            takes = f" that a {c.kind} takes" if c.kind not in MERGEABLE else ""
            raise UserError(
                "adapters/target-matches-nothing",
                f"adapter.targets: {pattern} matches no matrix of this model{takes}: "
                f"names are as {', '.join(row.name for row in possible[:2])} or {possible[-1].name}",
            )
    chosen = [row for row in possible if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in c.targets)]
    if c.kind not in MERGEABLE:
        return tuple(Target(*found) for found in SUBLAYERS[c.kind](config, chosen))
    for row in chosen:
        _check_target(config, row)
    _check_biases(config, chosen)
    return tuple(_target(row, c.rank, c.kind) for row in chosen)


SUBLAYERS = {"prefix": prefix_rows, "bottleneck": bottleneck_rows}
"""Of the kinds that stand at sublayers: (a matrix, the adapter's tensors) for each."""


def _can_have_one(row: Parameter, kind: str) -> bool:
    if kind not in MERGEABLE:
        return row.layer is not None and len(row.shape) == 2 and (kind != "prefix" or ".attention." in row.name)
    return row.name in ("embed.token", "head.weight") or (row.layer is not None and len(row.shape) == 2)


def _check_target(config: RunConfig, row: Parameter) -> None:
    c = config.adapter
    if c.rank > min(row.shape):
        raise UserError(
            "adapters/adapter-rank-too-large",
            f"adapter.rank = {c.rank} is above the smaller side of {row.name} {row.shape}: "
            f"choose at most {min(row.shape)}, or leave it out of adapter.targets",
        )
    if row.name == "embed.token" and config.model.tied:
        raise UserError(
            "adapters/target-is-tied-embedding",
            "adapter.targets names embed.token, which is this tied model's head too: an adapter on one of the two "
            "could not be merged; leave it out of adapter.targets",
        )


def _check_biases(config: RunConfig, chosen: Sequence[Parameter]) -> None:
    of_blocks = [row.name.split(".", 2)[2] for row in chosen if row.layer is not None]
    some = any(of_blocks.count(part) != config.model.layers for part in of_blocks)
    if config.adapter.bias == "lora_only" and config.model.bias and some:
        raise UserError(
            "adapters/lora-bias-layers-differ",
            "adapter.bias = lora_only with adapters in some layers only can't be held by stacked layers: "
            "choose adapter.targets that are the same in all layers, or adapter.bias = none or all",
        )


def _target(row: Parameter, rank: int, kind: str) -> Target:
    stem, path = row.name.rpartition(".")[0], row.jax_path.rpartition(".")[0]
    out, into = row.shape if row.name != "embed.token" else row.shape[::-1]
    out_axis, in_axis = row.axes if row.name != "embed.token" else row.axes[::-1]
    a = replace(row, name=f"{stem}.adapter.a", jax_path=f"{path}.adapter.a", shape=(rank, into), axes=("rank", in_axis))
    b = replace(row, name=f"{stem}.adapter.b", jax_path=f"{path}.adapter.b", shape=(out, rank), axes=(out_axis, "rank"))
    more = (magnitude_row(row, a, b),) if kind == "dora" else ()
    if row.name == "embed.token":
        return Target(row, (replace(a, init="zeros", std=0.0), replace(b, init="normal", std=1.0), *more))
    a = replace(a, init="uniform", std=1 / math.sqrt(3 * into))
    return Target(row, (a, replace(b, init="zeros", std=0.0), *more))


@functools.cache
def adapter_parameters(config: RunConfig) -> tuple[Parameter, ...]:
    """The adapter's tensors, in the order of the parameter table."""
    return tuple(row for target in adapter_targets(config) for row in target.tensors)


@functools.cache
def all_parameters(config: RunConfig) -> tuple[Parameter, ...]:
    """The model's parameters and the adapter's."""
    return parameter_table(config.model) + adapter_parameters(config)


@functools.cache
def trainable_parameters(config: RunConfig) -> tuple[Parameter, ...]:
    """What trains, has moments and is saved: all parameters; with an adapter, its own and the biases asked for, and a
    score head as a whole, as PEFT's modules_to_save have it: the base may have none."""
    if config.adapter.kind == "none":
        return parameter_table(config.model)
    beside = {target.module for target in adapter_targets(config)}
    whole = [
        row
        for row in parameter_table(config.model)
        if row.name == SCORE
        or (
            row.name.endswith(".bias")
            and (config.adapter.bias == "all" or (config.adapter.bias == "lora_only" and row.name[:-5] in beside))
        )
    ]
    return adapter_parameters(config) + tuple(whole)


@functools.cache
def frozen_matrices(config: RunConfig) -> tuple[Parameter, ...]:
    """The blocks' matrices below an adapter that are only ever read in the compute dtype, and so are held in it.

    Not DoRA's: their norms are of the whole numbers.
    """
    if config.adapter.kind in ("none", "dora"):
        return ()
    return tuple(row for row in parameter_table(config.model) if row.layer is not None and len(row.shape) == 2)


def initial_adapter(config: RunConfig) -> dict[str, NDArray[np.float32]]:
    """The adapter's tensors before the first update, by canonical name; but not DoRA's m, which the base decides."""
    base = _magnitudes(config)
    return {
        row.name: initial_value(row, config.train.seed) for row in adapter_parameters(config) if row.name not in base
    }


def _magnitudes(config: RunConfig) -> dict[str, Target]:
    """The targets with a magnitude, by its name."""
    return {target.tensors[2].name: target for target in adapter_targets(config) if config.adapter.kind == "dora"}


def with_adapter(config: RunConfig, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
    """`tensors` of the base, with the start of the adapter, and of a score head, where they lack one."""
    if config.adapter.kind == "none" and not config.model.score_head:
        return tensors
    here = frozenset(tensors)  # asking a lazy mapping whether it has one may read it
    heads = [row for row in parameter_table(config.model) if row.name == SCORE]
    fresh = {row.name: initial_value(row, config.train.seed) for row in heads} | initial_adapter(config)
    start: dict[str, Array] = {n: value for n, value in fresh.items() if n not in here}
    for name, target in _magnitudes(config).items():
        if name not in here:
            start[name] = magnitudes(tensors[target.row.name], target.embedding)
    return ChainMap(start, cast(dict[str, Array], tensors)) if start else tensors  # read one tensor at a time


def adapter_keys(config: RunConfig, update: int) -> NDArray[np.uint32]:
    """Keys [7L + 1] of the adapter's dropout sites in one update: `PARTS` of each block, then the head's."""
    purposes = [f"blocks.{layer}.{part}" for layer in range(config.model.layers) for part in PARTS] + ["head"]
    seed = config.train.seed
    keys = [stream_key(seed, f"dropout/{update}/adapter/{purpose}") & MASK_32 for purpose in purposes]
    return np.array(keys, np.uint32)


def run_keys(config: RunConfig, update: int) -> NDArray[np.uint32]:
    """All keys of one update's dropout: the model's [1 + 2L], and behind them the adapter's where it has dropout."""
    keys = dropout_keys(config.model, config.train.seed, update)
    dropped = config.adapter.kind != "none" and config.adapter.dropout > 0
    return np.concatenate([keys, adapter_keys(config, update)]) if dropped else keys


def run_uses_dropout(config: RunConfig) -> bool:
    """Whether any dropout rate of the model or its adapter is above 0."""
    return uses_dropout(config.model) or (config.adapter.kind != "none" and config.adapter.dropout > 0)
