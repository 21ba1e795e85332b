"""Tasks whose answers a program can check: prompts, right and wrong answers, and a score, all generated."""
