"""A tokenizer as Hugging Face's `tokenizer.json`, checked to give the same ids.

tiktoken merges the adjacent pair whose joint token has the lowest rank; Hugging Face's BPE merges by a list of pairs.
The pair behind a token is what is left of its bytes after all merges of lower rank. Where a token isn't left as two
parts (Llama 3 has such: what it is made of came later), every way to make it and all others is listed, as transformers
does; `ignore_merges` is for those that are reached as a whole piece alone.
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
from coretrain.data.kept_tokenizer import KeptTokenizer
from coretrain.data.tokenizer import Tokenizer
from coretrain.errors import UserError

CHAT_TEMPLATE = "chat_template.jinja"
"""How turns become text, where the model was trained for chat: kept in a run's folder and in Hugging Face's."""
DIGITS_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"""
"""GPT-2's pattern after every digit has been cut out, as one: white space before a digit ends its piece."""
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


def merge_list(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pairs that a file lists, in order: one for each token where that is enough, else all. Source of the latter:
    `TikTokenConverter` in transformers' convert_slow_tokenizer.py, 5.23."""
    pairs = list(merges_of(ranks))
    if len(pairs) == sum(len(token) > 1 for token in ranks):
        return pairs
    ways = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], token[:cut], token[cut:])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    return [(left, right) for *_, left, right in sorted(ways)]


def oniguruma(pattern: str) -> str:
    """`pattern` for the engine of the package tokenizers, where `{1,3}+` isn't possessive: an atomic group says it."""
    return re.sub(r"(\\p\{\w+\}|\\\w|\[[^\]]*\])(\{[\d,]+\})\+", r"(?>\1\2)", pattern)


def hf_tokenizer(tokenizer: Tokenizer) -> Any:
    """A `tokenizers.Tokenizer` that gives the same ids, and besides reads the specials, `<|endoftext|>` among them."""
    try:
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Fast
    except ImportError:
        raise UserError("exporting a tokenizer needs the package tokenizers: pip install tokenizers") from None
    characters = byte_characters()

    def word(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    vocab = {word(token): rank for token, rank in tokenizer.ranks.items()} | tokenizer.specials
    merges = [] if tokenizer.pattern is None else [(word(a), word(b)) for a, b in merge_list(tokenizer.ranks)]
    fast = Fast(models.BPE(vocab=vocab, merges=merges, ignore_merges=tokenizer.pattern is not None))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if tokenizer.pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(oniguruma(tokenizer.pattern)), "isolated"))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    fast.decoder = decoders.ByteLevel()
    names = sorted(tokenizer.specials, key=tokenizer.specials.__getitem__)
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return fast


def check_same_ids(tokenizer: Tokenizer, fast: Any, done: str = "exported") -> None:
    """Raise `UserError` unless both give the same ids on `SAMPLES` and on random mixtures of their characters and of
    the tokenizer's tokens. `done` is what can't be done otherwise."""
    draw = random.Random(0)
    alphabet = sorted(set("".join(SAMPLES)))
    words = [word for word in (_text(token) for token in tokenizer.ranks) if word]
    plain = [word for word in words if word.isascii()]
    texts = [*SAMPLES, *("".join(draw.choices(alphabet, k=200)) for _ in range(50))]
    texts += ["".join(draw.choices(some, k=50)) for some in (words, plain) for _ in range(150)]
    for text in texts:
        if fast.encode(text, add_special_tokens=False).ids != tokenizer.encode(text).tolist():
            raise UserError(
                f"tokenizer {tokenizer.name} can't be {done}: Hugging Face's would give other ids, as for "
                f"{text[:40]!r}; use gpt2, trained or bytes"
            )


def _text(token: bytes) -> str:
    """A token's text; none where it is half a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return ""


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int, chat_template: str | None = None) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and the chat template. Raises as `check_same_ids` does."""
    if isinstance(tokenizer, KeptTokenizer):
        write_atomically(folder / "tokenizer.json", tokenizer.text)
    else:
        fast = hf_tokenizer(tokenizer)
        check_same_ids(tokenizer, fast)
        write_atomically(folder / "tokenizer.json", fast.to_str())
    names = {token: name for name, token in tokenizer.specials.items()}
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": names[token] for role, token in tokenizer.roles.items()},
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        facts["chat_template"] = chat_template  # for transformers before 4.43; later ones read the file
        write_atomically(folder / CHAT_TEMPLATE, chat_template)
    write_atomically(folder / "tokenizer_config.json", json.dumps(facts, indent=2) + "\n")


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a run or of a Hugging Face folder, if it has one. Raises `UserError` where it is no text."""
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path} is no text in UTF-8: restore it, or delete it to go without one") from None
    facts = folder / "tokenizer_config.json"
    template = read_json(facts, "the tokenizer's facts").get("chat_template") if facts.is_file() else None
    if isinstance(template, list):  # several by name
        named = (one for one in template if isinstance(one, dict))
        template = next((one.get("template") for one in named if one.get("name") == "default"), None)
    return template if isinstance(template, str) else None
