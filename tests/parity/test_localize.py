"""The localizer sees nothing in a correct pair, changes nothing, and tells rounding from a fault below float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import jaxtrain.step
import torchtrain.attention
import torchtrain.layers
import torchtrain.model
import torchtrain.trainer
from coretrain.contract.taps import tap, tapped
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.localize.judge import judge
from parity.localize.pairs import localize
from parity.localize.search import (
    jax_taps,
    localize_config,
    search,
    torch_taps,
)
from parity.pair import (
    VARIANTS,
    batches,
    make_config,
    make_pair,
    torch_logits,
)
from tests.support.localizing import (
    GPT,
    LLAMA,
    alone,
    sides,
)
from torchtrain.trainer import Trainer as TorchTrainer

small_and_alone = pytest.fixture(scope="module", autouse=True)(alone)


# --- taps -------------------------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_taps_change_nothing():
    """Bit for bit, logits, loss and gradients: without a function, and with one that gives the value back."""
    config = make_config(VARIANTS[GPT], execution__scan_layers="false")
    plain = once(config)
    seen = {"torch": [], "jax": []}

    def note(name, value):
        seen["torch" if isinstance(value, torch.Tensor) else "jax"].append(name)
        return value

    with tapped(note):
        found = once(config)
    for stack in ("torch", "jax"):
        assert found[stack].keys() == plain[stack].keys()
        assert all(np.array_equal(value, plain[stack][name]) for name, value in found[stack].items())
        assert {"embed", "blocks.#.attention", "norm", "logits"} <= set(seen[stack]), f"{stack} was not traced afresh"
    assert tap("unchanged", 3) == 3


def once(config):
    """Logits, loss and gradients of each stack by name, everything of JAX traced afresh."""
    pair = make_pair(config)
    batch = batches(config, 1)[0]

    def forward(params, tokens, dropout):
        model = nnx.merge(pair.jax.programs.graph, params)
        return model.logits(model(tokens, dropout))

    masks = jaxtrain.step.dropout_masks(config, 0, len(batch))
    logits = torch_logits(pair.torch, batch.tokens, 0), jax.jit(forward)(pair.jax.params, batch.tokens, masks)
    losses = [np.array(seen) for seen in pair.gradients(batch, 0)]
    tensors = pair.gradient_tensors()
    return {
        name: {"logits": np.asarray(logits[n]), "loss and norm": losses[n], **tensors[n]}
        for n, name in enumerate(("torch", "jax"))
    }


def test_the_function_before_comes_back_whatever_happens():
    with tapped(lambda name, value: value + 1):
        with pytest.raises(ZeroDivisionError), tapped(lambda name, value: 1 / 0):
            tap("x", 1)
        assert tap("x", 1) == 2
    assert tap("x", 1) == 1


@pytest.mark.parametrize("variant", [GPT, LLAMA])
def test_both_stacks_have_the_same_taps_in_the_same_order(variant):
    config, weights, stack, recorder = sides(variant)
    batch = batches(config, 1)[0]
    ours, _ = torch_taps(TorchTrainer(config, weights), batch, 0)
    theirs, _ = jax_taps(stack, recorder, batch, 0)
    assert list(ours.values) == list(theirs.values)
    assert ours.values.keys() - {"logits"} == ours.cotangents.keys()
    block = "norm1 q k v attention out residual1 norm2 up activation down residual2"
    if variant == LLAMA:
        block = "norm1 q k v q_rotated k_rotated attention out residual1 norm2 gate up activation down residual2"
    expected = [f"blocks.{i}.{name}" for i in range(2) for name in block.split()]
    assert list(ours.values) == ["embed", *expected, "norm", "logits", "loss"]
    assert ours.parents["blocks.0.residual2"] == ("blocks.0.residual1", "blocks.0.down")


# --- a correct pair ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [GPT, LLAMA])
def test_a_correct_pair_is_the_same(variant):
    """Floors over both variants: values 7e-16 (forced 6e-16), cotangents 5e-15, gradients 5e-15, steps 3e-14."""
    config, weights, stack, recorder = sides(variant)
    rows = [row for stage in search(config, weights, TorchTrainer(config, weights), stack, recorder) for row in stage]
    verdict = judge(rows)
    assert verdict.kind == "same", verdict.sentence
    assert {row.stage for row in rows} >= {"forward", "cotangent", "gradient", "first_moment", "parameter"}
    names = {row.name for row in rows if row.stage == "scalar"}
    assert names == {"training loss", "gradient norm"}, "what both take from one source is no finding"
    assert all(row.teacher_forced is not None for row in rows if row.stage in ("forward", "cotangent"))


# --- below float64 ----------------------------------------------------------------------------------------------------


def below(**more):
    """The gpt2-like config in another precision."""
    return make_config(VARIANTS[GPT], **more)


def lower(config_below):
    """The verdict with float64 as it should be and torch as it is now below it."""
    config, weights, stack, recorder = sides(GPT)
    made = iter([stack])
    return localize_config(
        config,
        weights,
        below=config_below,
        make_jax=lambda c, w: next(made, None) or JaxTrainer(c, w),
        recorder=recorder,
    ).verdict


@pytest.mark.whole
def test_rounding_of_a_correct_pair_is_no_fault():
    verdict = lower(below(precision__compute="float32"))
    assert verdict.kind == "same", verdict.sentence
    assert "float32" in verdict.sentence


@pytest.mark.whole
def test_a_kernel_that_rounds_too_much_is_found(monkeypatch):
    """An attention that rounds to TF32's ten bits, as a reduced-precision matmul does; float64 is left alone."""
    original = torchtrain.layers.attention

    def attend(kernel, q, k, v, positions=None):
        return original(kernel, *((x.half().float() if x.dtype == torch.float32 else x) for x in (q, k, v)), positions)

    monkeypatch.setattr(torchtrain.layers, "attention", attend)
    verdict = lower(below(precision__compute="float32"))
    assert (verdict.kind, verdict.tap) == ("rounding or kernel", "blocks.0.attention")
    assert "of torch" in verdict.sentence


@pytest.mark.whole
def test_another_dtype_is_found(monkeypatch):
    original = torchtrain.layers.Attention.forward

    def forward(self, x, *more):
        return original(self, x.float() if x.dtype == torch.bfloat16 else x, *more)

    monkeypatch.setattr(torchtrain.layers.Attention, "forward", forward)
    verdict = lower(below(precision__compute="bfloat16"))
    assert (verdict.kind, verdict.tap) == ("dtype policy", "blocks.0.q")


def test_what_is_no_number_in_both_is_no_agreement():
    """Both frameworks overflow in float32, where float64 is fine."""

    def ours(x):
        return tap("a", x * 1e200 * 1e-200)

    verdict = localize(ours, ours, {"x": np.ones(3)}).verdict
    assert (verdict.kind, verdict.tap) == ("rounding or kernel", "a")
    assert "no number" in verdict.sentence


def test_what_is_far_off_in_both_is_no_rounding():
    """Reduced-precision matmuls on both sides: each is as far off as the other, and no float32 does that."""

    def narrow(x):
        return tap("a", x.half().float() if x.dtype == torch.float32 else x)

    def theirs(x):
        return tap("a", x.astype("float16").astype(x.dtype) if x.dtype == "float32" else x)

    verdict = localize(narrow, theirs, {"x": np.random.default_rng(0).standard_normal(64)}).verdict
    assert (verdict.kind, verdict.tap) == ("rounding or kernel", "a")
