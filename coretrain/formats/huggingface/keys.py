"""Every key of `config.json` and `generation_config.json` that transformers reads, and what becomes of it here.

A key in none of these lists is one that transformers' GPT-2 and Llama don't read either: it is named on import.
Sources: transformers' `configuration_utils.py`, `modeling_rope_utils.py`, `masking_utils.py`, `cache_utils.py`,
`configuration_gpt2.py`, `configuration_llama.py`, `generation/configuration_utils.py`, 5.24.
"""

from __future__ import annotations

from collections.abc import Collection

from coretrain.formats.keys import Keys

_OBEYED = ("model_type", "vocab_size", "initializer_range", "tie_word_embeddings", "layer_types")
_ONLY: dict[str, tuple[object, ...]] = {
    "is_causal": (True,),
    "is_encoder_decoder": (False, None),
    "per_layer_config": (None,),
    "quantization_config": (None,),
    "fusion_config": (None,),
    "transformers_weights": (None,),
    "sliding_window": (None,),
    "attention_chunk_size": (None,),
    "kv_sharing_modes": (None,),
    "text_config": (None,),
    "decoder": (None,),
    "generator": (None,),
    "text_encoder": (None,),
    "default_rope_type": ("default",),
}
_FROM_GENERATION = (
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "temperature", "top_k", "top_p",
    "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "epsilon_cutoff", "eta_cutoff", "encoder_repetition_penalty", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind",
    "diversity_penalty", "num_beam_groups",
)  # fmt: skip
_IDLE: dict[str, Collection[str]] = {
    "names and versions": (
        "architectures", "transformers_version", "name_or_path", "_name_or_path", "_commit_hash", "auto_map",
        "extra_files", "extra_config_files",
    ),
    "the weights keep the file's bits, and precision.compute says what is computed in": ("dtype", "torch_dtype"),
    "what is returned, not what is computed": (
        "output_hidden_states", "output_attentions", "return_dict", "use_return_dict", "use_cache",
        "tie_last_hidden_states", "output_cross_attentions",
    ),
    "how it is computed, by which kernel and on which devices": (
        "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
        "chunk_size_feed_forward", "distributed_config", "base_model_tp_plan", "base_model_fsdp_plan",
        "base_model_pp_plan", "base_model_ep_plan", "gradient_checkpointing", "disable_mmap",
    ),
    "of models for other tasks than language": (
        "id2label", "label2id", "num_labels", "problem_type", "vision_aspect_ratio", "vision_feature_layer",
        "vision_feature_select_strategy", "mtp_layer_types",
    ),
    "ids of special tokens are the tokenizer's": (
        "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    ),
    "transformers 5 takes them from generation_config.json alone": (*_FROM_GENERATION, "task_specific_params"),
}  # fmt: skip

GPT2 = Keys(
    obeyed=(
        *_OBEYED, "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon", "resid_pdrop",
        "embd_pdrop", "hidden_size", "max_position_embeddings", "num_attention_heads",
        "num_hidden_layers",
    ),
    only=_ONLY | {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    told={"attn_pdrop": (0.0,)},
    idle=_IDLE | {
        "the same numbers in another order, in half precision": ("reorder_and_upcast_attn",),
        "of GPT-2's model with a second head": (
            "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
            "summary_first_dropout", "summary_last_dropout",
        ),
        "n_positions counts": ("n_ctx",),
        "GPT-2 has no rotary positions": ("head_dim", "rope_parameters"),
    },
)  # fmt: skip
LLAMA = Keys(
    obeyed=(
        *_OBEYED, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "head_dim", "attention_bias", "mlp_bias",
        "rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings",
    ),
    only=_ONLY | {"hidden_act": ("silu", "swish"), "partial_rotary_factor": (1.0, None)},
    told={"attention_dropout": (0.0, None)},
    idle=_IDLE | {"transformers 5 computes all parts as one": ("pretraining_tp",)},
)  # fmt: skip
KEYS = {"gpt2": GPT2, "llama": LLAMA}
ALIASES = {
    "gpt2": {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    "llama": {},
}
"""Other names of a field. In transformers they win where a file has both."""
FULL_ATTENTION = ("full_attention", "attention")
"""What `layer_types` may say of a layer."""

_ROPE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}
"""Fields of model.rope_scaling and their names in Hugging Face's config."""
ROPE = {"default": _ROPE, "linear": (*_ROPE, "factor"), "llama3": (*_ROPE, *SCALING.values())}
"""Keys of `rope_parameters` that each kind of rotary positions reads."""
ROPE_OF_OTHERS = (
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    "short_factor", "long_factor", "mrope_section",
)  # fmt: skip
"""Those that other kinds read, which are refused: dynamic, yarn, longrope, proportional."""

ENDS = "eos_token_id"
SAMPLING = Keys(
    obeyed=(ENDS,),
    only={},
    told={
        "num_beams": (1, None),
        "num_beam_groups": (1, None),
        "repetition_penalty": (1.0, None),
        "encoder_repetition_penalty": (1.0, None),
        "length_penalty": (1.0, None),
        "diversity_penalty": (0.0, None),
        "no_repeat_ngram_size": (0, None),
        "encoder_no_repeat_ngram_size": (0, None),
        "typical_p": (1.0, None),
        "top_p": (1.0, None),
        "min_length": (0, None),
        "epsilon_cutoff": (0.0, None),
        "eta_cutoff": (0.0, None),
        "early_stopping": (False, None),
        "remove_invalid_values": (False, None),
        "renormalize_logits": (False, None),
        "token_healing": (False, None),
        **dict.fromkeys(
            (
                "do_sample", "temperature", "top_k", "min_p", "top_h", "min_new_tokens", "stop_strings",
                "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty",
                "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "guidance_scale", "watermarking_config",
                "assistant_ensemble_weight", "penalty_alpha", "dola_layers", "constraints", "force_words_ids",
            ),
            (None,),
        ),
    },
    idle={
        "how many tokens, and how many answers, is asked on the command line": (
            "max_length", "max_new_tokens", "max_time", "num_return_sequences",
        ),
        "how it is computed": (
            "use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory", "prefill_chunk_size",
            "compile_config", "disable_compile", "continuous_batching_config", "use_mtp",
        ),
        "a second model that guesses ahead changes no text": (
            "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
            "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
            "target_lookbehind", "speculation_type",
        ),
        "what is returned": (
            "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
        ),
        "ids of special tokens are the tokenizer's": ("pad_token_id", "bos_token_id", "decoder_start_token_id"),
        "names and versions": ("transformers_version", "_from_model_config", "_commit_hash"),
    },
)  # fmt: skip
"""generation_config.json. What it asks of sampling isn't kept in a run: what differs is said."""
