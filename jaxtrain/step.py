"""One update on one device, from a batch to its gradients: read it side by side with `torchtrain/step.py`.

Four parts: the scale of a target, the dropout masks, the sum over micro-batches, the norm. Where several devices share
an update, `parallel/step.py` puts the same parts together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from coretrain.adapters.targets import run_keys, run_uses_dropout
from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from jaxtrain.layers import Dropout
from jaxtrain.loss import count_targets
from jaxtrain.optimizer import global_norm

MicroLoss = Callable[[Any, Batch, Array, Dropout | None], Array]
"""(what trains, rows of a batch, scale, their masks) -> scale x the sum over their targets, a scalar."""


def gradients(
    config: RunConfig, params: Any, loss: MicroLoss, batch: Batch, loss_scale: Array, dropout: Dropout | None
) -> tuple[Float[Array, ""], Float[Array, ""], Any]:
    """Mean loss over a global batch's targets, the norm of its gradients, and these, all times `loss_scale`.

    `dropout` are the masks of all rows. A pure function, to be compiled.
    """
    scale = target_scale(config, batch, loss_scale)
    value_and_grad = jax.value_and_grad(loss)
    steps = config.train.accumulation

    def micro(total: Any, part: tuple[Batch, Array | None]) -> tuple[Any, None]:
        piece, rows = part
        masks = dropout and Dropout(dropout.keys, rows)
        return jax.tree.map(jnp.add, total, value_and_grad(params, piece, scale, masks)), None

    if steps == 1:
        total, grads = value_and_grad(params, batch, scale, dropout)
    else:
        start = jnp.zeros((), scale.dtype), jax.tree.map(jnp.zeros_like, params)
        parts = batch, dropout and dropout.rows
        in_steps = jax.tree.map(lambda array: array.reshape(steps, config.micro_batch, *array.shape[1:]), parts)
        (total, grads), _ = jax.lax.scan(micro, start, in_steps)
    return total, global_norm(jax.tree.leaves(grads)), grads


def target_scale(config: RunConfig, batch: Batch, loss_scale: Array) -> Array:
    """What each target counts: every one of the global batch alike, whatever micro-batch it is in."""
    wide = loss_scale.dtype
    weights = None if batch.weights is None else batch.weights.astype(wide)  # added up in it, as the losses are
    return loss_scale / count_targets(batch.labels, weights).astype(wide)


def dropout_masks(config: RunConfig, update: int, rows: int) -> Dropout | None:
    """What the masks of an update are drawn from, by the rows' numbers in the global batch; None without dropout."""
    if not run_uses_dropout(config):
        return None
    return Dropout(run_keys(config, update), np.arange(rows, dtype=np.uint32))
