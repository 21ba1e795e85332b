"""Pairs that other people wrote, small and with random weights: run in an environment of their own.

transformers 4.57.6 is the last that has Flax models; docs/bring-your-own.md says how the environment is made.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


def ids(rows: int = 2, length: int = 10, vocabulary: int = 64) -> np.ndarray:
    """Token ids [rows, length]."""
    return np.random.default_rng(1).integers(3, vocabulary, (rows, length))


def _config(kind: str, **more: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**more)
    config._attn_implementation = "eager"
    return config


MISTRAL = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "sliding_window": 4,
}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
ELECTRA = {
    "vocab_size": 64, "hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip


def mistral() -> Any:
    """Torch's Mistral, window 4."""
    import transformers

    return transformers.MistralForCausalLM(_config("Mistral", **MISTRAL))


def flax_mistral() -> Any:
    """Flax's Mistral."""
    import transformers

    return transformers.FlaxMistralForCausalLM(_config("Mistral", **MISTRAL), seed=0)


def gpt2() -> Any:
    """Torch's GPT-2."""
    import transformers

    return transformers.GPT2LMHeadModel(_config("GPT2", **GPT2))


def flax_gpt2() -> Any:
    """Flax's GPT-2."""
    import transformers

    return transformers.FlaxGPT2LMHeadModel(_config("GPT2", **GPT2), seed=0)


def electra() -> Any:
    """Torch's Electra."""
    import transformers

    return transformers.ElectraForMaskedLM(_config("Electra", **ELECTRA))


def flax_electra() -> Any:
    """Flax's Electra."""
    import transformers

    return transformers.FlaxElectraForMaskedLM(_config("Electra", **ELECTRA), seed=0)


def converter(make: Any) -> Any:
    """transformers' own converter of weights, for the Flax model that `make` makes."""

    def convert(state: dict[str, Any]) -> Any:
        from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

        return convert_pytorch_state_dict_to_flax(dict(state), make())

    return functools.wraps(make)(convert)


def convert_mistral(state: dict[str, Any]) -> Any:
    """Torch's state dict of Mistral as Flax's tree."""
    return converter(flax_mistral)(state)


def convert_gpt2(state: dict[str, Any]) -> Any:
    """Torch's state dict of GPT-2 as Flax's tree."""
    return converter(flax_gpt2)(state)


def convert_electra(state: dict[str, Any]) -> Any:
    """Torch's state dict of Electra as Flax's tree."""
    return converter(flax_electra)(state)


MAMBA2 = {"vocab_size": 64, "hidden_size": 16, "state_size": 8, "head_dim": 8, "num_hidden_layers": 2, "chunk_size": 4}


def mamba2() -> Any:
    """Torch's Mamba-2, of transformers."""
    import transformers

    config = transformers.Mamba2Config(**MAMBA2, expand=2, num_heads=4, n_groups=1, tie_word_embeddings=True)
    return transformers.Mamba2ForCausalLM(config)


def jax_mamba2() -> Any:
    """mamba2-jax's, in NNX."""
    import mamba2_jax
    from flax import nnx

    return mamba2_jax.Mamba2ForCausalLM(mamba2_jax.Mamba2Config(**MAMBA2), rngs=nnx.Rngs(0))


def convert_mamba2(state: dict[str, Any]) -> Any:
    """Torch's state dict of Mamba-2 as NNX's tree, by mamba2-jax's own loader."""
    import mamba2_jax
    from flax import nnx

    model, _, _ = mamba2_jax.load_pytorch_weights(jax_mamba2(), {name: v.numpy() for name, v in state.items()})
    return nnx.to_pure_dict(nnx.split(model)[1])


def judged(kind: str, length: int, masked_row: bool = False) -> dict[str, Any]:
    """The verdict on a pair, as what can be printed."""
    import torch

    from parity.pairs import localize_models
    from parity.pairs.jax_side import model_of
    from parity.pairs.propose import proposed

    torch.manual_seed(0)
    own = globals()
    module = own[kind]()
    model = model_of(own[f"{'jax' if kind == 'mamba2' else 'flax'}_{kind}"]())
    made = proposed(module, model, own[f"convert_{kind}"])
    given = {"input_ids": ids(2, length)}
    if masked_row:
        given["attention_mask"] = np.array([[1] * length, [0] * length])
    report = localize_models(module, model, made, given)
    return {"kind": report.verdict.kind, "tap": report.verdict.tap, "notes": report.notes}


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(judged(sys.argv[1], int(sys.argv[2]), "masked" in sys.argv[3:])))
