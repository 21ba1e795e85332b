"""A model's config to and from Hugging Face's `config.json`: which switches its architectures have, under what names.

Sources: transformers' `configuration_gpt2.py`, `configuration_llama.py` and `modeling_rope_utils.py`, 5.24.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.config.load import build_config
from coretrain.config.model import ModelConfig
from coretrain.formats.huggingface.keys import ALIASES, FULL_ATTENTION, KEYS, ROPE, SCALING
from coretrain.formats.keys import worded

CLASSIFIER = "ForSequenceClassification"
"""Ends the names of transformers' models with a score head."""


def architecture(m: ModelConfig) -> str:
    """`gpt2` or `llama`, whichever computes what `m` says; `UserError` naming the field that neither can do."""
    wanted: dict[str, dict[str, Any]] = {
        "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": True},
        "llama": {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu"},
    }
    name = "gpt2" if m.position == "learned" else "llama"
    for key, value in wanted[name].items():
        if getattr(m, key) != value:
            raise UserError(
                "formats/hf-model-field-unsupported",
                f"model.{key} = {_toml(getattr(m, key))} can't be exported: model.position = {m.position} makes it "
                f"Hugging Face's {name} architecture, which has {key} = {_toml(value)}",
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
    common: dict[str, Any] = {
        "vocab_size": m.vocabulary,
        "tie_word_embeddings": m.tied,
        "initializer_range": m.init_std,
        "bos_token_id": roles.get("bos"),
        "eos_token_id": roles.get("eos"),
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if m.score_head:  # one label, whose number is the score; pooled at the last token that isn't padding
        pad = roles.get("pad")  # where it is the end too, the score would be read before the end: then none
        pad = None if pad == roles.get("eos") else pad
        common |= {"id2label": {"0": "score"}, "label2id": {"score": 0}, "pad_token_id": pad}
    if architecture(m) == "gpt2":
        return common | {
            "architectures": [f"GPT2{CLASSIFIER}" if m.score_head else "GPT2LMHeadModel"],
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
        "architectures": [f"Llama{CLASSIFIER}" if m.score_head else "LlamaForCausalLM"],
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


def _rope_scaling(m: ModelConfig) -> dict[str, Any]:
    """What a Llama's config says of scaled rotary positions; nothing where they aren't."""
    if m.rope_scaling is None:
        return {}
    names = SCALING if m.rope_scaling.type == "llama3" else {"factor": "factor"}
    fields = {theirs: getattr(m.rope_scaling, ours) for ours, theirs in names.items()}
    return {"rope_type": m.rope_scaling.type} | fields


@dataclass(frozen=True)
class _Fields:
    """A `config.json`, its fields taken out by kind: `UserError` names one that is missing or of another kind."""

    raw: Mapping[str, Any]
    path: Path
    where: str = ""
    """Name of the section that holds them, with its dot."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The names under which the file has fields, where they have several."""

    def count(self, key: str, absent: int | None = None) -> int:
        """A whole number above 0."""
        value = self._value(key, absent)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._wrong(key, value, "a whole number above 0")
        return value

    def real(self, key: str, absent: float | None = None) -> float:
        """A number."""
        value = self._value(key, absent)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < math.inf:
            raise self._wrong(key, value, "a number")
        return value

    def flag(self, key: str, absent: bool) -> bool:
        """True or false."""
        value = self._value(key, absent)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def _value(self, key: str, absent: object) -> Any:
        if key not in self.raw and absent is None:
            raise UserError("formats/hf-field-missing", f"{self.path} lacks the field {self.where}{key}")
        return self.raw.get(key, absent)

    def _wrong(self, key: str, value: object, kind: str) -> UserError:
        return UserError(
            "formats/hf-field-wrong-kind",
            f"{self.path}: {self.where}{self.names.get(key, key)} = {value!r}, where {kind} belongs: write the one "
            "that the weights were trained with",
        )


def model_config(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    """The contract's model for a Hugging Face `config.json`; `UserError` naming the field that it doesn't have.

    A tied head is what the file says: the weights may hold another.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in KEYS:
        raise UserError(
            "formats/hf-model-type-unsupported",
            f"{path}: model_type = {kind} can't be imported: gpt2 and llama can",
        )
    names = {key: alias for alias, key in ALIASES[kind].items() if alias in raw}
    raw = dict(raw) | {key: raw[alias] for key, alias in names.items()}
    if _reaches(raw.get("sliding_window"), raw.get("max_position_embeddings")):
        raw["sliding_window"] = None  # no row is as long as to leave it
    if key := KEYS[kind].unsupported(raw):
        raise UserError(
            "formats/hf-value-unsupported",
            f"{path}: {key} = {raw[key]!r} can't be imported: the contract has {KEYS[kind].only[key][0]!r}",
        )
    layers = raw.get("layer_types")
    if layers is not None and not (isinstance(layers, list) and all(one in FULL_ATTENTION for one in layers)):
        raise UserError(
            "formats/hf-layer-types-unsupported",
            f"{path}: layer_types = {layers!r} can't be imported: every layer of the contract has full_attention",
        )
    given = _Fields(raw, path, names=names)
    fields = _from_gpt2(given) if kind == "gpt2" else _from_llama(given)
    fields |= {"vocab": given.count("vocab_size"), "init_std": given.real("initializer_range", 0.02)}
    return build_config({"model": fields}, str(path)).model


def is_classifier(raw: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of a sequence classifier, such as a reward model."""
    named = raw.get("architectures")
    return isinstance(named, list) and any(isinstance(name, str) and name.endswith(CLASSIFIER) for name in named)


def _reaches(window: object, context: object) -> bool:
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (window, context))
    return whole and window >= context  # type: ignore[operator]  # both are whole numbers


def _from_gpt2(given: _Fields) -> dict[str, Any]:
    width = given.count("n_embd")
    return {
        "layers": given.count("n_layer"),
        "width": width,
        "heads": given.count("n_head"),
        "mlp_width": given.count("n_inner") if given.raw.get("n_inner") is not None else 4 * width,
        "context": given.count("n_positions"),
        "norm_eps": given.real("layer_norm_epsilon", 1e-5),
        "tied": given.flag("tie_word_embeddings", True),
        "residual_dropout": given.real("resid_pdrop", 0.1),
        "embedding_dropout": given.real("embd_pdrop", 0.1),
    }


def _from_llama(given: _Fields) -> dict[str, Any]:
    bias = given.flag("attention_bias", False)
    if given.flag("mlp_bias", False) != bias:
        raise UserError(
            "formats/hf-biases-differ",
            f"{given.path}: attention_bias and mlp_bias differ: the contract has biases everywhere or nowhere",
        )
    width, heads = given.count("hidden_size"), given.count("num_attention_heads")
    head = given.count("head_dim") if given.raw.get("head_dim") is not None else width // heads
    return {
        "layers": given.count("num_hidden_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": given.count("num_key_value_heads") if given.raw.get("num_key_value_heads") is not None else heads,
        "head_width": None if head * heads == width else head,
        "mlp_width": given.count("intermediate_size"),
        "context": given.count("max_position_embeddings"),
        "norm": "rmsnorm",
        "norm_eps": given.real("rms_norm_eps", 1e-6),
        "position": "rope",
        **_rotary(given),
        "mlp": "swiglu",
        "bias": bias,
        "tied": given.flag("tie_word_embeddings", False),
    }


def rotary_section(raw: Mapping[str, Any]) -> tuple[str, Any]:
    """The section of a Llama's config that says its rotary positions, and its name.

    transformers 5 reads `rope_scaling` in place of `rope_parameters` where a file has both.
    """
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    return name, raw.get(name) or {}


def _rotary(given: _Fields) -> dict[str, Any]:
    name, rope = rotary_section(given.raw)
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise UserError(
            "formats/hf-rope-wrong-kind",
            f"{given.path}: {name} = {rope!r} can't be imported: one set of numbers for all layers can",
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE:
        raise UserError(
            "formats/hf-rope-type-unsupported",
            f"{given.path}: {name}.rope_type = {kind!r} can't be imported: {', '.join(map(repr, ROPE))} can",
        )
    if rope.get("partial_rotary_factor") not in (1.0, None):
        raise UserError(
            "formats/hf-partial-rotary-unsupported",
            f"{given.path}: {name}.partial_rotary_factor = {rope['partial_rotary_factor']!r} can't be imported: the "
            "contract rotates whole heads",
        )
    section = _Fields(rope, given.path, f"{name}.")
    theta = section.real("rope_theta") if "rope_theta" in rope else given.real("rope_theta", 10000.0)
    if kind == "default":
        return {"rope_theta": theta}
    scaling: dict[str, Any] = {"type": kind, "factor": section.real("factor")}
    if kind == "llama3":
        scaling |= {key: section.real(key) for key in ("low_freq_factor", "high_freq_factor")}
        original = SCALING["original_context"]  # beside the section it counts more than in it
        outer = given if original in given.raw else section
        scaling["original_context"] = outer.count(original, given.count("max_position_embeddings"))
    return {"rope_theta": theta, "rope_scaling": scaling}


def config_remarks(raw: Mapping[str, Any], model: ModelConfig) -> list[str]:
    """What a `config.json` says and the import doesn't follow, or follows as transformers does: sentences to print."""
    keys, remarks = KEYS[raw["model_type"]], list[str]()
    if left := keys.not_followed(raw):
        remarks.append(f"config.json has {worded(raw, left)}, which isn't followed: the contract has no dropout there")
    if raw.get("tie_word_embeddings", raw["model_type"] == "gpt2") and not model.tied:
        remarks.append(
            "its lm_head.weight isn't its embedding, though tie_word_embeddings = true: the head is kept, untied, as "
            "transformers does"
        )
    unread = keys.unknown(raw)
    if raw["model_type"] == "llama":
        name, rope = rotary_section(raw)
        read = ROPE[rope.get("rope_type", rope.get("type", "default"))]
        unread += [f"{name}.{key}" for key in rope if key not in read]
        other = raw.get("rope_parameters")
        theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
        if name == "rope_scaling" and other and other not in (rope, rope | {"rope_theta": theta}):
            remarks.append(
                "config.json has rope_scaling, which is followed, and rope_parameters, which isn't, as in transformers"
            )
    if unread:
        remarks.append(
            f"config.json has {', '.join(unread)}, which isn't read: transformers' {raw['model_type']} doesn't either"
        )
    return remarks
