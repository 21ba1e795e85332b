"""Text from a model: prefill, then one token at a time out of a key/value cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from coretrain.base.malloc import keep_freed_memory
from coretrain.contract import decoding
from coretrain.contract.decoding import Decode, Fewer, Keep, Sampled, row_numbers, shared_prompts
from coretrain.contract.sampling import PaddedPrompts, Sampling, pad_prompts
from torchtrain.adapters import Dora
from torchtrain.layers import Cache, Linear
from torchtrain.model import GPT


@torch.no_grad()
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
    with _steps(model, prompts, tokens) as (padded, slots, step, keep, fewer):
        return decoding.decode(padded, slots, tokens, sampling, stop, step, keep, fewer, on_tokens)


@torch.no_grad()
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
    with _steps(model, prompts, tokens) as (padded, slots, step, keep, fewer):
        return decoding.sample(
            padded, slots, tokens, sampling, stop, step, keep, fewer, row_numbers(numbers, len(prompts))
        )


@torch.no_grad()
def replay(
    model: GPT, prompts: Sequence[Sequence[int]], tokens: int, temperature: float, answers: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The log-probabilities of `answers`, which `sample` gave for these prompts, by the same steps: the same bits."""
    with _steps(model, prompts, tokens) as (padded, slots, step, keep, fewer):
        return decoding.replay(padded, slots, tokens, temperature, answers, step, keep, fewer)


@contextlib.contextmanager
def _steps(
    model: GPT, prompts: Sequence[Sequence[int]], tokens: int
) -> Iterator[tuple[PaddedPrompts, int, Decode, Keep, Fewer]]:
    """The padded prompts, the cache's slots, and what `decoding.decode` asks of a stack."""
    m, device = model.config, next(model.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()  # nothing is made or loaded any more
    padded = pad_prompts(prompts, m.vocabulary, m.context, tokens)
    B, T = padded.tokens.shape
    slots = T + tokens
    empty = torch.zeros(m.layers, B, slots, model.kv_heads, m.head, dtype=model.dtype, device=device)
    cache = Cache(empty, empty.clone())
    places, which = shared_prompts(padded)
    with cast_once(model) as head:

        def logits(inputs: np.ndarray, positions: np.ndarray, mask: np.ndarray, cache: Cache, at: int) -> Tensor:
            ids, where, seen = (torch.from_numpy(array).to(device) for array in (inputs, positions, mask))
            seen = seen[:, :, : at + inputs.shape[1]]  # the slots behind are empty
            hidden, _ = model.decode(ids, where, seen, cache, at)
            return model.logits(hidden[:, -1], head)

        def step(inputs: np.ndarray, positions: np.ndarray, mask: np.ndarray, at: int) -> np.ndarray:
            if at > 0 or len(places) == B:
                return logits(inputs, positions, mask, cache, at).cpu().numpy()
            once = Cache(*(torch.zeros_like(part[:, : len(places), :T]) for part in (cache.keys, cache.values)))
            found = logits(inputs[places], positions[places], mask[places], once, 0)
            rows = torch.from_numpy(which).to(device)
            cache.keys[:, :, :T], cache.values[:, :, :T] = once.keys[:, rows], once.values[:, rows]
            return found.cpu().numpy()[which]

        def keep(places: np.ndarray) -> None:
            nonlocal cache
            cache = keep_rows(cache, places)

        yield padded, slots, step, keep, lambda going, rows, left: going


def keep_rows(cache: Cache, places: np.ndarray) -> Cache:
    """The cache of the rows at `places` [B'], which rise, alone: moved to the front of the same memory."""
    for part in (cache.keys, cache.values):
        for new, old in enumerate(places):
            if new != old:
                part[:, new] = part[:, old]
    return Cache(cache.keys[:, : len(places)], cache.values[:, : len(places)])


@contextlib.contextmanager
def cast_once(model: GPT) -> Iterator[Tensor]:
    """Matrices in the compute dtype, into which each step would cast them, and the head [V, D] made of its parts."""
    cast = [layer for layer in model.modules() if isinstance(layer, Linear) and layer.held is None]
    cast = [layer for layer in cast if type(layer.weight.data) is Tensor]  # not what FSDP2 gathers at each use
    masters = [layer.weight.data for layer in cast]
    try:
        for layer in cast:
            if not isinstance(layer.adapter, Dora):  # whose norm is of the master
                layer.weight.data = layer.weight.data.to(model.dtype)
        yield model.head_weight.to(model.dtype)
    finally:
        for layer, master in zip(cast, masters, strict=True):
            layer.weight.data = master
