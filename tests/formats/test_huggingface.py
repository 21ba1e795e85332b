"""Hugging Face folders: bits go there and back, transformers loads them, and its models compute what ours do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from coretrain.base.errors import UserError
from coretrain.base.safetensors import TensorFile
from coretrain.config.model import ModelConfig, RopeScaling
from coretrain.contract.rotary import rotary_tables
from coretrain.formats.huggingface.weights import export_huggingface, import_huggingface
from coretrain.tokenizers.chat_template_file import read_chat_template
from tests.support.commands import ROOT
from tests.support.hf_oracle import tokens_for
from tests.support.models import LLAMA, MODELS, SMALL, model_kinds, perturbed
from tests.support.refusal import refused
from tests.support.transformers_oracle import float64_frequencies


@model_kinds
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 30_000])
def test_there_and_back_bit_for_bit(tmp_path: Path, model: ModelConfig, dtype: type, shard_bytes: int) -> None:
    tensors = perturbed(model, dtype)
    export_huggingface(tmp_path / "hf", model, tensors, None, shard_bytes)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == (shard_bytes == 30_000)
    back_model, back = import_huggingface(tmp_path / "hf")
    for field in ("kv", "head", "hidden", "vocabulary"):
        assert getattr(back_model, field) == getattr(model, field)
    resolved = {"kv_heads", "head_width", "mlp_width"}
    assert back_model.model_dump(exclude=resolved) == model.model_dump(exclude=resolved)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        assert back[name].tobytes() == value.tobytes(), name


def nrel(found: np.ndarray, wanted: np.ndarray) -> float:
    """Distance of `found` from `wanted`, relative to the norm of `wanted`."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.whole
@model_kinds
def test_both_stacks_equal_transformers(tmp_path: Path, model: ModelConfig, float64_oracle: None) -> None:
    export_huggingface(tmp_path / "hf", model, perturbed(model, np.float64))
    oracle, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", attn_implementation="sdpa", output_loading_info=True
    )  # Llama's eager attention takes its softmax in float32
    assert not any(report.values()), report
    assert oracle.dtype == torch.float64
    batch = torch.from_numpy(tokens_for(model.vocabulary, model.context))
    logits = oracle.eval()(batch[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    # the oracle's gradients, brought to canonical names and layouts by the import under test (it is bitwise, see above)
    tied = "lm_head.weight" if model.tied else None
    gradients = {name: p.grad for name, p in oracle.named_parameters() if name != tied}
    save_file(gradients, tmp_path / "hf" / "gradients.safetensors")
    (tmp_path / "g").mkdir()
    (tmp_path / "hf" / "gradients.safetensors").rename(tmp_path / "g" / "model.safetensors")
    (tmp_path / "g" / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
    wanted = import_huggingface(tmp_path / "g")[1]
    for stack in ("torch", "jax"):
        command = [sys.executable, "-m", "tests.support.hf_oracle", stack, str(tmp_path / "hf")]
        subprocess.run(command, check=True, cwd=ROOT, timeout=300)
        found = np.load(tmp_path / "hf" / f"{stack}.npz")
        assert found["logits"].dtype == np.float64
        assert nrel(found["logits"], logits.detach().numpy()) < 1e-12
        assert nrel(found["loss"], loss.detach().numpy()) < 1e-12
        biggest = max(float(np.linalg.norm(value)) for value in wanted.values())
        for name, gradient in wanted.items():
            if name.endswith("attention.k.bias") and model.position == "learned":
                # zero in exact arithmetic (softmax doesn't see a shift): only that it is noise can be checked
                assert np.linalg.norm(found[name]) < 1e-13 * biggest, name
            else:
                assert nrel(found[name], gradient) < 1e-12, f"{stack} {name}"


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.5}, {"type": "llama3", "factor": 8.0}])
def test_rotary_angles_are_those_of_transformers(tmp_path: Path, scaling: Any) -> None:
    """With the sizes of Llama 3.1's heads, out to a Hugging Face folder and in again."""
    model = ModelConfig(**SMALL, **LLAMA, head_width=128, rope_theta=5e5, rope_scaling=scaling)
    export_huggingface(tmp_path / "hf", model, perturbed(model))
    assert import_huggingface(tmp_path / "hf")[0].rope_scaling == model.rope_scaling
    frequencies = float64_frequencies(transformers.AutoConfig.from_pretrained(tmp_path / "hf"))
    for found, wanted in zip(rotary_tables(model, 2), (frequencies.cos(), frequencies.sin()), strict=True):
        np.testing.assert_allclose(found[1], wanted.numpy(), rtol=1e-14)  # floor 2e-16; in float32 it would be 1e-8


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig(**SMALL, norm="rmsnorm"), r"model\.norm = rmsnorm can't be exported"),
        (ModelConfig(**SMALL, mlp="swiglu"), r"model\.mlp = swiglu can't be exported.*mlp = gelu"),
        (ModelConfig(**SMALL, bias=False), r"model\.bias = false can't be exported.*gpt2 architecture.*bias = true"),
        (ModelConfig(**SMALL, kv_heads=2), r"model\.kv_heads = 2 can't be exported"),
        (ModelConfig(**SMALL, head_width=10), r"model\.head_width = 10 can't be exported"),
        (ModelConfig(**SMALL, position="rope"), r"model\.norm = layernorm.*llama"),
        (ModelConfig(**SMALL, **LLAMA | {"mlp": "gelu"}), r"model\.mlp = gelu"),
        (ModelConfig(**SMALL | {"heads": 5}, **LLAMA, head_width=8), r"model\.heads = 5"),
    ],
)
def test_what_can_not_be_exported_names_the_field(tmp_path: Path, model: ModelConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_huggingface(tmp_path / "hf", model, perturbed(model))
    assert list(tmp_path.iterdir()) == []


def changed(folder: Path, **fields: object) -> Path:
    """Change fields of the folder's config.json; None takes a field out."""
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("gpt2", {"model_type": "mamba"}, "model_type = mamba"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"n_embd": None}, "lacks the field n_embd"),
        ("gpt2", {"n_layer": 3}, r"lacks the tensor transformer\.h\.2"),
        ("gpt2", {"n_layer": 1}, r"has the tensor transformer\.h\.1"),
        ("gpt2", {"vocab_size": 299}, r"transformer\.wte\.weight has shape \(300, 48\), .* \(299, 48\)"),
        ("gpt2", {"n_inner": 96}, r"mlp\.c_fc\.weight has shape \(48, 192\), .* \(48, 96\)"),
        ("gpt2", {"vocab_size": None}, "lacks the field vocab_size"),
        (
            "llama",
            {"num_attention_heads": 0, "head_dim": None},
            "num_attention_heads = 0, where a whole number above 0",
        ),
        ("llama", {"hidden_size": "48", "head_dim": None}, "hidden_size = '48', where a whole number above 0 belongs"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type = 'yarn' can't"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "field rope_parameters.low_freq_factor"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "rope_type = 'dynamic' can't"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("llama", {"attention_bias": True}, "attention_bias and mlp_bias differ"),
    ],
)
def test_what_can_not_be_imported_names_the_field(tmp_path: Path, kind: str, fields: Any, message: str) -> None:
    export_huggingface(tmp_path / "hf", MODELS[kind], perturbed(MODELS[kind]))
    with pytest.raises(UserError, match=message):
        import_huggingface(changed(tmp_path / "hf", **fields))


def test_a_window_that_no_row_leaves_is_none(tmp_path: Path) -> None:
    export_huggingface(tmp_path / "hf", MODELS["llama"], perturbed(MODELS["llama"]))
    context = MODELS["llama"].context
    import_huggingface(changed(tmp_path / "hf", sliding_window=context))
    with refused("formats/hf-value-unsupported", "sliding_window"):
        import_huggingface(changed(tmp_path / "hf", sliding_window=context - 1))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    export_huggingface(tmp_path / "hf", MODELS["gpt2"], perturbed(MODELS["gpt2"]))
    weights = tmp_path / "hf" / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-1], whole[:100], b"", b"nonsense" * 100):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
            import_huggingface(tmp_path / "hf")
    weights.unlink()
    with refused("formats/hf-safetensors-missing"):
        import_huggingface(tmp_path / "hf")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    for content in (b'{"weight_map": null}', b'{"weight_map": ["a"]}', b'{"weight_map": {"a": ["b"]}}', b"{}"):
        index.write_bytes(content)
        with refused("formats/weight-map-damaged", "index.json"):
            import_huggingface(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"chat_template": ["a", {"name": "default"}]}')
    with refused("tokenizers/template-not-text", "tokenizer_config.json"):
        read_chat_template(tmp_path / "hf")
    (tmp_path / "hf" / "chat_template.jinja").write_bytes(b"\xff")
    with refused("tokenizers/template-not-utf-8", "chat_template.jinja"):
        read_chat_template(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"config\.json is damaged .*: restore it, or download it again"):
        import_huggingface(tmp_path / "hf")
    with pytest.raises(UserError, match=r"config\.json is missing, .*: restore it, or download it again"):
        import_huggingface(tmp_path / "nowhere")


def test_older_folders_are_read(tmp_path: Path) -> None:
    """As the hub's first ones: no prefix, causal masks among the weights, a copy of the tied head, rope_theta alone."""
    for kind in ("gpt2", "llama"):
        folder = tmp_path / kind
        tensors = perturbed(MODELS[kind])
        export_huggingface(folder, MODELS[kind], tensors)
        weights = load_file(folder / "model.safetensors")
        weights = {name.removeprefix("transformer."): value for name, value in weights.items()}
        if kind == "gpt2":
            weights["h.0.attn.bias"] = torch.ones(1, 1, 40, 40)
        else:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
            weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
            changed(folder, rope_parameters=None, rope_theta=5e5, head_dim=None)
        save_file(weights, folder / "model.safetensors")
        model, back = import_huggingface(folder)
        assert model.rope_theta == (1e4 if kind == "gpt2" else 5e5)
        scaling = {"type": "linear", "factor": 4.0}
        if kind == "llama":  # Llama 2's longer ones, and 3.1's as its own config.json has them
            assert import_huggingface(changed(folder, rope_scaling=scaling))[0].rope_scaling == RopeScaling(**scaling)
            wide = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            wide["original_max_position_embeddings"] = 8192
            scaled = import_huggingface(changed(folder, rope_scaling=wide))[0]
            assert (scaled.rope_scaling, scaled.rope_theta) == (RopeScaling(type="llama3", factor=8.0), 5e5)
        assert all(back[name].tobytes() == value.tobytes() for name, value in tensors.items())


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, reads = perturbed(MODELS["gpt2"]), []
    export_huggingface(tmp_path / "hf", MODELS["gpt2"], tensors)
    read = TensorFile.read
    monkeypatch.setattr(TensorFile, "read", lambda self, name: reads.append(name) or read(self, name))
    _, back = import_huggingface(tmp_path / "hf")
    assert "blocks.1.mlp.up.weight" in back
    assert len(list(back)) == len(tensors)
    assert reads == [], "nothing before it is asked for"
    assert back["blocks.1.attention.k.bias"].tobytes() == tensors["blocks.1.attention.k.bias"].tobytes()
    assert reads == ["transformer.h.1.attn.c_attn.bias"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_widens_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.tensor([[1.5, -0.0, 3e-5], [float("inf"), 65504.0, 1 / 3]], dtype=torch.float64).to(dtype)
    save_file({"a": torch.zeros(3, dtype=dtype), "b": value}, tmp_path / "x.safetensors")
    read = TensorFile(tmp_path / "x.safetensors").read("b")
    assert read.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    assert read.tobytes() == value.to(torch.promote_types(dtype, torch.float32)).numpy().tobytes()


def test_tensors_are_compared_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last number counts too, other shapes are others, and dtypes that aren't read are named."""
    monkeypatch.setattr("coretrain.base.safetensors._PIECE", 2)
    value = torch.arange(5.0)
    held = {"a": value, "b": value.clone(), "c": value + torch.tensor([0, 0, 0, 0, 1.0]), "d": value[:4].clone()}
    held |= {"half": value.half(), "whole": value.int(), "eight": value.to(torch.float8_e4m3fn)}
    save_file(held, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")
    assert [file.same("a", file, name) for name in ("a", "b", "c", "d", "half")] == [True, True, False, False, True]
    for name, kind in (("whole", "I32"), ("eight", "F8_E4M3")):
        with refused("base/safetensors-dtype-unsupported", f"{name} is {kind}", "F64, F32, F16, BF16"):
            file.shape(name)
