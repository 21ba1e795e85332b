"""Every key of a GGUF file's metadata for the architectures llama and gpt2, and what becomes of it here.

A key of the architecture that is in none of these lists is refused: whether it changes a number isn't known. Keys of
other programs (their first word is neither the architecture nor one of those below) are read by nobody.
Sources: llama.cpp's `llama-model.cpp`, `models/llama.cpp`, `models/gpt2.cpp`; `constants.py` of the package gguf 0.19.
"""

from __future__ import annotations

from coretrain.formats.keys import Keys

GENERAL = Keys(
    obeyed=("general.architecture", "general.alignment", "split.count"),
    only={"general.type": ("model",)},
    told=dict.fromkeys(
        (f"general.sampling.{name}" for name in (
            "sequence", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold", "temp", "penalty_last_n",
            "penalty_repeat", "mirostat", "mirostat_tau", "mirostat_eta",
        )),
        (),
    ),
    idle={},
)  # fmt: skip
"""What every architecture has; the rest of `general.` says who made the file, of what, under which licence."""
_IDS = "tokenizer.ggml.{}_token_id"
ENDS = tuple(_IDS.format(name) for name in ("eos", "eot", "eom"))
"""Ids at which llama.cpp ends a text."""
TOKENIZER = Keys(
    obeyed=(
        *(f"tokenizer.ggml.{name}" for name in (
            "model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix",
        )),
        *(_IDS.format(name) for name in ("bos", "unknown", "padding")), *ENDS, "tokenizer.chat_template",
    ),
    only={},
    told=dict.fromkeys((f"tokenizer.ggml.add_{name}_token" for name in ("bos", "eos", "sep")), (False,)),
    idle={
        "of kinds of tokenizers that are refused": (
            "tokenizer.ggml.token_type_count", "tokenizer.ggml.remove_extra_whitespaces",
            "tokenizer.ggml.precompiled_charsmap", "tokenizer.rwkv.world",
        ),
        "the same tokenizer in another form": ("tokenizer.huggingface.json",),
        "other templates than the default one": ("tokenizer.chat_templates", "tokenizer.chat_template.{name}"),
        "ids of tokens for other tasks": tuple(_IDS.format(name) for name in (
            "seperator",  # codespell:ignore seperator
            "mask", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
            "prefix", "suffix", "middle",
        )),
    },
)  # fmt: skip
"""What becomes of the tokenizer's keys."""
OBEYED = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
)  # fmt: skip
ONLY: dict[str, tuple[object, ...]] = {"expert_count": (0,), "attention.causal": (True,)}
IDLE = {
    "rows of the token embedding": ("vocab_size",),
    "a note of who wrote the file": ("tensor_data_layout", "rope.scaling.finetuned"),
    "of embeddings of whole texts": ("pooling_type",),
    "of experts, of which there are none": ("expert_used_count",),
    "YaRN alone uses it": ("rope.scaling.original_context_length",),
}


def _of(architecture: str, obeyed: tuple[str, ...], only: dict[str, tuple[object, ...]]) -> Keys:
    return Keys(
        obeyed=[f"{architecture}.{key}" for key in (*OBEYED, *obeyed)],
        only={f"{architecture}.{key}": values for key, values in (ONLY | only).items()},
        idle={reason: [f"{architecture}.{key}" for key in keys] for reason, keys in IDLE.items()},
    )


KEYS = {
    "gpt2": _of("gpt2", ("attention.layer_norm_epsilon",), {}),
    "llama": _of(
        "llama",
        (
            "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scaling.factor",
            "rope.scale_linear",
        ),
        {
            "rope.scaling.type": ("none", "default", "linear"),
            "rope.scaling.attn_factor": (1.0,),
        },
    ),
}  # fmt: skip
