"""The localizer on a pair that isn't ours: GPT-2's block of Hugging Face transformers, and one in JAX with a mistake.

`python -m parity.example [FOLDER]` names the mistake and leaves a picture. It needs `pip install -e '.[test]'`.
"""

import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from coretrain.taps import tap
from parity.localize import Report, hooked, localize


def jax_block(x, mask, exact_gelu, **w):
    """GPT-2's block on x [B, T, D]. With `exact_gelu` its GELU is the erf form, not the tanh form that GPT-2 has."""

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]  # transformers' Conv1D has [in, out], as JAX does

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return tap(name, centred * scale * w[f"{name}.weight"] + w[f"{name}.bias"])

    qkv = tap("attn.c_attn", linear(norm(x, "ln_1"), "attn.c_attn"))
    q, k, v = (part.reshape(*x.shape[:2], 4, -1) for part in jnp.split(qkv, 3, -1))
    scores = jnp.einsum("bthc,bshc->bhts", q, k) / math.sqrt(q.shape[-1]) + mask
    mixed = jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores), v).reshape(x.shape)
    x = x + tap("attn.c_proj", linear(mixed, "attn.c_proj"))
    up = tap("mlp.c_fc", linear(norm(x, "ln_2"), "mlp.c_fc"))
    return x + tap("mlp.c_proj", linear(tap("mlp.act", jax.nn.gelu(up, approximate=not exact_gelu)), "mlp.c_proj"))


def example(exact_gelu: bool = True) -> Report:
    """The report on the pair; with `exact_gelu=False` there's no mistake in it."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_head=4, n_layer=1, attn_implementation="eager")
    block = GPT2Block(config, layer_idx=0).eval()
    weights = {name: p.detach().numpy() + 0.1 * np.float32(p.std() == 0) for name, p in block.named_parameters()}
    mask = np.triu(np.full((16, 16), -1e9, np.float32), 1)[None, None]
    x = np.random.default_rng(0).standard_normal((2, 16, 32))

    def torch_block(x, mask, **weights):
        with hooked({block.get_submodule(n): n for n in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", *MLP)}):
            output = torch.func.functional_call(block, weights, (x,), {"attention_mask": mask})
        return output[0] if isinstance(output, tuple) else output

    MLP = ("mlp.c_fc", "mlp.act", "mlp.c_proj")
    inputs = {"x": x, "mask": mask, **weights}
    title = "GPT-2's block, transformers and JAX"
    return localize(
        torch_block, lambda **named: jax_block(exact_gelu=exact_gelu, **named), inputs, ["x", *weights], title
    )


if __name__ == "__main__":
    report = example()
    report.save(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"))
    report.show()
