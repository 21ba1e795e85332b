"""Planted pages: likenesses of known strength, other languages, bad pages, personal data."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from coretrain.corpus.demo.answers import Plant
from coretrain.corpus.demo.foreign import SENTENCES
from coretrain.corpus.demo.pages import flat, page
from coretrain.corpus.demo.records import record_id, response
from coretrain.corpus.demo.texts import Text

SITE = "https://plants.example"
SHINGLE = 5
LIKENESS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.3)
"""Jaccard of word 5-grams that is aimed at; the answers have what it came to."""
SURELY, HARDLY = 0.9, 0.5
"""Above the one, bands of 14 x 8 find a pair with a chance of 99.9%; at the other, of 5%."""
WORD = re.compile(r"\w+")
LATIN = "dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna aliqua"
GOODS = "hotel flight car insurance loan casino ticket cheap best discount deal price"
NOUNS = "stone river table window copper lantern garden bottle mirror ladder button basket"


@dataclass(frozen=True)
class Made:
    """A page in the making."""

    url: str
    title: str
    record: bytes
    """Its WARC record, not compressed."""
    text: str = ""
    """What a WET file has of it; empty where it has nothing."""
    plant: Plant | None = None
    damage: str = ""
    """What is done to its bytes afterwards."""


def planted(kind: str, name: str, outcome: str, text: Text, group: str = "", **facts: Any) -> Made:
    """A page whose fate is known."""
    url = f"{SITE}/{kind}/{name}"
    plant = Plant(record_id("response", url), url, kind, outcome, group, facts)
    return Made(url, text.title, response(url, page(text)), flat(text), plant)


def shingles(text: str) -> set[tuple[str, ...]]:
    """Its word 5-grams, in small letters."""
    words = WORD.findall(text.lower())
    return {tuple(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)}


def jaccard(one: str, other: str) -> float:
    """What share of both texts' word 5-grams is in both."""
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def likenesses(pool: list[str], dice: random.Random, pairs: int = 8) -> Iterator[Made]:
    """Pairs of pages at known Jaccard, exact copies, and copies that differ in what stands around the text."""
    for level in LIKENESS:
        for number in range(pairs):
            group = f"near-{level}-{number}"
            first = essay(f"Notes on {group}", pool, dice, 18)
            other = _varied(first, level, dice)
            found = jaccard(_whole(first), _whole(other))
            outcome = "duplicate" if found >= SURELY else "either" if found > HARDLY else "distinct"
            yield planted("near-duplicate", f"{group}-a", outcome, first, group, jaccard=1.0)
            yield planted("near-duplicate", f"{group}-b", outcome, other, group, jaccard=round(found, 6))
    for number in range(6):
        text, group = essay(f"Copied {number}", pool, dice, 12), f"exact-{number}"
        for copy in range(2 + number % 3):
            made = planted("exact-duplicate", f"{group}-{copy}", "duplicate", text, group, jaccard=1.0)
            seen = [f"link-{copy}-{one}" for one in range(copy * 3)]
            yield replace(made, record=response(made.url, page(text, seen)), text=flat(text, seen))


def foreign(dice: random.Random, each: int = 4) -> Iterator[Made]:
    """Pages in other languages."""
    for language, sentences in SENTENCES.items():
        blank = "" if language in ("zh", "ja") else " "
        for number in range(each):
            chosen = dice.sample(sentences, 6)
            text = Text(chosen[0].rstrip(".。"), (blank.join(chosen[:3]), blank.join(chosen[3:])))
            made = planted(f"language-{language}", str(number), "language", text, "", language=language)
            yield replace(made, record=response(made.url, page(text, language=language)))


def bad(pool: list[str], dice: random.Random, each: int = 5) -> Iterator[Made]:
    """Pages that rules of quality are there to drop, and pages with nothing but what stands around a text."""
    for number in range(each):
        for kind, paragraphs in _bad_texts(pool, dice).items():
            yield planted(kind, str(number), "dropped", Text(f"Page {number}", tuple(paragraphs)))


def _bad_texts(pool: list[str], dice: random.Random) -> dict[str, list[str]]:
    def letters(least: int, most: int) -> str:
        return "".join(dice.choices(string.ascii_letters, k=dice.randint(least, most)))

    latin, goods, nouns = LATIN.split(), GOODS.split(), NOUNS.split()
    sentence = dice.choice(pool)
    return {
        "too-short": [" ".join(sentence.split()[:8])],
        "boilerplate-only": [],
        "symbols": [" ".join(dice.choices(["###", "***", "-->", "|", "=", "~~", "#", "..."], k=200))],
        "repeated-lines": [sentence] * 40,
        "lorem-ipsum": [f"Lorem ipsum {' '.join(dice.choices(latin, k=30))}." for _ in range(6)],
        "javascript-notice": ["Please enable JavaScript in your browser to use this page."] * 3,
        "keyword-spam": [", ".join(f"cheap {dice.choice(goods)} {dice.choice(goods)}" for _ in range(150))],
        "numbers": [" ".join(f"{dice.random() * 10000:.2f}" for _ in range(200))],
        "no-stop-words": [" ".join(dice.choices(nouns, k=120)) + "."],
        "bullets": [f"- {' '.join(dice.choices(nouns, k=6))}" for _ in range(40)],
        "ellipsis": [f"{' '.join(one.split()[:6])}..." for one in dice.sample(pool, 30)],
        "long-words": [" ".join(letters(40, 80) for _ in range(60))],
    }


def personal(pool: list[str], dice: random.Random, each: int = 8) -> Iterator[Made]:
    """Pages with addresses of e-mail and of the Internet, and numbers of telephones."""
    for number in range(each):
        name = dice.choice(["anna", "bo", "carla", "dev.ops", "e_lee"])
        emails = [f"{name}{number}@mail{number}.example.org", f"info+{number}@shop-{number}.example"]
        public, private = f"8.{number + 8}.{number + 4}.{number + 1}", f"192.168.{number}.{number + 10}"
        phone = f"+1 (555) 010-{4000 + number}"
        body = essay(f"Contact {number}", pool, dice, 12)
        said = (
            f"Please write to {emails[0]} or to {emails[1]} if you have a question about this page.",
            f"The server answers at {public}, and inside the house at {private}; the telephone is {phone}.",
        )
        text = Text(body.title, (*body.paragraphs, *said))
        facts = {"emails": emails, "public": [public], "private": [private], "phones": [phone]}
        yield planted("personal-data", str(number), "replaced", text, "", **facts)


def essay(title: str, pool: list[str], dice: random.Random, count: int) -> Text:
    """Sentences that never stood together, in paragraphs of four."""
    chosen = dice.sample(pool, count)
    return Text(title, tuple(" ".join(chosen[at : at + 4]) for at in range(0, count, 4)))


def _whole(text: Text) -> str:
    return " ".join((text.title, *text.paragraphs))


def _varied(text: Text, level: float, dice: random.Random) -> Text:
    """The text with words replaced, far from each other, so that its Jaccard with the first is about `level`.

    A word alone is in five 5-grams: k words of n leave n - 4 - 5k of them, of n - 4 + 5k in both texts together.
    """
    paragraphs = [paragraph.split(" ") for paragraph in text.paragraphs]
    places = [(row, column) for row, words in enumerate(paragraphs) for column in range(len(words))]
    grams = len(WORD.findall(_whole(text).lower())) - SHINGLE + 1
    count = round(grams * (1 - level) / (1 + level) / SHINGLE)
    inner = places[SHINGLE:-SHINGLE]
    step = len(inner) // max(count, 1)
    shift = dice.randrange(max(step, 1))
    for number in range(count):
        row, column = inner[number * step + shift % step]
        old = paragraphs[row][column]
        new = "".join(dice.choices("bcdfghklmnprst", k=2)) + dice.choice("aeiou") + "ster"
        paragraphs[row][column] = WORD.sub(new, old, count=1)
    return Text(text.title, tuple(" ".join(words) for words in paragraphs))
