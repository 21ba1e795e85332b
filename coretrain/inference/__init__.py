"""Text from a trained run: prompts and options, many requests at once, a conversation in the terminal."""
