"""Conversations in float64: equal batches, and packing that changes nothing of what is learnt."""

from __future__ import annotations

import pytest

from coretrain.data.batch import batch_hash
from coretrain.data.batches import validation_batches
from parity.errors import worst_tensor
from parity.gates import (
    GRADIENTS,
    LOSS,
    NORM,
    PACKED,
    ROWS,
    SPLIT,
)
from parity.marks import whole_but
from parity.outcomes import hold
from parity.pair import BASIC, make_config
from parity.probes import PROBES, unmutated
from parity.probes.adapters import ADAPTED, adapted_weights
from parity.probes.chat import (
    CHATTING,
    alone,
    talk,
    unpacked,
)
from parity.probes.sides import (
    JAX,
    TORCH,
    gradients_of,
    make,
    weights_of,
)

PROBED = ["chat rows", "chat gradients", "chat updates"]


# a prefix stands before every sample of a row: a matter of gradients alone
@pytest.mark.parametrize(
    ("probe", "variant"),
    whole_but(
        lambda probe, variant: variant in BASIC,
        [(p, v) for p in PROBED for v in CHATTING if "prefix" not in v or p == "chat gradients"],
    ),
)
def test_packed_rows_agree(variant, probe):
    for side, other in (("torch", "jax"), ("jax", "torch")):
        seen = [unmutated(s, probe, variant, "perturbed") for s in (side, other)]
        for gate, error in PROBES[probe].judge(*seen, variant, "perturbed").items():
            hold(gate, error, f"{probe}, {side}, {variant}")


def test_what_the_probes_look_at():
    """Several samples to a row, rows with unequally many targets, and a loss that isn't over all tokens."""
    config, data = talk("gpt2-like")
    batch = next(make(TORCH, config, None, frozenset()).batches(data, 0, 1))
    tokens, labels, positions = batch.tokens, batch.labels, batch.positions
    assert tokens.shape == labels.shape == positions.shape == (config.train.batch_size, config.model.context)
    assert len(unpacked(batch)) >= 2 * len(batch)
    targets = (labels >= 0).sum(1)
    assert len(set(targets.reshape(2, -1).sum(1))) == 2, "micro-batches must differ in targets"
    assert ((positions == 0).sum(1) >= 2).all()
    inside = labels[:, :-1] >= 0
    assert (labels[:, :-1][inside & (positions[:, 1:] > 0)] == tokens[:, 1:][inside & (positions[:, 1:] > 0)]).all()


@pytest.mark.parametrize("side", [TORCH, JAX], ids=["torch", "jax"])
def test_evaluation_counts_targets_alone(side):
    config, data = talk("gpt2-like")
    batch = validation_batches(data, config)[0]
    stack = make(side, config, weights_of(config, "perturbed"), frozenset())
    torch_sum = make(TORCH, config, weights_of(config, "perturbed"), frozenset()).evaluate(batch)
    targets = batch.targets
    hold(LOSS, abs(stack.evaluate(batch) - torch_sum) / targets, f"evaluation of packed rows, {side.name}")


@pytest.mark.whole
@pytest.mark.parametrize(
    ("side", "way"),
    [
        (TORCH, {"execution.attention": "sdpa"}),
        (TORCH, {"execution.checkpoint_activations": "matmuls", "train.accumulation": 1}),
        (JAX, {"execution.scan_layers": "false", "train.accumulation": 4}),
    ],
)
def test_packed_rows_however_they_are_computed(side, way):
    config, data = talk("gpt2-like")
    fields = {key.replace(".", "__"): value for key, value in way.items()}
    other = make_config(CHATTING["gpt2-like"], **fields).changed(data=config.data)
    stack = make(side, other, weights_of(config, "perturbed"), frozenset())
    loss, _ = stack.gradients(next(stack.batches(data, 0, 1)), 0, 1.0)
    lone = alone("gpt2-like", "perturbed")
    hold(PACKED, abs(loss - lone["loss"]), f"loss, {side.name}, {way}")
    expected = unmutated(side.name, "chat gradients", "gpt2-like", "perturbed")["gradients"]
    apart = {name for name in expected if name.endswith("attention.k.bias")}
    hold(SPLIT, *worst_tensor(gradients_of(side, stack), expected, apart))


def test_adapters_on_packed_rows():
    """Low-rank adapters with dropout, by the same masks in both stacks."""
    config, data = talk("llama-like")
    config = make_config(ADAPTED["llama-like"]).changed(data=config.data)
    weights = adapted_weights(config)
    stacks = [make(s, config, weights, frozenset()) for s in (TORCH, JAX)]
    batch = next(stacks[0].batches(data, 0, 1))
    hold(ROWS, float(batch_hash(batch) != batch_hash(next(stacks[1].batches(data, 0, 1)))), "adapters")
    (loss, norm), (other, other_norm) = (stack.gradients(batch, 3, 1.0) for stack in stacks)
    hold(LOSS, abs(loss - other), "adapters on packed rows")
    hold(NORM, abs(norm - other_norm) / norm, "adapters on packed rows")
    found = [gradients_of(s, stack) for s, stack in zip((TORCH, JAX), stacks, strict=True)]
    hold(GRADIENTS, *worst_tensor(*found))
