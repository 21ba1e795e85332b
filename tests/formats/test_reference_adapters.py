"""Adapters that PEFT loads are loaded to the same logits, or refused by name."""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import event, given, settings
from hypothesis import strategies as st

from coretrain.base.errors import UserError
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.formats.huggingface.weights import import_huggingface
from coretrain.formats.peft.reader import import_peft
from parity.probes.sides import TORCH, logits_of
from tests.support.folders import distance, write_folder

CAP = 1e-5
TINY: dict[str, Any] = {"vocab_size": 30, "bos_token_id": None, "eos_token_id": None}
BASES = {
    "llama": transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=16, attention_bias=True, mlp_bias=True, **TINY,
    ),
    "gpt2": transformers.GPT2Config(n_embd=16, n_head=2, n_layer=2, n_positions=16, **TINY),
}  # fmt: skip
MODULES = {
    "llama": [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "self_attn.q_proj",
        "lm_head",
    ],
    "gpt2": ["c_attn", "attn.c_proj", "mlp.c_proj", "c_proj", "c_fc", "wte"],
}
IDS = torch.from_numpy(np.random.default_rng(2).integers(0, 30, (2, 9)))


@functools.cache
def base(kind: str) -> tuple[str, ModelConfig, Mapping[str, np.ndarray]]:
    """A folder of a base (it goes with the process), and what we read of it."""
    folder = tempfile.TemporaryDirectory()
    KEPT.append(folder)
    write_folder(Path(folder.name), BASES[kind])
    model, tensors = import_huggingface(Path(folder.name))
    return folder.name, model, dict(tensors)


KEPT: list[Any] = []


def theirs(kind: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base(kind)[0], attn_implementation="sdpa")


@st.composite
def adapters(draw: Callable[[Any], Any]) -> tuple[str, dict[str, Any]]:
    """A base and the fields of an adapter on it."""
    kind = draw(st.sampled_from(list(BASES)))
    names = draw(st.lists(st.sampled_from(MODULES[kind]), min_size=1, max_size=3, unique=True))
    targets = draw(st.sampled_from([names, "all-linear", rf".*\.1\..*\.({'|'.join(n.split('.')[-1] for n in names)})"]))
    fields = {
        "r": draw(st.integers(1, 4)),
        "lora_alpha": draw(st.sampled_from([1, 5, 2.5])),
        "target_modules": targets,
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.integers(0, 3)) == 0,
        "bias": draw(st.sampled_from(["none", "none", "all", "lora_only"])),
        "init_lora_weights": draw(st.sampled_from([True, False, "gaussian", "orthogonal"])),
    }
    if isinstance(targets, list):
        fields["layers_to_transform"] = draw(st.sampled_from([None, 1, [0], [0, 1]]))
    fields["exclude_modules"] = draw(st.sampled_from([None, None, ["k_proj"], r".*\.0\..*"]))
    return kind, fields


EDITS: dict[str, list[Any]] = {
    "r": [1, 3, None],
    "lora_alpha": [1, 7.5, -1, 0],
    "use_rslora": [True, False, None],
    "use_dora": [True, False],
    "bias": ["none", "all", "lora_only"],
    "fan_in_fan_out": [True, False],
    "target_modules": [None, ["q_proj", "c_attn"], "all-linear", []],
    "exclude_modules": [None, ["q_proj"], "x"],
    "layers_to_transform": [None, 0, [1], []],
    "layers_pattern": [None, "layers", ["h"]],
    "rank_pattern": [{}, {"q_proj": 2}, {".*": 2}],
    "alpha_pattern": [{}, {"q_proj": 9}, {".*": 9}, {"^model.layers.0": 3}],
    "init_lora_weights": [True, False, None, "gaussian", "eva", "mica", "pissa"],
    "modules_to_save": [None, [], ["lm_head"]],
    "task_type": [None, "CAUSAL_LM"],
    "lora_bias": [False, True],
    "lora_dropout": [0.0, 0.5],
    "trainable_token_indices": [None, [1]],
    "ensure_weight_tying": [True],
    "alora_invocation_tokens": [None, [1]],
    "inference_mode": [True, False],
    "megatron_core": ["x"],
    "qalora_group_size": [4],
    "use_qalora": [True],
    "revision": ["main"],
    "unheard_of": [1],
}
"""What adapter_config.json is changed to say."""


LIMITS = {"adapters/lora-bias-layers-differ", "adapters/target-is-tied-embedding"}
"""What of PEFT's own adapters the contract can't hold."""


@st.composite
def edits(draw: Callable[[Any], Any]) -> dict[str, Any]:
    """None to two keys with a value each."""
    keys = draw(st.lists(st.sampled_from(list(EDITS)), max_size=2, unique=True))
    return {key: draw(st.sampled_from(EDITS[key])) for key in keys}


def write_adapter(folder: Path, kind: str, fields: dict[str, Any]) -> None:
    """As PEFT writes it, no tensor of it zero."""
    model = peft.get_peft_model(theirs(kind), peft.LoraConfig(task_type="CAUSAL_LM", **fields))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder, save_embedding_layers=False)


def reference(folder: Path, kind: str) -> torch.Tensor | None:
    """PEFT's logits; None where it left a tensor out or made one up."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(theirs(kind), folder).eval()
    wrong = [str(one.message) for one in said if "missing" in str(one.message) or "unexpected" in str(one.message)]
    with torch.no_grad():
        return None if wrong else model(IDS).logits


def ours(folder: Path, kind: str) -> torch.Tensor | UserError:
    """Our logits, or why there are none."""
    _, model, weights = base(kind)
    try:
        config, tensors = import_peft(folder, RunConfig(model=model), lambda: weights)
    except UserError as refusal:
        return refusal
    trainer = TORCH.trainer.Trainer(config, {**weights, **tensors})
    return torch.from_numpy(np.array(logits_of(TORCH, trainer, IDS.numpy().astype(np.int32), None)))


def equal_or_refused(adapter: tuple[str, dict[str, Any]], change: dict[str, Any]) -> None:
    kind, fields = adapter
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(place)
        try:
            write_adapter(folder, kind, fields)
        except ValueError:  # names that no module has
            event("no such module")
            return
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        try:
            wanted = reference(folder, kind)
        except Exception:  # PEFT refuses it in its own ways
            event("PEFT refuses it")
            return
        found = ours(folder, kind)
        if isinstance(found, UserError):
            event(f"refused: {found.code}")
            assert change or found.code in LIMITS, found
            return
        event("loaded")
        assert wanted is not None, "loaded, though PEFT leaves a tensor out or makes one up"
        assert distance(found, wanted) < CAP


CHANGED = given(adapters(), edits())


@settings(max_examples=20, deadline=None, derandomize=True)
@CHANGED
def test_adapters_give_the_same_logits_or_are_refused(adapter: Any, change: dict[str, Any]) -> None:
    equal_or_refused(adapter, change)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@CHANGED
def test_many_adapters_give_the_same_logits_or_are_refused(adapter: Any, change: dict[str, Any]) -> None:
    equal_or_refused(adapter, change)
