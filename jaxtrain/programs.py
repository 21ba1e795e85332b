"""What is compiled of a run, before there is any array: for the trainers, and for `aot/` where there is no device.

This file has no twin: torch compiles what it is called with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax import Array

from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from jaxtrain import step
from jaxtrain.adapters import combine, partition
from jaxtrain.layers import Dropout
from jaxtrain.model import abstract_model
from jaxtrain.objective import OBJECTIVES, branch_scores, label_logprobs, label_scores
from jaxtrain.optimizer import Optimizer
from jaxtrain.parallel.sharding import Sharding
from jaxtrain.parallel.step import sharded_gradients
from jaxtrain.step import Told, gradients


@dataclass(frozen=True)
class Programs:
    """The jitted functions of a run on one device or on a mesh, and the form of what goes into them."""

    graph: Any
    """The model's structure."""
    params: Any
    """Tree of shapes, dtypes and places of what trains."""
    moments: Any
    """The same of the optimizer's state."""
    frozen: Any
    """The same of what doesn't train; None without adapters."""
    optimizer: Optimizer
    gradients: Any
    """(params, frozen, batch, loss scale, dropout) -> loss, norm, gradients."""
    evaluate: Any
    """(params, frozen, batch, scale) -> loss, or loss and figures, without dropout."""
    logprobs: Any
    """(params, frozen, batch, temperature) -> log-probability of each label, without dropout."""
    scores: Any
    """(params, frozen, batch) -> each label's log-probability, and 1 where no id is likelier, without dropout."""
    branches: Any
    """(params, frozen, tokens, positions, seen, places, labels) -> the same of rows that branch."""
    values: Any
    """(params, frozen, batch) -> what the score head gives at each position, without dropout."""
    step: Any
    """(params, moments, gradients, lr, factor, corrections) -> params, moments; takes the first two for its own."""
    update: Any
    """(params, moments, standing, frozen, batch, dropout, told) -> (params, moments, standing), (loss, norm, applied),
    with the objective's figures behind these where it has some; takes the first two for its own. What a run runs: both
    of the above, and the verdict between them."""


def programs(config: RunConfig, kernel: str, device: jax.Device | Sharding) -> Programs:
    """The programs of a run. On a mesh their results lie where the next call wants them."""
    graph, whole = abstract_model(config, kernel, device)
    params, frozen = partition(config, whole)
    optimizer = Optimizer(config, params)
    moments = optimizer.abstract(params)
    param_places, moment_places = (jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (params, moments))
    sharded = isinstance(device, Sharding)

    def loss(params: Any, frozen: Any, batch: Batch, scale: Array, dropout: Dropout | None = None) -> Array:
        return OBJECTIVES[config.train.objective](
            nnx.merge(graph, combine(params, frozen)), config, batch, scale, dropout
        )

    def summed(params: Any, frozen: Any, batch: Batch, loss_scale: Array, dropout: Dropout | None) -> Any:
        def micro(params: Any, rows: Batch, scale: Array, masks: Dropout | None) -> Array:
            return loss(params, frozen, rows, scale, masks)

        if sharded:
            return sharded_gradients(config, params, micro, batch, loss_scale, dropout, param_places)
        return gradients(config, params, micro, batch, loss_scale, dropout)

    def update(params: Any, moments: Any, standing: Any, frozen: Any, batch: Batch, dropout: Any, told: Told) -> Any:
        loss, norm, grads = summed(params, frozen, batch, told.scale, dropout)
        return step.update(config, optimizer, (params, moments, standing), grads, loss, norm, told)

    def logprobs(params: Any, frozen: Any, batch: Batch, temperature: float) -> Array:
        return label_logprobs(nnx.merge(graph, combine(params, frozen)), config, batch, None, temperature)

    def scores(params: Any, frozen: Any, batch: Batch) -> Array:
        return label_scores(nnx.merge(graph, combine(params, frozen)), config, batch)

    def branches(params: Any, frozen: Any, *rows: Array) -> Array:
        return branch_scores(nnx.merge(graph, combine(params, frozen)), config, *rows)

    def values(params: Any, frozen: Any, batch: Batch) -> Array:
        model = nnx.merge(graph, combine(params, frozen))
        return model.scores(model(batch.tokens, None, batch.positions))

    out: dict[str, dict[str, Any]] = {"gradients": {}, "step": {}, "update": {}, "rows": {}}
    if sharded:
        everywhere = device.named()
        out["gradients"] = {"out_shardings": (everywhere, everywhere, param_places)}
        out["step"] = {"out_shardings": (param_places, moment_places)}
        out["update"] = {"out_shardings": ((param_places, moment_places, everywhere), everywhere)}
        out["rows"] = {"out_shardings": everywhere}
    return Programs(
        graph,
        params,
        moments,
        frozen,
        optimizer,
        jax.jit(summed, **out["gradients"]),
        jax.jit(loss),
        jax.jit(logprobs, static_argnums=3, **out["rows"]),
        jax.jit(scores, **out["rows"]),
        jax.jit(branches, **out["rows"]),
        jax.jit(values, **out["rows"]),
        jax.jit(optimizer.step, donate_argnums=(0, 1), **out["step"]),
        jax.jit(update, donate_argnums=(0, 1), **out["update"]),
    )
