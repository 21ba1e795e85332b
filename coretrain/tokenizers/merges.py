"""A tokenizer as Hugging Face's `tokenizer.json`, checked to give the same ids.

tiktoken merges the adjacent pair whose joint token has the lowest rank; Hugging Face's BPE merges by a list of pairs.
The pair behind a token is what is left of its bytes after all merges of lower rank. Where a token isn't left as two
parts (Llama 3 has such: what it is made of came later), every way to make it and all others is listed, as transformers
does; `ignore_merges` is for those that are reached as a whole piece alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

from coretrain.base.errors import UserError
from coretrain.tokenizers.tokenizer import Tokenizer

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
                "tokenizers/ids-differ-from-hf",
                f"tokenizer {tokenizer.name} can't be {done}: Hugging Face's would give other ids, as for "
                f"{text[:40]!r}; use gpt2, trained or bytes",
            )


def _text(token: bytes) -> str:
    """A token's text; none where it is half a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return ""
