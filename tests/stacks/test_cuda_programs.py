"""What JAX compiles of a run, lowered for CUDA on any machine: cuDNN's attention is in it, forward and backward."""

from __future__ import annotations

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

import jaxtrain.aot.step
import jaxtrain.decode
from coretrain.contract.parameters import initial_parameters
from jaxtrain.aot.step import abstract_step
from jaxtrain.attention import choose_kernel
from jaxtrain.decode import Decoder
from jaxtrain.model import build_model
from jaxtrain.programs import programs

H100 = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
CPU = jax.devices("cpu")[0]
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
MASKED, MASKED_BACKWARD = "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"
CUDNN = [FORWARD, BACKWARD, MASKED, MASKED_BACKWARD]
LLAMA = {"model__norm": "rmsnorm", "model__mlp": "swiglu", "model__position": "rope", "model__kv_heads": 2}


@pytest.fixture(autouse=True)
def h100(monkeypatch):
    """What JAX would be told by the machine, and which kernel is chosen there."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda wanted: float(wanted) <= 9.0)
    monkeypatch.setattr(jaxtrain.aot.step, "choose_kernel", lambda config, device: choose_kernel(config, H100))


def foreign_calls(program, *inputs):
    """Names of what a jitted function calls of CUDA's libraries, lowered for CUDA."""
    stable = [jax.export.DisabledSafetyCheck.custom_call(name) for name in CUDNN]
    text = jax.export.export(program, platforms=["cuda"], disabled_checks=stable)(*inputs).mlir_module()
    return set(re.findall(r'custom_call @"?([\w$]+)', text))


def steps_programs(config):
    """The kernel, and every program of an update with its inputs by name."""
    step = abstract_step(config, [CPU])
    inputs = {name: given for name, given in vars(step).items() if name.endswith("_inputs")}
    return step.kernel.name, {
        name.removesuffix("_inputs"): (getattr(step, name.removesuffix("_inputs")), *given)
        for name, given in inputs.items()
    }


@pytest.mark.parametrize(
    ("more", "kernel", "forward", "backward"),
    [
        ({"train__accumulation": 2}, "cudnn", {FORWARD}, {BACKWARD}),
        (LLAMA | {"execution__checkpoint_activations": "full"}, "cudnn", {FORWARD}, {BACKWARD}),
        ({"adapter__kind": "prefix", "adapter__virtual_tokens": 4}, "cudnn", {MASKED}, {MASKED_BACKWARD}),
        ({"precision__compute": "float32"}, "xla", set(), set()),
    ],
)
def test_an_update_for_cuda(small_config, more, kernel, forward, backward):
    fields = {"execution__attention": "auto", "execution__scan_layers": "true", "precision__compute": "bfloat16"} | more
    config = small_config(**fields)
    chosen, found = steps_programs(config)
    assert chosen == kernel
    calls = {name: foreign_calls(*program) for name, program in found.items()}
    assert calls.pop("gradients") == forward | backward
    assert calls.pop("update") == set(), "the optimizer's"
    assert calls.pop("program", forward | backward) == forward | backward
    assert not calls, "a program that this test doesn't know"
    made = programs(config, chosen, CPU)
    params, frozen, batch, *_ = found["gradients"][1:]
    assert foreign_calls(jax.jit(functools.partial(made.logprobs, temperature=1.0)), params, frozen, batch) == forward
    assert foreign_calls(made.evaluate, params, frozen, batch, jax.ShapeDtypeStruct((), jnp.float32)) == forward


def test_packed_rows_for_cuda(chat_config):
    """cuDNN's packed form isn't used: the mask of the samples is XLA's."""
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    fields = {"execution__attention": "auto", "execution__scan_layers": "true", "precision__compute": "bfloat16"}
    chosen, found = steps_programs(chat_config(rows, **fields))
    assert chosen == "xla"
    assert foreign_calls(*found["gradients"]) == set()


def test_decoding_for_cuda(small_config):
    """Prompts and single tokens, as one program; attention has a mask of its own."""
    config = small_config(precision__compute="bfloat16", **LLAMA)
    decoder = Decoder(build_model(config, "plain", initial_parameters(config.model, 0), CPU), by_layer=False)
    for tokens in (5, 1):
        ids, mask = np.zeros((2, tokens), np.int32), np.ones((2, tokens, 24), bool)
        given = ids, ids, mask, *decoder.cache(2, 24), np.int32(0)
        calls = foreign_calls(jaxtrain.decode._step, decoder.graph, decoder.state, decoder.head, *given, None)
        assert calls == set()
    assert foreign_calls(jaxtrain.decode._kept, *decoder.cache(4, 24), np.array([1, 3]), None) == set()
