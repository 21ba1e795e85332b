"""One update on one device, from a batch to new weights: read it side by side with `jaxtrain/step.py`.

Five parts: the scale of a target, the dropout masks, the sum over micro-batches, the norm, and the verdict with what
follows from it. Where several processes share an update, `parallel/trainer.py` puts the same parts together.

`gradients_of` has no twin: JAX's gradients are a value that the step gives back.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from coretrain.adapters.targets import run_keys, run_uses_dropout
from coretrain.config.run import RunConfig
from coretrain.contract.schedule import clip_factor
from coretrain.contract.update import Orders, Standing, judged
from coretrain.data.batch import Batch
from torchtrain.layers import Dropout, master_dtype
from torchtrain.loss import count_targets
from torchtrain.model import GPT
from torchtrain.optimizer import Optimizer, global_norm

MicroLoss = Callable[[Batch, Tensor, Dropout | None], Tensor]
"""(rows of a batch, scale, their masks) -> scale x the sum over their targets, a scalar, or a vector with figures."""


def gradients(
    config: RunConfig, model: GPT, loss: MicroLoss, batch: Batch, loss_scale: float, dropout: Dropout | None
) -> tuple[Float[Tensor, "*n"], Float[Tensor, ""]]:
    """Mean loss over a global batch's targets and the norm of its gradients, both times `loss_scale`.

    The gradients themselves are left in `.grad`. `dropout` are the masks of all rows. Where the objective has figures,
    loss and figures are one vector; the figures are sums as they are.
    """
    scale = target_scale(config, batch, loss_scale)
    model.zero_grad(set_to_none=True)
    total = torch.zeros_like(scale)
    for start in range(0, len(batch), config.micro_batch):
        rows = slice(start, start + config.micro_batch)
        micro = loss(batch.rows(rows), scale, dropout and dropout.of(rows))
        loss_in(micro).backward()
        total = total + micro.detach()
    return total, global_norm(gradients_of(model).values())


def loss_in(told: Tensor) -> Float[Tensor, ""]:
    """The loss of what an objective gives: a scalar, or a vector of it and figures."""
    return told[0] if told.ndim else told


def target_scale(config: RunConfig, batch: Batch, loss_scale: float | Tensor) -> Tensor:
    """What each target counts: every one of the global batch alike, whatever micro-batch it is in.

    In alignment the batch's own shares say so, and this is the loss scale.
    """
    wide = master_dtype(config)
    if config.train.objective != "cross_entropy":
        return torch.as_tensor(loss_scale, dtype=wide, device=batch.labels.device)
    weights = None if batch.weights is None else batch.weights.to(wide)  # added up in it, as the losses are
    return loss_scale / count_targets(batch.labels, weights).to(wide)


def dropout_masks(config: RunConfig, update: int, rows: int) -> Dropout | None:
    """What the masks of an update are drawn from, by the rows' numbers in the global batch; None without dropout."""
    if not run_uses_dropout(config):
        return None
    keys = run_keys(config, update).view(np.int32)
    return Dropout(torch.from_numpy(keys), torch.arange(rows, dtype=torch.int32))


@torch.no_grad()
def update(
    config: RunConfig, optimizer: Optimizer, standing: Standing, loss: Tensor, norm: Tensor, orders: Orders
) -> tuple[Standing, Tensor]:
    """The verdict on an update, and the optimizer's step: the standing after it, and loss, norm, whether it was
    applied, and the objective's figures.

    Loss, norm and the gradients in `.grad` are times the loss scale. Where it isn't applied, every number is the old
    one. Nothing is read from the device.
    """
    more = loss[1:] if loss.ndim else loss.new_empty(0)
    loss, norm = loss_in(loss) / orders.scale, norm / orders.scale
    fine, after = judged(config.health, standing, loss, norm, orders.limits, torch.isfinite)
    factor = clip_factor(norm, config.optimizer.clip, lambda most, ratio: ratio.clamp(max=most)) / orders.scale
    optimizer.step(orders.lr, factor, fine)
    return after, torch.cat([torch.stack([value.to(norm.dtype) for value in (loss, norm, fine)]), more.to(norm.dtype)])


def gradients_of(model: GPT) -> dict[str, Tensor]:
    """The gradient of every parameter that trains, by name; all of them have had one."""
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
