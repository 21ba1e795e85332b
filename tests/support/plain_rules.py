"""The text rules once more in plain Python, a document at a time: slow, and easy to check against their sources."""
# Characters that look like others are meant here.
# ruff: noqa: RUF001

from __future__ import annotations

import random
import re
from collections import Counter

TERMINAL = ".!?。！？"
_WORDS = "the of and cat dog naïve Zürich 42 3.14 don't well-known ... # - • x foo bar. baz! qux? I'm — « »"
WORDS = _WORDS.split()


def random_texts(seed: int, count: int, longest: int = 60) -> list[str]:
    """Texts of few different words, so that much repeats, with odd blanks and line ends; some are empty."""
    draw = random.Random(seed)
    gaps = [" "] * 12 + ["\n", "\n", "\n\n", "\n\n\n", "  ", " \n", "\r\n", "\t", ""]
    texts = []
    for _ in range(count):
        few = draw.sample(WORDS, draw.randint(1, len(WORDS)))
        parts = []
        for _ in range(draw.randint(0, longest)):
            parts += [draw.choice(few), draw.choice(gaps)]
        if draw.random() < 0.4 and parts:
            parts += parts[: draw.randint(1, len(parts))] * draw.randint(1, 3)
        texts.append("".join(parts))
    return texts


def later_copies(items: list[str]) -> list[str]:
    """The items that occurred before."""
    seen: set[str] = set()
    out = []
    for one in items:
        if one in seen:
            out.append(one)
        seen.add(one)
    return out


def fraction(part: float, whole: float) -> float:
    """`part / whole`; NaN of nothing."""
    return part / whole if whole else float("nan")


def repetition(text: str, words: list[str], as_datatrove: bool) -> dict[str, float]:
    """Gopher's repetition rules."""
    out = {"characters": float(len(text))}
    for key, items in (("paragraph", re.split(r"\n{2,}", text.strip())), ("line", re.split(r"\n+", text))):
        copies = later_copies(items)
        out[f"duplicate_{key}s"] = fraction(len(copies), len(items))
        out[f"duplicate_{key}_characters"] = fraction(sum(map(len, copies)), len(text))
    for n in (2, 3, 4):
        grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        out[f"top_{n}_gram"] = fraction(top(grams, as_datatrove), len(text))
    for n in range(5, 11):
        count = greedy if as_datatrove else covered
        out[f"duplicate_{n}_gram"] = fraction(count(words, n), len(text))
    return out


def top(grams: list[str], as_datatrove: bool) -> int:
    """Characters of the most frequent n-gram times its count."""
    counts = Counter(grams)
    most = max(counts.values(), default=0)
    if as_datatrove:
        return next((len(one) * most for one in counts if counts[one] == most), 0)
    return max((len(one) * most for one in counts if counts[one] == most), default=0) if most > 1 else 0


def greedy(words: list[str], n: int) -> int:
    """Characters of repeated n-grams from left to right, each hit passed over whole, words run together."""
    seen: set[str] = set()
    at = total = 0
    while at + n <= len(words):
        gram = "".join(words[at : at + n])
        if gram in seen:
            total += len(gram)
            at += n
        else:
            seen.add(gram)
            at += 1
    return total


def covered(words: list[str], n: int) -> int:
    """Characters of the words within n-grams that occurred before, each word once."""
    seen: set[tuple[str, ...]] = set()
    inside: set[int] = set()
    for at in range(len(words) - n + 1):
        gram = tuple(words[at : at + n])
        if gram in seen:
            inside.update(range(at, at + n))
        seen.add(gram)
    return sum(len(words[at]) for at in inside)


def gopher(text: str, words: list[str], punctuation: str) -> dict[str, float]:
    """Gopher's quality rules; a word of `punctuation` alone isn't counted as one."""
    real = [word for word in words if any(one not in punctuation for one in word)]
    lines = text.splitlines()
    return {
        "words": float(len(real)),
        "mean_word_length": fraction(sum(map(len, real)), len(real)),
        "hash_ratio": fraction(text.count("#"), len(words)),
        "ellipsis_ratio": fraction(text.count("...") + text.count("…"), len(words)),
        "bullet_lines": fraction(sum(one.lstrip().startswith(("•", "-")) for one in lines), len(lines)),
        "ellipsis_lines": fraction(sum(one.rstrip().endswith(("...", "…")) for one in lines), len(lines)),
        "alpha_words": fraction(sum(any(map(str.isalpha, word)) for word in words), len(words)),
        "stop_words": float(len(set(words) & {"the", "be", "to", "of", "and", "that", "have", "with"})),
    }


def fineweb(text: str, words: list[str]) -> dict[str, float]:
    """FineWeb's own rules."""
    lines = [line for line in text.split("\n") if line.strip()]
    copies = later_copies(lines)
    return {
        "lines": float(len(lines)),
        "punctuated_lines": fraction(sum(line.endswith(tuple(TERMINAL)) for line in lines), len(lines)),
        "short_lines": fraction(sum(len(line) <= 30 for line in lines), len(lines)),
        "duplicate_line_characters": fraction(sum(map(len, copies)), len(text.replace("\n", ""))),
        "newlines_per_word": fraction(text.count("\n"), len(words)),
    }
