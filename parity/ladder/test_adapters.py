"""Adapters in float64: gradients, updates beside a frozen base, checkpoints, ways to compute, merges."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from coretrain.checkpoint.interchange import load_interchange, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.contract.taps import tapped
from parity.errors import largest_error, worst_tensor
from parity.gates import (
    CACHE,
    FROZEN,
    GRADIENTS,
    INITIAL,
    LOGITS,
    LOSS,
    MERGED,
    NORM,
    SPLIT,
    TRAJECTORY,
)
from parity.marks import whole_but
from parity.outcomes import hold
from parity.pair import BASIC, batches, make_config, noise_only
from parity.probes import PROBES, unmutated
from parity.probes.adapters import (
    ADAPTED,
    FORMS,
    QUANTIZED,
    adapted_weights,
    base_of,
    changed,
)
from parity.probes.sides import (
    JAX,
    TORCH,
    UNMUTATED,
    gradients_of,
    make,
)

UPDATES = 24
PLACES = [
    *((f"adapter {probe}", variant) for probe in ("start", "gradients", "merge") for variant in ADAPTED),
    *(("adapter gradients", variant) for variant in QUANTIZED),
    *(("adapter decode", variant) for variant in ("prefix, llama-like", "bottleneck, gpt2-like")),
]
"""Decoding has a place of its own for these kinds; low-rank ones are in every matrix' product."""


def kept(probe, variant):
    """In the inner loop: how every kind starts, and the base variants' gradients."""
    return probe == "adapter start" or (probe == "adapter gradients" and variant in BASIC)


@pytest.mark.parametrize(("probe", "variant"), whole_but(kept, PLACES))
def test_adapters_agree(probe, variant):
    for side, other in (("torch", "jax"), ("jax", "torch")):
        seen = [unmutated(s, probe, variant, "perturbed") for s in (side, other)]
        for gate, error in PROBES[probe].judge(*seen, variant, "perturbed").items():
            assert gate in (INITIAL, LOGITS, LOSS, NORM, GRADIENTS, MERGED, CACHE)
            hold(gate, error, f"{probe}, {side}, {variant}")


@pytest.mark.parametrize("variant", whole_but(BASIC.__contains__, [*ADAPTED, "nf4, gpt2-like"]))
def test_updates_beside_a_frozen_base(variant, tmp_path):
    """Halfway each stack goes on from what the other saved in the interchange form."""
    config = make_config(FORMS[variant])
    stacks = [make(s, config, adapted_weights(config), UNMUTATED) for s in (TORCH, JAX)]
    before = [base_of(s, stack) for s, stack in zip((TORCH, JAX), stacks, strict=True)]
    start, plain = stacks[0].export()["parameters"], batches(config, 3)
    first = stacks[0].evaluate(plain[0])
    for update in range(UPDATES):
        if update == UPDATES // 2:
            for stack in stacks:
                save_interchange(tmp_path / stack.name, config, stack.export(), Progress(), stack.name)
            for stack, other in zip(stacks, ("jax", "torch"), strict=True):
                stack.adopt(load_interchange(tmp_path / other).groups, update)
        seen = [stack.gradients(plain[update % 3], update, 1.0) for stack in stacks]
        hold(LOSS, abs(seen[0][0] - seen[1][0]), f"adapters, update {update}")
        for stack, (_, norm) in zip(stacks, seen, strict=True):
            stack.apply(5 * learning_rate(config, update), clip_factor(norm, config.optimizer.clip), update)
    assert stacks[0].evaluate(plain[0]) < 0.995 * first, "the adapter must have learned something"
    hold(TRAJECTORY, *largest_error([stack.export() for stack in stacks], start, noise_only(config)))
    for s, stack, base in zip((TORCH, JAX), stacks, before, strict=True):
        hold(FROZEN, changed(base, base_of(s, stack)), f"{s.name}, {variant}")
        assert not stack.export()["parameters"].keys() & {"norm.weight", "blocks.0.attention.q.weight"}
    if variant in (
        "llama-like",
        "dora, llama-like",
    ):  # layers without an adapter have rows of zeros in JAX's stacked arrays, which stay so
        for tensor in stacks[1].params["blocks"]["mlp"]["down"]["adapter"].values():
            assert not np.asarray(tensor[...])[0].any()
            assert np.asarray(tensor[...])[1].any()


@pytest.mark.whole
@pytest.mark.parametrize(
    ("side", "way"),
    [
        (TORCH, {"execution.checkpoint_activations": "matmuls"}),
        (TORCH, {"train.accumulation": 4, "execution.loss_chunk": 7}),
        (JAX, {"execution.checkpoint_activations": "matmuls"}),
        (JAX, {"execution.checkpoint_activations": "none", "execution.scan_layers": "false"}),
    ],
)
def test_adapters_however_they_are_computed(side, way):
    config = make_config(ADAPTED["llama-like"] | way)
    stack = make(side, config, adapted_weights(config), frozenset())
    loss, _ = stack.gradients(batches(config, 1)[0], 3, 1.0)
    expected = unmutated(side.name, "adapter gradients", "llama-like", "perturbed")
    hold(SPLIT, abs(loss - expected["loss"]) / loss, f"loss with adapters, {side.name}")
    error, name = worst_tensor(gradients_of(side, stack), expected["gradients"])
    hold(SPLIT, error, f"{name}, {side.name}")


@pytest.mark.parametrize("variant", ["dora, gpt2-like", "bottleneck, gpt2-like"])
def test_taps_inside_adapters(variant):
    """Both stacks pass the same taps in the same order, those inside adapters among them. Nothing is compiled."""
    unrolled = {"execution.scan_layers": "false", "execution.checkpoint_activations": "none"}
    config, seen = make_config(ADAPTED[variant] | unrolled), {}
    for s in (TORCH, JAX):
        stack, tokens, met = make(s, config, adapted_weights(config), UNMUTATED), batches(config, 1)[0].tokens, []
        with tapped(lambda name, value, met=met: met.append((name, tuple(value.shape))) or value):
            if s is TORCH:
                stack.model(torch.from_numpy(tokens).long())
            else:
                graph, whole = nnx.split(stack.whole_model())
                jax.eval_shape(lambda w, t, graph=graph: nnx.merge(graph, w)(t), whole, tokens)
        seen[s.name] = met
    assert seen["torch"] == seen["jax"]
    inside = {name for name, _ in seen["torch"] if name.endswith(".adapter")}
    assert "blocks.#.attention.q.adapter" in inside or inside == {"blocks.#.attention.adapter", "blocks.#.mlp.adapter"}
