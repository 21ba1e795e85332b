"""Small Hugging Face folders that transformers wrote, drawn at random, and the logits that it and we make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from coretrain.config.run import RunConfig
from coretrain.formats.huggingface.weights import import_huggingface
from torchtrain.model import build_model

TANH_GELUS = ["gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
EPS = st.sampled_from([1e-6, 1e-5, 1e-3, 0.1])


def rope(draw: Callable[[Any], Any]) -> dict[str, Any]:
    """Rotary positions of a kind that is read."""
    kind = draw(st.sampled_from(["default", "linear", "llama3"]))
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": draw(st.sampled_from([10.0, 1e4, 5e5]))}
    if kind != "default":
        found["factor"] = draw(st.sampled_from([1.0, 2.0, 8.0]))
    if kind == "llama3":
        low = draw(st.sampled_from([0.5, 1.0]))
        original = draw(st.sampled_from([4, 30, 200]))
        found |= {
            "low_freq_factor": low,
            "high_freq_factor": low + draw(st.sampled_from([0.5, 3.0])),
            "original_max_position_embeddings": original,
        }
    return found


@st.composite
def configs(draw: Callable[[Any], Any]) -> Any:
    """A small config of transformers, over all that is read here."""
    heads = draw(st.integers(1, 4))
    common = {
        "vocab_size": draw(st.integers(3, 40)),
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    context, width = draw(st.integers(2, 24)), heads * draw(st.sampled_from([2, 4, 6]))
    if draw(st.booleans()):
        return transformers.GPT2Config(
            n_positions=context,
            n_embd=width,
            n_head=heads,
            n_layer=draw(st.integers(1, 2)),
            n_inner=draw(st.sampled_from([None, 1, 7, 16])),
            activation_function=draw(st.sampled_from(TANH_GELUS)),
            layer_norm_epsilon=draw(EPS),
            **common,
        )
    bias = draw(st.booleans())
    return transformers.LlamaConfig(
        max_position_embeddings=context,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])),
        head_dim=draw(st.sampled_from([None, 2, 6, 10])),
        num_hidden_layers=draw(st.integers(1, 2)),
        intermediate_size=draw(st.integers(1, 24)),
        hidden_act=draw(st.sampled_from(["silu", "swish"])),
        rms_norm_eps=draw(EPS),
        attention_bias=bias,
        mlp_bias=bias,
        rope_parameters=rope(draw),
        **common,
    )


def write_folder(folder: Path, config: Any, dtype: str = "float32", shard: str = "1GB") -> None:
    """A model of `config` as transformers writes it, no tensor of it zero or one."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    model.to(DTYPES[dtype]).save_pretrained(folder, max_shard_size=shard)


def edit_config(folder: Path, edits: dict[str, Any]) -> None:
    """Set keys of config.json; a value of `...` takes one out."""
    raw = json.loads((folder / "config.json").read_text()) | edits
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change the tensors of a folder that has them in one file."""
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path)


def token_ids(config: Any) -> torch.Tensor:
    """Two rows of ids, as long as the model goes."""
    draw = np.random.default_rng(5)
    length = getattr(config, "max_position_embeddings", 8)
    return torch.from_numpy(draw.integers(0, config.vocab_size, (2, min(length, 24))))


def reference_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor | None:
    """transformers' float32 logits. None where tensors that the file lacks were made up."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    with torch.no_grad():
        return None if report["missing_keys"] else model.eval()(ids).logits


def our_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """torchtrain's float32 logits of what is imported."""
    model, tensors = import_huggingface(folder)
    network = build_model(RunConfig(model=model), "plain", dict(tensors), torch.device("cpu"))
    with torch.no_grad():
        return network.logits(network(ids))


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of `found` from `wanted`, relative to the norm of `wanted`."""
    return float((found - wanted).norm() / wanted.norm())
