"""Generation: with the cache as without it, alone as in a batch, in JAX as in torch."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from flax import nnx

import jaxtrain.decode
import jaxtrain.generate
import jaxtrain.layers
import jaxtrain.model
import torchtrain.layers
import torchtrain.model
from coretrain.contract.sampling import Sampling, choose_tokens, pad_prompts
from coretrain.data.batch import Batch, windows
from parity.compiling import quick_jit
from parity.errors import nrel
from parity.gates import CACHE, SAMPLES
from parity.oracles.gpt import exact
from parity.outcomes import hold
from parity.pair import (
    BASIC,
    VARIANTS,
    jax_logits,
    make_config,
    perturbed,
    shared,
    torch_logits,
)
from parity.probes import PROBES, unmutated
from parity.probes.decode import LONG
from parity.probes.sides import SIDES

GREEDY = Sampling(temperature=0)
PROMPTS = [[5, 9, 2, 300, 0, 7], [11], [3, 3, 8]]
ALONE = PROMPTS[:2]  # each length is compiled anew, one token is what every step takes
NEW = 12


@pytest.fixture(scope="module", params=BASIC)
def pair(request):
    """Both stacks, dropout among the config's switches: generation must not apply it."""
    pair = shared(make_config(VARIANTS[request.param]))
    pair.reset(perturbed(pair.config))
    return pair


def without_cache(stack, logits, prompt, tokens):
    """Greedy tokens by a whole forward pass for each."""
    ids = list(prompt)
    T = stack.config.model.context
    for _ in range(tokens):
        padded = np.array([ids + [0] * (T - len(ids))], np.int32)  # causal: what comes later changes nothing
        ids.append(int(logits(stack, padded)[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


def plain_torch(stack, tokens):
    """Logits without dropout."""
    with torch.no_grad():
        return stack.model.logits(stack.model(torch.from_numpy(tokens).long())).numpy()


def plain_jax(stack, tokens):
    """Logits without dropout."""
    return np.asarray(_plain(*nnx.split(stack.whole_model()), tokens))


@functools.partial(quick_jit, static_argnums=0)
def _plain(graph, params, tokens):
    model = nnx.merge(graph, params)
    return model.logits(model(tokens))


def test_greedy_tokens(pair):
    """In a batch of unequal prompts, with the cache; alone, without it; in both stacks."""
    expected = [without_cache(pair.torch, plain_torch, prompt, NEW) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) > 1, "all alike would prove little"
    for stack, logits in ((pair.torch, plain_torch), (pair.jax, plain_jax)):
        batched = stack.generate(PROMPTS, NEW, GREEDY, ())
        alone = [stack.generate([prompt], NEW, GREEDY, ())[0] for prompt in ALONE]
        whole = [without_cache(stack, logits, prompt, NEW) for prompt in PROMPTS] if stack is pair.jax else expected
        for how, found in (("batched", batched), ("alone", alone), ("without cache", whole)):
            pairs = zip(expected[: len(found)], found, strict=True)
            different = sum(a != b for ours, own in pairs for a, b in zip(ours, own, strict=True))
            hold(SAMPLES, different, f"{stack.name}, {how}")


@pytest.mark.parametrize("sampling", [Sampling(1.0, 0, 1.0, 3), Sampling(0.7, 5, 1.0, 4), Sampling(1.3, 50, 0.6, 5)])
def test_sampled_tokens(pair, sampling):
    ours, theirs = (stack.generate(PROMPTS, NEW, sampling, ()) for stack in pair.stacks)
    hold(SAMPLES, int((np.array(ours) != np.array(theirs)).sum()), f"{sampling}")
    again = pair.torch.generate(PROMPTS, NEW, Sampling(1.0, 0, 1.0, 99), ())
    assert again != ours, "another seed must give other tokens"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 0, 1.0, 3)], ids=["greedy", "sampled"])
def test_stop_tokens_end_a_row_and_are_left_out(pair, sampling, monkeypatch):
    """What others say doesn't change when a row ends and leaves the batch, also where that isn't worth it."""
    monkeypatch.setitem(jaxtrain.decode.WORTH, "cpu", 1)
    free = pair.torch.generate(PROMPTS, NEW, sampling, ())
    stop = (free[0][2], free[1][6]) if sampling.temperature else (free[1][0],)
    for stack in pair.stacks:
        seen = []
        stopped = stack.generate(PROMPTS, NEW, sampling, stop, seen.append)
        lengths = [min((row.index(one) for one in stop if one in row), default=NEW) for row in free]
        assert len(set(lengths)) > 1, "all ending at once would prove little"
        cut = [row[:length] for row, length in zip(free, lengths, strict=True)]
        hold(SAMPLES, sum(a != b for a, b in zip(cut, stopped, strict=True)), f"{stack.name}, {lengths} tokens")
        assert all(step.shape == (3,) for step in seen)


def test_logits_out_of_the_cache(pair):
    """Prefill and two single steps of unequal prompts against whole forward passes of each alone."""
    m = pair.config.model
    padded = pad_prompts(PROMPTS, m.vocabulary, m.context, 2)
    slots, T = padded.tokens.shape[1] + 2, padded.tokens.shape[1]
    ids = [list(prompt) for prompt in PROMPTS]
    torch_cache = torchtrain.layers.Cache(*torch.zeros(2, m.layers, 3, slots, m.kv, m.head, dtype=torch.float64))
    model = pair.jax.whole_model()
    decoders = {how: jaxtrain.decode.Decoder(model, how == "by layer") for how in ("by layer", "as one program")}
    caches = {how: decoder.cache(3, slots) for how, decoder in decoders.items()}
    inputs, positions, at = padded.tokens, padded.positions, 0
    for _ in range(3):
        mask, found = padded.mask(at, at + inputs.shape[1], slots), {}
        with torch.no_grad():
            parts = (torch.from_numpy(x) for x in (inputs, positions, mask))
            hidden, torch_cache = pair.torch.model.decode(*parts, torch_cache, at)
            found["torch"] = pair.torch.model.logits(hidden[:, -1]).numpy()
        for how, decoder in decoders.items():
            theirs, caches[how] = decoder.step(inputs, positions, mask, caches[how], at)
            found[f"jax {how}"] = np.asarray(theirs)
        for row, known in enumerate(ids):
            whole = plain_torch(pair.torch, np.array([known], np.int32))[0, -1]
            for who, logits in found.items():
                hold(CACHE, nrel(logits[row], whole), f"{who}, row {row}, slot {at}")
        chosen = choose_tokens(found["torch"], GREEDY, 0)
        for known, token in zip(ids, chosen, strict=True):
            known.append(int(token))
        at = at + inputs.shape[1]
        inputs, positions = chosen[:, None].astype(np.int32), positions[:, -1:] + 1
    assert at == T + 2


@pytest.mark.parametrize("variant", BASIC)
@pytest.mark.parametrize("stack", ["torch", "jax"])
def test_a_prompt_of_500_tokens(variant, stack):
    """Logits with the cache against torch's whole forward passes: a position that is off shows far out."""
    seen = [unmutated(side, "far", variant, "perturbed") for side in (stack, "torch")]
    hold(CACHE, PROBES["far"].judge(*seen, variant, "perturbed")[CACHE], f"{stack}, 500 tokens, {variant}")
    config = make_config(VARIANTS[variant], model__context=512, model__layers=1)
    trainer = SIDES[stack].trainer.Trainer(config, perturbed(config))
    for prompt, tokens in zip(LONG, trainer.generate(LONG, 3, GREEDY, ()), strict=True):
        known = without_stack(config, prompt, 3)
        hold(SAMPLES, sum(a != b for a, b in zip(tokens, known, strict=True)), f"{stack}, {len(prompt)} tokens")


def without_stack(config, prompt, tokens):
    """Greedy tokens by the formulas in numpy."""
    ids = list(prompt)
    for _ in range(tokens):
        row = np.array([ids])
        ids.append(int(exact(config.model, perturbed(config), Batch(row, row)).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_dropout_is_for_training_only(pair):
    tokens = np.array([[1, 2, 3]], np.int32)
    if pair.config.model.residual_dropout:
        assert nrel(torch_logits(pair.torch, tokens, 0), plain_torch(pair.torch, tokens)) > 1e-3
        assert nrel(jax_logits(pair.jax, tokens, 0), plain_torch(pair.torch, tokens)) > 1e-3
    batch = np.arange(4 * 41, dtype=np.int32).reshape(4, 41)
    ours, theirs = (stack.evaluate(windows(batch)) for stack in pair.stacks)
    logits = plain_torch(pair.torch, batch[:, :-1])
    shifted = logits - logits.max(-1, keepdims=True)
    own = np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, batch[:, 1:, None].astype(int), -1)[..., 0]
    # a sum over 160 targets, some 6 nats each
    for total in (ours, theirs):
        assert abs(total - own.sum()) < 1e-12 * own.sum()
