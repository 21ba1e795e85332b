"""The localizer on a pair that isn't ours: GPT-2's block of Hugging Face transformers, and one in JAX with a mistake.

`python -m parity.localize.example` names the mistake and leaves a picture in runs/example; it needs
`pip install -e '.[test]'`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from coretrain.contract.taps import tap
from parity.localize.pairs import localize_module
from parity.localize.show import Report


def jax_block(hidden_states, attention_mask, exact_gelu=True, **w):
    """GPT-2's block on [B, T, D]; with `exact_gelu` its GELU is the erf form, not the tanh form that GPT-2 has."""

    def linear(x, name):
        return tap(name, x @ w[f"{name}.weight"] + w[f"{name}.bias"])  # transformers' Conv1D has [in, out], as JAX does

    def norm(x, name):
        return tap(name, jax.nn.standardize(x, epsilon=1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"])

    x, qkv = hidden_states, linear(norm(hidden_states, "ln_1"), "attn.c_attn")
    q, k, v = (part.reshape(*x.shape[:2], 4, -1) for part in jnp.split(qkv, 3, -1))
    scores = jnp.einsum("bthc,bshc->bhts", q, k) * q.shape[-1] ** -0.5 + attention_mask
    x = x + linear(jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores), v).reshape(x.shape), "attn.c_proj")
    up = linear(norm(x, "ln_2"), "mlp.c_fc")
    return x + linear(tap("mlp.act", jax.nn.gelu(up, approximate=not exact_gelu)), "mlp.c_proj")


def example(exact_gelu: bool = True) -> Report:
    """The report on the pair; with `exact_gelu=False` there's no mistake in it."""
    eager: Any = {"attn_implementation": "eager"}  # which its signature hides among **kwargs
    config = GPT2Config(n_embd=32, n_head=4, n_layer=1, **eager)
    block = GPT2Block(config, layer_idx=0).eval()
    x, mask = np.random.default_rng(0).standard_normal((2, 16, 32)), np.triu(np.full((16, 16), -1e9), 1)[None, None]
    taps = "ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj"
    theirs = functools.partial(jax_block, exact_gelu=exact_gelu)
    return localize_module(block, theirs, {"hidden_states": x, "attention_mask": mask}, taps)


if __name__ == "__main__":
    report = example()
    report.save(Path("runs/example"))
    report.show()
