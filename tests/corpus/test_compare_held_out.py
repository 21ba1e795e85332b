"""Held-out documents, the training text without their near copies, and what models need for them."""

import contextlib
import json
import random

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.config.load import load_config
from coretrain.data.batch import IGNORED
from coretrain.data.prepare import documents_of, survey
from coretrain.data.sources import Source, open_source
from coretrain.tokenizers.registry import bytes_tokenizer
from tests.support.refusal import refused
from twintrain.proxies import held_out as module
from twintrain.proxies.held_out import HeldOut, Shared, candidates, copied, grams_of, unknown
from twintrain.proxies.runs import _bits, rows_of
from twintrain.proxies.sides import even_texts, side_of

DATA = load_config(None, [("data.validation_fraction", "0.2")]).data
WORDS = [a + b for a in "bdfgklmnprst" for b in ("alo", "ine", "oru", "est", "umi", "ack")]


def text(seed, words=60):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def source(name, texts):
    return Source(name, (name, len(texts)), lambda: iter(texts))


def split(one, which):
    return [d.text for d in documents_of(one, DATA, survey(one, DATA)) if d.split == which]


def test_held_out_are_the_validation_split():
    one = source("a", [text(n) for n in range(50)])
    (found,) = candidates([one], DATA, None)
    assert sorted(found.texts) == sorted(split(one, "validation"))
    assert found.sizes == [len(each.encode()) for each in found.texts]


def test_the_order_of_files_changes_nothing():
    texts = [text(n) for n in range(60)]
    first, again = (candidates([source("a", order)], DATA, None) for order in (texts, texts[::-1] + texts[:5]))
    assert first == again


def test_the_least_are_chosen_and_the_others_counted(monkeypatch):
    monkeypatch.setattr(module, "DOCUMENTS", 3)
    one = source("a", [text(n) for n in range(100)])
    (found,) = candidates([one], DATA, one)
    assert len(found.texts) == 3
    assert found.more == 97
    hashes = sorted(d.digest.hex() for d in documents_of(one, DATA, {}))
    assert list(found.digests) == hashes[:3]


def test_a_long_document_is_cut(monkeypatch):
    monkeypatch.setattr(module, "CHARACTERS", 30)
    (found,) = candidates([source("a", ["\u00e9" * 100])], DATA, source("a", ["\u00e9" * 100]))
    assert found.texts == ("\u00e9" * 30,)
    assert found.sizes == [60]  # bytes, not characters


def test_nothing_to_hold_out():
    with refused("command/held-out-empty", "nothing", "--held-out"):
        candidates([], DATA, source("nothing", [" "]))


def of(*texts):
    return Shared([HeldOut("h", texts, tuple(f"{n}" for n in range(len(texts))))])


def near(shared, one):
    return shared.near("another", grams_of(one))


def test_what_is_near():
    page = text(1, 80)
    shared = of(page, text(2, 80))
    words = page.split()
    assert near(shared, page)
    assert near(shared, page.upper().replace(" ", ", "))  # case and marks aside
    assert near(shared, text(3, 300) + " " + page)  # the held-out page with boilerplate around it
    assert near(shared, " ".join(words[:30]))  # a part of it
    assert not near(shared, text(4, 80))
    assert not near(shared, " ".join(words[:30] + text(5, 50).split()))  # 23 of 73 8-grams
    assert near(shared, " ".join(words[:50] + text(5, 30).split()))  # 43 of 73
    assert shared.near("1", grams_of("of the same hash"))


def test_halves_of_two_are_no_one():
    """Half of one held-out page and half of another, beside other text: near to neither."""
    a, b = text(1, 80), text(2, 80)
    mixed = " ".join([*a.split()[:36], *b.split()[:36], *text(3, 8).split()])
    assert not near(of(a, b), mixed)


def test_words_are_counted_by_eights():
    """Of pages of 15 words there are 8 8-grams; sharing the first 12 words is 5 of 8, the first 11 is 4 of 8."""
    page = text(1, 15)
    words = page.split()
    assert len(grams_of(page)) == 8
    assert near(of(page), " ".join([*words[:12], "x", "y", "z"]))
    assert not near(of(page), " ".join([*words[:11], "w", "x", "y", "z"]))


def test_short_texts_are_their_words():
    assert near(of("Hello, world!"), "hello world")
    assert not near(of("hello world"), "hello world and all")
    assert not near(of("..."), "...")  # no words: nothing is known


def test_a_cleaned_page_is_not_trained_on_where_its_raw_page_is_held_out(tmp_path):
    """The trap: the same page has two hashes, is held out of one source, and in the training split of the other."""
    pages = [text(n, 80) for n in range(60)]
    raw = source("raw", [f"menu home about {page} contact" for page in pages])
    clean = source("clean", pages)
    texts = candidates([raw, clean], DATA, None)
    shared = Shared(texts)
    copies = [copied(one, DATA, shared, tmp_path / f"{one.name}.jsonl", 10**9) for one in (raw, clean)]
    kept = [open_source(str(copy.path)) for copy in copies]
    held = {page for page in pages for one in texts for each in one.texts if page in each}
    assert len(held) > 12
    for one, copy, whole in zip(kept, copies, (raw, clean), strict=True):
        trained_on = split(one, "train")
        assert not [page for page in held if any(page in each for each in trained_on)]
        assert len(trained_on) == len(split(whole, "train")) - copy.near
        assert copy.near > 0
        assert copy.bytes == sum(len(each.encode()) for each in trained_on)
    assert [one.texts for one in unknown(texts, kept, DATA, shared)] == [one.texts for one in texts]


def test_a_part_is_enough(tmp_path):
    one = source("a", [text(n) for n in range(200)])
    size = sum(len(each.encode()) for each in one.documents())
    shared = of("nothing of it")
    copy = copied(one, DATA, shared, tmp_path / "a.jsonl", size // 4)
    lines = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    written = sum(len(each.encode()) for each in lines)
    assert size // 4 <= written < size // 4 + 1000
    assert copy.part
    assert 0 < len(set(lines) & set(split(one, "validation"))) < 25  # a fifth of some 50: not first what is held out
    assert copy.whole == sum(len(each.encode()) for each in split(one, "train"))
    assert lines == [each for each in one.documents() if each in set(lines)]  # in their order
    other = source("a", list(one.documents())[::-1])
    copied(other, DATA, shared, tmp_path / "b.jsonl", size // 4)
    assert sorted((tmp_path / "b.jsonl").read_text().splitlines()) == sorted(
        (tmp_path / "a.jsonl").read_text().splitlines()
    )


def test_a_copy_that_was_begun_is_made_again(tmp_path):
    one = source("a", [text(n) for n in range(30)])
    copy = copied(one, DATA, of(text(3)), tmp_path / "a.jsonl", 10**9)
    whole = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.facts.json").unlink()
    (tmp_path / "a.jsonl").write_bytes(whole[:100])
    assert copied(one, DATA, of(text(3)), tmp_path / "a.jsonl", 10**9) == copy
    assert (tmp_path / "a.jsonl").read_bytes() == whole


def test_boilerplate_is_left_out():
    """A held-out page whose parts are in training pages, none of which is near it by itself."""
    parts = [text(n, 20) for n in range(4)]
    page = " ".join(parts)
    training = source("a", [f"{part} {text(100 + n, 80)}" for n, part in enumerate(parts)])
    data = DATA.model_copy(update={"validation_fraction": 1e-9})
    texts = [HeldOut("h", (page, text(50, 80)), ("0", "1"))]
    shared = Shared(texts)
    assert not any(near(shared, each) for each in training.documents())
    (found,) = unknown(texts, [training, training], data, shared)
    assert found.texts in ((text(50, 80),), texts[0].texts)  # one part may be the forced validation document
    assert found.known == 2 - len(found.texts)
    most = HeldOut("h", (f"{parts[0]} {parts[1]} a few words more that are new", text(60, 80)), ("0", "1"))
    pages = source("c", [f"{part} {text(200 + n, 80)}" for n in range(9) for part in parts[:2]])
    (found,) = unknown([most], [pages], data, Shared([most]))  # 26 of 39 8-grams are known
    assert found.texts == (text(60, 80),)
    alone = [HeldOut("h", (parts[0],), ("0",))]
    twice = source("b", [f"{parts[0]} {text(n, 99)}" for n in range(3)])
    with refused("command/held-out-known", "all 1 documents"):
        unknown(alone, [twice], data, Shared(alone))


class Model:
    """A model that needs one nat for each token, less a tenth of it for each row before."""

    def __init__(self):
        self.rows = []

    def token_logprobs(self, batch):
        self.rows.append(len(batch))
        return np.where(batch.labels != IGNORED, -1.0, 0.0)


def test_every_token_of_a_document_counts_once():
    tokenizer = bytes_tokenizer()
    held = HeldOut("h", ("abcdefghij", "xyz", "abcd"), ("0", "1", "2"))
    batch, owners = rows_of(held, tokenizer, 4)
    assert owners.tolist() == [0, 0, 0, 1, 2]
    assert batch.tokens[0].tolist() == [256, *b"abc"]
    assert batch.labels[0].tolist() == [*b"abcd"]
    assert batch.tokens[1].tolist() == [*b"defg"]
    assert batch.labels[2].tolist() == [*b"ij", IGNORED, IGNORED]
    model = Model()
    bits = _bits(model, batch, owners, 2, 3)
    assert bits == pytest.approx([10 / np.log(2), 3 / np.log(2), 4 / np.log(2)])
    assert model.rows == [2, 2, 2]  # padded: one shape


def test_the_tokenizer_learns_as_much_of_each():
    small = source("small", [text(n, 20) for n in range(1000, 1150)])
    large = source("large", [text(n, 300) for n in range(100, 200)])
    learnt = list(even_texts([small, large], DATA))
    own = set(split(small, "train"))
    of_small = sum(len(each.encode()) for each in learnt if each in own)
    rest = sum(len(each.encode()) for each in learnt) - of_small
    assert of_small == sum(len(each.encode()) for each in own)
    assert abs(rest - of_small) < 2500  # a document
    assert not set(learnt) & {*split(small, "validation"), *split(large, "validation")}
    some = list(even_texts([small, large], DATA, 3000))
    assert 3000 <= sum(len(each.encode()) for each in some) < 3000 + 2500


def test_sides(tmp_path):
    assert side_of("corpora/a").words == ["--data.source=corpora/a"]
    path = tmp_path / "m.toml"
    path.write_text('[data]\nmixture = [{source = "a", weight = 3}, {source = "b\\"", weight = 1}]\n')
    assert side_of(str(path)).parts == (("a", 3.0), ('b"', 1.0))
    (word,) = side_of(str(path)).words
    parts = load_config(None, [("data.mixture", word.partition("=")[2])]).data.mixture
    assert [(one.source, one.weight) for one in parts] == [("a", 3.0), ('b"', 1.0)]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("[data]\n", "mixture-missing"),
        ("data = 3\n", "mixture-missing"),
        ("[data\n", "mixture-unreadable"),
        ('[data]\nmixture = [{source = "a", weight = 0}]\n', "mixture-unreadable"),
        ("[data]\nmixture = 3\n", "mixture-unreadable"),
        (None, "mixture-unreadable"),
    ],
)
def test_a_mixture_that_is_none(tmp_path, content, code):
    path = tmp_path / "m.toml"
    if content is not None:
        path.write_text(content)
    with refused(f"command/{code}", "m.toml"):
        side_of(str(path))


def test_odd_mixtures_end_in_a_sentence(tmp_path):
    choose, path = random.Random(8), tmp_path / "m.toml"
    whole = b'[data]\nmixture = [{source = "a", weight = 3}, {source = "b", weight = 1.5}]\n'
    for _ in range(300):
        odd = bytearray(whole)
        for _ in range(choose.randint(1, 6)):
            at = choose.randrange(len(odd))
            odd[at : at + choose.randint(0, 4)] = bytes(
                choose.choices(b'{}[]=",.-0e\n\xff\x00nai', k=choose.randint(0, 3))
            )
        path.write_bytes(odd)
        with contextlib.suppress(UserError):
            assert all(isinstance(name, str) and weight > 0 for name, weight in side_of(str(path)).parts)
