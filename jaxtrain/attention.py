"""Causal grouped-query attention, and the ordered table of kernels that can compute it.

`splash_attention` has no twin: it adapts the TPU's kernel, which torch has not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int

from coretrain.config.run import RunConfig
from coretrain.contract import choices
from coretrain.contract.choices import Choice, Kernel
from jaxtrain.parallel.sharding import Sharding


def choose_kernel(config: RunConfig, device: jax.Device) -> Choice:
    """The kernel asked for, or the first of `KERNELS` that can run here; `UserError` with the reason where it can't."""
    return choices.choose_kernel(KERNELS, "JAX", config, device)


def attention(
    kernel: str,
    q: Float[Array, "B T H C"],
    k: Float[Array, "B S K C"],
    v: Float[Array, "B S K C"],
    positions: Int[Array, "B T"] | None = None,
    sharding: Sharding | None = None,
) -> Float[Array, "B T H C"]:
    """Causal attention of q over k and v, whose K heads serve H / K of q's each; query t sees keys up to S - T + t.

    With a `sharding`, each device runs the kernel on its own rows and heads. Where rows are split over context too,
    T = S: the keys of the whole row are gathered, and each device's queries look at those up to their own place, as in
    Llama 3's context parallelism (Grattafiori et al. 2024, 3.3.2), without its balancing.

    With `positions` of packed rows, it sees those of its own sample alone, and the S - T keys of a prefix.
    """
    # In torch the shards are in q, k and v already; here they are cut inside.
    if positions is not None:
        return _packed_attention(kernel, q, k, v, positions, sharding)
    if sharding is None:
        return KERNELS[kernel].compute(q, k, v)
    split = sharding.split("time")
    chosen = KERNELS[kernel]
    part, place = chosen.parts(q, k, sharding) if split else (None, P())

    def local(q: Array, k: Array, v: Array, part: Any) -> Array:
        if not split:
            return chosen.compute(q, k, v)
        assert chosen.compute_from is not None, "choose_kernel takes no other for rows that are split"
        k, v = (jax.lax.all_gather(x, split, axis=1, tiled=True) for x in (k, v))
        return chosen.compute_from(q, k, v, part)

    spec = sharding.named("batch", "time", "heads", None).spec
    keys = sharding.named("batch", "time", "kv_heads", None).spec
    # check_vma: it makes collectives of what is replicated; here every axis of the mesh but stage splits the arrays
    places = (spec, keys, keys, place)
    shards = jax.shard_map(local, mesh=sharding.mesh, in_specs=places, out_specs=spec, check_vma=False)
    return shards(q, k, v, part)


def _packed_attention(kernel: str, q: Array, k: Array, v: Array, positions: Array, sharding: Sharding | None) -> Array:
    packed = KERNELS[kernel].packed
    assert packed is not None, "choose_kernel takes no other for packed rows"

    if sharding is None:
        return packed(q, k, v, positions)
    spec = sharding.named("batch", "time", "heads", None).spec
    keys, rows = sharding.named("batch", "time", "kv_heads", None).spec, sharding.named("batch", "time").spec
    shards = jax.shard_map(
        packed, mesh=sharding.mesh, in_specs=(spec, keys, keys, rows), out_specs=spec, check_vma=False
    )
    return shards(q, k, v, positions)


def seen_in_sample(positions: Array, prefix: int = 0) -> Array:
    """[B, T, P + T], True where a query may look: the P keys of a prefix, and its own sample up to itself.

    A sample begins positions[t] tokens before its token t.
    """
    queries = jnp.arange(positions.shape[1])[:, None]
    keys = jnp.arange(-prefix, positions.shape[1])
    return (keys < 0) | (keys <= queries) & (keys >= queries - positions[..., None])


def masked_attention(
    q: Float[Array, "B T H C"], k: Float[Array, "B S K C"], v: Float[Array, "B S K C"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T H C"]:
    """Attention under an explicit mask, True where a query may look; a query that sees nothing gets zeros."""
    B, T, H, C = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, H // K, C)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("btkgc,bskc->bkgts", q, k, preferred_element_type=wide) * (1 / math.sqrt(C))
    seen = mask[:, None, None]
    scores = jnp.where(seen, scores, -jnp.inf)
    peak = jnp.maximum(scores.max(-1, keepdims=True), jnp.finfo(wide).min)  # keeps a fully masked row finite
    weights = jnp.exp(scores - jax.lax.stop_gradient(peak))
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), jnp.finfo(wide).tiny)
    return jnp.einsum("bkgts,bskc->btkgc", weights.astype(v.dtype), v).reshape(B, T, H, C)


def _plain(q: Array, k: Array, v: Array) -> Array:
    T, S = q.shape[1], k.shape[1]
    mask = jnp.tril(jnp.ones((T, S), bool), S - T)
    return masked_attention(q, k, v, jnp.broadcast_to(mask, (q.shape[0], T, S)))


def _plain_packed(q: Array, k: Array, v: Array, positions: Array) -> Array:
    return masked_attention(q, k, v, seen_in_sample(positions, k.shape[1] - q.shape[1]))


def _xla_packed(q: Array, k: Array, v: Array, positions: Array) -> Array:
    mask, scale = seen_in_sample(positions, k.shape[1] - q.shape[1]), 1 / math.sqrt(q.shape[-1])
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=scale, implementation="xla")


def _starts(q: Array, k: Array, sharding: Sharding) -> tuple[Array, P]:
    """Where each device's part of a row [..., T] begins: [1] on each."""
    count = sharding.size(*sharding.split("time"))
    return jnp.arange(0, q.shape[1], q.shape[1] // count), P(sharding.split("time"))


def _plain_from(q: Array, k: Array, v: Array, start: Array) -> Array:
    mask = _seen_from(q, k, start)
    return masked_attention(q, k, v, jnp.broadcast_to(mask, (q.shape[0], *mask.shape)))


def _xla_from(q: Array, k: Array, v: Array, start: Array) -> Array:
    mask = _seen_from(q, k, start)[None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=1 / math.sqrt(q.shape[-1]), implementation="xla")


def _seen_from(q: Array, k: Array, start: Array) -> Array:
    """[T, S], True where a query of a row's part that begins at `start` may look."""
    return jnp.arange(k.shape[1]) <= start + jnp.arange(q.shape[1])[:, None]


def _dot_product(implementation: Literal["xla", "cudnn"]) -> Callable[[Array, Array, Array], Array]:
    def compute(q: Array, k: Array, v: Array) -> Array:
        T, S = q.shape[1], k.shape[1]
        scale = 1 / math.sqrt(q.shape[-1])
        if T == S:
            return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, implementation=implementation)
        # is_causal aligns top-left; with a longer key side the contract's alignment is bottom-right
        mask = jnp.tril(jnp.ones((T, S), bool), S - T)[None, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation=implementation)

    return compute


def splash_attention(q: Array, k: Array, v: Array, positions: Array | None = None, interpret: bool = False) -> Array:
    """The TPU's splash kernel on q [B, T, H, C]; `interpret` runs it on any machine, slowly.

    With `positions` [B, T] of packed rows, where T = S, samples are the kernel's segments.
    """
    (_, T, H, _), (_, S, K, _) = q.shape, k.shape
    kernel = _splash_kernel(T, S, H, K, interpret=interpret)
    segments = None
    if positions is not None:
        from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

        sample = jnp.cumsum(positions == 0, axis=1, dtype=jnp.int32)
        segments = SegmentIds(q=sample, kv=sample)
    return _splash_from(q, k, v, kernel, segments)


def _splash_kernel(T: int, S: int, H: int, K: int, parts: int = 1, interpret: bool = False) -> Any:
    """The kernel for T queries and S keys; its mask can be cut by queries into equal parts."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    make = splash_attention_kernel.make_splash_mha if K == H else splash_attention_kernel.make_splash_mqa
    heads = H if K == H else H // K
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((T, S), offset=S - T)] * heads)
    return make(mask, head_shards=1, q_seq_shards=parts, interpret=interpret)


def _splash_parts(q: Array, k: Array, sharding: Sharding, interpret: bool = False) -> tuple[Any, Any]:
    """The kernel for whole rows, and how its mask's blocks are shared with them: each device gets those of its part."""
    split = sharding.split("time")
    H, K = (x.shape[2] // sharding.size(*sharding.split(axis)) for x, axis in ((q, "heads"), (k, "kv_heads")))
    kernel = _splash_kernel(q.shape[1], k.shape[1], H, K, sharding.size(*split), interpret)
    return kernel, kernel.manual_sharding_spec(NamedSharding(sharding.mesh, P(None, split)))


def _splash_from(q: Array, k: Array, v: Array, kernel: Any, segments: Any = None) -> Array:
    H, K = q.shape[2], k.shape[2]
    scaled = q * jnp.asarray(1 / math.sqrt(q.shape[-1]), q.dtype)  # the kernel itself applies no scale
    if K == H:
        return jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (scaled, k, v)), segments).swapaxes(1, 2)
    grouped = scaled.reshape(*q.shape[:2], K, H // K, q.shape[3]).transpose(0, 2, 3, 1, 4)
    of_row = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out = jax.vmap(of_row)(grouped, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), segments)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _splash_obstacle(config: RunConfig, device: jax.Device) -> str | None:
    if device.platform != "tpu":
        return f"it needs a TPU, the device is {device.platform}"
    if config.model.head % 128 and config.model.head != 64:
        return f"head width {config.model.head} is neither 64 nor a multiple of 128"
    share = config.row_tokens // config.parallel.context
    if share % 128:
        return f"a device's {share} tokens of a row are not a multiple of 128"
    if config.adapter.kind == "prefix" and config.data.packed:
        return "its segments have no place for a prefix that all samples of a row see"
    if config.adapter.kind == "prefix" and config.adapter.virtual_tokens % 128:
        return f"a prefix of {config.adapter.virtual_tokens} is not a multiple of 128"
    return None


def _cudnn_obstacle(config: RunConfig, device: jax.Device) -> str | None:
    if device.platform not in ("gpu", "cuda"):
        return f"it needs CUDA, the device is {device.platform}"
    if config.precision.compute not in ("bfloat16", "float16"):
        return f"it computes in bfloat16 or float16, precision.compute is {config.precision.compute}"
    told, prefix = str(getattr(device, "compute_capability", "8.0")), config.adapter.kind == "prefix"
    if not re.fullmatch(r"\d+\.\d+", told):
        return f"it needs CUDA, the device is of kind {told}"  # ROCm's are of the platform gpu too
    generation = int(told.partition(".")[0])
    if generation < 8:
        return f"it needs compute capability 8.0, the device has {told}"
    widest = 256 if generation > 8 else 128
    if config.model.head > widest:
        return f"head width {config.model.head} is above {widest}"
    if config.model.head % 8:
        return f"head width {config.model.head} is not a multiple of 8"
    if prefix and (config.row_tokens % 2 or config.adapter.virtual_tokens % 2):
        tokens, virtual = config.row_tokens, config.adapter.virtual_tokens
        return f"its gradients under a mask need even lengths, not rows of {tokens} behind a prefix of {virtual}"
    if config.parallel.context > 1:
        return f"parallel.context = {config.parallel.context} needs a mask that differs by device"
    return None


def _xla_obstacle(config: RunConfig, device: jax.Device) -> str | None:
    if config.precision.compute == "float64":
        return "its softmax is float32, precision.compute is float64"
    if config.precision.compute == "float16" and device.platform == "cpu":
        return "XLA's CPU has no float16 product with a float32 sum"
    return None


@dataclass(frozen=True)
class MeshKernel(Kernel):
    """A kernel that also computes a part of a row's queries, where rows are split over a mesh."""

    compute_from: Callable[[Array, Array, Array, Any], Array] | None = None
    """For queries of a part of a row, and all its keys; last what `parts` gave this device. None: it can't."""
    parts: Callable[[Array, Array, Sharding], tuple[Any, Any]] = _starts
    """Of whole q and k: what tells the devices their parts, and its partition specs."""


KERNELS: dict[str, MeshKernel] = {
    "splash": MeshKernel(splash_attention, _splash_obstacle, splash_attention, _splash_from, _splash_parts),
    "cudnn": MeshKernel(_dot_product("cudnn"), _cudnn_obstacle),
    "xla": MeshKernel(_dot_product("xla"), _xla_obstacle, _xla_packed, _xla_from),
    "plain": MeshKernel(_plain, lambda config, device: None, _plain_packed, _plain_from),
}
"""In order of preference."""
