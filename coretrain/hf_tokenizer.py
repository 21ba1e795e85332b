"""A tokenizer as Hugging Face's `tokenizer.json`, checked to give the same ids.

tiktoken merges the adjacent pair whose joint token has the lowest rank; Hugging Face's BPE merges by a list of pairs.
The pair behind a token is what is left of its bytes after all merges of lower rank; a token that isn't left as two
parts is never merged by tiktoken either, and is reached only as a whole piece, which `ignore_merges` does.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coretrain.checkpoint import write_atomically
from coretrain.data.bpe import byte_characters
from coretrain.data.files import read_json
from coretrain.data.tokenizer import END_OF_TEXT, GPT2_PATTERN, Tokenizer
from coretrain.errors import UserError

SAMPLES = (
    "Hello, world! It's 12345 o'clock.\n\nWe'll SEE THAT'S done.",
    "def f(x: int) -> str:\n    return f'{x:>8}'  # naïve\n\n\n\tif True:\r\n\t\tpass   \n",
    "    indented   and   spaced    \n \n  \t \n",
    "Ångström café — “quotes” … 1,000.50 € ½ ² x₁",
    "Съешь же ещё этих мягких французских булок. 我能吞下玻璃而不伤身体。私はガラスを食べられます。",
    "مرحبا بالعالم हिन्दी ไทย 한국어 עברית",
    "🙂👩‍👩‍👧‍👦🇫🇷 e\u0301 a\u0308\u0300 \u200b\u00a0\u3000.",
    "https://example.org/a_b?c=d&e=f#g <tag attr='v'/> {\"k\": [1, 2.5e-3, null]} __init__ snake_case CamelCase",
    "aaaaaaaaaaaaaaaaaaaa abababababab 1111111111 ------------ ============ \n\n\n\n\n",
    " ",
    "",
)


def merges_of(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pairs that a list-driven BPE must merge, in order, to do what ranks do."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joint = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
            lowest = min(joint)
            if lowest >= rank:
                break
            i = joint.index(lowest)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def _oniguruma(pattern: str) -> str:
    """`pattern` for the engine of the package tokenizers, where `{1,3}+` isn't possessive: an atomic group says it."""
    return re.sub(r"(\\p\{\w+\}|\\\w|\[[^\]]*\])(\{[\d,]+\})\+", r"(?>\1\2)", pattern)


def hf_tokenizer(tokenizer: Tokenizer) -> Any:
    """A `tokenizers.Tokenizer` that gives the same ids, and besides reads `<|endoftext|>` as the special token."""
    try:
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Fast
    except ImportError:
        raise UserError("exporting a tokenizer needs the package tokenizers: pip install tokenizers") from None
    characters = byte_characters()

    def word(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    vocab = {word(token): rank for token, rank in tokenizer.ranks.items()} | {END_OF_TEXT: tokenizer.eot}
    merges = [] if tokenizer.pattern is None else [(word(a), word(b)) for a, b in merges_of(tokenizer.ranks)]
    fast = Fast(models.BPE(vocab=vocab, merges=merges, ignore_merges=tokenizer.pattern is not None))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if tokenizer.pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(_oniguruma(tokenizer.pattern)), "isolated"))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return fast


def check_same_ids(tokenizer: Tokenizer, fast: Any) -> None:
    """Raise `UserError` unless both give the same ids on `SAMPLES` and on random mixtures of their characters."""
    draw = random.Random(0)
    alphabet = sorted(set("".join(SAMPLES)))
    words = [token.decode() for token in tokenizer.ranks if token.isascii()]
    texts = [*SAMPLES, *("".join(draw.choices(alphabet, k=200)) for _ in range(50))]
    texts += ["".join(draw.choices(words, k=50)) for _ in range(50)]
    for text in texts:
        if fast.encode(text, add_special_tokens=False).ids != tokenizer.encode(text).tolist():
            raise UserError(
                f"tokenizer {tokenizer.name} can't be exported: Hugging Face's would give other ids, as for "
                f"{text[:40]!r}; export without a tokenizer, or use gpt2, trained or bytes"
            )


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`. Raises as `check_same_ids` does."""
    fast = hf_tokenizer(tokenizer)
    check_same_ids(tokenizer, fast)
    write_atomically(folder / "tokenizer.json", fast.to_str())
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    write_atomically(folder / "tokenizer_config.json", json.dumps(facts, indent=2) + "\n")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, where it is a byte-level BPE that ranks describe exactly.

    Raises `UserError` saying what stands in the way: the ids' order isn't that of the merges, another pre-tokenizer, no
    end of text, or other ids on the samples.
    """
    path = folder / "tokenizer.json"
    raw = read_json(path, "a tokenizer of Hugging Face's fast kind")
    try:
        model = raw["model"]
        if model["type"] != "BPE" or raw.get("normalizer"):
            raise UserError(f"{path} is no byte-level BPE without a normalizer")
        pattern = _pattern(raw["pre_tokenizer"])
        back = {character: byte for byte, character in enumerate(byte_characters())}
        specials = {token["content"]: token["id"] for token in raw.get("added_tokens", ())}
        ranks = {
            bytes(back[character] for character in word): rank
            for word, rank in model["vocab"].items()
            if word not in specials
        }
        pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no byte-level BPE that ranks can describe") from None
    characters = byte_characters()
    if pairs != [tuple("".join(characters[byte] for byte in part) for part in pair) for pair in merges_of(ranks)]:
        raise UserError(f"{path}: the ids don't have the order of the merges, so that ranks can't describe it")
    if END_OF_TEXT in specials:
        eot = specials[END_OF_TEXT]
    else:
        facts = folder / "tokenizer_config.json"
        name = read_json(facts, "the tokenizer's special tokens").get("eos_token")
        name = name.get("content") if isinstance(name, dict) else name
        if name not in specials:
            raise UserError(f"{facts} names no eos_token that {path.name} has")
        eot = specials[name]
    tokenizer = Tokenizer(folder.absolute().name, ranks, pattern, eot)
    from tokenizers import Tokenizer as Fast

    check_same_ids(tokenizer, Fast.from_file(str(path)))
    return tokenizer


def _pattern(pre_tokenizer: Any) -> str | None:
    """The split pattern of a byte-level pre-tokenizer; None where nothing is split."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *before, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or (before and last["use_regex"]):
        raise UserError(f"the pre-tokenizer {last['type']} with these settings can't be described by one pattern")
    if last["use_regex"]:
        return GPT2_PATTERN
    if not before:
        return None
    if len(before) > 1 or before[0]["type"] != "Split" or before[0]["behavior"] != "Isolated" or before[0]["invert"]:
        raise UserError("the pre-tokenizer's steps can't be described by one pattern")
    pattern: str = before[0]["pattern"]["Regex"]
    return pattern
