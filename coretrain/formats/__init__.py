"""Other people's files: Hugging Face, GGUF, PEFT."""
