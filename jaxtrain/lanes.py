"""Rows of a key/value cache that come and go one by one, for requests that are answered together.

Few shapes are compiled: rows by powers of two, pieces of a prompt of three lengths, slots to read by powers of two.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from coretrain.base.malloc import keep_freed_memory
from coretrain.config.run import RunConfig
from coretrain.contract.lanes import furthest
from jaxtrain.adapters import Adapters
from jaxtrain.attention import masked_attention
from jaxtrain.decode import Decoder
from jaxtrain.layers import Block, Cache
from jaxtrain.model import GPT

PIECES = (16, 64, 256)
"""Tokens of a prompt that one program takes."""
LEAST = 128
"""Slots that are read at least."""


class Lanes:
    """As `coretrain.contract.lanes.Lanes` says. One thread at a time may use it."""

    def __init__(self, config: RunConfig, model: GPT, rows: int, slots: int) -> None:
        """`config` is the model's run, which says how its weights are held; `slots` at most its context."""
        self.config, self.model, self.rows, self.slots = config, model, rows, slots
        self.bank: Adapters | None = None
        self._prepare()
        if self.decoder.on_cpu:
            keep_freed_memory()
        m, parts = model.config, len(self.decoder.layers) or 1
        # behind the slots there is room for what fills a piece up, and for rows at rest
        self.all_slots = slots + PIECES[-1]
        # a row more for an exchange; rows by powers of two fit into it
        shape = (m.layers // parts, (1 << (rows - 1).bit_length()) + 1, m.kv, self.all_slots, m.head)
        empty = np.zeros(shape, model.dtype)
        self.caches = tuple(Cache(jnp.array(empty), jnp.array(empty)) for _ in range(parts))

    def _prepare(self) -> None:
        self.decoder = Decoder(self.model)

    def piece(self, left: int, most: int) -> int:
        """How many tokens of a prompt to put in next."""
        sizes = [size for size in PIECES if size <= max(most, PIECES[0])]
        fitting = [size for size in sizes if left <= size <= 2 * left]  # at most as much again is filled up
        whole = [size for size in sizes if size <= left]
        return min(left, fitting[0] if fitting else whole[-1] if whole else sizes[0])

    def prefill(self, row: int, ids: Sequence[int], at: int, every: bool = False) -> np.ndarray:
        """Put `ids` into slots `at` and on of a row: logits [V] after the last of them, or [T, V] after each."""
        count = len(ids)
        size = next(size for size in PIECES if size >= count)
        tokens = np.zeros((1, size), np.int32)
        tokens[0, :count] = ids
        hidden = self._through(tokens, np.array([at], np.int32), row, at + count)
        if every:
            return np.asarray(_every(self.decoder.graph, self.decoder.state, self.decoder.head, hidden)[0, :count])
        return np.asarray(_logits(self.decoder.graph, self.decoder.state, self.decoder.head, hidden, count - 1)[0])

    def step(self, tokens: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Put token b into slot at[b] of row b, for the first B rows: logits [B, V] after them."""
        count = len(at)
        size = 1 << (count - 1).bit_length()
        given = np.zeros((size, 1), np.int32)
        given[:count, 0] = tokens
        where = np.full(size, self.all_slots - 1, np.int32)
        where[:count] = np.where(at < self.slots, at, self.all_slots - 1)
        hidden = self._through(given, where, 0, furthest(at, self.slots))
        return np.asarray(_logits(self.decoder.graph, self.decoder.state, self.decoder.head, hidden, 0))[:count]

    def _through(self, tokens: np.ndarray, at: np.ndarray, row: int, seen: int) -> Array:
        """What the last block gives [B, T, D] for tokens [B, T] from slots at [B] on, of rows `row` and on."""
        d, slots, start = self.decoder, self._read(seen), np.int32(row)
        x, *given = _start(d.graph, d.state, tokens, at, slots)
        if not d.layers:
            x, cache = _blocks(d.graph, d.state, x, *given, start, self.caches[0])
            self.caches = (cache,)
            return x
        after = []
        for weights, cache in zip(d.layers, self.caches, strict=True):
            x, cache = _layer(d.block, weights, x, *given, start, cache)
            after.append(cache)
        self.caches = tuple(after)
        return x

    def _read(self, seen: int) -> int:
        return min(self.all_slots, max(LEAST, 1 << (seen - 1).bit_length()))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of one row to another."""
        self.caches = _moved(self.caches, np.int32(source), np.int32(target), self._read(length))

    def keep(self, row: int, length: int) -> tuple[Cache, ...]:
        """A copy of the first `length` slots of a row, and a few more: keys and values [L, 1, K, S, C] of the parts."""
        return _copied(self.caches, np.int32(row), self._read(length))

    def restore(self, row: int, kept: tuple[Cache, ...], length: int) -> None:
        """Put the first `length` slots of what `keep` gave into a row."""
        self.caches = _restored(self.caches, kept, np.int32(row))

    def add(self, config: RunConfig, tensors: Mapping[str, np.ndarray]) -> None:
        """Keep an adapter by its name."""
        if self.bank is None:
            self.bank = Adapters(self.config, self.model)
            self.bank.switch(None)  # what the model has of an adapter itself is taken off
            self._prepare()
        self.bank.add(config, tensors)

    def use(self, name: str | None) -> None:
        """Compute with that adapter from here on, or with none."""
        if self.bank is None or name == self.bank.active:
            return
        self.bank.switch(name)
        self._prepare()

    def close(self) -> None:
        """Nothing: the model itself was left as it was."""


@functools.partial(jax.jit, static_argnums=(0, 4))
def _start(
    graph: nnx.GraphDef[GPT], state: nnx.State, tokens: Array, at: Array, slots: int
) -> tuple[Array, tuple[Array, Array] | None, Array, Array]:
    """What the first block is given, the rotary tables, the mask [B, T, S] of the slots that are read, and `at`."""
    model = nnx.merge(graph, state)
    where = at[:, None] + jnp.arange(tokens.shape[1], dtype=at.dtype)
    mask = jnp.arange(slots) <= where[..., None]
    return *model.decode_start(tokens, jnp.minimum(where, model.config.context - 1)), mask, at


def _through_block(
    block: Block,
    x: Array,
    rotary: tuple[Array, Array] | None,
    mask: Array,
    at: Array,
    row: Array,
    layer: Array | int,
    cache: Cache,
) -> tuple[Array, Cache]:
    """x [B, T, D] through one block, whose keys and values go into its part of the cache [L, R, K, S, C].

    One token a row goes into a slot of its own, and more are a single row's.
    """
    q, *new = block.attention.heads(block.norm1(x), rotary)
    B, T, K, C = new[0].shape
    if T == 1:
        after = [old.at[layer, jnp.arange(B), :, at].set(part[:, 0]) for old, part in zip(cache, new, strict=True)]
    else:
        turned = (jnp.swapaxes(part, 1, 2)[None] for part in new)
        after = [
            jax.lax.dynamic_update_slice(old, part, _place(layer, row, at[0]))
            for old, part in zip(cache, turned, strict=True)
        ]
    read = (1, B, K, mask.shape[-1], C)
    seen = (jax.lax.dynamic_slice(part, _place(layer, row), read)[0].swapaxes(1, 2) for part in after)
    keys, values = block.attention.prefixed(*seen)
    mask = jnp.pad(mask, ((0, 0), (0, 0), (keys.shape[1] - mask.shape[-1], 0)), constant_values=True)
    x = x + block.attention.project(masked_attention(q, keys, values, mask).reshape(B, T, -1))
    return x + block.mlp(block.norm2(x)), Cache(*after)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=7)
def _layer(
    block: nnx.GraphDef[Block],
    weights: nnx.State,
    x: Array,
    rotary: tuple[Array, Array] | None,
    mask: Array,
    at: Array,
    row: Array,
    cache: Cache,
) -> tuple[Array, Cache]:
    return _through_block(nnx.merge(block, weights), x, rotary, mask, at, row, 0, cache)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=7)
def _blocks(
    graph: nnx.GraphDef[GPT],
    state: nnx.State,
    x: Array,
    rotary: tuple[Array, Array] | None,
    mask: Array,
    at: Array,
    row: Array,
    cache: Cache,
) -> tuple[Array, Cache]:
    model = nnx.merge(graph, state)
    block, stacked = nnx.split(model.blocks)

    def layer(carried: tuple[Array, Cache], item: tuple[nnx.State, Array]) -> tuple[tuple[Array, Cache], None]:
        x, cache = carried
        return _through_block(nnx.merge(block, item[0]), x, rotary, mask, at, row, item[1], cache), None

    return jax.lax.scan(layer, (x, cache), (stacked, jnp.arange(model.config.layers)))[0]


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph: nnx.GraphDef[GPT], state: nnx.State, head: Array, x: Array, last: Array) -> Array:
    model = nnx.merge(graph, state)
    return model.logits(model.decode_end(jax.lax.dynamic_slice_in_dim(x, last, 1, 1))[:, 0], head)


@functools.partial(jax.jit, static_argnums=0)
def _every(graph: nnx.GraphDef[GPT], state: nnx.State, head: Array, x: Array) -> Array:
    model = nnx.merge(graph, state)
    return model.logits(model.decode_end(x), head)


def _place(layer: Array | int, row: Array, slot: Array | int = 0) -> list[Array]:
    return [jnp.int32(at) for at in (layer, row, 0, slot, 0)]


def _part(part: Array, row: Array, slots: int) -> Array:
    L, _, K, _, C = part.shape
    return jax.lax.dynamic_slice(part, _place(0, row), (L, 1, K, slots, C))


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _moved(caches: tuple[Cache, ...], source: Array, target: Array, slots: int) -> tuple[Cache, ...]:
    def moved(part: Array) -> Array:
        return jax.lax.dynamic_update_slice(part, _part(part, source, slots), _place(0, target))

    return jax.tree.map(moved, caches)


@functools.partial(jax.jit, static_argnums=2)
def _copied(caches: tuple[Cache, ...], row: Array, slots: int) -> tuple[Cache, ...]:
    return jax.tree.map(lambda part: _part(part, row, slots), caches)


@functools.partial(jax.jit, donate_argnums=0)
def _restored(caches: tuple[Cache, ...], kept: tuple[Cache, ...], row: Array) -> tuple[Cache, ...]:
    return jax.tree.map(lambda part, old: jax.lax.dynamic_update_slice(part, old, _place(0, row)), caches, kept)
