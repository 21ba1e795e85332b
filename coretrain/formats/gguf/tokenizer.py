"""The tokenizer inside a GGUF file: tokens in GPT-2's byte alphabet, merges, special tokens, a named pre-tokenizer; or
SentencePiece's (`sentencepiece.py`).

llama.cpp knows the ways to split text by name only. A run's own pattern that has no name there is kept in the file
beside the nearest name. Source: llama-vocab.cpp at github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.formats.gguf.file import GGUFFile
from coretrain.formats.gguf.sentencepiece import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    sentencepiece_facts,
    sentencepiece_json,
)
from coretrain.tokenizers.byte_alphabet import byte_characters
from coretrain.tokenizers.chat_template import turn_end
from coretrain.tokenizers.chat_template_file import DEFAULT, WITH_TOOLS, one_template
from coretrain.tokenizers.huggingface import ranked_tokenizer
from coretrain.tokenizers.json_tokenizer import JsonTokenizer, added_specials
from coretrain.tokenizers.merges import (
    DIGITS_PATTERN,
    SAMPLES,
    check_same_ids,
    merge_list,
    oniguruma,
)
from coretrain.tokenizers.tokenizer import GPT2_PATTERN, Tokenizer, end_of_text

LLAMA3_PATTERN = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
PATTERNS = {
    "gpt-2": GPT2_PATTERN,
    "smollm": DIGITS_PATTERN,
    "llama-bpe": LLAMA3_PATTERN,
    "qwen2": LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"),
}
NEAREST = "llama-bpe"
OWN_PATTERN = "twintrain.tokenizer.pattern"
ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def gguf_chat_template(file: GGUFFile) -> str | None:
    """The chat template of a GGUF file, if it has one; with its one for tools, as llama.cpp takes it."""
    keys = {DEFAULT: "tokenizer.chat_template", WITH_TOOLS: f"tokenizer.chat_template.{WITH_TOOLS}"}
    found = {name: file.facts.get(key) for name, key in keys.items()}
    return one_template({name: text for name, text in found.items() if isinstance(text, str)})


def read_gguf_tokenizer(file: GGUFFile) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises `UserError` where there is none, where it is no byte-level BPE that ranks describe exactly, or where the
    package tokenizers, given the file's own tokens and merges, makes other ids of the samples.
    """
    try:
        return _read(file)
    except (TypeError, AttributeError, LookupError, OverflowError):
        raise UserError(
            "formats/gguf-tokenizer-damaged",
            f"{file.path}: a field of its tokenizer is of the wrong kind: download it again",
        ) from None


def _read(file: GGUFFile) -> Tokenizer:
    facts = file.facts
    if "tokenizer.ggml.model" not in facts:
        raise UserError(
            "formats/gguf-tokenizer-missing",
            f"{file.path} has no tokenizer (tokenizer.ggml.model): take a file that has one",
        )
    if facts["tokenizer.ggml.model"] == "llama":
        return _sentencepiece(file)
    if facts["tokenizer.ggml.model"] != "gpt2":
        raise UserError(
            "formats/gguf-tokenizer-unsupported",
            f"{file.path}: tokenizer.ggml.model = {facts['tokenizer.ggml.model']} can't be imported: "
            "gpt2, a byte-level BPE, and llama, SentencePiece's, can",
        )
    name = facts.get("tokenizer.ggml.pre", "none")
    if name not in PATTERNS and OWN_PATTERN not in facts:
        raise UserError(
            "formats/gguf-pattern-unsupported",
            f"{file.path}: tokenizer.ggml.pre = {name} can't be imported: {', '.join(PATTERNS)} can",
        )
    pattern = facts.get(OWN_PATTERN) or PATTERNS[name]
    tokens, merges = _texts(file, "tokens"), _texts(file, "merges")
    kinds = _per_token(file, "token_type", [NORMAL] * len(tokens))
    words = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == NORMAL}
    specials = {
        token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (CONTROL, USER_DEFINED)
    }
    pairs = [tuple(merge.split(" ")) for merge in merges]
    roles = _roles(file, {}, specials)
    tokenizer = ranked_tokenizer(file.path, _called(file.path), words, pairs, pattern, specials, roles)
    splitter = name if pattern == PATTERNS.get(name) else ""
    try:
        reference = _reference(words | specials, pairs, splitter, pattern)
    except Exception as error:  # the package raises nothing more particular
        raise UserError(
            "formats/gguf-tokenizer-unreadable",
            f"{file.path} can't be read by the package tokenizers ({error}): download it again",
        ) from None
    check_same_ids(tokenizer, reference, "imported")
    return tokenizer


def _sentencepiece(file: GGUFFile) -> Tokenizer:
    tokens = _texts(file, "tokens")
    scores, kinds = _per_token(file, "scores"), _per_token(file, "token_type")
    prefix = bool(file.facts.get("tokenizer.ggml.add_space_prefix", True))
    text = sentencepiece_json(tokens, scores, kinds, prefix)
    specials = added_specials(json.loads(text))
    roles = _roles(file, {"bos": 1, "eos": 2, "unk": 0}, specials)  # llama.cpp's own, where the file doesn't say
    tokenizer = JsonTokenizer(_called(file.path), text, end_of_text(str(file.path), specials, roles), roles)
    tokenizer.check(SAMPLES)
    return tokenizer


def _texts(file: GGUFFile, name: str) -> list[str]:
    values: list[str] = file.fact(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(
            "formats/gguf-tokenizer-not-texts",
            f"{file.path}: tokenizer.ggml.{name} is no list of texts: download it again",
        )
    return values


def _per_token(file: GGUFFile, name: str, absent: list[int] | None = None) -> list[Any]:
    """A fact of each token. Raises `UserError` where there are more or fewer of them than tokens."""
    key, tokens = f"tokenizer.ggml.{name}", file.fact("tokenizer.ggml.tokens")
    values: list[Any] = file.fact(key) if absent is None else file.facts.get(key) or absent
    if len(values) != len(tokens):
        raise UserError(
            "formats/gguf-token-entries-differ",
            f"{file.path}: {key} has {len(values)} entries for {len(tokens)} tokens: the file is damaged; "
            "download it again",
        )
    return values


def _roles(file: GGUFFile, absent: dict[str, int], specials: Mapping[str, int]) -> dict[str, int]:
    """Ids of the roles that a special token has; a file may give one to any other, or to none, as 2**32 - 1."""
    found = {role: file.facts.get(f"tokenizer.ggml.{key}_token_id", absent.get(role)) for role, key in ROLES.items()}
    held = set(specials.values())
    return {role: token for role, token in found.items() if isinstance(token, int) and token in held}


def _called(path: Path) -> str:
    return path.name.removesuffix(".gguf")


def _reference(words: dict[str, int], pairs: list[tuple[str, ...]], name: str, pattern: str) -> Any:
    """The package tokenizers' BPE of the file's own tokens and merges, splitting in the steps the name stands for."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    fast = Fast(models.BPE(vocab=words, merges=[(a, b) for a, b in pairs], ignore_merges=name in ("", "llama-bpe")))
    steps: list[Any] = {
        "gpt-2": [],
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    }.get(name, [pre_tokenizers.Split(Regex(oniguruma(pattern)), "isolated")])
    own = name in ("gpt-2", "smollm")
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return fast


def tokenizer_facts(tokenizer: Tokenizer, vocab: int, chat_template: str | None) -> tuple[dict[str, Any], str | None]:
    """A tokenizer as metadata for a model of `vocab` rows, and a sentence where llama.cpp would split otherwise.

    Ids without a token (padding of the vocabulary) are marked as unused. Raises `UserError` for one that GGUF's files
    have no form for.
    """
    if tokenizer.vocab > vocab:
        raise UserError(
            "formats/gguf-vocabulary-differs",
            f"tokenizer {tokenizer.name} has {tokenizer.vocab} ids, the model {vocab}: give the tokenizer that the "
            "model was trained with",
        )
    if isinstance(tokenizer, JsonTokenizer):
        facts, remark = sentencepiece_facts(tokenizer, vocab)
    else:
        facts, remark = _ranked_facts(tokenizer, vocab)
    facts["tokenizer.ggml.add_bos_token"] = False
    held = {role: token for role, token in tokenizer.roles.items() if role in ROLES}
    facts |= {f"tokenizer.ggml.{ROLES[role]}_token_id": token for role, token in held.items()}
    if chat_template:
        facts["tokenizer.chat_template"] = chat_template
    if (end := turn_end(chat_template, tokenizer)) is not None:
        facts["tokenizer.ggml.eot_token_id"] = end
    return facts, remark


def _ranked_facts(tokenizer: Tokenizer, vocab: int) -> tuple[dict[str, Any], str | None]:
    if tokenizer.pattern is None:
        raise UserError(
            "formats/gguf-export-without-merges",
            f"tokenizer {tokenizer.name} can't be exported to GGUF: llama.cpp asks for merges, and it has none; "
            "export to Hugging Face's form (--to hf)",
        )
    characters = byte_characters()

    def word(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    tokens, kinds = [f"[PAD{i}]" for i in range(vocab)], [UNUSED] * vocab
    for token, rank in tokenizer.ranks.items():
        tokens[rank], kinds[rank] = word(token), NORMAL
    for text, token_id in tokenizer.specials.items():
        tokens[token_id], kinds[token_id] = text, CONTROL
    name = next((name for name, pattern in PATTERNS.items() if pattern == tokenizer.pattern), NEAREST)
    facts: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [f"{word(a)} {word(b)}" for a, b in merge_list(tokenizer.ranks)],
    }
    if tokenizer.pattern == PATTERNS[name]:
        return facts, None
    return facts | {OWN_PATTERN: tokenizer.pattern}, _remark(tokenizer, name)


def _remark(tokenizer: Tokenizer, name: str) -> str:
    t = tokenizer
    theirs = Tokenizer(t.name, t.ranks, PATTERNS[name], t.eot, t.specials, t.roles, t.partial)
    other = sum(list(theirs.encode(text)) != list(t.encode(text)) for text in SAMPLES)
    return (
        f"llama.cpp has no name for how tokenizer {t.name} splits text; {name} is the nearest: "
        f"{other} of {len(SAMPLES)} sample texts get other ids there"
    )
