"""A small chat model's tokenizer, here and as transformers has it."""

from __future__ import annotations

import pytest

from coretrain.formats.huggingface.tokenizer import write_tokenizer
from coretrain.tokenizers.chat_template import CHATML
from coretrain.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from coretrain.tokenizers.train import train_tokenizer

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>")


LEARNT = [
    "Hello there, 12345! A word for the sea? Où est-il? 🙂",
    "def f(x): return x  # là-bas",
    "the answer is in the text",
]


@pytest.fixture(scope="module")
def tokenizer():
    """A small BPE with a chat model's special tokens, as a pretrained model's."""
    plain = train_tokenizer([text * 3 for text in LEARNT], 300)
    specials = {name: plain.eot + 1 + number for number, name in enumerate(SPECIALS)}
    roles = {"bos": plain.eot, "eos": specials["<|im_end|>"]}
    return Tokenizer("small", plain.ranks, plain.pattern, plain.eot, {END_OF_TEXT: plain.eot} | specials, roles)


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    """transformers' tokenizer with the same ids."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf")
    write_tokenizer(folder, tokenizer, 512, CHATML)
    return transformers.AutoTokenizer.from_pretrained(folder)
