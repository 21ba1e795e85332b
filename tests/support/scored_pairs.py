"""Pairs of context and continuation with every trap, and a tokenizer that was trained on their words."""

from __future__ import annotations

from coretrain.tokenizers.tokenizer import Tokenizer
from coretrain.tokenizers.train import train_tokenizer

LEARNT = "the old house by the river was empty and the door was open. there was nobody, the river ran. "
PAIRS = [
    *(("the old house by the river was", ending) for ending in (" empty", " open and dark", " e", " near")),
    ("", "the river"),  # nothing before it
    ("the river ran. ", "there"),  # a blank that belongs to the continuation
    ("the doo", "r was open"),  # tokens that merge over the border
    ("the ri", "v"),  # all of the continuation in a token with the end of the context
    *((LEARNT * 2 + "the door was", ending) for ending in (" open", " nobody")),  # longer than the context
    ("a", " " + LEARNT * 2),  # a continuation that is longer
]


def pairs_tokenizer() -> Tokenizer:
    """Of 300 ids at most."""
    return train_tokenizer([LEARNT * 3], 300)
