"""Folders of PEFT: PEFT itself loads them and computes the same, bits come back, and what isn't ours is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_huggingface import Float64Norm, Float64Rotary

from coretrain.adapter_runs import settled
from coretrain.adapters import adapter_table, trained_table
from coretrain.checkpoint import Progress, interchange_of, load_interchange, newest_interchange, save_interchange
from coretrain.config import RunConfig
from coretrain.convert import export_run, import_run
from coretrain.parameters import initial_parameters
from parity.probes.sides import JAX, TORCH, logits_of

peft = pytest.importorskip("peft", reason="PEFT is the oracle: pip install peft accelerate")
transformers = pytest.importorskip("transformers")

LLAMA = {"model__norm": "rmsnorm", "model__position": "rope", "model__mlp": "swiglu", "model__bias": "false"}
LORA = {"adapter__kind": "lora", "adapter__rank": 4, "adapter__alpha": 12, "precision__compute": "float64"}
KINDS = {
    "llama, tied": LLAMA,
    "llama, all that it can have": LLAMA
    | {
        "model__tied": "false",
        "model__kv_heads": 2,
        "adapter__rslora": "true",
        "adapter__targets": "blocks.*.attention.*.weight,blocks.1.mlp.down.weight,embed.token,head.weight",
    },
    "llama, its biases": LLAMA | {"model__bias": "true", "adapter__bias": "all", "adapter__targets": "blocks.*.mlp.*"},
    "gpt2, tied": {"adapter__dropout": 0.1},
    "gpt2, q and v alone": {
        "adapter__rslora": "true",
        "adapter__targets": "blocks.*.attention.[qv].weight,blocks.0.attention.out.weight",
        "adapter__bias": "all",
    },
    "gpt2, biases beside": {"adapter__targets": "blocks.*.attention.v.weight", "adapter__bias": "lora_only"},
}


def write_run(folder: Path, config: RunConfig, tensors: dict[str, np.ndarray]) -> None:
    """A run that has only its newest state."""
    where = interchange_of(folder, "update-00000000")
    save_interchange(where, config, {"parameters": tensors}, Progress(), "import")
    (folder / "config.json").write_text(config.to_json())


@pytest.fixture
def made(small_config, tmp_path):
    """A function: the folders of a base and of an adapter on it, float64, no tensor of either like another."""

    def make(**fields: object) -> tuple[Path, Path]:
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        config = small_config(**(LORA | {"adapter__base": base} | fields))
        rng = np.random.default_rng(3)
        weights = {name: 3 * v.astype(np.float64) for name, v in initial_parameters(config.model, 1).items()}
        weights = {n: v + 0.1 * rng.standard_normal(v.shape) * n.endswith("bias") for n, v in weights.items()}
        write_run(base, small_config(**{k: v for k, v in fields.items() if not k.startswith("adapter")}), weights)
        config, _ = settled(config)
        tensors = {row.name: rng.standard_normal(row.shape) * 0.2 for row in trained_table(config)}
        write_run(adapter, config, tensors)
        return base, adapter

    return make


def parameters(run: Path) -> dict[str, np.ndarray]:
    return dict(load_interchange(newest_interchange(run)).groups["parameters"])


@pytest.fixture
def float64_oracle(monkeypatch):
    """Only the precision of the oracle is changed, not its algorithm."""
    module = transformers.models.llama.modeling_llama
    monkeypatch.setattr(module, "LlamaRMSNorm", Float64Norm)
    monkeypatch.setattr(module, "LlamaRotaryEmbedding", Float64Rotary)


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS.keys())
def test_peft_computes_the_same_and_bits_come_back(made, tmp_path, fields, float64_oracle):
    """Floors 1e-15; a scale of alpha / rank for rsLoRA's, or c_attn's blocks swapped, changes logits by 1e-1."""
    base, adapter = made(**fields)
    export_run(base, tmp_path / "hf", "hf")
    export_run(adapter, tmp_path / "peft", "peft")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="sdpa")
    model = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").eval()
    config = load_interchange(newest_interchange(adapter)).config
    tokens = np.random.default_rng(0).integers(0, config.model.vocabulary, (2, config.model.context))
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)).logits.numpy()
        merged = model.merge_and_unload()(torch.from_numpy(tokens)).logits.numpy()
    assert wanted.dtype == np.float64
    weights = {**parameters(base), **parameters(adapter)}
    for side in (TORCH, JAX):
        found = logits_of(side, side.trainer.Trainer(config, weights), tokens.astype(np.int32), None)
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        print(f"{side.name} {error:.1e}")
        assert error < 1e-13
    assert np.linalg.norm(merged - wanted) < 1e-12 * np.linalg.norm(wanted)
    given = RunConfig(adapter=config.adapter.model_copy(update={"kind": "none", "rank": 1, "targets": ("x",)}))
    import_run(tmp_path / "peft", tmp_path / "again", given)
    back = parameters(tmp_path / "again")
    assert back.keys() == parameters(adapter).keys()
    for name, value in parameters(adapter).items():
        assert back[name].dtype == value.dtype
        assert back[name].tobytes() == value.tobytes(), name
    again = load_interchange(newest_interchange(tmp_path / "again")).config
    assert [row.name for row in adapter_table(again)] == [row.name for row in adapter_table(config)]
    assert again.adapter.model_copy(update={"targets": ()}) == config.adapter.model_copy(update={"targets": ()})
