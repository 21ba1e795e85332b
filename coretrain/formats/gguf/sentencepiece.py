"""SentencePiece's BPE inside a GGUF file (`tokenizer.ggml.model = llama`): tokens with scores, and no merges.

llama.cpp joins the two neighbours whose token has the highest score, whichever two they are; the package tokenizers
goes by a list of pairs, so that every way to make a token is listed, by its score. Source: llama-vocab.cpp at
github.com/ggml-org/llama.cpp, `generate_merges` in transformers' convert_slow_tokenizer.py, 5.23.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coretrain.base.errors import UserError
from coretrain.tokenizers.json_tokenizer import BYTE, JsonTokenizer
from coretrain.tokenizers.merges import SAMPLES

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTES = range(1, 7)
BLANK = "\u2581"


def sentencepiece_json(tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], prefix: bool) -> str:
    """The tokenizer.json of a GGUF file's tokens; with `prefix` every text begins with a blank."""
    words = {token: score for token, score, kind in zip(tokens, scores, kinds, strict=True) if kind == NORMAL}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": number, "content": token, **flags, "special": kind != USER_DEFINED}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    vocab = {token: number for number, token in enumerate(tokens)}
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    steps = [{"type": "Prepend", "prepend": BLANK}, blanks] if prefix else [blanks]
    spaces = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    raw = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": BYTES in kinds,
            "vocab": vocab,
            "merges": _merges(words),
        },
    }
    return json.dumps(raw, ensure_ascii=False)


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All ways to make each token of two others: the highest score first, of equal ones the longest left part."""
    ways = [
        (score, word[:cut], word[cut:])
        for word, score in scores.items()
        for cut in range(1, len(word))
        if word[:cut] in scores and word[cut:] in scores
    ]
    ways.sort(key=lambda way: (way[0], len(way[1]), len(way[2])), reverse=True)
    return [(left, right) for _, left, right in ways]


def sentencepiece_facts(tokenizer: JsonTokenizer, vocab: int) -> tuple[dict[str, Any], str | None]:
    """Tokens, scores and kinds of a BPE as SentencePiece's, and a sentence where llama.cpp would make other ids of it.

    Raises `UserError` for any other tokenizer that is a tokenizer.json.
    """
    raw = json.loads(tokenizer.text)
    model, prefix = raw["model"], _prefix(raw)
    if model.get("type") != "BPE" or not model.get("byte_fallback") or prefix is None:
        raise UserError(
            "formats/gguf-export-tokenizer-kind",
            f"tokenizer {tokenizer.name} can't be exported to GGUF, whose files hold byte-level BPEs of ranks, and "
            "SentencePiece's with bytes to fall back to: export to Hugging Face's form (--to hf)",
        )
    tokens, scores, kinds = [f"[PAD{i}]" for i in range(vocab)], [0.0] * vocab, [UNUSED] * vocab
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    for word, token in model["vocab"].items():
        kind = BYTES if BYTE.fullmatch(word) else NORMAL
        tokens[token], kinds[token] = word, kind
        scores[token] = float(-ranks.get(word, len(ranks)) - 1) if kind == NORMAL else 0.0
    for token in raw.get("added_tokens") or ():
        kind = CONTROL if token["content"] in tokenizer.specials else USER_DEFINED
        kind = UNKNOWN if token["content"] == model.get("unk_token") else kind
        tokens[token["id"]], scores[token["id"]], kinds[token["id"]] = token["content"], 0.0, kind
    facts = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    text = sentencepiece_json(tokens, scores, kinds, prefix)
    theirs = JsonTokenizer(tokenizer.name, text, tokenizer.eot, tokenizer.roles)
    other = sum(list(theirs.encode(sample)) != list(tokenizer.encode(sample)) for sample in SAMPLES)
    remarks = []
    if other:
        remarks = [f"llama.cpp joins pieces by score alone: {other} of {len(SAMPLES)} sample texts get other ids there"]
    if (raw.get("pre_tokenizer") or {}).get("prepend_scheme") == "first":
        remarks.append("llama.cpp puts a blank before texts that begin with one, and after special tokens, too")
    return facts, "; ".join(remarks) or None


def _prefix(raw: Mapping[str, Any]) -> bool | None:
    """Whether a text begins with a blank of its own; None where it is changed in another way than SentencePiece's."""
    normalizer, splitter = raw.get("normalizer") or {}, raw.get("pre_tokenizer") or {}
    steps = [step["type"] for step in normalizer.get("normalizers", [normalizer] if normalizer else [])]
    if splitter.get("type") == "Metaspace" and not steps:
        return bool(splitter.get("prepend_scheme") != "never")
    return "Prepend" in steps if not splitter and steps in (["Prepend", "Replace"], ["Replace"]) else None
