"""Output head and cross-entropy in one, chunk by chunk over tokens, so that no [B, T, V] tensor is ever kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that is no target."""


def cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor, vocab: int, chunk: int, scale: Tensor) -> Tensor:
    """scale x the sum over targets of -log softmax(hidden @ head^T)[label], in at least float32.

    hidden [B, T, D]; head [V padded, D], of which the first `vocab` rows count; labels [B, T], -100 ignored; `scale` a
    scalar, usually 1 / (targets in the global batch). The gradients are made in the forward pass, where the chunk's
    softmax is at hand, with `scale` already in them: at no time are more than `chunk` rows of logits in memory.
    """
    return _CrossEntropy.apply(hidden, head, labels, vocab, chunk, scale)


def count_targets(labels: Tensor) -> Tensor:
    """Number of labels that aren't ignored."""
    return (labels != IGNORED).sum()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, vocab: int, chunk: int, scale: Tensor
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        rows, weight, labels = hidden.flatten(0, -2), head.to(hidden.dtype), labels.flatten()
        trained = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        d_rows = torch.empty_like(rows) if trained else None
        d_weight = torch.zeros_like(head) if trained else None
        # one buffer for all chunks: fresh ones would cost more in page faults than in arithmetic
        buffer = rows.new_empty(min(chunk, len(rows)), len(head))
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            logits = torch.mm(rows[part], weight.T, out=buffer[: len(rows[part])]).to(wide)
            logits[:, vocab:] = -torch.inf
            valid = labels[part] != IGNORED
            label = labels[part].where(valid, 0).unsqueeze(1)
            target = logits.gather(1, label)
            peak, at = logits.max(1, keepdim=True)
            weights = torch.softmax(logits, 1, out=logits)  # in place, and row by row in cache
            # the largest weight is exp(0) / total, which can't underflow
            loss += torch.where(valid, (peak - weights.gather(1, at).log() - target).squeeze(1), 0).sum()
            if trained:
                factor = valid.unsqueeze(1) * scale.to(wide)
                d_logits = weights.mul_(factor).scatter_add_(1, label, -factor).to(rows.dtype)
                torch.mm(d_logits, weight, out=d_rows[part])
                if wide == rows.dtype:
                    d_weight.addmm_(d_logits.T, rows[part])
                else:
                    d_weight += d_logits.T @ rows[part]
        if trained:
            ctx.save_for_backward(d_rows.view_as(hidden), d_weight)
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        # upstream is 1 in training: the loss is what backward() starts from
        return d_hidden * upstream[0].to(d_hidden.dtype), d_head * upstream[0].to(d_head.dtype), None, None, None, None
