"""Tokenizers: every text comes back, specials stay out, files are checked, a run folder is enough to decode."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from coretrain.base.errors import UserError
from coretrain.tokenizers import registry
from coretrain.tokenizers.byte_alphabet import byte_characters
from coretrain.tokenizers.registry import load_tokenizer, named_tokenizer
from coretrain.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from coretrain.tokenizers.train import capped, train_tokenizer
from tests.support.refusal import refused

CORPUS = [
    f"def name_{n}(self, value):\n    return self.value_{n} + {n * 37}  # caf\u00e9 \u4f60\u597d\n" for n in range(300)
]
TRAINED = train_tokenizer(CORPUS, 400)
GPT2 = named_tokenizer("gpt2")
BYTES = named_tokenizer("bytes")
ALL = pytest.mark.parametrize("tokenizer", [TRAINED, GPT2, BYTES], ids=lambda tokenizer: tokenizer.name)


@ALL
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == text.encode()
    stream = tokenizer.stream()
    assert "".join(stream.push(token) for token in ids) + stream.finish() == text


@ALL
def test_all_bytes_have_a_token(tokenizer: Tokenizer) -> None:
    singles = {tokenizer.token_bytes(token) for token in range(tokenizer.vocab)}
    assert {bytes([byte]) for byte in range(256)} <= singles
    text = "".join(map(chr, range(0x250))) + "\u2028\ufeff\U0001f600\U0010ffff"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@ALL
def test_end_of_text_in_a_text_is_text(tokenizer: Tokenizer) -> None:
    text = f"a{END_OF_TEXT}b"
    ids = tokenizer.encode(text)
    assert tokenizer.eot not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.eot]) == END_OF_TEXT


@ALL
@pytest.mark.parametrize("text", [" " * 1_500_000 + "x", "\n" * 1_200_000 + "x", "a" * 300_000, " \n" * 9000 + "x"])
def test_long_runs_do_not_panic(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@ALL
def test_a_lone_surrogate_becomes_a_replacement(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_gpt2_is_gpt2() -> None:
    assert (GPT2.vocab, GPT2.eot) == (50257, 50256)
    # known ids of GPT-2, as published with the model
    assert GPT2.encode("Hello, world!").tolist() == [15496, 11, 995, 0]
    assert GPT2.encode("def f(x):\n    return x").tolist()[:5] == [4299, 277, 7, 87, 2599]


def test_a_changed_gpt2_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = bytearray(registry.GPT2_FILE.read_bytes())
    raw[1000] ^= 1
    (tmp_path / "r50k_base.tiktoken").write_bytes(raw)
    monkeypatch.setattr(registry, "GPT2_FILE", tmp_path / "r50k_base.tiktoken")
    with refused("tokenizers/bundled-file-damaged", "r50k_base.tiktoken"):
        named_tokenizer("gpt2")


def test_a_trained_bpe_is_deterministic_and_its_ranks_are_in_merge_order() -> None:
    again = train_tokenizer(iter(CORPUS), 400)
    assert again.fingerprint == TRAINED.fingerprint
    assert again.ranks == TRAINED.ranks
    assert TRAINED.vocab == 400
    assert TRAINED.eot == 399
    assert [TRAINED.ranks[bytes([byte])] for byte in range(256)] == list(range(256))
    known = {bytes([byte]) for byte in range(256)}
    for token, _ in sorted(TRAINED.ranks.items(), key=lambda item: item[1])[256:]:
        assert any(token[:cut] in known and token[cut:] in known for cut in range(1, len(token))), token
        known.add(token)
    assert sum(map(len, map(TRAINED.encode, CORPUS))) < sum(len(text.encode()) for text in CORPUS) / 3


def test_tiktoken_and_tokenizers_agree_on_the_trained_bpe() -> None:
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Other

    characters = byte_characters()
    merges, known = [], {bytes([byte]): byte for byte in range(256)}
    for token, rank in sorted(TRAINED.ranks.items(), key=lambda item: item[1])[256:]:
        cuts = [cut for cut in range(1, len(token)) if token[:cut] in known and token[cut:] in known]
        pieces = [known[token[: cuts[0]]], known[token[cuts[0] :]]]
        if len(cuts) > 1:  # the pair that was merged is what the earlier merges leave of the token
            earlier = tiktoken.Encoding("earlier", pat_str=r"[\s\S]+", mergeable_ranks=dict(known), special_tokens={})
            pieces = earlier._encode_single_piece(token)
        if len(pieces) == 2:
            names = {rank: name for name, rank in known.items()}
            merges.append(tuple("".join(characters[byte] for byte in names[piece]) for piece in pieces))
        known[token] = rank
    vocab = {"".join(characters[byte] for byte in token): rank for token, rank in TRAINED.ranks.items()}
    other = Other(models.BPE(vocab=vocab, merges=merges))
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TRAINED.pattern or ""), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in CORPUS[::30]:
        assert other.encode(text).ids == TRAINED.encode(text).tolist()


def test_a_tiny_corpus_gives_a_smaller_vocabulary() -> None:
    tiny = train_tokenizer(["ab ab"], 4096)
    assert 257 <= tiny.vocab < 300
    assert tiny.eot == tiny.vocab - 1


def test_capped_stops_near_its_limit() -> None:
    assert list(capped(["abc"] * 10, 7)) == ["abc"] * 3


@ALL
def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "run")
    loaded = load_tokenizer(tmp_path / "run")
    text = "def f():\n    return 'caf\u00e9 \U0001f600'"
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.name == tokenizer.name
    assert np.array_equal(loaded.encode(text), tokenizer.encode(text))
    assert named_tokenizer(str(tmp_path / "run" / "tokenizer.tiktoken")).fingerprint == tokenizer.fingerprint
    assert pickle.loads(pickle.dumps(tokenizer)).fingerprint == tokenizer.fingerprint


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    ranks = tmp_path / "tokenizer.tiktoken"
    lines = ranks.read_bytes().splitlines(keepends=True)
    ranks.write_bytes(b"".join([*lines[:-2], lines[-1].split()[0] + b" 397\n", lines[-2].split()[0] + b" 398\n"]))
    with refused("tokenizers/fingerprint-differs", "tik"):
        load_tokenizer(tmp_path)
    ranks.write_bytes(b"no ranks here at all\n")
    with refused("tokenizers/not-a-tiktoken-file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_facts.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_facts\.json is damaged .*: restore it, or make the"):
        load_tokenizer(tmp_path)


def test_partial_characters_wait() -> None:
    stream = BYTES.stream()
    assert [stream.push(token) for token in "\u00e9".encode()] == ["", "\u00e9"]
    assert stream.push(0xE4) == ""
    assert stream.finish() == "\ufffd"


def test_ids_without_a_token_read_as_replacement() -> None:
    assert TRAINED.decode([TRAINED.vocab + 5]) == "\ufffd"
    assert TRAINED.byte_lengths()[TRAINED.eot] == 0
    assert len(TRAINED.byte_lengths()) == TRAINED.vocab


@pytest.mark.parametrize(
    ("name", "words"),
    [("gpt3", "data.tokenizer = gpt3 is unknown"), ("/nowhere/x.tiktoken", "no file /nowhere/x.tiktoken")],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        named_tokenizer(name)


def test_a_failed_download_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with refused("tokenizers/download-failed", "cl100k_base"):
        named_tokenizer("cl100k_base")
