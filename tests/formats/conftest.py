"""Small tokenizers of this room's tests: one trained here, one as a chat model's."""

from __future__ import annotations

import inspect
import json
import subprocess

import pytest

from coretrain.tokenizers.merges import DIGITS_PATTERN
from coretrain.tokenizers.tokenizer import Tokenizer
from coretrain.tokenizers.train import train_tokenizer


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A small tokenizer trained on this Python's library."""
    return train_tokenizer([inspect.getsource(module) for module in (inspect, json, subprocess)], 300)


@pytest.fixture(scope="module")
def pretrained(trained: Tokenizer) -> Tokenizer:
    """One as a chat model's: specials first, every digit alone, no token for bytes that UTF-8 never has."""
    specials = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    kept = [
        token for token, _ in sorted(trained.ranks.items(), key=lambda item: item[1]) if token not in b"\xc0\xc1\xff"
    ]
    ranks = {token: 3 + place for place, token in enumerate(kept)}
    return Tokenizer("pretrained", ranks, DIGITS_PATTERN, 0, specials, {"bos": 1, "eos": 2, "pad": 2, "unk": 0}, True)
