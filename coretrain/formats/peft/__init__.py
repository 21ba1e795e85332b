"""Adapters as PEFT has them."""
