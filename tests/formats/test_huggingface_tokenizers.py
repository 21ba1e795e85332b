"""Tokenizers in Hugging Face folders: transformers gives the same ids, and they come back."""

from __future__ import annotations

import inspect
import json
import subprocess
from pathlib import Path

import pytest
import tokenizers
import transformers

from coretrain.config.model import ModelConfig
from coretrain.formats.huggingface.tokenizer import hf_tokenizer, write_tokenizer
from coretrain.formats.huggingface.weights import export_huggingface
from coretrain.tokenizers.huggingface import read_tokenizer
from coretrain.tokenizers.json_tokenizer import JsonTokenizer
from coretrain.tokenizers.merges import check_same_ids, merges_of
from coretrain.tokenizers.registry import bytes_tokenizer, gpt2_tokenizer
from coretrain.tokenizers.tokenizer import Tokenizer
from coretrain.tokenizers.train import train_tokenizer
from tests.support.models import SMALL, perturbed
from tests.support.refusal import refused


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A small tokenizer trained on this Python's library."""
    return train_tokenizer([inspect.getsource(module) for module in (inspect, json, subprocess)], 900)


@pytest.mark.parametrize("name", ["gpt2", "bytes", "trained"])
def test_tokenizers_give_the_same_ids(tmp_path: Path, name: str, trained: Tokenizer) -> None:
    tokenizer = {"gpt2": gpt2_tokenizer, "bytes": bytes_tokenizer}.get(name, lambda: trained)()
    model = ModelConfig(**SMALL | {"vocab": tokenizer.vocab})
    tokenizer.save(tmp_path / "run")
    export_huggingface(tmp_path / "hf", model, perturbed(model), tmp_path / "run")
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = [inspect.getsource(inspect), "Grüße, 東京! 🙂 it's  \n\n\t x=1234567\r\n", *map(chr, range(0, 0x3000, 7))]
    for text in texts:
        ids = tokenizer.encode(text).tolist()
        assert fast(text, add_special_tokens=False)["input_ids"] == ids
        assert fast.decode(ids) == text
    assert fast("a<|endoftext|>")["input_ids"][-1] == tokenizer.eot == fast.eos_token_id
    assert transformers.AutoConfig.from_pretrained(tmp_path / "hf").eos_token_id == tokenizer.eot
    back = read_tokenizer(tmp_path / "hf")
    assert back.ranks == tokenizer.ranks
    assert (back.eot, back.vocab) == (tokenizer.eot, tokenizer.vocab)
    assert all((back.encode(text) == tokenizer.encode(text)).all() for text in texts)


def test_gpt2s_merges_are_found_again() -> None:
    merges = list(merges_of(gpt2_tokenizer().ranks))
    assert len(merges) == 50_000
    assert merges[:3] == [(b" ", b"t"), (b" ", b"a"), (b"h", b"e")]


def test_a_tokenizer_with_other_ids_is_refused(trained: Tokenizer) -> None:
    fast = hf_tokenizer(trained)
    swapped = dict(trained.ranks)
    swapped[b" t"], swapped[b"in"] = swapped[b"in"], swapped[b" t"]
    with refused("tokenizers/ids-differ-from-hf"):
        check_same_ids(Tokenizer("swapped", swapped, trained.pattern, trained.eot), fast)


def test_another_pre_tokenizer_is_no_ranks(tmp_path: Path, trained: Tokenizer) -> None:
    write_tokenizer(tmp_path, trained, 40)
    path = tmp_path / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True})
    path.write_text(json.dumps(raw))
    back = read_tokenizer(tmp_path)
    assert isinstance(back, JsonTokenizer)
    text = "x = 12345  # 67"
    assert back.encode(text).tolist() == tokenizers.Tokenizer.from_file(str(path)).encode(text).ids
