"""Generation: logits out of the cache, and the tokens that are drawn."""

from __future__ import annotations

import numpy as np
import torch

import jaxtrain.attention
import jaxtrain.data
import jaxtrain.generate
import jaxtrain.model
import jaxtrain.optimizer
import jaxtrain.trainer
from coretrain.sampling import Sampling, pad_prompts
from parity.compare import CACHE, LOGITS, SAMPLES, Gate, mismatches, nrel
from parity.pair import VARIANTS, make_config
from parity.probes.sides import TORCH, Seen, Side, logits_of, weights_of

PROMPTS = [[5, 9, 2, 300, 0, 7], [11], [3, 3, 8]]
NEW = 12
SAMPLINGS = (Sampling(0, 0, 1.0, 0), Sampling(1.0, 0, 1.0, 3), Sampling(0.7, 5, 1.0, 4), Sampling(1.3, 50, 0.6, 5))


def run_decode(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Prefill and two single steps with given tokens out of the cache, and the same by whole forward passes."""
    config = make_config(VARIANTS[variant])
    m, weights = config.model, weights_of(config, state)
    if "decode" not in shared:
        jaxtrain.generate._step.clear_cache()
    stack, padded = s.trainer.Trainer(config, weights), pad_prompts(PROMPTS, m.vocabulary, m.context, 2)
    T, slots = padded.tokens.shape[1], m.context
    empty = np.zeros((m.layers, 3, slots, m.kv, m.head))
    cache = s.model.Cache(s.array(empty), s.array(empty.copy()))
    forced = np.array([[4, 250], [17, 0], [99, 8]], np.int32)
    inputs, positions, at, cached = padded.tokens, padded.positions, 0, []
    for step in range(3):
        mask = padded.mask(at, at + inputs.shape[1], slots)
        if s is TORCH:
            with torch.no_grad():
                hidden, cache = stack.model.step(*map(torch.from_numpy, (inputs, positions, mask)), cache, at)
                cached.append(stack.model.logits(hidden[:, -1]).numpy())
        else:
            found, cache = s.generate._step(stack.graph, stack.params, inputs, positions, mask, cache, at)
            cached.append(np.asarray(found))
        at += inputs.shape[1]
        inputs, positions = forced[:, step : step + 1], positions[:, -1:] + 1
    assert at == T + 2
    rows = np.zeros((3, m.context), np.int32)
    for row, prompt in enumerate(PROMPTS):
        rows[row, : len(prompt) + 2] = prompt + list(forced[row])
    whole = logits_of(s, stack, rows, None)
    picked = [np.stack([whole[r, len(p) - 1 + step] for r, p in enumerate(PROMPTS)]) for step in range(3)]
    tokens = [stack.generate(PROMPTS, NEW, sampling, ()) for sampling in SAMPLINGS]
    if "decode" not in shared:
        jaxtrain.generate._step.clear_cache()
    return {"cached": np.stack(cached), "whole": np.stack(picked), "tokens": np.array(tokens)}


def judge_decode(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {
        LOGITS: nrel(ours["whole"], theirs["whole"]),
        CACHE: nrel(ours["cached"], theirs["whole"]),
        SAMPLES: mismatches(ours["tokens"], theirs["tokens"]),
    }
