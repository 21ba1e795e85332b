"""A model's config to and from Hugging Face's `config.json`: which switches its architectures have, under what names.

Sources: transformers' `configuration_gpt2.py` and `configuration_llama.py`, 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.config.load import build_config
from coretrain.config.model import ModelConfig


def architecture(m: ModelConfig) -> str:
    """`gpt2` or `llama`, whichever computes what `m` says; `UserError` naming the field that neither can do."""
    wanted: dict[str, dict[str, Any]] = {
        "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": True},
        "llama": {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu"},
    }
    name = "gpt2" if m.position == "learned" else "llama"
    for field, value in wanted[name].items():
        if getattr(m, field) != value:
            raise UserError(
                "formats/hf-model-field-unsupported",
                f"model.{field} = {_toml(getattr(m, field))} can't be exported: model.position = {m.position} makes it "
                f"Hugging Face's {name} architecture, which has {field} = {_toml(value)}",
            )
    if name == "gpt2" and m.kv != m.heads:
        raise UserError(
            "formats/gpt2-kv-heads-unsupported",
            f"model.kv_heads = {m.kv} can't be exported: Hugging Face's gpt2 has as many as heads",
        )
    if name == "gpt2" and m.heads * m.head != m.width:
        raise UserError(
            "formats/gpt2-head-width-unsupported",
            f"model.head_width = {m.head} can't be exported: Hugging Face's gpt2 has width / heads",
        )
    if m.width % m.heads:
        raise UserError(
            "formats/hf-heads-not-dividing",
            f"model.heads = {m.heads} can't be exported: Hugging Face wants heads that divide model.width",
        )
    return name


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def hf_config(m: ModelConfig, dtype: str, roles: Mapping[str, int]) -> dict[str, Any]:
    """The content of `config.json`, `roles` the ids of special tokens. What transformers 5 renamed has both names."""
    common = {
        "vocab_size": m.vocabulary,
        "tie_word_embeddings": m.tied,
        "initializer_range": m.init_std,
        "bos_token_id": roles.get("bos"),
        "eos_token_id": roles.get("eos"),
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if architecture(m) == "gpt2":
        return common | {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_positions": m.context,
            "n_embd": m.width,
            "n_layer": m.layers,
            "n_head": m.heads,
            "n_inner": m.hidden,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": m.norm_eps,
            "resid_pdrop": m.residual_dropout,
            "embd_pdrop": m.embedding_dropout,
            "attn_pdrop": 0.0,
        }
    scaling = _rope_scaling(m)
    return common | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": m.context,
        "hidden_size": m.width,
        "intermediate_size": m.hidden,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "num_key_value_heads": m.kv,
        "head_dim": m.head,
        "hidden_act": "silu",
        "rms_norm_eps": m.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": m.rope_theta} | scaling,
        "rope_theta": m.rope_theta,
        **({"rope_scaling": scaling} if scaling else {}),
        "attention_bias": m.bias,
        "mlp_bias": m.bias,
        "attention_dropout": 0.0,
    }


SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}
"""Fields of model.rope_scaling and their names in Hugging Face's config."""


def _rope_scaling(m: ModelConfig) -> dict[str, Any]:
    """What a Llama's config says of scaled rotary positions; nothing where they aren't."""
    if m.rope_scaling is None:
        return {}
    names = SCALING if m.rope_scaling.type == "llama3" else {"factor": "factor"}
    fields = {theirs: getattr(m.rope_scaling, ours) for ours, theirs in names.items()}
    return {"rope_type": m.rope_scaling.type} | fields


def _from_rope_scaling(raw: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """model.rope_scaling, of `rope_parameters` (transformers 5) or `rope_scaling` (before)."""
    _require(raw, path, partial_rotary_factor=(1.0,))
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise UserError(
            "formats/hf-rope-type-unsupported",
            f"{path}: rope_type = {kind!r} can't be imported: 'default', 'linear' and 'llama3' can",
        )
    names = SCALING if kind == "llama3" else {"factor": "factor"}
    return {"type": kind} | {ours: raw[theirs] for ours, theirs in names.items()}


def model_config(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    """The contract's model for a Hugging Face `config.json`; `UserError` naming the field that it doesn't have."""
    kind = raw.get("model_type")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            "formats/hf-model-type-unsupported",
            f"{path}: model_type = {kind} can't be imported: gpt2 and llama can",
        )
    try:
        fields = _from_gpt2(raw, path) if kind == "gpt2" else _from_llama(raw, path)
        fields |= {"vocab": raw["vocab_size"], "init_std": raw.get("initializer_range", 0.02)}
    except KeyError as missing:
        raise UserError("formats/hf-field-missing", f"{path} lacks the field {missing.args[0]}") from None
    except (TypeError, AttributeError, ArithmeticError) as error:  # a text or a list for a number, no heads at all
        raise UserError(
            "formats/hf-field-wrong-kind", f"{path} has a field of the wrong kind ({error}): download it again"
        ) from None
    return build_config({"model": fields}, str(path)).model


def _require(raw: Mapping[str, Any], path: Path, **allowed: tuple[object, ...]) -> None:
    """Refuse a field whose value is none of those allowed; the first one is what its absence means."""
    for field, values in allowed.items():
        if raw.get(field, values[0]) not in values:
            raise UserError(
                "formats/hf-value-unsupported",
                f"{path}: {field} = {raw[field]!r} can't be imported: the contract has {values[0]!r}",
            )


def _from_gpt2(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    _require(
        raw,
        path,
        activation_function=("gelu_new", "gelu_pytorch_tanh"),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    return {
        "layers": raw["n_layer"],
        "width": raw["n_embd"],
        "heads": raw["n_head"],
        "mlp_width": raw.get("n_inner") or 4 * raw["n_embd"],
        "context": raw["n_positions"],
        "norm_eps": raw.get("layer_norm_epsilon", 1e-5),
        "tied": raw.get("tie_word_embeddings", True),
        "residual_dropout": raw.get("resid_pdrop", 0.1),
        "embedding_dropout": raw.get("embd_pdrop", 0.1),
    }


def _from_llama(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    bias = raw.get("attention_bias", False)
    if raw.get("mlp_bias", False) != bias:
        raise UserError(
            "formats/hf-biases-differ",
            f"{path}: attention_bias and mlp_bias differ: the contract has biases everywhere or nowhere",
        )
    _require(raw, path, hidden_act=("silu",))
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    width, heads = raw["hidden_size"], raw["num_attention_heads"]
    head = raw.get("head_dim") or width // heads
    return {
        "layers": raw["num_hidden_layers"],
        "width": width,
        "heads": heads,
        "kv_heads": raw.get("num_key_value_heads") or heads,
        "head_width": None if head * heads == width else head,
        "mlp_width": raw["intermediate_size"],
        "context": raw["max_position_embeddings"],
        "norm": "rmsnorm",
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        "position": "rope",
        "rope_theta": rope.get("rope_theta") or raw.get("rope_theta") or 10000.0,
        "rope_scaling": _from_rope_scaling(rope, path),
        "mlp": "swiglu",
        "bias": bias,
        "tied": raw.get("tie_word_embeddings", False),
    }
