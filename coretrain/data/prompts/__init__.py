"""Prompts that a policy answers, with the fields by which a reward judges the answers."""
