"""PEFT's names for the parameters of a Llama with adapters."""

from __future__ import annotations

PLACES = {
    "attention.q": "self_attn.q_proj", "attention.k": "self_attn.k_proj", "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj", "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
}  # fmt: skip


def peft_name(name, named):
    """PEFT's name of a canonical one."""
    module, _, leaf = name.rpartition(".adapter.") if ".adapter." in name else name.rpartition(".")
    if module.startswith("blocks."):
        _, layer, part = module.split(".", 2)
        stem = f"base_model.model.model.layers.{layer}.{PLACES[part]}"
    else:
        stem = "base_model.model." + {"embed": "model.embed_tokens", "head": "lm_head", "norm": "model.norm"}[module]
    if ".adapter." in name:
        kind = f"lora_embedding_{leaf.upper()}" if module == "embed" else f"lora_{leaf.upper()}"
        return f"{stem}.{kind}.default" + ("" if module == "embed" else ".weight")
    plain = f"{stem}.weight"
    return plain if plain in named else f"{stem}.base_layer.weight"
