"""The two forms of a GPT that everything is judged in, whatever its size; without any framework."""

GPT2_FORM = {
    "model.norm": "layernorm",
    "model.position": "learned",
    "model.mlp": "gelu",
    "model.bias": "true",
    "model.tied": "true",
}
LLAMA_FORM = {
    "model.norm": "rmsnorm",
    "model.position": "rope",
    "model.mlp": "swiglu",
    "model.bias": "false",
    "model.tied": "false",
}
