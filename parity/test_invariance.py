"""The same numbers however they are computed: micro-batches, chunks, padding, kernels, compilation, x64 on or off."""

import dataclasses
import inspect
import math
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxtrain.attention
import jaxtrain.model
import torchtrain.attention
import torchtrain.model
from coretrain.config import RunConfig
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.compare import (
    COMPILED,
    GRADIENTS_32,
    LOGITS_32,
    NORMS_32,
    SPLASH,
    SPLIT,
    hold,
    mismatches,
    nrel,
    worst_tensor,
)
from parity.pair import (
    GPT2,
    VARIANTS,
    batches,
    jax_gradients,
    jax_logits,
    make_config,
    make_pair,
    noise_only,
    scrambled,
    torch_gradients,
    torch_logits,
)
from torchtrain.trainer import Trainer as TorchTrainer

STACKS = {"torch": (TorchTrainer, torch_gradients, torch_logits), "jax": (JaxTrainer, jax_gradients, jax_logits)}


def gradients_of(stack: str, config: RunConfig):
    """(loss, norm, gradients) of the first batch, with scrambled weights."""
    make, tensors, _ = STACKS[stack]
    trainer = make(config, scrambled(config))
    loss, norm = trainer.gradients(batches(config, 1)[0], 5, 1.0)
    return loss, norm, tensors(trainer)


@pytest.mark.parametrize("stack", STACKS)
def test_micro_batches_chunks_and_padding_change_nothing(stack):
    """Dropout is on, and the micro-batches have unequal numbers of targets: a mean of means would show."""
    base = GPT2 | {"train.accumulation": 1}
    loss, norm, expected = gradients_of(stack, make_config(base))
    others = {
        "4 micro-batches, chunks of 7, 384 rows": {
            "train.accumulation": 4,
            "execution.loss_chunk": 7,
            "execution.vocab_multiple": 128,
        },
        "one chunk, no padding": {"execution.loss_chunk": 10_000, "execution.vocab_multiple": 1},
    }
    for name, more in others.items():
        config = make_config(base | more)
        other_loss, other_norm, found = gradients_of(stack, config)
        hold(SPLIT, abs(other_loss - loss) / loss, f"loss, {stack}, {name}")
        hold(SPLIT, abs(other_norm - norm) / norm, f"norm, {stack}, {name}")
        error, where = worst_tensor(found, expected, noise_only(config))
        hold(SPLIT, error, f"{where}, {stack}, {name}")


@pytest.mark.parametrize("variant", ["gpt2-like", "llama-like"])
def test_float32_kernels_against_float64(variant):
    """Every kernel that runs here; at most 3 times the other framework's error, and under the caps (rounding only)."""
    more = {"model.residual_dropout": 0, "model.embedding_dropout": 0}
    exact = make_pair(make_config(VARIANTS[variant] | more))
    batch = batches(exact.config, 1)[0]
    exact.gradients(batch, 0)
    logits, gradients = exact.logits(batch[:, :-1], 0)[0], exact.gradient_tensors()[0]
    errors = {}
    for stack, kernels in (("torch", ("plain", "sdpa")), ("jax", ("plain", "xla"))):
        make, tensors, forward = STACKS[stack]
        for kernel in kernels:
            config = make_config(VARIANTS[variant] | more, precision__compute="float32", execution__attention=kernel)
            trainer = make(config, exact.start)
            assert trainer.kernel.name == kernel
            where = f"{stack} {kernel}, {variant}"
            first = nrel(forward(trainer, batch[:, :-1], 0), logits)
            hold(LOGITS_32, first, where)
            trainer.gradients(batch, 0, 1.0)
            second, name = worst_tensor(tensors(trainer), gradients, exact.apart)
            hold(GRADIENTS_32, second, f"{name}, {where}")
            errors[stack, kernel] = np.array([first, second])
    least = np.minimum.reduce(list(errors.values()))
    for kernel, both in errors.items():
        # logits spread by 1.04 x; gradients by 1.07 x, but 2.9 x (5e-6) where the query bias' terms cancel (gpt2-like)
        assert (both <= 3 * least + np.array([3e-7, 6e-6])).all(), (kernel, errors)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norms_where_the_mean_is_large(kind):
    """Mean 1000 and std 1: in float32 E[x^2] - E[x]^2 is left with a digit or two; float64 can't see the fault."""
    config = make_config(VARIANTS["gpt2-like"], model__norm=kind, model__bias=False)
    x = np.random.default_rng(0).standard_normal((8, 48)).astype(np.float32) + np.float32(1000)
    wide = x.astype(np.float64)
    wide = wide - wide.mean(-1, keepdims=True) if kind == "layernorm" else wide
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + config.model.norm_eps)
    if kind == "layernorm":  # the fault itself, so that the cap is known to be below it
        fast = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            (x**2).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2
        )
        assert nrel(fast, expected) > 10 * NORMS_32.cap
    ours = torchtrain.model.Norm(config.model)
    torch.nn.init.ones_(ours.weight)
    theirs = jaxtrain.model.Norm(config.model, (), jnp.dtype("float32"))
    theirs.scale[...] = jnp.ones(48, jnp.float32)
    hold(NORMS_32, nrel(ours(torch.from_numpy(x)).detach().numpy(), expected), f"torch, {kind}")
    hold(NORMS_32, nrel(np.asarray(theirs(jnp.asarray(x))), expected), f"jax, {kind}")


def test_float32_is_the_same_with_x64_off():
    """Products run with x64 off and tests with it on: the bits must be the same, or the tests prove another program."""
    config = make_config(VARIANTS["gpt2-like"], precision__compute="float32")
    loss, norm, expected = gradients_of("jax", config)
    with jax.enable_x64(False):
        other_loss, other_norm, found = gradients_of("jax", config)
    assert (loss, norm) == (other_loss, other_norm)
    for name, gradient in found.items():
        assert mismatches(gradient, expected[name]) == 0, name


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_torch():
    config = make_config(
        {"model.layers": 1},
        precision__compute="float32",
        execution__attention="sdpa",
        model__width=32,
        model__vocab=101,
        execution__loss_chunk=1000,
    )
    loss, _, expected = gradients_of("torch", config)
    compiled = config.model_copy(update={"execution": config.execution.model_copy(update={"compile": "on"})})
    other_loss, _, found = gradients_of("torch", compiled)
    assert abs(loss - other_loss) < 1e-5  # a few float32 roundings of a number near 6: 5e-7 each
    hold(COMPILED, *worst_tensor(found, expected, noise_only(config)))


@pytest.mark.parametrize(("heads", "kv"), [(2, 2), (4, 2)])
def test_splash_kernel_interpreted(heads, kv):
    rng = np.random.default_rng(0)
    q, k, v, w = (jnp.asarray(rng.standard_normal((1, 128, n, 64)), jnp.float32) for n in (heads, kv, kv, heads))

    def out_and_gradients(compute):
        out, back = jax.vjp(compute, q, k, v)
        return out, *back(w)

    found = out_and_gradients(lambda *x: jaxtrain.attention.splash_attention(*x, interpret=True))
    expected = out_and_gradients(jax.jit(jaxtrain.attention.KERNELS["plain"].compute))
    for name, a, b in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        hold(SPLASH, nrel(a, b), f"{name}, {heads} heads over {kv}")


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """The signature of flash-attn 2.8, and what it computes: bottom-right causal attention of [B, T, H, C]."""
    assert causal
    assert dropout_p == 0.0
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bthc,bshc->bhts", q, k) * scale
    T, S = scores.shape[-2:]
    late = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    return torch.einsum("bhts,bshc->bthc", scores.masked_fill(late, -torch.inf).softmax(-1), v)


def test_flash_attn_is_called_as_it_wants_to_be(monkeypatch):
    calls = []
    signature = inspect.signature(flash_attn_func)

    def stand_in(*args, **options):
        calls.append(signature.bind(*args, **options))
        return flash_attn_func(*args, **options)

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=stand_in))
    rng = np.random.default_rng(0)
    for T, S, heads, kv in ((6, 6, 4, 2), (2, 6, 4, 4)):
        q, k, v = (torch.from_numpy(rng.standard_normal((2, n, h, 8))) for n, h in ((T, heads), (S, kv), (S, kv)))
        expected = torchtrain.attention.attention("plain", q, k, v)
        found = torchtrain.attention.attention("flash_attn", q, k, v)
        assert nrel(found.numpy(), expected.numpy()) < 1e-14  # floor 6e-17
        assert calls[-1].arguments["causal"] is True
        assert calls[-1].arguments["softmax_scale"] == 1 / math.sqrt(8)
    assert len(calls) == 2


@pytest.mark.parametrize(("T", "S"), [(6, 6), (2, 6)])
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (4, 1)])
def test_attention_kernels_in_both_stacks(T, S, heads, kv):
    """With fewer queries than keys the last query sees all keys, whatever a framework's is_causal means."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, n, h, 8)) for n, h in ((T, heads), (S, kv), (S, kv))]
    expected = flash_attn_func(*map(torch.from_numpy, arrays), causal=True).numpy()
    for kernel in ("plain", "sdpa"):
        found = torchtrain.attention.attention(kernel, *map(torch.from_numpy, arrays)).numpy()
        hold(SPLIT, nrel(found, expected), f"torch {kernel} alone, {T} queries, {S} keys, {heads} heads over {kv}")
    found = jaxtrain.attention.attention("plain", *map(jnp.asarray, arrays))
    hold(SPLIT, nrel(found, expected), f"jax plain alone, {T} queries, {S} keys, {heads} heads over {kv}")
    narrow = [jnp.asarray(x, jnp.float32) for x in arrays]
    hold(SPLASH, nrel(jaxtrain.attention.attention("xla", *narrow), expected), "jax xla alone, float32")


def test_a_query_that_sees_nothing_gets_zeros_and_no_gradient():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 3, 2, 4)) * 1e4 for _ in range(3))  # scores far below -1e4 among them
    mask = np.tril(np.ones((1, 3, 3), bool))
    mask[0, 1] = False
    ours = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    out = torchtrain.attention.masked_attention(*ours, torch.from_numpy(mask))
    out.sum().backward()
    compute = jax.jit(lambda *x: jaxtrain.attention.masked_attention(*x, jnp.asarray(mask)))
    theirs, back = jax.vjp(compute, q, k, v)
    for output, gradients in (
        (out.detach().numpy(), [x.grad.numpy() for x in ours]),
        (np.asarray(theirs), back(jnp.ones_like(theirs))),
    ):
        assert np.all(output[0, 1] == 0)
        assert np.all(np.asarray(gradients[0])[0, 1] == 0)
        assert all(np.isfinite(x).all() for x in gradients)
    hold(SPLIT, nrel(out.detach().numpy(), np.asarray(theirs)), "a query that sees nothing")


def test_the_twins_share_choice():
    """`Choice` is written in each stack: they must stay alike."""
    ours, theirs = (dataclasses.fields(s.attention.Choice) for s in (torchtrain, jaxtrain))
    assert [f.name for f in ours] == [f.name for f in theirs]
