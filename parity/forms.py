"""The two forms of a GPT that everything is judged in, whatever its size; without any framework."""

from typing import Any

Fields = dict[str, Any]
"""Fields of a config by their dotted names."""

GPT2_FORM: Fields = {
    "model.norm": "layernorm",
    "model.position": "learned",
    "model.mlp": "gelu",
    "model.bias": "true",
    "model.tied": "true",
}
LLAMA_FORM: Fields = {
    "model.norm": "rmsnorm",
    "model.position": "rope",
    "model.mlp": "swiglu",
    "model.bias": "false",
    "model.tied": "false",
}
