"""Text from a model: prefill, then one token at a time out of a key/value cache.

`cache_slots` has no twin: torch compiles nothing for a length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from coretrain.base.malloc import keep_freed_memory
from coretrain.contract.decoding import decode
from coretrain.contract.sampling import Sampling, pad_prompts
from jaxtrain.layers import Cache
from jaxtrain.model import GPT


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    sampling: Sampling,
    stop: Collection[int] = (),
    on_tokens: Callable[[np.ndarray], None] | None = None,
) -> list[list[int]]:
    """Up to `tokens` new ids after each of the prompts (of any lengths), which end early at a `stop` id (left out).

    `on_tokens` is called with each step's new ids [B], for streaming. Raises `UserError` where prompt and tokens exceed
    the model's context.
    """
    m = model.config
    padded = pad_prompts(prompts, m.vocabulary, m.context, tokens)
    B = len(prompts)
    slots = cache_slots(padded.tokens.shape[1] + tokens, m.context)
    graph, (state, head) = nnx.graphdef(model), cast_once(model)
    if next(iter(head.devices())).platform == "cpu":
        keep_freed_memory()  # nothing is made or loaded any more
    everywhere = _everywhere(state)
    empty = np.zeros((m.layers, B, slots, m.kv, m.head), model.dtype)
    cache = Cache(*(jnp.array(empty) if everywhere is None else jax.device_put(empty, everywhere) for _ in range(2)))

    def step(inputs: np.ndarray, positions: np.ndarray, mask: np.ndarray, at: int) -> np.ndarray:
        nonlocal cache  # whose memory each step takes over
        logits, cache = _step(graph, state, head, inputs, positions, mask, cache, at, everywhere)
        return np.asarray(logits)

    def keep(places: np.ndarray) -> None:
        nonlocal cache
        cache = keep_rows(cache, places)

    return decode(padded, slots, tokens, sampling, stop, step, keep, rows_for, on_tokens)


def rows_for(going: int) -> int:
    """Rows of the batch that goes on where so many haven't ended: the next power of two (each is compiled)."""
    return 1 << (going - 1).bit_length()


def keep_rows(cache: Cache, places: np.ndarray) -> Cache:
    """The cache of the rows at `places` [B'], which rise, alone."""
    return _kept(cache, places, _everywhere(cache))


def cast_once(model: GPT) -> tuple[nnx.State, Array]:
    """The model's state with matrices in the compute dtype, into which each step would cast them; and its head [V, D],
    made of its parts."""
    flat = nnx.to_flat_state(nnx.state(model))
    magnitudes = {path[:-2] for path, _ in flat if path[-2:] == ("adapter", "m")}  # DoRA's norm is of the master
    cast = [
        (
            path,
            leaf.replace(leaf[...].astype(model.dtype))
            if path[-1] == "kernel" and path[:-1] not in magnitudes
            else leaf,
        )
        for path, leaf in flat
    ]
    return nnx.from_flat_state(cast), model.head_weight.astype(model.dtype)


def cache_slots(needed: int, context: int) -> int:
    """Slots of the cache for so many tokens: a power of two of at least 256, or the context where that is smaller.

    Not as many as needed: one compiled step serves many lengths. Nor the context's: a step reads all of them.
    """
    return min(context, max(256, 1 << (needed - 1).bit_length()))


def _everywhere(state: nnx.State | Cache) -> NamedSharding | None:
    """On a mesh, the place of what every device has whole: tokens, the cache, and logits, which every process reads."""
    place = jax.tree.leaves(state)[0].sharding
    return NamedSharding(place.mesh, P()) if isinstance(place, NamedSharding) else None


@functools.partial(jax.jit, static_argnums=(0, 8), donate_argnums=6)
def _step(
    graph: nnx.GraphDef[GPT],
    state: nnx.State,
    head: Array,
    tokens: Array,
    positions: Array,
    mask: Array,
    cache: Cache,
    at: Array,
    everywhere: NamedSharding | None = None,
) -> tuple[Array, Cache]:
    model = nnx.merge(graph, state)
    hidden, cache = model.decode(tokens, positions, mask, cache, at)
    results = model.logits(hidden[:, -1], head), cache
    return results if everywhere is None else jax.lax.with_sharding_constraint(results, everywhere)


@functools.partial(jax.jit, static_argnums=2)
def _kept(cache: Cache, places: Array, everywhere: NamedSharding | None) -> Cache:
    kept = Cache(*(part[:, places] for part in cache))
    return kept if everywhere is None else jax.lax.with_sharding_constraint(kept, everywhere)
