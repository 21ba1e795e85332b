"""What the files beside a tokenizer.json say of its tokens, put together as transformers does it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import read_json

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Tokens that have a role everywhere; a file may name further ones, `NAME_token`."""
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}
OBEYED = frozenset(
    (
        *ROLES, "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens",
        "model_specific_special_tokens", "chat_template", "tokenizer_class", "add_prefix_space", "vocab", "merges",
        "vocab_file", "merges_file", "tokenizer_file", "tokenizer_object", "gguf_file",
    )
)  # fmt: skip
"""Fields of tokenizer_config.json that are read here, and the files that transformers takes by such names."""
REFUSED = {
    "split_special_tokens": "special tokens would be text, those of a chat template too",
    "fix_mistral_regex": "text would be split otherwise than tokenizer.json says",
}
"""Fields that, where they are true, would give a text other ids; each with what it would do."""
WITHOUT_EFFECT = frozenset(
    (
        "add_bos_token", "add_eos_token",  # documents get no special tokens but their end, chats those of the template
        "post_processor", "legacy", "unk_id", "use_default_system_prompt", "trust_remote_code", "is_local",
        "model_max_length", "max_len", "max_length", "stride", "truncation_side", "truncation_strategy",
        "tokenizer_truncation", "tokenizer_padding", "padding_side", "pad_token_type_id", "pad_to_multiple_of",
        "_json_truncation", "_json_padding", "_spm_precompiled_charsmap", "model_input_names", "processor_class",
        "clean_up_tokenization_spaces", "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        "errors", "name_or_path", "verbose", "backend", "files_loaded", "auto_map", "init_inputs", "tokenizer",
        "response_template", "response_schema", "chat_control_tokens", "local_files_only",
    )
)  # fmt: skip
"""Fields that change no id of a text and no text of a template."""


def facts_of(folder: Path) -> dict[str, Any]:
    """What a folder says of its tokenizer's special tokens.

    special_tokens_map.json and added_tokens.json are of older versions: where tokenizer_config.json lists the added
    tokens, they aren't read; else the word of the first goes before that of tokenizer_config.json.

    Raises `UserError` naming a field that would give text other ids than tokenizer.json.
    """
    facts = _object(folder / CONFIG)
    for name, effect in REFUSED.items():
        if facts.get(name):
            raise UserError(
                "tokenizers/hf-field-refused",
                f"{folder / CONFIG} has {name} = {facts[name]}, by which {effect}: take the field out",
            )
    chosen = facts.get("fast_tokenizer_files")
    if chosen and chosen != ["tokenizer.json"]:
        raise UserError(
            "tokenizers/hf-versioned-files",
            f"{folder / CONFIG} names several tokenizers (fast_tokenizer_files): keep tokenizer.json alone, and "
            "take the field out",
        )
    if "added_tokens_decoder" not in facts:
        facts |= _object(folder / SPECIAL)
        if added := _object(folder / ADDED):
            named = {_text(token) for _, token in _named(facts)}
            facts["added_tokens_decoder"] = {
                str(number): {"content": text, "special": text in named, "normalized": text not in named}
                for text, number in added.items()
            }
    return facts


def _object(path: Path) -> dict[str, Any]:
    return read_json(path, "the tokenizer's special tokens") if path.is_file() else {}


def role_names(facts: Mapping[str, Any]) -> dict[str, str | None]:
    """{role without `_token`: its token's text}; None where a file says that there is none."""
    found = {name.removesuffix("_token"): None for name in ROLES if name in facts and facts[name] is None}
    return found | {name.removesuffix("_token"): _text(token) for name, token in _named(facts) if name}


def with_added_tokens(raw: Mapping[str, Any], facts: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """A tokenizer.json with the added tokens that the files beside it name, ids and flags as in transformers.

    A token of the vocabulary keeps its id, others get the next ones; what a file says of `lstrip` and `rstrip` goes
    before tokenizer.json. Raises `UserError` where a file gives a token another id than it gets so.
    """
    vocab = raw["model"].get("vocab") or {}
    ids = vocab if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}
    added: dict[str, dict[str, Any]] = {}
    for token in raw.get("added_tokens") or ():
        _agree(
            _number(token["content"], added, ids), operator.index(token["id"]), token, where.with_name("tokenizer.json")
        )
        added[token["content"]] = dict(token)
    listed = facts.get("added_tokens_decoder") or {}
    for number, token in sorted(((int(number), token) for number, token in listed.items()), key=lambda pair: pair[0]):
        _agree(_add(added, ids, {"special": False, **token}), number, token, where)
    for _, token in _named(facts):
        if _text(token) in added:
            added[_text(token)]["special"] = True
        else:
            _add(added, ids, {**(token if isinstance(token, dict) else {"content": token}), "special": True})
    tokens = sorted(added.values(), key=lambda token: int(token["id"]))
    return {**raw, "added_tokens": tokens} if tokens != raw.get("added_tokens") else dict(raw)


def _named(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(role, token) of all special tokens in transformers' order; those without a role have none."""
    more = facts.get("extra_special_tokens") or facts.get("additional_special_tokens") or ()
    specific = {
        name: token
        for name, token in facts.items()
        if name not in ROLES and name.endswith("_token") and isinstance(token, str)
    }
    specific |= facts.get("model_specific_special_tokens") or {}
    specific |= more if isinstance(more, dict) else {}
    yield from ((name, facts[name]) for name in ROLES if facts.get(name) is not None)
    yield from specific.items()
    yield from (("", token) for token in more if not isinstance(more, dict))


def _text(token: Any) -> str:
    text: str = token["content"] if isinstance(token, dict) else token
    return text


def _number(text: str, added: Mapping[str, dict[str, Any]], ids: Mapping[str, int]) -> int:
    """The id that the package tokenizers gives a token: its own, or the next."""
    if text in added:
        return int(added[text]["id"])
    return ids.get(text, max(len(ids), 1 + max((one["id"] for one in added.values()), default=-1)))


def _agree(got: int, said: int, token: Mapping[str, Any], where: Path) -> None:
    if got != said:
        raise UserError(
            "tokenizers/hf-added-token-id",
            f"{where} gives token {token['content']!r} the id {said}, and transformers {got}, the next that is free or "
            "that of the vocabulary: take all files of the tokenizer from one place",
        )


def _add(added: dict[str, dict[str, Any]], ids: Mapping[str, int], token: Mapping[str, Any]) -> int:
    """Put a token into `added`, its flags over those that are there; its id."""
    text = token["content"]
    number, before = _number(text, added, ids), added.get(text, {})
    special = bool(token.get("special") or before.get("special"))
    flags = {name: bool(token.get(name, default)) for name, default in FLAGS.items()}
    normalized = bool(token.get("normalized", not special))
    added[text] = {"id": number, "content": text, **flags, "normalized": normalized, "special": special}
    return number
