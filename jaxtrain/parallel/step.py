"""One update on a mesh, from a batch to its gradients: the parts of `jaxtrain/step.py`, put together for many devices.

This file has no twin: in torch each process takes its own rows, and `torchtrain/parallel/trainer.py` sums.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from jaxtrain.layers import Dropout
from jaxtrain.optimizer import global_norm
from jaxtrain.step import MicroLoss, differentiated, target_scale, told_shape


def sharded_gradients(
    config: RunConfig,
    params: Any,
    loss: MicroLoss,
    batch: Batch,
    loss_scale: Array,
    dropout: Dropout | None,
    places: Any,
) -> tuple[Array, Array, Any]:
    """Mean loss over a global batch's targets, the norm of its gradients, and these, all times `loss_scale`.

    The batch is cut into micro-batches [A, B / A, T] before it is laid on the mesh: their rows are what is shared.
    `places` are the gradients' shardings.
    """
    scale = target_scale(config, batch, loss_scale)
    value_and_grad = differentiated(config, loss)

    def micro(total: Any, part: tuple[Batch, Array | None]) -> tuple[Any, None]:
        piece, rows = part
        value, grads = value_and_grad(params, piece, scale, dropout and Dropout(dropout.keys, rows))
        grads = jax.lax.with_sharding_constraint(grads, places)
        return jax.tree.map(jnp.add, total, (value, grads)), None

    rows = dropout and dropout.rows
    if config.parallel.pipeline > 1:  # which is fed with all of them
        total, grads = value_and_grad(params, batch, scale, dropout)
    elif config.train.accumulation == 1:
        piece, rows = jax.tree.map(lambda array: array[0], (batch, rows))
        total, grads = value_and_grad(params, piece, scale, dropout and Dropout(dropout.keys, rows))
    else:
        start = jnp.zeros(told_shape(config), scale.dtype), jax.tree.map(jnp.zeros_like, params)
        (total, grads), _ = jax.lax.scan(micro, start, (batch, rows))
    return total, global_norm(jax.tree.leaves(grads)), grads
