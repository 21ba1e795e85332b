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
from coretrain.tokenizers.added_tokens import CONFIG, facts_of, role_names, with_added_tokens
from coretrain.tokenizers.byte_alphabet import byte_characters
from coretrain.tokenizers.json_tokenizer import JsonTokenizer, added_specials
from coretrain.tokenizers.merges import (
    DIGITS_PATTERN,
    SAMPLES,
    check_same_ids,
    merge_list,
)
from coretrain.tokenizers.tokenizer import END_OF_TEXT, FURTHER_END, GPT2_PATTERN, Tokenizer, end_of_text

FILE = "tokenizer.json"
MODEL_ROLES = ("bos", "eos", "pad", "unk")
GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, or GPT-2's vocab.json and merges.txt.

    Raises `UserError` saying what stands in the way: no such files, no end of text, or a kind that isn't decoded here.
    """
    try:
        facts = facts_of(folder)
        path, raw = _raw(folder, facts)
        raw = with_added_tokens(raw, facts, folder / CONFIG)
        specials = added_specials(raw)
        name, roles = folder.absolute().name, _roles(folder, facts, specials)
    except (KeyError, TypeError, ValueError, AttributeError):
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


def _raw(folder: Path, facts: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    path, vocab, merges = (folder / name for name in (FILE, "vocab.json", "merges.txt"))
    if path.is_file():
        raw = read_json(path, "a tokenizer of Hugging Face's fast kind")
        _check_prefix(path, raw, facts)
        if dropout := raw["model"].get("dropout"):
            raise UserError(
                "tokenizers/hf-dropout",
                f"{path} has dropout = {dropout}, by which the same text gets other ids each time: set it to null",
            )
        return path, raw
    if vocab.is_file() and merges.is_file():
        return vocab, _gpt2_files(folder, facts, read_json(vocab, "the tokens of a tokenizer"), merges)
    raise UserError(
        "tokenizers/hf-files-missing",
        f"{path} is missing, and so are vocab.json and merges.txt: write it with transformers' "
        "AutoTokenizer.from_pretrained and save_pretrained",
    )


def _check_prefix(path: Path, raw: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raise `UserError` where the two files disagree on a blank before a text: GPT-2's class goes by the config's."""
    steps = raw.get("pre_tokenizer") or {}
    found = [
        step.get("add_prefix_space") for step in steps.get("pretokenizers", [steps]) if step.get("type") == "ByteLevel"
    ]
    asked = facts.get("add_prefix_space")
    if asked is not None and facts.get("tokenizer_class") in GPT2_CLASSES and found and bool(asked) not in found:
        raise UserError(
            "tokenizers/hf-prefix-space-differs",
            f"{path.parent / CONFIG} has add_prefix_space = {asked}, and {path} has it otherwise: make them the same",
        )


def _gpt2_files(folder: Path, facts: Mapping[str, Any], vocab: dict[str, int], merges: Path) -> dict[str, Any]:
    """The two files of GPT-2's first tokenizers as the tokenizer.json that the package tokenizers makes of them."""
    kind = facts.get("tokenizer_class", GPT2_CLASSES[0])
    if kind not in GPT2_CLASSES:
        raise UserError(
            "tokenizers/hf-kind-without-json",
            f"{folder} has no {FILE}, and vocab.json and merges.txt are of a {kind}: write it with transformers' "
            "AutoTokenizer.from_pretrained and save_pretrained",
        )
    lines = merges.read_text(encoding="utf-8").split("\n")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end = [{"id": vocab[END_OF_TEXT], "content": END_OF_TEXT, **flags}] if END_OF_TEXT in vocab else []
    return {
        "version": "1.0",
        "added_tokens": end,
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


def _roles(folder: Path, facts: Mapping[str, Any], specials: Mapping[str, int]) -> dict[str, int]:
    """Ids of the special tokens' roles: from the tokenizer's files, else the model's own where these don't say."""
    named, path = role_names(facts), folder / "config.json"
    model = read_json(path, "the config of a Hugging Face model") if path.is_file() else {}
    roles = {role: specials[name] for role, name in named.items() if name is not None}
    for role in MODEL_ROLES:
        token = model.get(f"{role}_token_id")
        token = token[0] if isinstance(token, list) and token else token
        silent = role not in named or (role == "eos" and named[role] is None)  # a text must end with something
        if silent and isinstance(token, int) and token in specials.values():
            roles[role] = token
    path = folder / "generation_config.json"
    generation = read_json(path, "how a Hugging Face model generates") if path.is_file() else {}
    ends = [token for facts in (generation, model) for token in _listed(facts.get("eos_token_id"))]
    known = (specials.get(END_OF_TEXT), roles.get("eos"))
    further = [token for token in dict.fromkeys(ends) if token in specials.values() and token not in known]
    return roles | {f"{FURTHER_END}{number}": token for number, token in enumerate(further, 2)}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _ranked(path: Path, raw: Mapping[str, Any], name: str, roles: Mapping[str, int]) -> Tokenizer:
    """The tokenizer by ranks. Raises `UserError` where its ids' order isn't that of its merges, where it splits text in
    steps that no one pattern describes, or where the samples get other ids."""
    try:
        model = raw["model"]
        if model.get("type", "BPE") != "BPE" or raw.get("normalizer"):
            raise UserError("tokenizers/bpe-with-normalizer", f"{path} is no byte-level BPE without a normalizer")
        pattern = _pattern(raw["pre_tokenizer"])
        specials = {token["content"]: token["id"] for token in raw.get("added_tokens", ())}
        if any(
            token.get(flag) for token in raw.get("added_tokens", ()) for flag in ("lstrip", "rstrip", "single_word")
        ):
            raise UserError(
                "tokenizers/added-tokens-swallow",
                f"{path} has special tokens that swallow blanks, which ranks can't describe",
            )
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
