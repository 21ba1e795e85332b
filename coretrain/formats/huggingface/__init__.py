"""Folders of Hugging Face: config, weights, tokenizer, model card."""
