"""One update on one device, from a batch to new weights: read it side by side with `torchtrain/step.py`.

Five parts: the scale of a target, the dropout masks, the sum over micro-batches, the norm, and the verdict with what
follows from it. Where several devices share an update, `parallel/step.py` puts the same parts together.

`Told` and `told_of` have no twin: torch takes the loop's orders as they are. Nor have `differentiated` and
`told_shape`: torch differentiates what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from coretrain.adapters.targets import run_keys, run_uses_dropout
from coretrain.alignment.figures import FIGURES
from coretrain.config.run import RunConfig
from coretrain.contract.schedule import clip_factor
from coretrain.contract.update import Limits, Orders, Standing, corrections, judged
from coretrain.data.batch import Batch
from jaxtrain.layers import Dropout, master_dtype
from jaxtrain.loss import count_targets
from jaxtrain.optimizer import Optimizer, global_norm

MicroLoss = Callable[[Any, Batch, Array, Dropout | None], Array]
"""(what trains, rows of a batch, scale, their masks) -> scale x the sum over their targets, a scalar, or a vector with
figures."""


class Told(NamedTuple):
    """What the host hands in with an update: scalars in the master weights' dtype."""

    lr: Any
    limits: Limits
    scale: Any
    applied: Any
    """Updates applied when the host last knew."""
    corrections: Any
    """Bias corrections [lag + 1, 2] of the update that follows so many, or one more, or two."""


def gradients(
    config: RunConfig, params: Any, loss: MicroLoss, batch: Batch, loss_scale: Array, dropout: Dropout | None
) -> tuple[Float[Array, "*n"], Float[Array, ""], Any]:
    """Mean loss over a global batch's targets, the norm of its gradients, and these, all times `loss_scale`.

    `dropout` are the masks of all rows. Where the objective has figures, loss and figures are one vector; the figures
    are sums as they are. A pure function, to be compiled.
    """
    scale = target_scale(config, batch, loss_scale)
    value_and_grad = differentiated(config, loss)
    steps = config.train.accumulation

    def micro(total: Any, part: tuple[Batch, Array | None]) -> tuple[Any, None]:
        piece, rows = part
        masks = dropout and Dropout(dropout.keys, rows)
        return jax.tree.map(jnp.add, total, value_and_grad(params, piece, scale, masks)), None

    if steps == 1:
        total, grads = value_and_grad(params, batch, scale, dropout)
    else:
        start = jnp.zeros(told_shape(config), scale.dtype), jax.tree.map(jnp.zeros_like, params)
        parts = batch, dropout and dropout.rows
        in_steps = jax.tree.map(lambda array: array.reshape(steps, config.micro_batch, *array.shape[1:]), parts)
        (total, grads), _ = jax.lax.scan(micro, start, in_steps)
    return total, global_norm(jax.tree.leaves(grads)), grads


def loss_in(told: Array) -> Float[Array, ""]:
    """The loss of what an objective gives: a scalar, or a vector of it and figures."""
    return told[0] if told.ndim else told


def differentiated(config: RunConfig, loss: MicroLoss) -> Callable[..., tuple[Array, Any]]:
    """What `loss` gives, and the gradients of the loss in it."""
    if config.train.objective == "cross_entropy":
        return jax.value_and_grad(loss)

    def with_figures(*inputs: Any) -> tuple[Array, Array]:
        told = loss(*inputs)
        return loss_in(told), told

    def value_and_grad(*inputs: Any) -> tuple[Array, Any]:
        (_, told), grads = jax.value_and_grad(with_figures, has_aux=True)(*inputs)
        return told, grads

    return value_and_grad


def told_shape(config: RunConfig) -> tuple[int, ...]:
    """Of what an objective gives."""
    figures = FIGURES[config.train.objective]
    return (1 + len(figures),) if figures else ()


def target_scale(config: RunConfig, batch: Batch, loss_scale: Array) -> Array:
    """What each target counts: every one of the global batch alike, whatever micro-batch it is in.

    In alignment the batch's own shares say so, and this is the loss scale.
    """
    if config.train.objective != "cross_entropy":
        return loss_scale
    wide = loss_scale.dtype
    weights = None if batch.weights is None else batch.weights.astype(wide)  # added up in it, as the losses are
    return loss_scale / count_targets(batch.labels, weights).astype(wide)


def dropout_masks(config: RunConfig, update: int, rows: int) -> Dropout | None:
    """What the masks of an update are drawn from, by the rows' numbers in the global batch; None without dropout."""
    if not run_uses_dropout(config):
        return None
    return Dropout(run_keys(config, update), np.arange(rows, dtype=np.uint32))


def update(
    config: RunConfig, optimizer: Optimizer, state: Any, gradients: Any, loss: Array, norm: Array, told: Told
) -> tuple[Any, tuple[Array, ...]]:
    """The verdict on an update, and the state after it: (params, moments, standing), and (loss, norm, applied), with
    the objective's figures behind them where it has some.

    Loss, norm and gradients are times the loss scale. Where it isn't applied, every number is the old one.
    """
    params, moments, standing = state
    more = (loss[1:],) if loss.ndim else ()
    loss, norm = loss_in(loss) / told.scale, norm / told.scale
    fine, after = judged(config.health, standing, loss, norm, told.limits, jnp.isfinite)
    factor = clip_factor(norm, config.optimizer.clip, jnp.minimum) / told.scale
    one, two = told.corrections[standing.applied - told.applied]
    params, moments = optimizer.step(params, moments, gradients, told.lr, factor, (one, two), fine)
    return (params, moments, after), (loss, norm, fine, *more)


def told_of(config: RunConfig, orders: Orders) -> tuple[Told, Standing]:
    """The loop's orders and standing as arrays of the dtypes that an update takes."""
    wide, (applied, skipped, halted) = master_dtype(config).type, orders.standing
    table = np.array(corrections(config.optimizer, applied, config.health.lag), wide)
    limits = Limits(*map(wide, orders.limits))
    standing = Standing(np.int32(applied), np.int32(skipped), np.bool_(halted))
    return Told(wide(orders.lr), limits, wide(orders.scale), np.int32(applied), table), standing
