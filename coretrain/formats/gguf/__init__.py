"""GGUF files, as llama.cpp has them."""
