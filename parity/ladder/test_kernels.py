"""Every attention kernel of both tables alone, forward and gradients, against formulas in numpy's float64.

Small shapes, and those of real rows: some hundred tokens, of no round number, packed and not, and a step of decoding.

Those that can't run here are listed as not run, with the reason that the table itself gives.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxtrain.attention
import torchtrain.attention
from parity.errors import nrel
from parity.gates import (
    DEEP,
    KERNEL_16,
    KERNEL_32,
    KERNEL_64,
)
from parity.oracles.gpt import attend, samples
from parity.outcomes import facts, hold
from parity.pair import Device, make_config
from parity.probes.sides import quick_jit
from parity.probes.ways import deep_scores
from torchtrain.few_row_linear import linear

GATES = {"float64": KERNEL_64, "float32": KERNEL_32, "bfloat16": KERNEL_16}
SHAPES = [(6, 6, 4, 4), (6, 6, 4, 2), (6, 6, 4, 1), (2, 6, 4, 2), (1, 6, 4, 4)]
"""Queries, keys, query heads and key heads: square and with fewer queries than keys, with and without shared heads."""


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


LONG = [(333, 333, 6, 2), (5, 301, 6, 3), (1, 417, 3, 1), (330, 347, 4, 2)]
"""The same for real rows: training, and a prompt's end, one token or a long piece behind what a cache holds."""
PACKED = [1, 127, 130, 75]
"""Tokens of the samples of a packed row; another row is one sample."""


@functools.cache
def case(shape, width, batch=2, positions=None):
    """(q, k, v and the output's cotangent as float32-exact numpy; output, dq, dk, dv in float64).

    With `positions`, rows of T tokens are packed, behind a prefix of S - T keys.
    """
    T, S, heads, kv = shape
    rng = np.random.default_rng(0)
    sizes = ((T, heads), (S, kv), (S, kv), (T, heads))
    arrays = [rng.standard_normal((batch, n, h, width)).astype(np.float32).astype(np.float64) for n, h in sizes]
    seen = np.tri(T, S, S - T, dtype=bool)[None] if positions is None else samples(np.array(positions), S - T)
    q, k, v, up = (x.transpose(0, 2, 1, 3) for x in arrays)
    out, back = attend(q, k, v, seen)
    return arrays, [x.transpose(0, 2, 1, 3) for x in (out, *back(up))]


def torch_pass(compute, arrays, dtype, device="cpu"):
    """Output and gradients by torch."""
    *inputs, weight = (torch.from_numpy(x).to(dtype).to(device) for x in arrays)
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = compute(*leaves)
    out.backward(weight)
    return [x.detach().cpu().double().numpy() for x in (out, *(leaf.grad for leaf in leaves))]


def jax_pass(compute, arrays, dtype, platform="cpu"):
    """Output and gradients by JAX."""
    device = jax.devices(platform)[0]
    *inputs, weight = (jax.device_put(jnp.asarray(x, dtype), device) for x in arrays)

    @quick_jit
    def both(q, k, v, w):
        out, back = jax.vjp(compute, q, k, v)
        return out, *back(w)

    return [np.asarray(x, np.float64) for x in both(*inputs, weight)]


def judge(stack, name, device, dtype, found, expected, where):
    """Hold output and gradients, and note them for the results."""
    errors = [nrel(a, b) for a, b in zip(found, expected, strict=True)]
    row = {"stack": stack, "kernel": name, "device": device, "dtype": dtype, "case": where, "status": "ok"}
    row |= {"forward": errors[0], "gradients": max(errors[1:]), "reason": ""}
    gate = GATES[dtype]
    if not max(errors) <= gate.cap:
        row["status"] = "FAIL"
    facts["kernels"].append(row)
    for part, error in zip(("output", "dq", "dk", "dv"), errors, strict=True):
        hold(gate, error, f"{part}, {stack} {name}, {where}, {device}")


def can_run(stack, name, device):
    """(the strictest dtype that this kernel computes in on this device, and bfloat16), or () and why not."""
    module, place = (torchtrain, device.torch) if stack == "torch" else (jaxtrain, device.jax)
    if place is None:
        return (), f"{stack} has no {device.name}"
    handle = torch.device(place) if stack == "torch" else jax.devices(place)[0]
    # head width 64 and 128 tokens are what the narrowest kernels want
    fields = {"model.width": 256, "model.heads": 4, "model.context": 128}
    obstacles = {
        dtype: module.attention.KERNELS[name].obstacle(make_config(fields, precision__compute=dtype), handle)
        for dtype in GATES
        if dtype != "float64" or device.name not in ("mps", "tpu")
    }
    able = [dtype for dtype, obstacle in obstacles.items() if obstacle is None]
    return (able[0], able[-1]) if able else (), obstacles["bfloat16"]


CPU = Device("cpu", "cpu", "cpu")
NAMES = [
    *(("torch", name) for name in torchtrain.attention.KERNELS),
    *(("jax", name) for name in jaxtrain.attention.KERNELS),
]


@pytest.mark.parametrize(("stack", "name"), NAMES, ids=[f"{stack}-{name}" for stack, name in NAMES])
def test_each_kernel(stack, name, device):
    """With fewer queries than keys the last query sees all keys, whatever a framework's is_causal means."""
    dtypes, obstacle = can_run(stack, name, device)
    if not dtypes:
        row = {"stack": stack, "kernel": name, "device": device.name, "dtype": None, "case": "", "status": "not run"}
        facts["kernels"].append(row | {"forward": None, "gradients": None, "reason": obstacle})
        pytest.skip(obstacle)  # in the table as not run: nothing is held
    fused = device.name != "cpu"
    for number, shape in enumerate(SHAPES):
        T, S, heads, kv = (128 * n if fused and i < 2 else n for i, n in enumerate(shape))
        arrays, expected = case((T, S, heads, kv), 64 if fused else 8)
        where = f"{T} queries, {S} keys, {heads} heads over {kv}"
        for dtype in dict.fromkeys(dtypes if number in (1, 3) else dtypes[:1]):
            if stack == "torch":
                found = torch_pass(
                    torchtrain.attention.KERNELS[name].compute, arrays, getattr(torch, dtype), device.torch
                )
            else:
                found = jax_pass(jaxtrain.attention.KERNELS[name].compute, arrays, dtype, device.jax)
            judge(stack, name, device.name, dtype, found, expected, where)


@pytest.mark.parametrize(("stack", "name"), NAMES, ids=[f"{stack}-{name}" for stack, name in NAMES])
def test_at_the_length_of_real_rows(stack, name):
    """On the CPU, where lengths may be any; in rows of text, out of a cache, and packed with and without a prefix."""
    dtypes, obstacle = can_run(stack, name, CPU)
    if not dtypes:
        pytest.skip(obstacle)
    kernel = (torchtrain if stack == "torch" else jaxtrain).attention.KERNELS[name]
    for shape in LONG:
        held(stack, name, kernel.compute, dtypes[0], case(shape, 16, 1), "{} queries, {} keys, {} over {}", shape)
    T = sum(PACKED)
    positions = np.stack([np.concatenate([np.arange(n) for n in PACKED]), np.arange(T)])
    known = tuple(map(tuple, positions.tolist()))
    for prefix in (0, 7):
        shape = (T, T + prefix, 4, 2)
        given = torch.from_numpy(positions) if stack == "torch" else jnp.asarray(positions, jnp.int32)
        compute = functools.partial(packed_at, kernel, given)
        held(stack, name, compute, dtypes[0], case(shape, 8, 2, known), "packed, {} queries, {} keys", shape)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_a_product_of_few_rows_by_several_threads(threads, monkeypatch):
    """Torch's own way of a step of decoding goes by the number of threads, which is 1 in all other tests."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((18, 7)), rng.standard_normal(18)
    for shape in ((7,), (1, 7), (2, 1, 7), (1, 4, 7), (16, 7), (17, 7)):
        x = rng.standard_normal(shape)
        for b in (None, bias):
            given = [None if a is None else torch.from_numpy(a) for a in (x, weight, b)]
            with torch.no_grad():
                found = linear(*given).numpy()
            expected = x @ weight.T + (0 if b is None else b)
            hold(KERNEL_64, nrel(found, expected), f"product of {shape} by {threads} threads")


def packed_at(kernel, positions, q, k, v):
    """A kernel's packed form as one of three arrays."""
    return kernel.packed(q, k, v, positions)


def held(stack, name, compute, dtype, known, words, shape):
    """Judge a kernel on the CPU."""
    arrays, expected = known
    run, kind = (torch_pass, getattr(torch, dtype)) if stack == "torch" else (jax_pass, dtype)
    found = run(compute, arrays, kind)
    judge(stack, name, "cpu", dtype, found, expected, words.format(*shape))


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_splash_kernel_interpreted(packed):
    """The TPU's kernel in Pallas' interpreter: its arithmetic, block by block, on any machine."""
    T, S, heads, kv = shape = (256, 256, 4, 2) if packed else (128, 256, 2, 2)
    positions = np.concatenate([np.arange(n) for n in (1, 120, 70, 65)])[None] if packed else None
    arrays, expected = case(shape, 64, 1, positions if positions is None else tuple(map(tuple, positions.tolist())))
    given = None if positions is None else jnp.asarray(positions, jnp.int32)
    compute = functools.partial(jaxtrain.attention.splash_attention, positions=given, interpret=True)
    where = f"{T} queries, {S} keys, {heads} heads over {kv}{', packed' * packed}"
    judge("jax", "splash (interpreted)", "cpu", "float32", jax_pass(compute, arrays, "float32"), expected, where)


def test_flash_attn_is_called_as_it_wants_to_be(monkeypatch):
    """Our call binds to the signature of 2.8, and means what the stand-in computes; gradients flow through it."""
    calls = []
    signature = inspect.signature(flash_attn_func)

    def stand_in(*args, **options):
        calls.append(signature.bind(*args, **options))
        return flash_attn_func(*args, **options)

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=stand_in))
    for shape in SHAPES:
        arrays, expected = case(shape, 8)
        found = torch_pass(torchtrain.attention.KERNELS["flash_attn"].compute, arrays, torch.float64)
        T, S, heads, kv = shape
        where = f"{T} queries, {S} keys, {heads} heads over {kv}"
        judge("torch", "flash_attn (stand-in)", "cpu", "float64", found, expected, where)
        assert calls[-1].arguments["causal"] is True
        assert calls[-1].arguments["softmax_scale"] == 1 / math.sqrt(8)
    assert len(calls) == len(SHAPES)


def test_the_stand_in_has_the_installed_signature():
    flash = pytest.importorskip("flash_attn", reason="flash-attn is not installed: only its stand-in was called")
    real = inspect.signature(flash.flash_attn_func).parameters
    ours = inspect.signature(flash_attn_func).parameters
    assert [(p.name, p.default) for p in real.values()] == [(p.name, p.default) for p in ours.values()]


@pytest.mark.parametrize(("stack", "name"), [("torch", "plain"), ("torch", "sdpa"), ("jax", "plain")])
def test_scores_below_any_finite_mask(stack, name):
    """All that a query may see scores below -1e4: where the mask is a finite -1e4, the future gets all the weight.

    Queries and keys are whole numbers, so that even these scores are exact.
    """
    arrays = deep_scores()
    q, k, v, up = (x.transpose(0, 2, 1, 3) for x in arrays)
    out, back = attend(q, k, v, np.tri(6, dtype=bool)[None])
    expected = [x.transpose(0, 2, 1, 3) for x in (out, *back(up))]
    if stack == "torch":
        found = torch_pass(torchtrain.attention.KERNELS[name].compute, arrays, torch.float64)
    else:
        found = jax_pass(jaxtrain.attention.KERNELS[name].compute, arrays, "float64")
    for part, a, b in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        hold(DEEP, nrel(a, b), f"{part}, {stack} {name}")
