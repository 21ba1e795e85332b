"""Generation: logits out of the cache, and the tokens that are drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import jaxtrain.attention
import jaxtrain.data
import jaxtrain.decode
import jaxtrain.generate
import jaxtrain.model
import jaxtrain.optimizer
import jaxtrain.trainer
from coretrain.contract.sampling import Sampling, pad_prompts
from parity.errors import mismatches, nrel
from parity.gates import (
    CACHE,
    LOGITS,
    SAMPLES,
    Gate,
)
from parity.pair import VARIANTS, make_config
from parity.probes.sides import (
    TORCH,
    Seen,
    Side,
    logits_of,
    weights_of,
)

PROMPTS = [[5, 9, 2, 300, 0, 7], [11], [3, 3, 8]]
NEW = 12
SAMPLINGS = (Sampling(0, 0, 1.0, 0), Sampling(1.0, 0, 1.0, 3), Sampling(0.7, 5, 1.0, 4), Sampling(1.3, 50, 0.6, 5))
FORCED = np.array([[4, 250], [17, 0], [99, 8]], np.int32)
LONG = [[int(token) for token in np.random.default_rng(0).integers(0, 301, n)] for n in (500, 3)]
"""A prompt far longer than the others, and a short one beside it: most of that row is padding."""


def cached_logits(s: Side, stack: Any, prompts: Sequence[Sequence[int]], forced: np.ndarray, slots: int) -> np.ndarray:
    """Logits [1 + steps, B, V] out of the cache: after the prompts, then after each column of `forced` [B, steps]."""
    padded = pad_prompts(prompts, stack.config.model.vocabulary, slots, forced.shape[1])
    inputs, positions, at, cached = padded.tokens, padded.positions, 0, []
    step = _torch_step(s, stack, len(prompts), slots) if s is TORCH else _jax_step(s, stack, len(prompts), slots)
    for column in range(forced.shape[1] + 1):
        cached.append(step(inputs, positions, padded.mask(at, at + inputs.shape[1], slots), at))
        at += inputs.shape[1]
        inputs, positions = forced[:, column : column + 1], positions[:, -1:] + 1
    return np.stack(cached)


def _torch_step(s: Side, stack: Any, rows: int, slots: int) -> Callable[..., np.ndarray]:
    m = stack.config.model
    cache = s.layers.Cache(*torch.zeros(2, m.layers, rows, slots, m.kv, m.head, dtype=torch.float64))

    def step(inputs: np.ndarray, positions: np.ndarray, mask: np.ndarray, at: int) -> np.ndarray:
        with torch.no_grad():
            hidden, _ = stack.model.decode(*map(torch.from_numpy, (inputs, positions, mask)), cache, at)
            return stack.model.logits(hidden[:, -1]).numpy()

    return step


def _jax_step(s: Side, stack: Any, rows: int, slots: int) -> Callable[..., np.ndarray]:
    decoder = s.decode.Decoder(stack.whole_model())
    caches = decoder.cache(rows, slots)

    def step(inputs: np.ndarray, positions: np.ndarray, mask: np.ndarray, at: int) -> np.ndarray:
        nonlocal caches
        found, caches = decoder.step(inputs, positions, mask, caches, at)
        return np.asarray(found)

    return step


def whole_logits(s: Side, stack: Any, prompts: Sequence[Sequence[int]], forced: np.ndarray, length: int) -> np.ndarray:
    """The same by whole forward passes, without a cache."""
    rows = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        rows[row, : len(prompt) + forced.shape[1]] = [*prompt, *forced[row]]
    whole = logits_of(s, stack, rows, None)
    steps = range(forced.shape[1] + 1)
    return np.stack([np.stack([whole[r, len(p) - 1 + step] for r, p in enumerate(prompts)]) for step in steps])


@contextlib.contextmanager
def traced_afresh(shared: frozenset[str]) -> Iterator[None]:
    """Within, JAX's decoding step is traced anew, unless it is `shared`."""
    if "decode" not in shared:
        _forget()
    yield
    if "decode" not in shared:
        _forget()


def _forget() -> None:
    for program in (jaxtrain.decode._step, jaxtrain.decode._start, jaxtrain.decode._layer, jaxtrain.decode._end):
        program.clear_cache()  # type: ignore[attr-defined]  # public, but the type of jax.jit's result lacks it


def run_decode(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Prefill and two single steps with given tokens out of the cache, and the same by whole forward passes."""
    config = make_config(VARIANTS[variant])
    stack, length = s.trainer.Trainer(config, weights_of(config, state)), config.model.context
    with traced_afresh(shared):
        cached = cached_logits(s, stack, PROMPTS, FORCED, length)
        whole = whole_logits(s, stack, PROMPTS, FORCED, length)
        tokens = [stack.generate(PROMPTS, NEW, sampling, ()) for sampling in SAMPLINGS]
    return {"cached": cached, "whole": whole, "tokens": np.array(tokens)}


def run_ends(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Tokens drawn for prompts of which the first ends early, and then the second: what is left goes on alone."""
    config = make_config(VARIANTS[variant])
    stack, sampling = s.trainer.Trainer(config, weights_of(config, state)), SAMPLINGS[1]
    with traced_afresh(shared), pytest.MonkeyPatch.context() as patch:
        patch.setitem(jaxtrain.decode.WORTH, "cpu", 1)
        free = stack.generate(PROMPTS, NEW, sampling, ())
        rows = stack.generate(PROMPTS, NEW, sampling, (free[0][2], free[1][6]))
    return {"free": np.array(free), "ended": np.array([row + [-1] * (NEW - len(row)) for row in rows])}


def run_far(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Prefill of 500 tokens and three single steps, of one layer: the cache, and whole forward passes."""
    config = make_config(VARIANTS[variant], model__context=512, model__layers=1)
    stack, forced = s.trainer.Trainer(config, weights_of(config, state)), FORCED[:2, [0, 1, 0]]
    with traced_afresh(shared):
        cached = cached_logits(s, stack, LONG, forced, 512)
        return {"cached": cached, "whole": whole_logits(s, stack, LONG, forced, 512)}


def judge_far(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {CACHE: nrel(ours["cached"], theirs["whole"])}


def judge_ends(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """A row that others leave says what it said without them, too."""
    stops, free = (theirs["free"][0, 2], theirs["free"][1, 6]), theirs["free"]
    cut = np.where(np.logical_or.accumulate(np.isin(free, stops), axis=1), -1, free)
    return {SAMPLES: max(mismatches(ours["ended"], theirs["ended"]), mismatches(ours["ended"], cut))}


def judge_decode(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {
        LOGITS: nrel(ours["whole"], theirs["whole"]),
        CACHE: nrel(ours["cached"], theirs["whole"]),
        SAMPLES: mismatches(ours["tokens"], theirs["tokens"]),
    }
