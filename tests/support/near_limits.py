"""Texts at each limit of the rules for text, and one step to either side of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

STOP = ("the", "be", "to", "of", "and", "that", "have", "with")
ENDS = (".", "?", "!", '"', "'", "...", "…", ":", ",", ";", ")", "", "”", "。")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def words(draw: random.Random, count: int, length: int = 6) -> list[str]:
    """Made-up words of `length` letters; hardly one occurs twice."""
    letters = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=count * length))
    return [letters[at : at + length] for at in range(0, count * length, length)]


def line(draw: random.Random, count: int, end: str = ".") -> str:
    """A sentence of so many made-up words, two stop words among them where there is room."""
    found = words(draw, count)
    if count > 4:
        found[1], found[3] = "the", "of"
    return " ".join(found) + end


def page(draw: random.Random, lines: int = 10, count: int = 12) -> list[str]:
    """Lines of a text that no rule drops."""
    return [line(draw, count) for _ in range(lines)]


def counted(draw: random.Random) -> Iterator[str]:
    """Words, their length, symbols, letters, stop words."""
    for count in (1, 2, 3, 47, 48, 49, 50, 51, 52):
        yield " ".join(["the", "of", *words(draw, count - 2)][:count])
    for count in (100_000, 100_001):
        yield " ".join(["the", "of", *words(draw, count - 2, 3)])
    for mean in (3, 10):
        for more in range(-3, 4):
            found = words(draw, 60, mean)
            found[0], found[1] = "the", "of"
            short = 60 * mean - sum(map(len, found)) + more
            at = 2
            while short:
                step = max(-2, min(2, short))
                found[at] = "x" * (len(found[at]) + step)
                short, at = short - step, at + 1
            yield " ".join(found)
    for sign in ("#", "...", "…"):
        for count in (5, 6, 7, 10, 11):
            yield " ".join(["the", "of", *words(draw, 52), *[sign] * count])
    for count in (9, 10, 11, 12, 13, 14):
        yield " ".join(["the", "of", *words(draw, 58 - count), *map(str, range(count))])
    for count in range(5):
        yield " ".join([*STOP[:count], *words(draw, 60)])
        yield " ".join([*[STOP[0]] * count, *(one.capitalize() for one in STOP), *words(draw, 60)])


def lined(draw: random.Random) -> Iterator[str]:
    """Bullets, ends of lines, short lines, line ends a word."""
    for bullet in ("-", "•", "*", "- ", "  • "):
        for count in (17, 18, 19, 20):
            yield "\n".join([bullet + one for one in page(draw, count)] + page(draw, 20 - count))
    for end in ("...", "…", "....", " ...", "... "):
        for count in (2, 3, 4):
            yield "\n".join([line(draw, 12, end) for _ in range(count)] + page(draw, 10 - count))
    for end in ENDS:
        for count in (2, 3, 4):
            yield "\n".join(page(draw, count) + [line(draw, 12, end) for _ in range(25 - count)])
    for length in (29, 30, 31):
        for count in (66, 67, 68):
            short = [line(draw, 4)[: length - 1].ljust(length - 1, "x") + "." for _ in range(count)]
            yield "\n".join(short + page(draw, 100 - count))
    for breaks in range(1, 9):
        yield "\n".join(line(draw, 3) for _ in range(25)) + "\n" * breaks + line(draw, 12)
        yield "\n\n".join(" ".join(words(draw, breaks)) + "." for _ in range(25))


def repeated(draw: random.Random) -> Iterator[str]:
    """Lines, paragraphs and n-grams that occur again, more and more of them."""
    for total, size in ((10, 12), (9, 1), (20, 12), (40, 3)):
        for copies in range(1, total * 2 // 3):
            own = page(draw, total - copies, size)
            yield "\n".join(own + own[:1] * copies)
            yield "\n\n".join(own + (own * copies)[:copies])
    for extra in range(12):  # a copy of few characters in many
        yield "\n".join([*page(draw, 20, 15), "abc" * extra + ".", "abc" * extra + "."])
    for n in range(2, 12):
        for copies in range(2, 14):
            gram = " ".join(words(draw, n))
            yield " ".join(f"{gram} {' '.join(words(draw, 9))}" for _ in range(copies)) + " the of " + line(draw, 30)
    for size in (6, 8, 10, 12):  # equal lines: a fifth of the characters to the letter
        own = ["x" * 6 + chr(97 + at) + "." for at in range(size)]
        yield "\n".join(own[: size - 2] + own[:2])


def crawled(draw: random.Random) -> Iterator[str]:
    """What C4 looks for: sentences, words a line, long words, phrases, marks."""
    for count in range(1, 8):
        yield "\n".join(page(draw, count))
        yield " ".join(page(draw, count))
    for count in range(1, 7):
        yield "\n".join(page(draw) + [line(draw, count) for _ in range(3)])
        yield "\n".join([*page(draw), line(draw, count) + " [1] [edit] [citation needed]."])
    for length in (998, 999, 1000, 1001, 1002):
        yield "\n".join([*page(draw), f"the {'x' * length} of that.", f"the {'y' * (length - 1)}."])
    for phrase in (*POLICY, "JavaScript", "javascript", "Lorem Ipsum", "lorem ipsum", "lorem  ipsum", "{", "}", "[2]"):
        yield "\n".join([*page(draw), f"Here stands {phrase} of all words."])
        yield "\n".join([*page(draw), f"{phrase} here"])
        yield "\n".join([*page(draw, 5), f"We {phrase.upper()} that.", "Two {words} here."])
    for end in ENDS:
        yield "\n".join([*page(draw, 6), line(draw, 9, end), f"  {line(draw, 9, end)}  "])


def near_limits(seed: int = 7) -> list[str]:
    """All of them, each once."""
    draw = random.Random(seed)
    kinds: Iterable[Iterator[str]] = (counted(draw), lined(draw), repeated(draw), crawled(draw))
    return list(dict.fromkeys(text for kind in kinds for text in kind if text.strip()))
