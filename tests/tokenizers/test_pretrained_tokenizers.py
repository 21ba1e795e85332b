"""Tokenizers as other people's folders hold them: old files, truncating ones, those made of ranks."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer as Fast

from coretrain.base.errors import UserError
from coretrain.config.model import ModelConfig
from coretrain.formats.gguf.file import GGUFFile
from coretrain.formats.gguf.tokenizer import read_gguf_tokenizer
from coretrain.formats.gguf.weights import export_gguf
from coretrain.formats.huggingface.tokenizer import hf_tokenizer, write_tokenizer
from coretrain.tokenizers.byte_alphabet import byte_characters
from coretrain.tokenizers.huggingface import read_tokenizer
from coretrain.tokenizers.json_tokenizer import JsonTokenizer
from coretrain.tokenizers.merges import merges_of
from coretrain.tokenizers.tokenizer import GPT2_PATTERN, Tokenizer
from coretrain.tokenizers.train import train_tokenizer
from tests.support.corpora import TEXTS
from tests.support.gguf_files import rewrite
from tests.support.models import MODELS, perturbed
from tests.support.refusal import refused


def plain(pattern: str | None = None) -> Tokenizer:
    """A small byte-level BPE trained on Python's library."""
    found = train_tokenizer([inspect.getsource(module) for module in (inspect, json)], 700)
    return Tokenizer("plain", found.ranks, pattern or found.pattern, found.eot)


def rewritten(folder: Path, tokenizer: Tokenizer, change: Any) -> Fast:
    """A folder with the tokenizer.json of `tokenizer`, changed; as the package reads it, whole texts through."""
    folder.mkdir()
    write_tokenizer(folder, tokenizer, 40)
    raw = json.loads((folder / "tokenizer.json").read_text())
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    fast = Fast.from_file(str(folder / "tokenizer.json"))
    fast.no_truncation()
    fast.no_padding()
    return fast


def legacy(raw: dict[str, Any]) -> None:
    """As the hub's GPT-2: no type of model, merges as strings, a byte-level step with no word of its pattern."""
    model = raw["model"]
    raw["model"] = {
        "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "vocab": model["vocab"], "merges": [" ".join(pair) for pair in model["merges"]],
    }  # fmt: skip
    raw["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    raw["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}


def truncating(raw: dict[str, Any]) -> None:
    """As a folder that was saved after use in a pipeline."""
    raw["truncation"] = {"direction": "Right", "max_length": 50, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "!",
    }  # fmt: skip


def every_split(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """All ways to make each token of two others, as transformers' converter of tiktoken files lists them."""
    characters, ranks, found = byte_characters(), tokenizer.ranks, []
    for token, rank in ranks.items():
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = sorted((ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks)
        found += [(rank, a, b) for _, _, a, b in pairs]
    found.sort(key=lambda pair: pair[0])
    return [("".join(characters[byte] for byte in a), "".join(characters[byte] for byte in b)) for _, a, b in found]


@pytest.mark.parametrize("kind", ["legacy", "truncating", "every split"])
def test_files_of_others_are_read_as_ranks(tmp_path: Path, kind: str) -> None:
    tokenizer = plain(GPT2_PATTERN if kind == "legacy" else None)
    merges = every_split(tokenizer)
    assert len(merges) > 1.2 * len(list(merges_of(tokenizer.ranks)))
    changes = {"legacy": legacy, "truncating": truncating}
    fast = rewritten(
        tmp_path / "hf", tokenizer, changes.get(kind, lambda raw: raw["model"].update(merges=[*map(list, merges)]))
    )
    back = read_tokenizer(tmp_path / "hf")
    assert type(back) is Tokenizer
    assert back.ranks == tokenizer.ranks
    assert all(fast.encode(text, add_special_tokens=False).ids == back.encode(text).tolist() for text in TEXTS)


def test_tokens_older_than_their_parts(tmp_path: Path) -> None:
    """As in Llama 3: merges of lower rank don't leave such a token as two parts, and yet it is made inside a word."""
    tokenizer = plain()
    ranks = dict(tokenizer.ranks)
    whole = {a + b: (a, b) for a, b in merges_of(ranks) if len(a) > 1}
    for token in [token for token in whole if whole[token][0] in whole][:40]:
        part = whole[token][0]
        ranks[token], ranks[part] = sorted((ranks[token], ranks[part]))
    inverted = Tokenizer("inverted", ranks, tokenizer.pattern, tokenizer.eot)
    assert len(list(merges_of(ranks))) < len(list(merges_of(tokenizer.ranks)))
    fast = rewritten(tmp_path / "hf", inverted, lambda raw: None)
    assert all(fast.encode(text).ids == inverted.encode(text).tolist() for text in TEXTS)
    assert read_tokenizer(tmp_path / "hf").fingerprint == inverted.fingerprint
    characters = byte_characters()
    few = [[*("".join(characters[byte] for byte in part) for part in pair)] for pair in merges_of(ranks)]
    other = rewritten(tmp_path / "few", inverted, lambda raw: raw["model"].update(merges=few))
    assert any(other.encode(text).ids != inverted.encode(text).tolist() for text in TEXTS)
    assert isinstance(read_tokenizer(tmp_path / "few"), JsonTokenizer)


def test_every_split_in_gguf(tmp_path: Path) -> None:
    """As llama.cpp's converter writes Llama 3's merges."""
    tokenizer = plain()
    model = ModelConfig(**MODELS["llama"].model_dump() | {"vocab": tokenizer.vocab})
    export_gguf(tmp_path / "m.gguf", "m", model, perturbed(model), tokenizer)
    merges = [" ".join(pair) for pair in every_split(tokenizer)]
    rewrite(tmp_path / "m.gguf", tmp_path / "x.gguf", {"tokenizer.ggml.merges": merges})
    assert read_gguf_tokenizer(GGUFFile(tmp_path / "x.gguf")).fingerprint == tokenizer.fingerprint


def test_merges_in_another_order_are_no_ranks(tmp_path: Path) -> None:
    """Such a file is kept as it is; what ranks would make of it has other ids."""

    def swap(raw: dict[str, Any]) -> None:
        vocab, pairs = raw["model"]["vocab"], raw["model"]["merges"]
        first, last = "".join(pairs[0]), "".join(pairs[-1])
        vocab[first], vocab[last] = vocab[last], vocab[first]

    fast = rewritten(tmp_path / "hf", plain(), swap)
    back = read_tokenizer(tmp_path / "hf")
    assert isinstance(back, JsonTokenizer)
    assert all(fast.encode(text).ids == back.encode(text).tolist() for text in TEXTS)
    assert all(back.decode(back.encode(text)) == text for text in TEXTS)


def test_added_tokens_that_are_text_are_no_ranks(tmp_path: Path) -> None:
    """As in Qwen's: found in a text before any merge, as a special token never is."""
    tokenizer = plain()
    added = {"id": tokenizer.vocab, "content": "<think>", "special": False}
    fast = rewritten(tmp_path / "hf", tokenizer, lambda raw: raw["added_tokens"].append(raw["added_tokens"][0] | added))
    back = read_tokenizer(tmp_path / "hf")
    text = "a <think>b</think>"
    assert tokenizer.vocab in back.encode(text)
    assert back.encode(text).tolist() == fast.encode(text).ids
    assert back.decode(back.encode(text)) == text


def test_what_tiktoken_or_the_package_refuses(tmp_path: Path) -> None:
    """A pattern of the package's engine alone is kept; damage is a sentence."""
    tokenizer = plain()

    def grapheme(raw: dict[str, Any]) -> None:
        split = {"type": "Split", "pattern": {"Regex": r"\X+"}, "behavior": "Isolated", "invert": False}
        raw["pre_tokenizer"]["pretokenizers"][0] = split

    fast = rewritten(tmp_path / "hf", tokenizer, grapheme)
    back = read_tokenizer(tmp_path / "hf")
    assert isinstance(back, JsonTokenizer)
    assert all(fast.encode(text).ids == back.encode(text).tolist() for text in TEXTS)
    path = tmp_path / "hf" / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["added_tokens"][0]["id"] = "700"
    path.write_text(json.dumps(raw))
    with refused("tokenizers/hf-tokenizer-damaged"):
        read_tokenizer(tmp_path / "hf")
    raw = json.loads(hf_tokenizer(tokenizer).to_str())
    raw["model"]["vocab"]["a"] = "97"
    path.write_text(json.dumps(raw))
    with refused("tokenizers/json-refused-by-package"):
        read_tokenizer(tmp_path / "hf")
    for ranks in (tokenizer.ranks | {b"xyzzy": 2**40}, tokenizer.ranks | {b"xyzzy": 2**32}):
        with refused("tokenizers/pattern-or-ids-unusable", "big"):
            Tokenizer("big", ranks, tokenizer.pattern, tokenizer.eot)
    model = ModelConfig(**MODELS["llama"].model_dump() | {"vocab": tokenizer.vocab})
    export_gguf(tmp_path / "m.gguf", "m", model, perturbed(model), tokenizer)
    facts = GGUFFile(tmp_path / "m.gguf").facts
    merges, tokens = facts["tokenizer.ggml.merges"], set(facts["tokenizer.ggml.tokens"])
    halves = ((at, "".join(pair.split(" "))) for at, pair in enumerate(merges))
    at, word = next((at, word) for at, word in halves if len(word) > 3 and word[:-1] not in tokens)
    spoiled = [*merges[:at], f"{word[:-1]} {word[-1]}", *merges[at:]]
    for changed, message in (
        ({"tokenizer.ggml.merges": spoiled}, "can't be read by the package tokenizers"),
        ({"tokenizer.ggml.merges": [1, 2]}, "tokenizer.ggml.merges is no list of texts"),
        ({"twintrain.tokenizer.pattern": "("}, "can't be run, by its pattern"),
    ):
        rewrite(tmp_path / "m.gguf", tmp_path / "x.gguf", changed)
        with pytest.raises(UserError, match=message):
            read_gguf_tokenizer(GGUFFile(tmp_path / "x.gguf"))


def test_gpt2s_two_files(tmp_path: Path) -> None:
    tokenizer = plain(GPT2_PATTERN)
    raw = json.loads(hf_tokenizer(tokenizer).to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(raw["vocab"]))
    lines = "".join(f"{a} {b}\n" for a, b in raw["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + lines)
    back = read_tokenizer(tmp_path)
    assert type(back) is Tokenizer
    assert (back.ranks, back.eot, back.vocab) == (tokenizer.ranks, tokenizer.eot, tokenizer.vocab)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    assert all(theirs(text)["input_ids"] == back.encode(text).tolist() for text in TEXTS)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with refused("tokenizers/hf-kind-without-json", "Qwen2"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"id": 1}]}')
    with refused("tokenizers/hf-tokenizer-damaged"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}, "added_tokens": [{"id": 0, "content": "<|endoftext|>"}]}')
    with refused("tokenizers/json-refused-by-package"):
        read_tokenizer(tmp_path)
