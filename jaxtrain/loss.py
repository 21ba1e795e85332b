"""Output head and cross-entropy in one, chunk by chunk over tokens, so that no [B, T, V] tensor is ever kept.

`PIECES` has no twin: torch's processes sum a head's gradient as a whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from coretrain.data.batch import IGNORED
from jaxtrain.parallel.sharding import FSDP, Sharding
from jaxtrain.wide import over_tokens

PIECES = 8
"""In so many pieces, at most, a head's gradient goes to the devices that share its width."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 7))
def cross_entropy(
    hidden: Float[Array, "*A B T D"],
    head: Float[Array, "*n V D"],
    labels: Int[Array, "*A B T"],
    vocab: int,
    chunk: int,
    scale: Float[Array, ""],
    weights: Float[Array, "*A B T"] | None = None,
    sharding: Sharding | None = None,
) -> Float[Array, ""]:
    """scale x the sum over targets of -log softmax(hidden @ head^T)[label], in at least float32.

    Of the head's rows, which are padded, the first `vocab` count; labels of -100 are ignored; `scale` is usually
    1 / (targets in the global batch); `weights` multiply each target's term. The gradients are made in the forward
    pass, where the chunk's softmax is at hand, with `scale` already in them: at no time are more than `chunk` rows of
    logits in memory.

    With a `sharding`, each device takes chunks of its own tokens against its own rows of the head, which may be n
    copies (`Sharding.own_copies`). Where layers lie in stages, micro-batches [A] lead.
    """
    # In torch the shards are in `hidden`, `head` and `labels` already; here they are cut inside.
    return _computed(hidden, head, labels, vocab, chunk, scale, weights, sharding, trained=False)[0]


def count_targets(labels: Array, weights: Array | None = None) -> Array:
    """Number of labels that aren't ignored, or the sum of their weights; 1 where that is 0: the loss is then 0 too."""
    if weights is None:
        return (labels != IGNORED).sum().clip(1)
    total = jnp.where(labels != IGNORED, weights, 0).sum()
    return jnp.where(total > 0, total, 1)


def token_logprobs(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    vocab: int,
    chunk: int,
    temperature: float = 1.0,
) -> Float[Array, "B T"]:
    """log softmax(hidden @ head^T / temperature)[label] of each position, in at least float32; 0 without a target.

    The arguments are those of `cross_entropy`. The result can be differentiated: a chunk's logits are made once more
    in the backward pass. Chunks are cut along T, so that on a mesh every device works on its own rows of each.
    """
    return _logprobs(hidden, head, labels, vocab, chunk, temperature, "")[0]


def token_logprobs_and_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    vocab: int,
    chunk: int,
    temperature: float = 1.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """`token_logprobs`, and beside them the entropy in nats of each distribution, which is not differentiated."""
    logprobs, entropy = _logprobs(hidden, head, labels, vocab, chunk, temperature, "entropy")
    return logprobs, jax.lax.stop_gradient(entropy)


def token_logprobs_and_likeliest(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    vocab: int,
    chunk: int,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """`token_logprobs`, and beside them 1 where no id is likelier than the label, else 0."""
    return _logprobs(hidden, head, labels, vocab, chunk, 1.0, "likeliest")


def _logprobs(
    hidden: Array, head: Array, labels: Array, vocab: int, chunk: int, temperature: float, beside: str
) -> tuple[Array, Array]:
    B, T = labels.shape
    size = max(1, min(T, chunk // B))
    extra = -T % size
    pieces = jnp.pad(hidden, ((0, 0), (0, extra), (0, 0))).reshape(B, -1, size, hidden.shape[-1]).swapaxes(0, 1)
    wanted = jnp.pad(labels, ((0, 0), (0, extra)), constant_values=IGNORED).reshape(B, -1, size).swapaxes(0, 1)

    @jax.checkpoint
    def one(item: tuple[Array, Array]) -> tuple[Array, Array]:
        h, label = item
        logits = (h @ head.astype(h.dtype).T).astype(jnp.promote_types(h.dtype, jnp.float32))
        if temperature != 1:
            logits = logits / temperature
        columns = jnp.arange(head.shape[0]) < vocab
        logits = jnp.where(columns, logits, -jnp.inf)
        valid = label != IGNORED
        target = jnp.take_along_axis(logits, jnp.where(valid, label, 0)[..., None], -1)[..., 0]
        normal = jax.nn.logsumexp(logits, -1)
        logprob = jnp.where(valid, target - normal, 0)
        if beside == "likeliest":
            return logprob, (valid & (target >= logits.max(-1))).astype(logprob.dtype)
        if not beside:
            return logprob, logprob
        each = jax.lax.stop_gradient(logits - normal[..., None])
        entropy = -jnp.where(columns, jnp.exp(each) * each, 0).sum(-1)
        return logprob, jnp.where(valid, entropy, 0)

    parts = jax.lax.map(one, (pieces, wanted))
    logprobs, more = (part.swapaxes(0, 1).reshape(B, -1)[:, :T] for part in parts)
    return logprobs, more


def _computed(
    hidden: Array,
    head: Array,
    labels: Array,
    vocab: int,
    chunk: int,
    scale: Array,
    weights: Array | None,
    sharding: Sharding | None,
    trained: bool,
) -> tuple[Array, Array, Array]:
    """Loss and both gradients, on one device or on a mesh."""
    if sharding is None:
        return _over_chunks(hidden, head, labels, vocab, chunk, scale, weights, trained)
    # with stages there is an axis of micro-batches before the rows: every stage has the same hidden states, takes some
    stages = sharding.size("stage")
    lead = () if labels.ndim == 2 else ("layers",) if len(labels) % stages == 0 else (None,)
    rows, matrix = sharding.named(*lead, "batch", "time", None).spec, sharding.named("vocab", "width").spec
    if head.shape[-1] % sharding.size(*FSDP):  # an adapter's B stands beside it
        matrix = P(matrix[0], None)
    token_axes = (*sharding.token_axes, *(("stage",) if lead == ("layers",) else ()))
    head_axes, copied = sharding.split("vocab"), head.ndim == 3
    scattered = sharding.split("width") if matrix[1] else ()

    def local(
        hidden: Array, head: Array, labels: Array, scale: Array, weights: Array | None
    ) -> tuple[Array, Array, Array]:
        own = head[0] if copied else head
        if scattered:
            own = own.astype(hidden.dtype).T  # with the shared axis in front, where it is gathered without a copy
            for axis in reversed(scattered):
                own = jax.lax.all_gather(own, axis, tiled=True)
            own = own.T
        loss, d_hidden, d_head = _over_chunks(
            hidden, own, labels, vocab, chunk, scale, weights, trained, head_axes, scatter if scattered else None
        )
        loss = jax.lax.psum(loss, token_axes)
        if not trained:
            return loss, d_hidden, d_head
        if head_axes:
            d_hidden = jax.lax.psum(d_hidden, head_axes)
        if copied:  # summed over the devices with the gradient of its other use
            return loss, d_hidden, d_head[None]
        d_head = jax.lax.psum(d_head, tuple(axis for axis in token_axes if axis not in scattered))
        # else the compiler may put off the sums, and keep logits and a whole gradient through all of the backward pass
        return jax.lax.optimization_barrier((loss, d_hidden, d_head))

    def scatter(piece: Array) -> Array:
        """A piece [D, v] of the head's gradient: this device's columns, summed over those that share the width."""
        summed = hidden.dtype if sharding.config.parallel.gradient_sum == "compute" else head.dtype
        piece = piece.astype(summed)
        for axis in scattered:
            piece = jax.lax.psum_scatter(piece, axis, scatter_dimension=0, tiled=True)
        return piece.astype(head.dtype)

    head_in, head_out = (sharding.copies, sharding.copies) if copied else (matrix, matrix)
    shards = jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(rows, head_in, P(*rows[:-1]), P(), P(*rows[:-1])),
        out_specs=(P(), rows if trained else P(), head_out if trained else P()),
        check_vma=False,  # the sums above say what is equal where; nothing is differentiated in here
    )
    return shards(hidden, head, labels, jnp.asarray(scale), weights)


def _over_chunks(
    hidden: Array,
    head: Array,
    labels: Array,
    vocab: int,
    chunk: int,
    scale: Array,
    counts: Array | None,
    trained: bool,
    axes: tuple[str, ...] = (),
    scatter: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array, Array]:
    """Loss and gradients; with mesh `axes`, `head` is this device's share of its rows.

    `scatter` takes a piece of the head's gradient [D, v] to this device's share of its width: [V, d] is returned.
    """
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    master = jnp.promote_types(head.dtype, jnp.float32)
    weight = head.astype(hidden.dtype) if scatter is None else head.astype(hidden.dtype).T  # as it was gathered
    width = hidden.shape[-1]
    chunk = min(chunk, labels.size)
    extra = -labels.size % chunk
    rows = jnp.pad(hidden.reshape(-1, width), ((0, extra), (0, 0))).reshape(-1, chunk, width)
    labels = jnp.pad(labels.reshape(-1), (0, extra), constant_values=IGNORED).reshape(-1, chunk)
    if counts is not None:
        counts = jnp.pad(counts.reshape(-1).astype(wide), (0, extra)).reshape(-1, chunk)
    columns = jnp.arange(head.shape[0])
    if axes:
        columns = columns + jax.lax.axis_index(axes) * head.shape[0]
    scale = jnp.asarray(scale, wide)

    def one(h: Array, label: Array, count: Array | None) -> tuple[Array, Array, Array]:
        """Of a chunk: its loss, and, where it is trained, the gradients of its logits and each row's factor on them."""
        logits = h @ (weight.T if scatter is None else weight)
        logits = jnp.where(columns >= vocab, -jnp.inf, logits.astype(wide))
        valid = label != IGNORED
        label = jnp.where(valid, label, 0)
        if axes or scatter is not None:
            # with axes it is on one of the devices; without, a gather would keep the logits in float32 for itself
            target = jnp.where(columns == label[:, None], logits, 0).sum(1, keepdims=True)
        else:
            target = jnp.take_along_axis(logits, label[:, None], 1)
        peak = logits.max(1, keepdims=True)
        if axes:
            peak = jax.lax.pmax(peak, axes)
        weights = jnp.exp(logits - peak)
        total = weights.sum(1, keepdims=True)
        if axes:
            total, target = jax.lax.psum((total, target), axes)
        count = valid if count is None else jnp.where(valid, count, 0)
        each = jnp.where(valid, (jnp.log(total) + peak - target)[:, 0], 0)
        loss = (each if counts is None else each * count).sum()
        if not trained:
            return loss, weights, count
        factor = count[:, None] * scale
        d_logits = weights * (1 / total) - (columns == label[:, None])
        if h.dtype == jnp.float16:
            # an average probability is subnormal there: it is scaled before it is rounded
            d_logits, factor = d_logits * factor, jnp.ones_like(factor)
        # elsewhere the factor of a row goes onto D numbers of it, not onto V
        return loss, d_logits.astype(h.dtype), factor.astype(h.dtype)

    # where they are smaller than their sum is, gradients of all logits are kept, and the head's made of them in pieces
    kept = scatter is not None and trained and labels.size * hidden.itemsize <= width * master.itemsize

    def step(carry: tuple[Array, Array], item: tuple[Array, Array, Array | None]) -> tuple[tuple[Array, Array], Any]:
        (loss, d_weight), h = carry, item[0]
        more, d_logits, factor = one(*item)
        if not trained:
            return (loss + more, d_weight), jnp.zeros((), h.dtype)
        d_rows, scaled = (d_logits @ (weight if scatter is None else weight.T)) * factor, h * factor
        if kept:
            return (loss + more, d_weight), (d_rows, d_logits, scaled)
        return (loss + more, d_weight + (d_logits.T @ scaled).astype(master)), d_rows

    start = (jnp.zeros((), wide), jnp.zeros(head.shape if trained and not kept else (), master))
    (loss, d_head), d_rows = jax.lax.scan(step, start, (rows, labels, counts))
    if scatter is not None and kept:
        d_rows, d_logits, scaled = (part.reshape(-1, part.shape[-1]) for part in d_rows)
        d_head = _in_pieces(len(head), lambda at: scatter(over_tokens(scaled, at(d_logits.T).T, master)))
    elif scatter is not None and trained:
        d_head = _in_pieces(len(head), lambda at: scatter(at(d_head).T))
    d_hidden = d_rows.reshape(-1, width)[: hidden.size // width].reshape(hidden.shape) if trained else d_rows
    return loss * scale, d_hidden, d_head


def _in_pieces(rows: int, piece: Callable[[Callable[[Array], Array]], Array]) -> Array:
    """A gradient [rows, d], some rows after the others, so that no more of it is ever whole along its width.

    `piece` gets a function that takes those rows of an array [rows, ...], and gives their gradient [d, r].
    """
    count = math.gcd(rows, PIECES)

    def some(number: Array) -> Array:
        return piece(lambda x: jax.lax.dynamic_slice_in_dim(x, number * (rows // count), rows // count))

    made = jax.lax.map(some, jnp.arange(count))
    return made.transpose(0, 2, 1).reshape(rows, -1)


def _forward(
    hidden: Array,
    head: Array,
    labels: Array,
    vocab: int,
    chunk: int,
    scale: Array,
    weights: Array | None,
    sharding: Sharding | None,
) -> tuple[Array, tuple[Array, Array]]:
    loss, d_hidden, d_head = _computed(hidden, head, labels, vocab, chunk, scale, weights, sharding, trained=True)
    return loss, (d_hidden, d_head)


def _backward(
    vocab: int, chunk: int, sharding: Sharding | None, saved: tuple[Array, Array], upstream: Array
) -> tuple[Array | None, ...]:
    d_hidden, d_head = saved
    return d_hidden * upstream.astype(d_hidden.dtype), d_head * upstream.astype(d_head.dtype), None, None, None


cross_entropy.defvjp(_forward, _backward)
