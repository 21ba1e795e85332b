"""Numbers and names of other people's formats, against their own packages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from coretrain.config.model import ModelConfig, RopeScaling
from coretrain.contract.parameters import parameter_table
from coretrain.formats.gguf.file import GgufTensor, kind_of
from coretrain.formats.gguf.weights import FILE_TYPES, interleave, model_facts, restore_halves
from coretrain.formats.gguf.weights import tensor_maps as gguf_maps
from coretrain.formats.huggingface.weights import SHARD_BYTES, _write_weights, hf_config
from coretrain.formats.huggingface.weights import tensor_maps as huggingface_maps

GPT2 = ModelConfig(layers=2, width=32, heads=4, context=16, vocab=101)
LLAMA = ModelConfig(
    layers=2, width=32, heads=4, kv_heads=2, head_width=8, mlp_width=80, context=16, vocab=101, norm="rmsnorm",
    position="rope", mlp="swiglu", bias=False, tied=False, rope_theta=5e5, norm_eps=1e-6,
)  # fmt: skip


def test_file_types_are_those_of_the_package():
    """`q4_0` for what most tensors are held as, and so on."""
    theirs = gguf.LlamaFileType
    names = {"none": theirs.ALL_F32, "f16": theirs.MOSTLY_F16, "q4_0": theirs.MOSTLY_Q4_0, "q8_0": theirs.MOSTLY_Q8_0}
    assert {name: int(kind) for name, kind in names.items()} == FILE_TYPES
    assert model_facts(GPT2, "x", "none")["general.quantization_version"] == gguf.GGML_QUANT_VERSION


@pytest.mark.parametrize(("model", "kind"), [(GPT2, "gpt2"), (LLAMA, "llama")])
def test_names_of_tensors_are_those_of_the_package(model, kind):
    """What its converter calls the tensors of a Hugging Face folder, ours calls them too."""
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2 if kind == "gpt2" else gguf.MODEL_ARCH.LLAMA, 2)
    wanted = {}
    for place in huggingface_maps(model):
        stem, dot, end = place.name.rpartition(".")
        wanted[place.parts] = f"{theirs.get_name(stem)}{dot}{end}"
    assert {place.parts: place.name for place in gguf_maps(model)} == wanted


def test_facts_of_a_model_by_hand():
    keys = gguf.Keys
    name = "llama"
    facts = model_facts(LLAMA, "x", "q8_0")
    assert facts[keys.General.FILE_TYPE] == 7
    expected: Mapping[str, Any] = {
        keys.LLM.CONTEXT_LENGTH: 16, keys.LLM.EMBEDDING_LENGTH: 32, keys.LLM.BLOCK_COUNT: 2,
        keys.LLM.FEED_FORWARD_LENGTH: 80, keys.LLM.VOCAB_SIZE: 101, keys.Attention.HEAD_COUNT: 4,
        keys.Attention.HEAD_COUNT_KV: 2, keys.Attention.KEY_LENGTH: 8, keys.Attention.VALUE_LENGTH: 8,
        keys.Attention.LAYERNORM_RMS_EPS: 1e-6, keys.Rope.DIMENSION_COUNT: 8, keys.Rope.FREQ_BASE: 5e5,
    }  # fmt: skip
    assert {key: facts[key.format(arch=name)] for key in expected} == expected
    linear = LLAMA.model_copy(update={"rope_scaling": RopeScaling(type="linear", factor=2.5)})
    facts = model_facts(linear, "x", "none")
    assert (facts["llama.rope.scaling.type"], facts["llama.rope.scaling.factor"]) == ("linear", 2.5)
    assert model_facts(GPT2, "x", "f16")["gpt2.attention.layer_norm_epsilon"] == 1e-5


def test_rows_of_a_head_by_hand():
    """Two heads of six rows: halves (0 1 2)(3 4 5) become pairs (0 3)(1 4)(2 5); as llama.cpp's converter permutes."""
    rows = np.arange(12)
    assert interleave(rows, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert restore_halves(interleave(rows, 2), 2).tolist() == list(range(12))
    matrix = np.random.default_rng(0).standard_normal((12, 5))
    theirs = matrix.reshape(2, 2, 3, 5).swapaxes(1, 2).reshape(12, 5)
    assert np.array_equal(interleave(matrix, 2), theirs)
    heads = {place.name: place.heads for place in gguf_maps(LLAMA)}
    assert (heads["blk.1.attn_q.weight"], heads["blk.1.attn_k.weight"]) == (4, 2)
    assert not any(heads[name] for name in heads if "attn_q" not in name and "attn_k" not in name)


@pytest.mark.parametrize(
    ("name", "shape", "quantization", "kind"),
    [
        ("blk.0.ffn_up.weight", (64, 96), "q4_0", "Q4_0"),
        ("blk.0.ffn_up.weight", (64, 96), "q8_0", "Q8_0"),
        ("blk.0.ffn_up.weight", (64, 80), "q4_0", "F16"),  # 80 are no whole blocks of 32
        ("blk.0.ffn_up.weight", (64, 96), "f16", "F16"),
        ("blk.0.ffn_up.weight", (64, 96), "none", "F32"),
        ("token_embd.weight", (64, 96), "q4_0", "Q8_0"),
        ("output.weight", (64, 96), "q4_0", "Q8_0"),
        ("position_embd.weight", (64, 96), "q4_0", "F32"),
        ("output_norm.weight", (96,), "q4_0", "F32"),
    ],
)
def test_what_is_held_how(name, shape, quantization, kind):
    assert kind_of(GgufTensor(name, shape, lambda: np.zeros(shape)), quantization) == kind


@pytest.mark.parametrize(
    ("model", "theirs"),
    [
        (GPT2, GPT2Config(vocab_size=101, n_positions=16, n_embd=32, n_layer=2, n_head=4)),
        (
            LLAMA,
            LlamaConfig(
                vocab_size=101, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=8, tie_word_embeddings=False,
            ),
        ),
    ],
    ids=["gpt2", "llama"],
)  # fmt: skip
def test_parameters_are_those_of_transformers(model, theirs):
    """Name by name, shape by shape, of a model that is never made (on torch's device `meta`)."""
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(theirs)
    wanted = {name: tuple(value.shape) for name, value in whole.named_parameters()}
    shapes = {row.name: row.shape for row in parameter_table(model)}
    found = {}
    for place in huggingface_maps(model):
        parts = [shapes[part][::-1] if place.transposed else shapes[part] for part in place.parts]
        found[place.name] = (*parts[0][:-1], sum(part[-1] for part in parts))
    assert found == wanted
    assert sum(row.size for row in parameter_table(model)) == sum(value.numel() for value in whole.parameters())


def test_a_shard_of_a_folder_takes_what_fills_it_just_so(tmp_path):
    """The embedding and the positions are 4 x 32 x (101 + 16) bytes: with room for them both are in the first file."""
    tensors = {row.name: np.zeros(row.shape, np.float32) for row in parameter_table(GPT2)}
    limit = 4 * 32 * (101 + 16)
    for size, together in ((limit, True), (limit - 1, False)):
        folder = tmp_path / str(size)
        folder.mkdir()
        assert _write_weights(folder, GPT2, tensors, size) == "float32"
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        files = index["weight_map"]
        assert (files["transformer.wte.weight"] == files["transformer.wpe.weight"]) is together
        assert index["metadata"]["total_size"] == 4 * sum(row.size for row in parameter_table(GPT2))
    assert SHARD_BYTES == 5_000_000_000, "as transformers' save_pretrained has it"
    assert hf_config(GPT2, "float32", {})["architectures"] == ["GPT2LMHeadModel"]
