"""Text from a model: prefill, then one token at a time out of a key/value cache.

`cache_slots` and `MANY` have no twin: torch compiles nothing for a length. Nor has `Decoder`: torch compiles nothing
for a number of rows either, and has a list of layers, each with weights of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from coretrain.base.malloc import keep_freed_memory
from coretrain.contract import decoding
from coretrain.contract.decoding import Decode, Fewer, Keep, Sampled, row_numbers, shared_prompts
from coretrain.contract.sampling import PaddedPrompts, Sampling, pad_prompts
from jaxtrain.layers import Block, Cache
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
    padded, slots, step, keep, fewer = _steps(model, prompts, tokens)
    return decoding.decode(padded, slots, tokens, sampling, stop, step, keep, fewer, on_tokens)


def sample(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    sampling: Sampling,
    stop: Collection[int] = (),
    numbers: Sequence[int] | None = None,
) -> list[Sampled]:
    """As `generate`, with the stop id, and with the log-probability of each id under logits / temperature.

    `numbers` are the rows' numbers in a larger set of prompts (default: 0, 1, ...), by which random numbers are drawn.
    """
    padded, slots, step, keep, fewer = _steps(model, prompts, tokens)
    return decoding.sample(padded, slots, tokens, sampling, stop, step, keep, fewer, row_numbers(numbers, len(prompts)))


def replay(
    model: GPT, prompts: Sequence[Sequence[int]], tokens: int, temperature: float, answers: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The log-probabilities of `answers`, which `sample` gave for these prompts, by the same steps: the same bits."""
    padded, slots, step, keep, fewer = _steps(model, prompts, tokens)
    return decoding.replay(padded, slots, tokens, temperature, answers, step, keep, fewer)


def _steps(model: GPT, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[PaddedPrompts, int, Decode, Keep, Fewer]:
    """The padded prompts, the cache's slots, and what `decoding.decode` asks of a stack."""
    m = model.config
    padded = pad_prompts(prompts, m.vocabulary, m.context, tokens)
    if len(prompts) >= MANY:
        longest = padded.tokens.shape[1]
        padded = padded.wider(min(-longest % 8, m.context - tokens - longest))  # few lengths are compiled for
    slots = cache_slots(padded.tokens.shape[1] + tokens, m.context, len(prompts))
    decoder = Decoder(model)
    if decoder.on_cpu:
        keep_freed_memory()  # nothing is made or loaded any more
    places, which = shared_prompts(padded)
    places = np.resize(places, 1 << (len(places) - 1).bit_length())  # few numbers of rows are compiled for
    shares = len(places) < len(prompts)
    caches = decoder.cache(len(places) if shares else len(prompts), slots)

    def step(inputs: np.ndarray, positions: np.ndarray, mask: np.ndarray, at: int) -> np.ndarray:
        nonlocal caches  # whose memory each step takes over
        if at > 0 or not shares:
            logits, caches = decoder.step(inputs, positions, mask, caches, at)
            return np.asarray(logits)
        logits, caches = decoder.step(inputs[places], positions[places], mask[places], caches, 0)
        caches = tuple(_kept(cache, which, decoder.everywhere) for cache in caches)
        return np.asarray(logits)[which]

    def keep(places: np.ndarray) -> None:
        nonlocal caches
        caches = tuple(keep_rows(cache, places) for cache in caches)

    return padded, slots, step, keep, decoder.rows_for


MANY = 8
"""Rows, as of a rollout, from which a step's time is that of its slots and not that of its weights."""
WORTH = {"cpu": 1e10, "elsewhere": 1e14}
"""Tokens that rows needn't be taken through, times the model's numbers, from which another program pays. On a CPU of 2
cores compiling takes 0.9 s, and a token 1.5e-10 s for each number; elsewhere from 100 TFLOP/s, not measured."""


class Decoder:
    """A model as its decoding step wants it: matrices in the compute dtype, and the head made of its parts.

    Alone on a CPU each layer is a call of one program, with weights that lie where the model has them: a loop over
    stacked weights copies each layer's before it multiplies by them. Elsewhere a step is one program.
    """

    def __init__(self, model: GPT, by_layer: bool | None = None) -> None:
        """`by_layer` says whether each layer is a call of its own; unset, whether it is quicker so."""
        self.model, self.graph, (self.state, self.head) = model, nnx.graphdef(model), cast_once(model)
        self.everywhere, self.layers = _everywhere(self.state), list[nnx.State]()
        platform = next(iter(self.head.devices())).platform
        self.on_cpu, self.worth = platform == "cpu", WORTH.get(platform, WORTH["elsewhere"])
        if by_layer or (by_layer is None and self.on_cpu and self.everywhere is None):
            self.block, stacked = nnx.graphdef(model.blocks), self.state["blocks"]
            self.layers = _by_layer(stacked, model.config.layers)

    def rows_for(self, going: int, rows: int, left: int) -> int:
        """Rows to go on with where `going` of `rows` haven't ended and at most `left` tokens are to come.

        A power of two, where what is spared is worth compiling for; never by the clock, so the same in every run.
        """
        size = 1 << (going - 1).bit_length()
        spared = (rows - size) * left * sum(array.size for array in jax.tree.leaves(self.state))
        return size if spared >= self.worth else rows

    def cache(self, rows: int, slots: int) -> tuple[Cache, ...]:
        """Room for keys and values of so many rows: of all layers, or one for each."""
        m = self.model.config
        parts = len(self.layers) or 1
        empty = np.zeros((m.layers // parts, rows, slots, m.kv, m.head), self.model.dtype)
        put = jnp.array if self.everywhere is None else functools.partial(jax.device_put, device=self.everywhere)
        return tuple(Cache(put(empty), put(empty)) for _ in range(parts))

    def step(
        self, tokens: Any, positions: Any, mask: Any, caches: tuple[Cache, ...], at: int
    ) -> tuple[Array, tuple[Cache, ...]]:
        """Logits [B, V] after the last of tokens [B, T], all given as to `GPT.decode`; and new caches for `caches`."""
        if not self.layers:
            given = tokens, positions, mask, caches[0], at
            logits, cache = _step(self.graph, self.state, self.head, *given, self.everywhere)
            return logits, (cache,)
        x, *given = _start(self.graph, self.state, tokens, positions, mask, at)
        after = []
        for weights, cache in zip(self.layers, caches, strict=True):
            x, cache = _layer(self.block, weights, x, *given, cache)
            after.append(cache)
        return _end(self.graph, self.state, self.head, x), tuple(after)


def _by_layer(stacked: nnx.State, layers: int) -> list[nnx.State]:
    """Each layer's part of weights on a CPU: the same memory, where it begins at a multiple of 64 bytes."""
    arrays, form = jax.tree.flatten(stacked)
    hosts = [np.asarray(array) for array in arrays]
    parts = jax.device_put([host[i] for i in range(layers) for host in hosts])  # all in one call: 10 ms for 35
    return [jax.tree.unflatten(form, parts[i * len(hosts) : (i + 1) * len(hosts)]) for i in range(layers)]


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


def cache_slots(needed: int, context: int, rows: int = 1) -> int:
    """Slots of the cache for so many tokens: a power of two, or the context where that is smaller.

    Not as many as needed: one compiled step serves many lengths; of few rows 256 at least. Nor the context's: a step
    reads all of them, for each row.
    """
    return min(context, max(256 if rows < MANY else 32, 1 << (needed - 1).bit_length()))


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


@functools.partial(jax.jit, static_argnums=0)
def _start(
    graph: nnx.GraphDef[GPT], state: nnx.State, tokens: Array, positions: Array, mask: Array, at: Array
) -> tuple[Array, tuple[Array, Array] | None, Array, Array]:
    return *nnx.merge(graph, state).decode_start(tokens, positions), mask, jnp.asarray(at)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=6)
def _layer(
    block: nnx.GraphDef[Block],
    weights: nnx.State,
    x: Array,
    rotary: tuple[Array, Array] | None,
    mask: Array,
    at: Array,
    cache: Cache,
) -> tuple[Array, Cache]:
    x, keys, values = nnx.merge(block, weights).decode(x, rotary, mask, cache.keys[0], cache.values[0], at)
    return x, Cache(keys[None], values[None])


@functools.partial(jax.jit, static_argnums=0)
def _end(graph: nnx.GraphDef[GPT], state: nnx.State, head: Array, x: Array) -> Array:
    model = nnx.merge(graph, state)
    return model.logits(model.decode_end(x)[:, -1], head)


@functools.partial(jax.jit, static_argnums=2)
def _kept(cache: Cache, places: Array, everywhere: NamedSharding | None) -> Cache:
    kept = Cache(*(part[:, places] for part in cache))
    return kept if everywhere is None else jax.lax.with_sharding_constraint(kept, everywhere)
