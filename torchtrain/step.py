"""One update on one device, from a batch to its gradients: read it side by side with `jaxtrain/step.py`.

Four parts: the scale of a target, the dropout masks, the sum over micro-batches, the norm. Where several processes
share an update, `parallel/trainer.py` puts the same parts together.

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
from coretrain.data.batch import Batch
from torchtrain.layers import Dropout, master_dtype
from torchtrain.loss import count_targets
from torchtrain.model import GPT
from torchtrain.optimizer import global_norm

MicroLoss = Callable[[Batch, Tensor, Dropout | None], Tensor]
"""(rows of a batch, scale, their masks) -> scale x the sum over their targets, a scalar."""


def gradients(
    config: RunConfig, model: GPT, loss: MicroLoss, batch: Batch, loss_scale: float, dropout: Dropout | None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean loss over a global batch's targets and the norm of its gradients, both times `loss_scale`.

    The gradients themselves are left in `.grad`. `dropout` are the masks of all rows.
    """
    scale = target_scale(config, batch, loss_scale)
    model.zero_grad(set_to_none=True)
    total = torch.zeros_like(scale)
    for start in range(0, len(batch), config.micro_batch):
        rows = slice(start, start + config.micro_batch)
        micro = loss(batch.rows(rows), scale, dropout and dropout.of(rows))
        micro.backward()
        total += micro.detach()
    return total, global_norm(gradients_of(model).values())


def target_scale(config: RunConfig, batch: Batch, loss_scale: float | Tensor) -> Tensor:
    """What each target counts: every one of the global batch alike, whatever micro-batch it is in."""
    wide = master_dtype(config)
    weights = None if batch.weights is None else batch.weights.to(wide)  # added up in it, as the losses are
    return loss_scale / count_targets(batch.labels, weights).to(wide)


def dropout_masks(config: RunConfig, update: int, rows: int) -> Dropout | None:
    """What the masks of an update are drawn from, by the rows' numbers in the global batch; None without dropout."""
    if not run_uses_dropout(config):
        return None
    keys = run_keys(config, update).view(np.int32)
    return Dropout(torch.from_numpy(keys), torch.arange(rows, dtype=torch.int32))


def gradients_of(model: GPT) -> dict[str, Tensor]:
    """The gradient of every parameter that trains, by name; all of them have had one."""
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
