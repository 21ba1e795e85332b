"""Low-rank adapters against PEFT, an outside oracle, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coretrain.adapters.targets import adapter_parameters
from coretrain.contract.parameters import initial_parameters
from coretrain.contract.quantization import quantize, quantized_parameters
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.pair import jax_gradients, jax_logits, torch_gradients, torch_logits
from tests.support.batches import random_text
from tests.support.bitsandbytes_oracle import bitsandbytes_nf4
from tests.support.peft_oracle import peft_name
from torchtrain.trainer import Trainer as TorchTrainer

LORA = {"adapter__kind": "lora", "adapter__rank": 4}


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_peft_computes_the_same(small_config, float64_oracle, kind):
    """Logits and gradients of Hugging Face's Llama with PEFT's adapters, in float64; nf4: on bitsandbytes' numbers.

    Floors 2.7e-15 and 1.0e-14; a scale of alpha / rank would change the logits by 1.0 of their norm.
    """
    peft = pytest.importorskip("peft", reason="PEFT is the oracle: pip install peft accelerate")
    transformers = pytest.importorskip("transformers")
    form = {"model__norm": "rmsnorm", "model__position": "rope", "model__mlp": "swiglu", "model__bias": "false"}
    more = {"model__tied": "false", "model__kv_heads": 2, "precision__compute": "float64", "adapter__alpha": 12}
    targets = "blocks.*.attention.*.weight,blocks.1.mlp.down.weight,embed.token,head.weight"
    more |= {"adapter__targets": targets, "adapter__rslora": "true", "adapter__quantize": kind, "optimizer__clip": 0}
    config = small_config(**LORA, **form, **more)
    m, rng = config.model, np.random.default_rng(0)
    weights = {name: v.astype(np.float64) * 3 for name, v in initial_parameters(m, 1).items()}
    adapter = {row.name: rng.standard_normal(row.shape) * 0.1 for row in adapter_parameters(config)}
    base = dict(weights)
    for row in quantized_parameters(config):
        given = weights[row.name].astype(np.float32)
        base[row.name] = bitsandbytes_nf4(given, quantize(given, "nf4").arrays["offset"])
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=m.vocabulary, hidden_size=m.width, intermediate_size=m.hidden, num_hidden_layers=m.layers,
            num_attention_heads=m.heads, num_key_value_heads=m.kv, max_position_embeddings=m.context,
            rms_norm_eps=m.norm_eps, tie_word_embeddings=False, attn_implementation="sdpa",
            rope_parameters={"rope_type": "default", "rope_theta": m.rope_theta},
        )
    )  # fmt: skip
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens", "lm_head", "layers.1.mlp.down_proj"]
    wanted = peft.LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules=names, lora_dropout=0.0)
    model = peft.get_peft_model(theirs, wanted).double()
    named = dict(model.named_parameters())
    assert len([name for name in named if "lora_" in name]) == len(adapter)
    with torch.no_grad():
        for name, value in (base | adapter).items():
            named[peft_name(name, named)].copy_(torch.from_numpy(value))
    batch = random_text(config)
    tokens, labels = (torch.from_numpy(ids).long() for ids in (batch.tokens, batch.labels))
    logits = model(tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    for make in (TorchTrainer, JaxTrainer):
        stack = make(config, weights | adapter)
        stack.gradients(batch, 0, 1.0)
        ours = (torch_logits if make is TorchTrainer else jax_logits)(stack, batch.tokens, 0)
        assert np.linalg.norm(ours - logits.detach().numpy()) < 1e-13 * np.linalg.norm(ours), stack.name
        found = (torch_gradients if make is TorchTrainer else jax_gradients)(stack)
        assert found.keys() == adapter.keys()
        for name, value in found.items():
            gradient = named[peft_name(name, named)].grad.numpy()
            assert np.linalg.norm(value - gradient) < 1e-12 * np.linalg.norm(gradient), (stack.name, name)
