"""The tokenizer of a Hugging Face folder: by ranks where they describe it exactly, else its tokenizer.json as it is."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import read_json
from coretrain.tokenizers.byte_alphabet import byte_characters
from coretrain.tokenizers.json_tokenizer import JsonTokenizer, added_specials
from coretrain.tokenizers.merges import (
    DIGITS_PATTERN,
    SAMPLES,
    check_same_ids,
    merge_list,
)
from coretrain.tokenizers.tokenizer import GPT2_PATTERN, Tokenizer, end_of_text

FILE = "tokenizer.json"
ROLES = ("bos", "eos", "pad", "unk")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, or GPT-2's vocab.json and merges.txt.

    Raises `UserError` saying what stands in the way: no such files, no end of text, or a kind that isn't decoded here.
    """
    try:
        path, raw = _raw(folder)
        specials = added_specials(raw)
        name, roles = folder.absolute().name, _roles(folder, specials)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise UserError(
            "tokenizers/hf-tokenizer-damaged", f"{folder} has a damaged tokenizer: download it again"
        ) from None
    raw |= {"truncation": None, "padding": None}  # of texts for other models: a document is encoded whole
    try:
        return _ranked(path, raw, name, roles)
    except UserError:
        tokenizer = JsonTokenizer(
            name, json.dumps(raw, ensure_ascii=False), end_of_text(str(path), specials, roles), roles
        )
    tokenizer.check(SAMPLES)
    return tokenizer


def _raw(folder: Path) -> tuple[Path, dict[str, Any]]:
    path, vocab, merges = (folder / name for name in (FILE, "vocab.json", "merges.txt"))
    if path.is_file():
        return path, read_json(path, "a tokenizer of Hugging Face's fast kind")
    if vocab.is_file() and merges.is_file():
        return vocab, _gpt2_files(folder, read_json(vocab, "the tokens of a tokenizer"), merges)
    raise UserError(
        "tokenizers/hf-files-missing",
        f"{path} is missing, and so are vocab.json and merges.txt: write it with transformers' "
        "AutoTokenizer.from_pretrained and save_pretrained",
    )


def _facts(folder: Path) -> dict[str, Any]:
    """What the folder says of its special tokens, the newer file's word first."""
    facts: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            facts |= read_json(folder / name, "the tokenizer's special tokens")
    return facts


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _gpt2_files(folder: Path, vocab: dict[str, int], merges: Path) -> dict[str, Any]:
    """The two files of GPT-2's first tokenizers as the tokenizer.json that the package tokenizers makes of them."""
    facts = _facts(folder)
    kind = facts.get("tokenizer_class", "GPT2Tokenizer")
    if kind not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        raise UserError(
            "tokenizers/hf-kind-without-json",
            f"{folder} has no {FILE}, and vocab.json and merges.txt are of a {kind}: write it with transformers' "
            "AutoTokenizer.from_pretrained and save_pretrained",
        )
    more = folder / "added_tokens.json"
    ids = vocab | (read_json(more, "added tokens") if more.is_file() else {})
    named = [_content(facts.get(f"{role}_token")) for role in ROLES]
    named += ["<|endoftext|>", *map(_content, facts.get("additional_special_tokens", ()))]
    added = sorted({name for name in named if name in ids} | (ids.keys() - vocab.keys()), key=ids.__getitem__)
    lines = merges.read_text(encoding="utf-8").split("\n")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": ids[name], "content": name, **flags} for name in added],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"add_prefix_space": bool(facts.get("add_prefix_space"))},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [line for line in lines if line and not line.startswith("#version")],
        },
    }


def _roles(folder: Path, specials: Mapping[str, int]) -> dict[str, int]:
    """Ids of the special tokens' roles: from the tokenizer's files, else the model's own."""
    facts, path = _facts(folder), folder / "config.json"
    model = read_json(path, "the config of a Hugging Face model") if path.is_file() else {}
    roles = {}
    for role in ROLES:
        name, token = _content(facts.get(f"{role}_token")), model.get(f"{role}_token_id")
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(name, str) and name in specials:
            roles[role] = specials[name]
        elif isinstance(token, int) and token in specials.values():
            roles[role] = token
    return roles


def _ranked(path: Path, raw: Mapping[str, Any], name: str, roles: Mapping[str, int]) -> Tokenizer:
    """The tokenizer by ranks. Raises `UserError` where its ids' order isn't that of its merges, where it splits text in
    steps that no one pattern describes, or where the samples get other ids."""
    try:
        model = raw["model"]
        if model.get("type", "BPE") != "BPE" or raw.get("normalizer"):
            raise UserError("tokenizers/bpe-with-normalizer", f"{path} is no byte-level BPE without a normalizer")
        pattern = _pattern(raw["pre_tokenizer"])
        specials = {token["content"]: token["id"] for token in raw.get("added_tokens", ())}
        if specials != added_specials(raw):
            raise UserError(
                "tokenizers/added-tokens-are-text",
                f"{path} has added tokens that are text, which ranks can't describe",
            )
        words = {word: operator.index(rank) for word, rank in model["vocab"].items() if word not in specials}
        pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            "tokenizers/bpe-fields-unusable", f"{path} is no byte-level BPE that ranks can describe"
        ) from None
    tokenizer = ranked_tokenizer(path, name, words, pairs, pattern, specials, roles)
    check_same_ids(tokenizer, load_fast(path, raw), "imported")
    return tokenizer


def load_fast(path: Path, raw: Mapping[str, Any]) -> Any:
    """The package tokenizers' own. Raises `UserError` naming `path` where it can't read it."""
    from tokenizers import Tokenizer as Fast

    try:
        return Fast.from_str(json.dumps(raw))
    except Exception as error:  # the package raises nothing more particular
        raise UserError(
            "tokenizers/hf-file-unreadable", f"{path} can't be read by the package tokenizers: {error}"
        ) from None


def ranked_tokenizer(
    path: Path,
    name: str,
    words: Mapping[str, int],
    pairs: Iterable[tuple[str, ...]],
    pattern: str | None,
    specials: Mapping[str, int],
    roles: Mapping[str, int],
) -> Tokenizer:
    """The tokenizer of a byte-level BPE given by words {in the byte alphabet: id} and the pairs that it merges.

    Raises `UserError` naming `path` where ranks can't describe it, or no special token ends a text.
    """
    characters = byte_characters()
    back = {character: byte for byte, character in enumerate(characters)}

    def as_bytes(word: str) -> bytes:
        return bytes(back[character] for character in word)

    try:
        ranks = {as_bytes(word): rank for word, rank in words.items()}
        merged = [(as_bytes(a), as_bytes(b)) for a, b in pairs]
    except (KeyError, ValueError, TypeError):
        raise UserError(
            "tokenizers/bpe-not-byte-level", f"{path} is no byte-level BPE that ranks can describe"
        ) from None
    # A list made of ranks may name every way to make a token; each merge comes when its token's rank does all the same.
    order = [ranks.get(a + b, -1) for a, b in merged]
    if any(b < max(a, 0) for a, b in pairwise([0, *order])) or not set(merge_list(ranks)) <= set(merged):
        raise UserError(
            "tokenizers/ids-not-merge-order",
            f"{path}: the ids don't have the order of the merges, so that ranks can't describe it",
        )
    eot = end_of_text(str(path), specials, roles)
    partial = any(character not in words for character in characters)
    return Tokenizer(name, ranks, pattern, eot, specials, {"eos": eot, **roles}, partial)


def _pattern(pre_tokenizer: Any) -> str | None:
    """The split pattern of a byte-level pre-tokenizer; None where nothing is split."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *before, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        raise UserError(
            "tokenizers/pre-tokenizer-unsupported",
            f"the pre-tokenizer {last['type']} with these settings can't be described by one pattern",
        )
    regex = last.get("use_regex", True)  # older files have no other way
    if before and before[0] == {"type": "Digits", "individual_digits": True} and len(before) == 1 and regex:
        return DIGITS_PATTERN
    if before and regex:
        raise UserError(
            "tokenizers/steps-before-regex",
            "the pre-tokenizer's steps can't be described by one pattern",
        )
    if regex:
        return GPT2_PATTERN
    if not before:
        return None
    if len(before) > 1 or before[0]["type"] != "Split" or before[0]["behavior"] != "Isolated" or before[0]["invert"]:
        raise UserError(
            "tokenizers/pattern-not-expressible",
            "the pre-tokenizer's steps can't be described by one pattern",
        )
    pattern: str = before[0]["pattern"]["Regex"]
    return pattern
