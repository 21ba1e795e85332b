"""The kernel tables: what is chosen where, and with what reason; what is refused."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxtrain.attention
import torchtrain.attention
from coretrain.base.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
JAX = {name: types.SimpleNamespace(platform=name) for name in ("cpu", "gpu", "tpu")}


def test_on_a_cpu_each_stack_takes_its_fastest_and_says_why(small_config):
    config = small_config(execution__attention="auto")
    ours = torchtrain.attention.choose_kernel(config, CPU)
    assert ours.name == "sdpa"
    assert "flash_attn: it needs CUDA, the device is cpu" in ours.reason
    assert ours.reason.endswith("sdpa is the first that can run")
    theirs = jaxtrain.attention.choose_kernel(config, jax.devices("cpu")[0])
    assert theirs.name == "xla"
    assert "splash: it needs a TPU, the device is cpu" in theirs.reason
    assert "cudnn: it needs CUDA, the device is cpu" in theirs.reason


def test_float64_in_jax_is_plain_because_xlas_softmax_is_float32(small_config):
    config = small_config(execution__attention="auto", precision__compute="float64")
    choice = jaxtrain.attention.choose_kernel(config, JAX["cpu"])
    assert choice.name == "plain"
    assert "its softmax is float32" in choice.reason


@pytest.mark.parametrize(
    ("platform", "more", "expected"),
    [
        ("tpu", {"model__context": 128, "model__head_width": 128}, "splash"),
        ("tpu", {"model__context": 128, "model__head_width": 64}, "splash"),
        ("tpu", {"model__context": 100, "model__head_width": 128}, "xla"),
        ("tpu", {"model__context": 128, "model__head_width": 80}, "xla"),
        ("gpu", {"precision__compute": "bfloat16"}, "cudnn"),
        ("gpu", {"precision__compute": "float32"}, "xla"),
        ("gpu", {"precision__compute": "bfloat16", "model__head_width": 256}, "xla"),
    ],
)
def test_jax_elsewhere(small_config, platform, more, expected):
    config = small_config(execution__attention="auto", **more)
    assert jaxtrain.attention.choose_kernel(config, JAX[platform]).name == expected


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"precision__compute": "float32"}, "it computes in bfloat16 or float16"),
        ({"precision__compute": "bfloat16", "model__head_width": 512}, "head width 512 is above 256"),
        ({"precision__compute": "bfloat16"}, "flash-attn is not installed"),
    ],
)
def test_torch_on_cuda_without_flash_attn(small_config, more, word, monkeypatch):
    monkeypatch.setattr(torchtrain.attention.importlib.util, "find_spec", lambda name: None)
    choice = torchtrain.attention.choose_kernel(small_config(execution__attention="auto", **more), CUDA)
    assert choice.name == "sdpa"
    assert word in choice.reason


def test_torch_on_cuda_with_flash_attn(small_config, monkeypatch):
    monkeypatch.setattr(torchtrain.attention.importlib.util, "find_spec", lambda name: name == "flash_attn" or None)
    config = small_config(execution__attention="auto", precision__compute="bfloat16")
    assert torchtrain.attention.choose_kernel(config, CUDA).name == "flash_attn"


@pytest.mark.parametrize(
    ("capability", "more", "expected", "word"),
    [
        ("7.5", {}, "xla", "cudnn: it needs compute capability 8.0, the device has 7.5"),
        ("8.9", {}, "cudnn", ""),
        ("8.0", {"model__head_width": 128}, "cudnn", ""),
        ("8.0", {"model__head_width": 256}, "xla", "head width 256 is above 128"),
        ("9.0", {"model__head_width": 256}, "cudnn", ""),
        ("10.0", {"model__head_width": 264}, "xla", "head width 264 is above 256"),
        ("9.0", {"model__head_width": 12}, "xla", "head width 12 is not a multiple of 8"),
        ("gfx942", {}, "xla", "it needs CUDA, the device is of kind gfx942"),
        ("9.0", {"adapter__kind": "prefix", "adapter__virtual_tokens": 4}, "cudnn", ""),
        ("9.0", {"adapter__kind": "prefix", "adapter__virtual_tokens": 3}, "xla", "behind a prefix of 3"),
    ],
)
def test_cudnn_by_the_devices_capability(small_config, capability, more, expected, word):
    config = small_config(execution__attention="auto", precision__compute="bfloat16", **more)
    device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    choice = jaxtrain.attention.choose_kernel(config, device)
    assert choice.name == expected
    assert word in choice.reason


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), "sdpa"), ((8, 0), "flash_attn"), ((8, 9), "flash_attn"), ((9, 0), "sdpa_fa4"), ((10, 0), "sdpa_fa4"),
     ((12, 0), "flash_attn")],
)  # fmt: skip
def test_flash_kernels_by_the_devices_capability(small_config, monkeypatch, capability, expected):
    """All installed: torch's FA3 is for generation 9 alone, its FA4 for 9 and 10, flash-attn from 8 on."""
    monkeypatch.setattr(torchtrain.attention.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(torchtrain.attention, "_capability", lambda device: capability)
    config = small_config(execution__attention="auto", precision__compute="bfloat16")
    choice = torchtrain.attention.choose_kernel(config, CUDA)
    assert choice.name == expected
    fa3 = torchtrain.attention.KERNELS["sdpa_fa3"].obstacle(config, CUDA)
    told = f"it needs compute capability 9.0, the device has {capability[0]}.{capability[1]}"
    assert fa3 == (None if capability[0] == 9 else told)
    if expected == "sdpa":
        assert "flash_attn: it needs compute capability 8.0, the device has 7.5" in choice.reason


@pytest.mark.parametrize(
    ("stack", "kernel", "word"),
    [
        (torchtrain, "flash_attn", "can't run here: it needs CUDA"),
        (torchtrain, "sdpa_fa3", "can't run here: it needs CUDA"),
        (torchtrain, "splash", "is not a torch kernel: choose auto, "),
        (jaxtrain, "splash", "can't run here: it needs a TPU"),
        (jaxtrain, "cudnn", "can't run here: it needs CUDA"),
        (jaxtrain, "sdpa", "is not a JAX kernel: choose auto, "),
    ],
)
def test_a_forced_kernel_that_cannot_run_is_refused(small_config, stack, kernel, word):
    device = CPU if stack is torchtrain else JAX["cpu"]
    with pytest.raises(UserError, match=f"execution.attention = {kernel} {word}"):
        stack.attention.choose_kernel(small_config(execution__attention=kernel), device)


def test_a_forced_kernel_that_can_run_is_taken(small_config):
    config = small_config(execution__attention="plain")
    for stack, device in ((torchtrain, CPU), (jaxtrain, JAX["cpu"])):
        assert stack.attention.choose_kernel(config, device).reason == "asked for by execution.attention"


@pytest.mark.parametrize("kv", [2, 1])
def test_splash_keeps_samples_of_a_row_apart(kv):
    """The TPU's kernel in Pallas' interpreter, with samples as its segments, against the plain mask."""
    rng = np.random.default_rng(0)
    positions = jnp.asarray(np.concatenate([np.arange(n) for n in (1, 50, 70, 7)])[None], jnp.int32)
    q, k, v, up = (jnp.asarray(rng.standard_normal((1, 128, n, 64)), jnp.float32) for n in (2, kv, kv, 2))

    def gradients(compute):
        out, back = jax.vjp(lambda *x: compute(*x, positions), q, k, v)
        return out, *back(up)

    splash = functools.partial(jaxtrain.attention.splash_attention, interpret=True)
    for ours, plain in zip(gradients(splash), gradients(jaxtrain.attention.KERNELS["plain"].packed), strict=True):
        # floor 4.2e-7 of the largest number; segments that begin a token late are off by 0.7
        assert float(jnp.abs(ours - plain).max()) < 4e-6 * float(jnp.abs(plain).max())


@pytest.mark.parametrize(("heads", "kv_heads", "masks"), [(4, 4, 4), (4, 2, 2), (4, 1, 4)])
def test_splash_has_a_mask_for_each_query_head_of_a_call(monkeypatch, heads, kv_heads, masks):
    """The kernel takes too few masks without a word; only its documentation asks for as many."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    seen = []

    class Noted(splash_attention_mask.MultiHeadMask):
        def __init__(self, masks):
            seen.append(len(masks))
            super().__init__(masks)

    monkeypatch.setattr(splash_attention_mask, "MultiHeadMask", Noted)
    jaxtrain.attention._splash_kernel(128, 128, heads, kv_heads, interpret=True)
    assert seen[0] == masks
