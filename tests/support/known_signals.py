"""What the text rules must give for some texts: by hand, and by plain Python. Planted bugs change some of it."""

from __future__ import annotations

import hashlib
import importlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tests.support import plain_rules
from tests.support.plain_kneser_ney import PlainModel

ROOMS = (
    "coretrain.corpus.perplexity.",
    "coretrain.corpus.text.",
    "coretrain.corpus.signals.",
    "coretrain.corpus.filters.",
    "coretrain.corpus.rules",
)
KEPT = ("coretrain.corpus.text.classes", "coretrain.corpus.text.hashes")
"""Their tables take long to make."""
SENTENCE = "Don't stop! 3.14 well-known ... 你好 x?!"
WORDS = ["Don't", "stop", "!", "3.14", "well", "-", "known", "...", "你", "好", "x", "?", "!"]
PAGE = """One good line [1] here.
Two words.
Three words kept.
No end here
Three words here...
Please enable JavaScript now.
Our privacy policy is long.
A { b c.
Said he: "Go." Then he went."""
C4_PAGE = 'One good line  here.\nThree words kept.\nA { b c.\nSaid he: "Go." Then he went.'
C4_COUNTS = {"lines": 9, "lines_kept": 4, "no_end": 2, "few_words": 1, "javascript": 1, "policy": 1, "curly": 1}
LINES = "good words\n\n\n\nHALFS half\nSHOUT it\n12\n3 likes\nword\n2 items in cart\nmore words follow here now"
LINES_LEFT = "good words\n\nHALFS half\n2\nmore words follow here now"
PERSON = "Mail a@b.de or 8.8.8.8, not version 8.8.8.8 or 10.0.0.1; call (212) 345-6789."
PERSON_LEFT = "Mail user{}@example.com or {}, not version 8.8.8.8 or 10.0.0.1; call +1 202 555 01{}."
SIGNALS = "coretrain.corpus.signals."


def differences(only: str = "") -> list[str]:
    """The names of what the modules, as they are imported now, compute otherwise; `only` one of them is looked at."""
    return [name for name, find, expected in _checks() if name.startswith(only) and not _equal(find(), expected)]


def _equal(found: Any, expected: Any) -> bool:
    expected = expected() if callable(expected) else expected
    if isinstance(expected, dict):
        return all(np.array_equal(found[key], value, equal_nan=True) for key, value in expected.items())
    return bool(found == expected)


def _step(path: str, *texts: str, urls: tuple[str, ...] = (), **fields: Any) -> tuple[list[str], dict[str, Any]]:
    document = importlib.import_module("coretrain.corpus.document")
    module, name = path.split(".")
    step = getattr(importlib.import_module(SIGNALS + module), name)(**fields)
    documents = [
        document.Document(str(at), text, {"language": "en", "url": url})
        for at, (text, url) in enumerate(zip(texts, urls or [""] * len(texts), strict=True))
    ]
    found = step.run(document.Batch(documents))
    return found.texts, {key.removeprefix(f"{step.name}."): values for key, values in found.signals.items()}


def _signals(path: str, *texts: str, **fields: Any) -> Callable[[], dict[str, Any]]:
    return lambda: _step(path, *texts, **fields)[1]


def _words(text: str) -> list[str]:
    spans = importlib.import_module("coretrain.corpus.text.texts").Texts([text]).words
    return [text[a:b] for a, b in zip(spans.starts, spans.ends, strict=True)]


def _sentences() -> list[int]:
    module = importlib.import_module("coretrain.corpus.text.sentences")
    return module.count_sentences(['"Go." Then left. 3.5', "end", "...", ""]).tolist()


def _looked_at() -> list[int]:
    """How many characters of a long text are looked at for its language."""
    seen: list[str] = []
    _step("language.Language", "ab " * 900, identifier=lambda heads: seen.extend(heads) or [("en", 1.0)])
    return [len(one) for one in seen]


def _first_broken() -> list[str]:
    rules = [limit.rule() for limit in importlib.import_module("coretrain.corpus.filters.limits").SETS["gopher"]]
    signals = {rule.signal: np.full(3, np.nan) for rule in rules}
    signals["gopher.words"], signals["gopher.stop_words"] = np.array([50.0, 49, 60]), np.array([2.0, 1, 1])
    broken = importlib.import_module("coretrain.corpus.rules").first_broken(rules, signals, 3)
    return [rules[at].name if at >= 0 else "" for at in broken]


TEXTS = [*plain_rules.random_texts(7, 40), "", "a a", "ab c d e f a bc d e f", "a b a b long word long word"]
TEXTS += [" - a\n\t• b\nc", "a..\nb", " \n \nxy.", " a\n\na\n\nb\n\n "]
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»—…•"
POEM = "春眠不觉晓处处闻啼鸟"


def _checks() -> Iterator[tuple[str, Callable[[], Any], Any]]:
    """A name, what is found, and what it must be: an object, or a function that gives it after that."""
    yield "words", lambda: _words(SENTENCE), WORDS
    yield "sentences", _sentences, [3, 1, 0, 0]
    for counting in ("default", "datatrove"):
        one = partial(plain_rules.repetition, as_datatrove=counting == "datatrove")
        step = _signals("repetition.GopherRepetition", *TEXTS, counting=counting)
        yield f"repetition {counting}", step, partial(_columns, one)
    yield (
        "gopher",
        _signals("gopher.Gopher", *TEXTS),
        partial(_columns, partial(plain_rules.gopher, punctuation=PUNCTUATION)),
    )
    yield "fineweb", _signals("fineweb.FineWeb", *TEXTS), partial(_columns, plain_rules.fineweb)
    yield "short lines", _signals("fineweb.FineWeb", "x" * 30, "x" * 31), {"short_lines": [1, 0]}
    yield "long lines", _signals("page.Page", "x" * 199, "x" * 200), {"long_lines": [0, 1]}
    yield "unspaced", _signals("unspaced.Unspaced", POEM * 2), {"duplicate_10_gram": [0.5], "duplicate_12_gram": [0]}
    yield "foreign", _signals("gopher.Gopher", POEM), {"words": [np.nan]}
    yield "c4 text", lambda: _step("c4.C4", PAGE)[0], [C4_PAGE]
    yield "c4 counts", _signals("c4.C4", PAGE), {key: [value] for key, value in C4_COUNTS.items()} | {"sentences": [5]}
    yield "refinedweb text", lambda: _step("refinedweb.RefinedWeb", LINES)[0], [LINES_LEFT]
    counts = {"removed_words": [9 / 19], "uppercase": [1], "phrases": [1], "counters": [1]}
    yield "refinedweb counts", _signals("refinedweb.RefinedWeb", LINES), counts
    left = PERSON_LEFT.format(_blake("a@b.de", 1000), _address("8.8.8.8"), f"{_blake('2123456789', 100):02}")
    yield "pii text", lambda: _step("pii.Pii", PERSON)[0], [left]
    yield "pii counts", _signals("pii.Pii", PERSON), {"emails": [1], "ips": [1], "phones": [1]}
    yield "language", _looked_at, [2000]
    urls = ("http://a.de/sex-hot-sex", "http://essex.de/xxx")
    counts = {"soft_words": [2, 0], "hard_words": [0, 1], "parts": [0, 0]}
    yield "url", _signals("url.Url", "", "", urls=urls), counts
    listed = {"words": [2], "fraction": [3 / 6]}
    yield "word list", _signals("word_lists.WordList", "Porn! hardcore sex, sexy"), listed
    yield "perplexity", _surprises, _plain_surprises
    yield "rules", _first_broken, ["", "gopher.min_words", "gopher.min_stop_words"]


def _surprises() -> list[float]:
    model = importlib.import_module("coretrain.corpus.perplexity.train").train(["\n".join(SAID[:9]), *SAID[9:]], 3)
    return [round(one, 4) for one in model.perplexities(ASKED).tolist()]


def _plain_surprises() -> list[float]:
    model = PlainModel([line.split() for line in SAID], 3)
    out = []
    for text in ASKED:
        logs: list[float] = []
        for line in text.split("\n"):
            chain = ["<s>", *(word if word in model.vocabulary else "<unk>" for word in line.split()), "</s>"]
            asked = [model.probability(chain[at], tuple(chain[max(0, at - 2) : at])) for at in range(1, len(chain))]
            logs += np.log(asked).tolist()
        out.append(round(float(np.exp(-np.mean(logs))), 4))
    return out


SAID = [" ".join(random.Random(at).choices("abcdef", k=2 + at % 5)) for at in range(60)]
ASKED = ["a b c d", "zz b a", "f\na a", "e e e e e", "c zz"]


def _columns(one: Callable[[str, list[str]], dict[str, float]]) -> dict[str, list[float]]:
    rows = [one(text, _words(text)) for text in TEXTS]
    return {key: [row[key] for row in rows] for key in rows[0]}


def _blake(text: str, below: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"pii").digest(), "little") % below


def _address(text: str) -> str:
    number = _blake(text, 762)
    return f"{('192.0.2', '198.51.100', '203.0.113')[number // 254]}.{number % 254 + 1}"
