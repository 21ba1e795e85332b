"""Folders that transformers loads are loaded to the same logits, or refused by name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import event, given, settings
from hypothesis import strategies as st

from coretrain.base.errors import UserError
from coretrain.formats.huggingface.weights import generation_remarks, import_huggingface, import_remarks
from tests.support.folders import (
    DTYPES,
    configs,
    distance,
    edit_config,
    edit_weights,
    our_logits,
    reference_logits,
    token_ids,
    write_folder,
)
from tests.support.refusal import refused

pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
CAP = 1e-5
"""Of float32; measured floor 1e-6 (docs/LOG.md). It would catch a wrong eps (1e-3 and more), and any other switch."""


def same_logits(config: Any, dtype: str, shard: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_folder(folder, config, dtype, shard)
        ids = token_ids(config)
        wanted = reference_logits(folder, ids)
        assert wanted is not None
        error = distance(our_logits(folder, ids), wanted)
        event(f"distance below 1e-{next(n for n in (7, 6, 5, 0) if error <= 10**-n)}")
        assert error < CAP, config


FOLDERS = given(configs(), st.sampled_from(list(DTYPES)), st.sampled_from(["1GB", "2KB"]))


@settings(max_examples=25, deadline=None, derandomize=True)
@FOLDERS
def test_folders_of_transformers_give_its_logits(config: Any, dtype: str, shard: str) -> None:
    same_logits(config, dtype, shard)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@FOLDERS
def test_many_folders_of_transformers_give_its_logits(config: Any, dtype: str, shard: str) -> None:
    same_logits(config, dtype, shard)


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
EDITS: dict[str, list[Any]] = {
    "rope_scaling": [None, {}, {"type": "linear", "factor": 2.0}, {"rope_type": "linear", "type": "x", "factor": 3},
                     LLAMA3, LLAMA3 | {"original_max_position_embeddings": 9}, {"rope_type": "dynamic", "factor": 2.0},
                     {"rope_type": "linear", "factor": 2.0, "rope_theta": 77.0}, {"rope_type": "default"}, "linear",
                     {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
                     {"full_attention": {"rope_type": "linear", "factor": 2.0}}],
    "rope_parameters": [..., None, {}, LLAMA3, {"rope_theta": 50.0}, {"type": "linear", "factor": 4.0}, {"factor": 3.0},
                        {"rope_type": "yarn", "factor": 4.0}, {"rope_type": None}, {"rope_type": "linear"}],
    "rope_theta": [123.0, 1000000, 0, -3.0, "x"],
    "original_max_position_embeddings": [5, 50],
    "partial_rotary_factor": [1.0, 0.5],
    "tie_word_embeddings": [True, False, None, ...],
    "is_causal": [True, False, None],
    "per_layer_config": [None, {"0": {"intermediate_size": 3}}, {"0": {"rms_norm_eps": 0.5}}],
    "layer_types": [None, ["full_attention"], ["sliding_attention"], ["full_attention", "full_attention"]],
    "sliding_window": [None, 2],
    "hidden_act": ["silu", "gelu", "relu"],
    "activation_function": ["gelu_new", "gelu", "relu", "silu"],
    "hidden_size": [8, "8", None],
    "num_hidden_layers": [1, 2, 0],
    "num_attention_heads": [1, 2, 0],
    "num_key_value_heads": [None, 1, 2, 0],
    "head_dim": [None, 2, 0],
    "max_position_embeddings": [4, 30],
    "n_inner": [None, 0, 8],
    "n_ctx": [3],
    "n_head": [1, 2],
    "scale_attn_weights": [True, False],
    "scale_attn_by_inverse_layer_idx": [True],
    "reorder_and_upcast_attn": [True],
    "add_cross_attention": [False, True],
    "attention_bias": [True, False],
    "mlp_bias": [True, False],
    "rms_norm_eps": [0.5, None, "x", ...],
    "layer_norm_epsilon": [0.5, 1, ...],
    "attention_dropout": [0.5],
    "attn_pdrop": [0.0, 0.5],
    "pretraining_tp": [2],
    "pad_token_id": [0, 1],
    "vocab_size": [3, None, ...],
    "dtype": ["float16"],
    "transformers_weights": [None, "other.safetensors"],
    "text_config": [{"vocab_size": 3}],
    "logit_scale": [3.0],
    "final_logit_softcapping": [5.0],
    "use_cache": [False],
    "chunk_size_feed_forward": [1],
}  # fmt: skip
"""What config.json is changed to say, one key or several at once."""


def bare(tensors: dict[str, Any]) -> dict[str, Any]:
    """As the model without its head is written."""
    return {name.removeprefix("transformer.").removeprefix("model."): value for name, value in tensors.items()}


def with_head(tensors: dict[str, Any], change: float) -> dict[str, Any]:
    """With a head that is a copy of the embedding, or differs from it."""
    embedding = next(value for name, value in tensors.items() if name.endswith(("embed_tokens.weight", "wte.weight")))
    return {"lm_head.weight": embedding + change * torch.arange(embedding.numel()).reshape(embedding.shape)} | tensors


def head_alone(tensors: dict[str, Any]) -> dict[str, Any]:
    """Without the embedding."""
    left = {name: value for name, value in tensors.items() if not name.endswith(("embed_tokens.weight", "wte.weight"))}
    return {"lm_head.weight": with_head(tensors, 0.0)["lm_head.weight"]} | left


FILES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "as written": dict,
    "bare": bare,
    "a copy of the embedding": lambda tensors: with_head(tensors, 0.0),
    "another head": lambda tensors: with_head(tensors, 0.01),
    "the head alone": head_alone,
    "one more": lambda tensors: tensors | {"score.weight": torch.ones(2, 4)},
}


@st.composite
def edits(draw: Callable[[Any], Any]) -> dict[str, Any]:
    """One to three keys with a value each."""
    keys = draw(st.lists(st.sampled_from(list(EDITS)), min_size=1, max_size=3, unique=True))
    return {key: draw(st.sampled_from(EDITS[key])) for key in keys}


def outcome(folder: Path, ids: torch.Tensor) -> torch.Tensor | UserError:
    """Our logits, or why there are none."""
    try:
        return our_logits(folder, ids)
    except UserError as refusal:
        return refusal


def equal_or_refused(config: Any, change: dict[str, Any], file: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_folder(folder, config)
        edit_config(folder, change)
        edit_weights(folder, FILES[file])
        ids = token_ids(config)[:, :3]
        try:
            wanted = reference_logits(folder, ids)
        except Exception:  # transformers refuses it in its own ways
            event("transformers refuses it")
            return
        found = outcome(folder, ids)
        if isinstance(found, UserError):
            event(f"refused: {found.code}")
            named = [key for key in (*change, "shape", "tensor") if key in str(found)]
            assert named, f"none of {list(change)} is named: {found}"
            assert "download it again" not in str(found)
            return
        assert wanted is not None, f"loaded, though transformers makes up a tensor: {change}, {file}"
        event("loaded")
        assert distance(found, wanted) < CAP, (change, file)


CHANGED = given(configs(), edits(), st.sampled_from(list(FILES)))


@settings(max_examples=40, deadline=None, derandomize=True)
@CHANGED
def test_changed_folders_give_the_same_logits_or_are_refused(config: Any, change: dict[str, Any], file: str) -> None:
    equal_or_refused(config, change, file)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, derandomize=True)
@CHANGED
def test_many_changed_folders_give_the_same_logits_or_are_refused(
    config: Any, change: dict[str, Any], file: str
) -> None:
    equal_or_refused(config, change, file)


TINY: dict[str, Any] = {"vocab_size": 30, "bos_token_id": None, "eos_token_id": None}
LLAMA = transformers.LlamaConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16, **TINY
)
TIED = transformers.LlamaConfig(**LLAMA.to_dict() | {"tie_word_embeddings": True})
GPT2 = transformers.GPT2Config(n_embd=16, n_head=2, n_layer=1, n_positions=16, **TINY)


@pytest.mark.parametrize(
    ("config", "change", "file", "remark"),
    [
        (TIED, {}, "another head", "the head is kept, untied"),
        (GPT2, {}, "another head", "the head is kept, untied"),
        (TIED, {}, "a copy of the embedding", None),
        (TIED, {}, "the head alone", None),
        (TIED, {}, "bare", None),
        (GPT2, {}, "bare", "attn_pdrop = 0.1"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "as written", "rope_scaling, which is followed"),
        (LLAMA, {"rope_scaling": LLAMA3, "rope_theta": 20.0}, "as written", "rope_scaling, which is followed"),
        (LLAMA, {"rope_scaling": LLAMA3, "rope_theta": 20.0, "rope_parameters": ...}, "as written", None),
        (LLAMA, {"rope_parameters": LLAMA3, "original_max_position_embeddings": 4}, "as written", None),
        (LLAMA, {"rope_parameters": {"factor": 3.0}}, "as written", "rope_parameters.factor, which isn't read"),
        (LLAMA, {"attention_dropout": 0.25}, "as written", "attention_dropout = 0.25"),
        (LLAMA, {"logit_scale": 0.25}, "as written", "logit_scale, which isn't read"),
        (GPT2, {"hidden_size": 16, "n_embd": 99}, "as written", "attn_pdrop = 0.1"),
    ],
)
def test_what_a_folder_says_twice_or_elsewhere(
    tmp_path: Path, config: Any, change: dict[str, Any], file: str, remark: str | None
) -> None:
    write_folder(tmp_path, config)
    edit_config(tmp_path, change)
    edit_weights(tmp_path, FILES[file])
    ids = token_ids(config)
    wanted = reference_logits(tmp_path, ids)
    assert wanted is not None
    assert distance(our_logits(tmp_path, ids), wanted) < CAP
    said = import_remarks(tmp_path, import_huggingface(tmp_path)[0])
    assert any(remark in one for one in said) if remark else said == []


@pytest.mark.parametrize(
    ("change", "code", "name"),
    [
        ({"is_causal": False}, "formats/hf-value-unsupported", "is_causal"),
        ({"per_layer_config": {"0": {"rms_norm_eps": 0.5}}}, "formats/hf-value-unsupported", "per_layer_config"),
        ({"quantization_config": {"quant_method": "fp8"}}, "formats/hf-value-unsupported", "quantization_config"),
        ({"transformers_weights": "other.safetensors"}, "formats/hf-value-unsupported", "transformers_weights"),
        ({"layer_types": ["sliding_attention"]}, "formats/hf-layer-types-unsupported", "layer_types"),
        ({"partial_rotary_factor": 0.5}, "formats/hf-value-unsupported", "partial_rotary_factor"),
        ({"rope_scaling": {"full_attention": {"factor": 2}}}, "formats/hf-rope-wrong-kind", "rope_scaling"),
        ({"rope_theta": "x", "rope_parameters": {}}, "formats/hf-field-wrong-kind", "rope_theta"),
        ({"num_key_value_heads": 0}, "formats/hf-field-wrong-kind", "num_key_value_heads"),
        ({"hidden_size": None}, "formats/hf-field-wrong-kind", "hidden_size"),
        ({"tie_word_embeddings": "false"}, "formats/hf-field-wrong-kind", "tie_word_embeddings"),
    ],
)
def test_what_would_change_a_number_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], code: str, name: str
) -> None:
    write_folder(tmp_path, LLAMA)
    edit_config(tmp_path, change)
    with refused(code, name):
        import_huggingface(tmp_path)


def test_files_that_stand_beside_others(tmp_path: Path) -> None:
    """One file comes before an index, as in transformers; a tensor in two files is refused."""
    write_folder(tmp_path, LLAMA, shard="2KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    ids = token_ids(LLAMA)
    sharded = our_logits(tmp_path, ids)
    write_folder(tmp_path / "whole", TIED)
    (tmp_path / "whole" / "model.safetensors").rename(tmp_path / "model.safetensors")
    edit_config(tmp_path, {"tie_word_embeddings": True})
    wanted = reference_logits(tmp_path, ids)
    assert wanted is not None
    assert distance(our_logits(tmp_path, ids), wanted) < CAP
    assert distance(sharded, wanted) > 0.01
    assert any("index.json isn't" in one for one in import_remarks(tmp_path, import_huggingface(tmp_path)[0]))
    (tmp_path / "model.safetensors").unlink()
    shards[0].write_bytes(shards[-1].read_bytes())
    with refused("formats/hf-tensor-twice", shards[-1].name, shards[0].name):
        import_huggingface(tmp_path)
    shards[0].rename(tmp_path / "shard-00000-model-00001-of-00001.safetensors")
    with refused("formats/hf-shards-of-processes", "shard-00000"):
        import_huggingface(tmp_path)


def test_what_generation_config_asks_for_is_said(tmp_path: Path) -> None:
    asked = transformers.GenerationConfig(temperature=0.5, top_p=1.0, do_sample=True, eos_token_id=[3, 5], max_length=9)
    asked.save_pretrained(tmp_path)
    sampling, ends = generation_remarks(tmp_path, [3])
    assert "do_sample = True, temperature = 0.5:" in sampling
    assert "at ids [5] too" in ends
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3, "new_in_6": 1}')
    (unread,) = generation_remarks(tmp_path, [3])
    assert "new_in_6, which isn't read" in unread
    (tmp_path / "generation_config.json").unlink()
    assert generation_remarks(tmp_path, [3]) == []
