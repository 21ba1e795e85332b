"""Output head and cross-entropy in one, chunk by chunk over tokens, so that no [B, T, V] tensor is ever kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coretrain.data.batch import IGNORED
from torchtrain.parallel.axes import ALONE, Axis, copy_to_tensor_region


def cross_entropy(
    hidden: Float[Tensor, "B T D"],
    head: Float[Tensor, "V D"],
    labels: Int[Tensor, "B T"],
    vocab: int,
    chunk: int,
    scale: Float[Tensor, ""],
    weights: Float[Tensor, "B T"] | None = None,
    tensor: Axis = ALONE,
) -> Float[Tensor, ""]:
    """scale x the sum over targets of -log softmax(hidden @ head^T)[label], in at least float32.

    Of the head's rows, which are padded, the first `vocab` count; labels of -100 are ignored; `scale` is usually
    1 / (targets in the global batch); `weights` multiply each target's term. The gradients are made in the forward
    pass, where the chunk's softmax is at hand, with `scale` already in them: at no time are more than `chunk` rows of
    logits in memory.

    Each process of the `tensor` axis has its own rows of the head, and all of them get the whole loss.
    """
    if not torch.is_grad_enabled():  # which the function itself isn't told: it would make gradients nobody wants
        hidden, head = hidden.detach(), head.detach()
    return _CrossEntropy.apply(
        copy_to_tensor_region(hidden, tensor), head, labels, vocab, chunk, scale, weights, tensor
    )


def count_targets(labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Number of labels that aren't ignored, or the sum of their weights; 1 where that is 0: the loss is then 0 too."""
    if weights is None:
        return (labels != IGNORED).sum().clamp_min(1)
    total = weights.where(labels != IGNORED, 0).sum()
    return total.where(total > 0, 1)


def token_logprobs(
    hidden: Float[Tensor, "B T D"],
    head: Float[Tensor, "V D"],
    labels: Int[Tensor, "B T"],
    vocab: int,
    chunk: int,
    tensor: Axis = ALONE,
    temperature: float = 1.0,
) -> Float[Tensor, "B T"]:
    """log softmax(hidden @ head^T / temperature)[label] of each position, in at least float32; 0 without a target.

    The arguments are those of `cross_entropy`. The result can be differentiated: a chunk's logits are made once more
    in the backward pass.
    """
    return _logprobs(hidden, head, labels, vocab, chunk, tensor, temperature, "")[0]


def token_logprobs_and_entropy(
    hidden: Float[Tensor, "B T D"],
    head: Float[Tensor, "V D"],
    labels: Int[Tensor, "B T"],
    vocab: int,
    chunk: int,
    tensor: Axis = ALONE,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """`token_logprobs`, and beside them the entropy in nats of each distribution, which is not differentiated."""
    return _logprobs(hidden, head, labels, vocab, chunk, tensor, temperature, "entropy")


def token_logprobs_and_likeliest(
    hidden: Float[Tensor, "B T D"],
    head: Float[Tensor, "V D"],
    labels: Int[Tensor, "B T"],
    vocab: int,
    chunk: int,
    tensor: Axis = ALONE,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """`token_logprobs`, and beside them 1 where no id is likelier than the label, else 0."""
    return _logprobs(hidden, head, labels, vocab, chunk, tensor, 1.0, "likeliest")


def _logprobs(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    vocab: int,
    chunk: int,
    tensor: Axis,
    temperature: float,
    beside: str,
) -> tuple[Tensor, Tensor]:
    rows, flat = copy_to_tensor_region(hidden, tensor).flatten(0, -2), labels.flatten()
    valid = flat != IGNORED
    if flat.device.type != "cpu" or torch.compiler.is_compiling():  # where asking how many there are isn't free
        found = _TokenLogprobs.apply(rows, head, flat, vocab, chunk, tensor, temperature, beside)
        logprobs, more = (each.where(valid, 0) for each in found)
    else:  # prompts and padding never meet the head
        at = valid.nonzero().squeeze(1)
        found = _TokenLogprobs.apply(rows[at], head, flat[at], vocab, chunk, tensor, temperature, beside)
        logprobs, more = (each.new_zeros(len(flat)).index_put((at,), each) for each in found)
    return logprobs.view(labels.shape), more.view(labels.shape)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        head: Tensor,
        labels: Tensor,
        vocab: int,
        chunk: int,
        tensor: Axis,
        temperature: float,
        beside: str,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(rows.dtype, torch.float32)
        logprobs, normal, more = torch.zeros(3, len(rows), dtype=wide, device=rows.device)
        for part, logits, label, here in _chunks(rows, head, labels, vocab, chunk, tensor, temperature):
            target = tensor.sum(logits.gather(1, label).where(here, 0))
            shifted = logits.sub_(peak := tensor.largest(logits.amax(1, keepdim=True)))
            weights = shifted.exp() if beside == "entropy" else shifted.exp_()
            total = tensor.sum(weights.sum(1, keepdim=True))
            normal[part] = (total.log() + peak).squeeze(1)
            logprobs[part] = target.squeeze(1) - normal[part]
            if beside == "entropy":  # log total less the mean of what is in the exponents
                mean = tensor.sum((weights * shifted).sum(1, keepdim=True)) / total
                more[part] = (total.log() - mean).squeeze(1)
            elif beside == "likeliest":
                more[part] = (target >= peak).squeeze(1).to(wide)
        ctx.save_for_backward(rows, head, labels, normal)
        ctx.settings = (vocab, chunk, tensor, temperature)
        ctx.mark_non_differentiable(more)
        return logprobs, more

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, head, labels, normal = ctx.saved_tensors
        weight = head.to(rows.dtype)
        d_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        d_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None  # not below an adapter
        factor = (upstream[0] / ctx.settings[-1]).unsqueeze(1)
        for part, logits, label, here in _chunks(rows, head, labels, *ctx.settings):
            weights = logits.sub_(normal[part].unsqueeze(1)).exp_()
            d_logits = weights.scatter_add_(1, label, -here.to(weights.dtype)).mul_(-factor[part]).to(rows.dtype)
            if d_rows is not None:
                torch.mm(d_logits, weight, out=d_rows[part])
            if d_head is not None:
                d_head += d_logits.T @ rows[part]
        return d_rows, d_head, None, None, None, None, None, None


def _chunks(
    rows: Tensor, head: Tensor, labels: Tensor, vocab: int, chunk: int, tensor: Axis, temperature: float
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Some of the rows after the others: which they are, their logits [n, V], their labels [n, 1] among this process's
    columns, and whether they are there. The logits of the vocabulary's padding are too small to count.
    """
    wide, weight = torch.promote_types(rows.dtype, torch.float32), head.to(rows.dtype)
    buffer = rows.new_empty(min(chunk, len(rows)), len(head))  # one for all chunks, as in the cross-entropy
    first = tensor.index * len(head)
    for start in range(0, len(rows), chunk):
        part = slice(start, min(start + chunk, len(rows)))
        logits = torch.mm(rows[part], weight.T, out=buffer[: part.stop - start]).to(wide)
        if temperature != 1:
            logits /= temperature
        logits[:, max(0, vocab - first) :] = torch.finfo(wide).min / 2  # finite: 0 times it is 0 in the entropy
        here = (labels[part] >= first) & (labels[part] < first + len(head))
        yield part, logits, (labels[part] - first).where(here, 0).unsqueeze(1), here.unsqueeze(1)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        vocab: int,
        chunk: int,
        scale: Tensor,
        counts: Tensor | None,
        tensor: Axis,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        rows, weight, labels = hidden.flatten(0, -2), head.to(hidden.dtype), labels.flatten()
        counts = None if counts is None else counts.flatten().to(wide)
        of_head = ctx.needs_input_grad[1]  # not below an adapter
        trained = ctx.needs_input_grad[0] or of_head
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        d_rows = torch.empty_like(rows) if trained else None
        d_weight = torch.empty_like(head) if of_head else None
        # one buffer for all chunks: fresh ones would cost more in page faults than in arithmetic
        buffer = rows.new_empty(min(chunk, len(rows)), len(head))
        first = tensor.index * len(head)
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            logits = torch.mm(rows[part], weight.T, out=buffer[: len(rows[part])]).to(wide)
            logits[:, max(0, vocab - first) :] = -torch.inf
            valid = labels[part] != IGNORED
            here = valid
            if tensor.size > 1:
                here = valid & (labels[part] >= first) & (labels[part] < first + len(head))
            label = (labels[part] - first).where(here, 0).unsqueeze(1)
            target = logits.gather(1, label)
            peak = logits.amax(1, keepdim=True)
            if tensor.size == 1:
                weights = torch.softmax(logits, 1, out=logits)  # in place, and row by row in cache
                # the largest weight is exp(0) / total, which can't underflow; amax is 4 times as fast as max and index
                each = peak - weights.amax(1, keepdim=True).log() - target
            else:
                weights, each = _softmax_over(tensor, logits, peak, target, here.unsqueeze(1))
            count = valid if counts is None else counts[part].where(valid, 0)
            each = torch.where(valid, each.squeeze(1), 0)
            loss += (each if counts is None else each * count).sum()
            if d_rows is not None:
                factor = count.unsqueeze(1) * scale.to(wide)
                hits = torch.ones_like(target) if tensor.size == 1 else here.unsqueeze(1).to(wide)
                d_logits = weights.scatter_add_(1, label, -hits)
                if rows.dtype == torch.float16:
                    # an average probability is subnormal there: it is scaled before it is rounded
                    d_logits, factor = d_logits.mul_(factor), torch.ones_like(factor)
                # elsewhere the factor of a row goes onto D numbers of it, not onto V
                d_logits, factor = d_logits.to(rows.dtype), factor.to(rows.dtype)
                torch.mm(d_logits, weight, out=d_rows[part]).mul_(factor)
                if d_weight is None:
                    continue
                scaled = rows[part] * factor
                if head.dtype == rows.dtype:
                    d_weight.addmm_(d_logits.T, scaled, beta=float(start > 0))  # 0 ignores what d_weight holds
                elif start > 0:
                    d_weight += d_logits.T @ scaled
                else:
                    d_weight.copy_(d_logits.T @ scaled)
        if d_rows is not None:
            ctx.save_for_backward(d_rows.view_as(hidden), d_weight)
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        # upstream is 1 in training: the loss is what backward() starts from. Only on the CPU is asking it free.
        if torch.compiler.is_compiling() or upstream[0].device.type != "cpu" or upstream[0].item() != 1:
            d_hidden, d_head = (d if d is None else d * upstream[0].to(d.dtype) for d in (d_hidden, d_head))
        return d_hidden, d_head, None, None, None, None, None, None


def _softmax_over(axis: Axis, logits: Tensor, peak: Tensor, target: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of rows whose columns are shared by an axis, in place, and each row's loss; `here`: the target is."""
    peak = axis.largest(peak)
    weights = logits.sub_(peak).exp_()
    sums = axis.sum(torch.cat([weights.sum(1, keepdim=True), (target - peak).where(here, 0)], 1))
    return weights.div_(sums[:, :1]), sums[:, :1].log() - sums[:, 1:]
