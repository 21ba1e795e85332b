"""Every key that the installed transformers, PEFT and gguf read is in one of our lists: a new version's is noticed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import peft
import pytest
import torch
import transformers
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from coretrain.formats.gguf.keys import GENERAL, TOKENIZER
from coretrain.formats.gguf.keys import KEYS as GGUF
from coretrain.formats.huggingface.keys import ALIASES, ROPE, ROPE_OF_OTHERS, SAMPLING
from coretrain.formats.huggingface.keys import KEYS as HUGGINGFACE
from coretrain.formats.peft.config import KEYS as PEFT
from coretrain.formats.peft.config import TARGETS_OF_KIND
from tests.support.folders import write_folder

SMALL: dict[str, Any] = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    "gpt2": transformers.GPT2Config(n_embd=16, n_head=2, n_layer=1, n_positions=16, **SMALL),
    "llama": transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, **SMALL
    ),
}
kinds = pytest.mark.parametrize("kind", CONFIGS)


@kinds
def test_no_key_is_in_two_lists(kind: str) -> None:
    for keys in (HUGGINGFACE[kind], GGUF[kind], GENERAL, TOKENIZER, PEFT, SAMPLING):
        every = list(keys)
        assert sorted(every) == sorted(set(every))


@kinds
def test_fields_of_transformers_configs(kind: str) -> None:
    fields = {field.name for field in dataclasses.fields(type(CONFIGS[kind]))}
    fields |= set(transformers.GenerationConfig._get_default_generation_params())
    assert fields - set(HUGGINGFACE[kind]) == set()
    assert type(CONFIGS[kind]).attribute_map == ALIASES[kind]
    rope = set().union(*ROPE.values(), ROPE_OF_OTHERS) - {"type"}
    assert set(RopeParameters.__annotations__) == rope


@kinds
def test_what_transformers_reads_of_a_config(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is no field of the class: attributes looked for while a model is loaded, computes and generates."""
    write_folder(tmp_path, CONFIGS[kind])
    read, original = set[str](), PreTrainedConfig.__getattribute__

    def spy(self: Any, key: str) -> Any:
        read.add(key)
        return original(self, key)

    monkeypatch.setattr(PreTrainedConfig, "__getattribute__", spy)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(4)[None]
    model(ids, labels=ids)
    model.generate(ids, max_new_tokens=2, do_sample=False)
    monkeypatch.undo()

    def said(name: str) -> bool:
        """Whether a config.json can say it: no method, nothing that transformers keeps for itself."""
        held = getattr(type(CONFIGS[kind]), name, None)
        return not name.startswith("_") and not callable(held) and not isinstance(held, functools.cached_property)

    assert "is_causal" in read
    assert {name for name in read if said(name)} - set(HUGGINGFACE[kind]) <= OF_THE_CLASS


OF_THE_CLASS = {
    "default_theta", "ignore_keys_at_rope_validation", "is_heterogeneous", "sub_configs", "sub_configs_defaults",
}  # fmt: skip
"""What a config.json can't say: it is read before the file's own keys are set, or can't be set."""


def test_fields_of_generation_config() -> None:
    assert {key for key in vars(transformers.GenerationConfig()) if key != "_original_object_hash"} - set(
        SAMPLING
    ) == set()


def test_fields_of_peft() -> None:
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields == set(PEFT)
    defaults = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert {"rope": defaults["llama"], "learned": defaults["gpt2"]} == TARGETS_OF_KIND


def test_keys_of_gguf() -> None:
    """`UNREAD` are refused by name where a file has them; the rest is of other architectures than one's own."""
    found = {key.removeprefix("{arch}.") for key in constants(gguf.Keys) if key.startswith("{arch}.")}
    known = {key.split(".", 1)[1] for keys in GGUF.values() for key in keys}
    assert found - known == set(UNREAD.split())
    words = {key for key in constants(gguf.Keys.Tokenizer) if key.startswith("tokenizer.")}
    assert words == set(TOKENIZER)
    general = {key for key in constants(gguf.Keys.General) if key.startswith("general.sampling.")}
    assert general == {key for key in GENERAL if key.startswith("general.sampling.")}


def constants(names: type) -> Iterator[str]:
    """All texts of a class and of the classes within."""
    for name, value in vars(names).items():
        if isinstance(value, type):
            yield from constants(value)
        elif isinstance(value, str) and not name.startswith("__"):
            yield value


UNREAD = """
activation_sparsity_scale altup.active_idx altup.num_inputs attention.clamp_kqv attention.decay_lora_rank
attention.gate_lora_rank attention.group_norm_epsilon attention.group_norm_groups attention.iclr_lora_rank
attention.indexer.head_count attention.indexer.key_length attention.indexer.top_k attention.key_length_mla
attention.key_length_swa attention.kv_lora_rank attention.max_alibi_bias attention.output_scale attention.q_lora_rank
attention.relative_buckets_count attention.scale attention.shared_kv_layers attention.sliding_window
attention.sliding_window_pattern attention.temperature_length attention.temperature_scale attention.value_length_mla
attention.value_length_swa attention.value_residual_mix_lora_rank attn_logit_softcapping classifier.output_labels
convnext.block_count convnext.embedding_length decoder_block_count decoder_start_token_id embedding_length_out
embedding_length_per_layer_input embedding_scale expert_chunk_feed_forward_length expert_feed_forward_length
expert_gating_func expert_group_count expert_group_scale expert_group_used_count expert_shared_count
expert_shared_feed_forward_length expert_weights_norm expert_weights_scale experts_per_group features_length
final_logit_softcapping full_attention_interval interleave_moe_layer_step kda.head_dim leading_dense_block_count
logit_scale moe_every_n_layers moe_latent_size n_deepstack_layers nextn_predict_layers posnet.block_count
posnet.embedding_length rescale_every_n_layers residual_scale rope.dimension_count_swa rope.dimension_sections
rope.freq_base_swa rope.scaling.alpha rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast
rope.scaling.yarn_beta_slow rope.scaling.yarn_ext_factor rope.scaling.yarn_log_multiplier router_logit_softcapping
shortconv.l_cache ssm.conv_kernel ssm.dt_b_c_rms ssm.group_count ssm.inner_size ssm.state_size ssm.time_step_rank
swiglu_clamp_exp swiglu_clamp_shexp swin_norm time_decay_extra_dim time_mix_extra_dim token_shift_count
use_parallel_residual wkv.head_size {dense}_feat_in {dense}_feat_out
"""
