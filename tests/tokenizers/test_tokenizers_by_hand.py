"""Tokenizers against other people's: GPT-2's pattern and ranks, merges learnt and applied by hand, bytes of each id."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise

import numpy as np
import pytest
import tiktoken_ext.openai_public as published

from coretrain.tokenizers.merges import merges_of
from coretrain.tokenizers.registry import bytes_tokenizer, gpt2_tokenizer
from coretrain.tokenizers.tokenizer import GPT2_PATTERN, LONG_SPACE, Tokenizer
from coretrain.tokenizers.train import TRAINED_PATTERN, TRAINING_BYTES, capped, train_tokenizer

BYTES = {bytes([byte]): byte for byte in range(256)}


def test_gpt2s_pattern_is_that_of_tiktoken():
    assert published.r50k_pat_str == GPT2_PATTERN


def by_pairs(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding as Sennrich et al. have it: the pair of the lowest rank first, the leftmost of equals."""
    parts = [bytes([byte]) for byte in word]
    while True:
        joint = [(ranks[a + b], place) for place, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not joint:
            return [ranks[part] for part in parts]
        _, place = min(joint)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def learnt(words: list[bytes], count: int) -> list[bytes]:
    """The first merges of a corpus whose pieces are `words`: the commonest pair, of equals that of the lowest ids."""
    pieces, found, ids = [[bytes([byte]) for byte in word] for word in words], list[bytes](), dict(BYTES)
    for _ in range(count):
        pairs: dict[tuple[bytes, bytes], int] = {}
        for piece in pieces:
            for pair in pairwise(piece):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        found.append(best[0] + best[1])
        ids[found[-1]] = len(ids)
        for piece in pieces:
            place = 0
            while place + 1 < len(piece):
                if (piece[place], piece[place + 1]) == best:
                    piece[place : place + 2] = [best[0] + best[1]]
                place += 1
    return found


def test_a_bpe_is_learnt_by_hand():
    """Of `low lower lowest` counted 5, 2 and 6 times: lo, low, then what follows; all of it by the textbook's rule."""
    texts = ["low"] * 5 + ["lower"] * 2 + ["lowest"] * 6
    expected = learnt([text.encode() for text in texts], 5)
    assert expected[:2] == [b"lo", b"low"]
    found = train_tokenizer(texts, 256 + 5 + 1)
    assert [token for token, rank in sorted(found.ranks.items(), key=lambda item: item[1]) if rank >= 256] == expected
    assert (found.vocab, found.eot, found.pattern) == (262, 261, TRAINED_PATTERN)


@pytest.mark.parametrize("word", ["lowest", "lolow", "slower", "wwlolw", "é low", "tessts"])
def test_pieces_are_merged_by_hand(word):
    found = train_tokenizer(["low"] * 5 + ["lower"] * 2 + ["lowest"] * 6, 261)
    pieces = word.encode().replace(b" ", b"\0 ").split(b"\0")
    assert found.encode(word).tolist() == [token for piece in pieces for token in by_pairs(piece, found.ranks)]


def test_merges_by_hand():
    """a b, then ab c; abc came whole from ab and c. What isn't left as two parts has no pair."""
    ranks = BYTES | {b"ab": 256, b"abc": 257, b"bc": 258, b"xyz": 259}
    assert list(merges_of(ranks)) == [(b"a", b"b"), (b"ab", b"c"), (b"b", b"c")]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("def f(x): return x1234", ["def", " f", "(x", "):", " return", " x", "123", "4"]),
        ("    if a_b.c:\n\n  x", ["   ", " if", " a", "_b", ".c", ":\n\n", " ", " x"]),
        ("it's IT'S we'll", ["it", "'s", " IT", "'S", " we", "'ll"]),
        ("  \n \t", ["  \n \t"]),
        ("naïve 日本語。", ["naïve", " 日本語", "。"]),
    ],
)
def test_how_a_text_falls_into_pieces_by_hand(text, pieces):
    """Pieces never share a token: where every piece is one, they are the tokens."""
    ranks = BYTES | {
        token: 256 + n for n, token in enumerate(dict.fromkeys(p.encode() for p in pieces)) if len(token) > 1
    }
    # prefixes, so that each piece is reached by merges
    for piece in pieces:
        raw = piece.encode()
        for stop in range(2, len(raw)):
            ranks.setdefault(raw[:stop], 1000 + len(ranks))
    order = {token: rank for rank, token in enumerate([*BYTES, *sorted((t for t in ranks if len(t) > 1), key=len)])}
    tokenizer = Tokenizer("x", order, TRAINED_PATTERN, len(order))
    assert [tokenizer.token_bytes(int(token)).decode() for token in tokenizer.encode(text)] == pieces


def test_bytes_of_each_id_by_hand():
    """Of text in UTF-8, not characters; a special has none, an id without a token none either."""
    tokenizer = Tokenizer("x", BYTES | {"é".encode(): 256, b"abc": 258}, GPT2_PATTERN, 259)
    lengths = tokenizer.byte_lengths()
    assert (lengths.dtype, lengths.shape) == (np.int32, (260,))
    assert lengths[:256].tolist() == [1] * 256
    assert lengths[256:].tolist() == [2, 0, 3, 0]
    gpt2 = gpt2_tokenizer()
    text = "Ångström café def f(x):\n    return x — 12345 o'clock"
    assert gpt2.byte_lengths()[gpt2.encode(text)].sum() == len(text.encode())


def test_a_fingerprint_by_hand():
    """Pattern and end; then of every token its rank, its length and its bytes, so that no two lists look alike."""
    tokenizer = Tokenizer("x", BYTES | {b"ab": 256}, "p", 257)
    digest = hashlib.sha256(json.dumps(["p", "<|endoftext|>", 257]).encode())
    for token, rank in {**BYTES, b"ab": 256}.items():
        digest.update(rank.to_bytes(4, "little") + len(token).to_bytes(4, "little") + token)
    assert tokenizer.fingerprint == digest.hexdigest()
    assert bytes_tokenizer().fingerprint == ("70c23d094e03397d3613d3daea49cd92faf655ec5d98f4e78dec5675581d0cbf")
    assert gpt2_tokenizer().fingerprint == ("464bffb94460d6b6ecc2f02d0cc5cb1dab16e3dbea5115fc982a2aeaa43f49ce")


def test_where_long_white_space_is_cut():
    """8192 blanks are a cut, wherever the text goes on; below that the pattern has the whole text."""
    assert LONG_SPACE.search(" " * 8191 + "x") is None
    assert LONG_SPACE.search("x" + " " * 8192)
    gpt2 = gpt2_tokenizer()
    for count in (8191, 8192, 8193, 20_000):
        text = "a" + " " * count + "b"
        assert gpt2.decode(gpt2.encode(text)) == text
        first, more = "a" + " " * min(count, 8192), count - 8192
        whole = [first, *[" " * 8192] * (more // 8192), " " * (more % 8192) + "b"] if more >= 0 else [text]
        assert gpt2.encode(text).tolist() == [token for piece in whole for token in gpt2.encode(piece).tolist()]


def test_training_takes_the_first_64_mebibytes():
    assert TRAINING_BYTES == 64 * 2**20
    assert list(capped(["ab", "cd", "ef"], 4)) == ["ab", "cd"]
    assert list(capped(["ab", "cd", "ef"], 5)) == ["ab", "cd", "ef"]
    assert list(capped(["é", "é", "é"], 4)) == ["é", "é"], "bytes, not characters"
