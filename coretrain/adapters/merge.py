"""What an adapter adds to its base's weights, how the two are merged, and how a base is known again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from coretrain.adapters.kinds import check_mergeable, directed
from coretrain.adapters.targets import adapter_targets, trainable_parameters
from coretrain.base.arrays import Array
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import check_rows, parameter_table

FREE = ("residual_dropout", "embedding_dropout", "context", "score_head")
"""Fields of the model that an adapter may have otherwise than its base; its context may only be shorter, and a score
head, which trains whole beside it, it may have where its base has none."""


def other_field(ours: ModelConfig, theirs: ModelConfig) -> str | None:
    """The first field in which two models differ where an adapter's and its base's may not; None where there is none.

    Fields, not shapes: other heads or other positions leave every shape as it is.
    """
    fields = (name for name in ModelConfig.model_fields if name not in FREE)
    return next((name for name in fields if getattr(ours, name) != getattr(theirs, name)), None)


def added(config: RunConfig, tensors: Mapping[str, Array], base: Mapping[str, Array]) -> dict[str, NDArray[np.float64]]:
    """What a merge adds to each target, in float64 by the target's name: scale B A, of an embedding its transpose.

    DoRA's depends on the weights, which `base` has. Raises `UserError` for a kind that can't be merged.
    """
    check_mergeable(config)
    check_rows(trainable_parameters(config), tensors, f"adapter {config.adapter.name}")
    result = {}
    for target in adapter_targets(config):
        a, b = (np.asarray(tensors[row.name], np.float64) for row in (target.a, target.b))
        delta = config.adapter.scale * (b @ a)
        delta = delta.T if target.embedding else delta
        if config.adapter.kind == "dora":
            delta = directed(base[target.row.name], delta, tensors[target.tensors[2].name], target.embedding)
        result[target.row.name] = delta
    return result


def merged(config: RunConfig, base: Mapping[str, Array], tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The base's tensors with the adapter in them, in the base's dtypes, rounded once."""
    deltas = added(config, tensors, base)
    result: dict[str, Array] = {}
    for row in parameter_table(config.model):
        value = np.asarray(tensors[row.name] if row.name in tensors else base[row.name])
        if row.name in deltas:
            value = (value.astype(np.float64) + deltas[row.name]).astype(value.dtype)
        result[row.name] = value
    return result


def fingerprint(config: RunConfig, tensors: Mapping[str, Array]) -> str:
    """32 hexadecimal digits of the base's weights: names, dtypes, shapes and every bit, in the table's order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in parameter_table(config.model):
        value = np.ascontiguousarray(tensors[row.name])
        digest.update(f"{row.name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
