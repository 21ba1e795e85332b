"""Short checks of deduplication and decontamination with known answers, that a planted bug must fail.

Each takes an empty folder, and raises AssertionError where something is wrong.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coretrain.corpus.decontaminate.hits import find
from coretrain.corpus.decontaminate.index import read_index, write_index
from coretrain.corpus.decontaminate.step import Decontaminate
from coretrain.corpus.dedup import exact, lines, minhash, near, simhash, substring, words
from coretrain.corpus.dedup.clusters import components
from coretrain.corpus.dedup.minhash import MinHash, band_keys, chance, sign, signatures
from coretrain.corpus.dedup.parts import content_hash, open_parts
from coretrain.corpus.dedup.shingles import Shingling, shingles
from coretrain.corpus.dedup.words import Ragged, folded
from coretrain.corpus.document import Batch, Document
from coretrain.corpus.rules import first_broken
from tests.support.near_documents import WORDS, cluster_lines, jaccard, kept_ids, pair_of, parts_of, search, text

SURE = MinHash(Shingling(2), bands=24, rows=1, threshold=0.5)
"""Finds every pair at 0.5 and above: the chance to miss one is 2^-24."""


def order_of(one: Document, priority: list[str]) -> tuple[int, bytes, str]:
    """What decides, in plain Python."""
    source = str(one.metadata.get("source"))
    return (priority.index(source) if source in priority else 99, content_hash(one.text.encode()), one.id)


def related() -> list[Document]:
    """Random documents and edited copies of them at many similarities, two of them word for word."""
    draw, made = random.Random(11), []
    for number in range(12):
        parts = text(draw, 24).split()
        for copy in range(draw.choice([1, 3, 5])):
            for at in draw.sample(range(24), draw.choice([0, 1, 1, 2, 6])):
                parts[at] = draw.choice(parts[:3])  # so that some shingles come twice
            source = draw.choice(["web", "books"])
            made.append(Document(f"{copy}-{number}", " ".join(parts), {"source": source}))
    made += [Document(f"{one.id}-again", one.text, one.metadata) for one in made[:6]]
    one, two = pair_of(draw, 20, 10)
    words_ = (one.split(), two.split())
    both = [word for word in words_[0] if word in words_[1]]
    sides = [both[:17] + [word for word in side if word not in both][:8] for side in words_]
    made += [Document(f"half{n}", " ".join(side), {"source": "web"}) for n, side in enumerate(sides)]
    tail = text(draw, 12).split()
    made += [Document(f"loop{n}", " ".join(["bo", "ba"] * n + tail), {"source": "web"}) for n in (1, 10)]
    made.append(Document("short", "one"))
    draw.shuffle(made)
    return made


def expected_clusters(documents: list[Document], n: int, threshold: float, priority: list[str]) -> set[tuple[str, ...]]:
    """By plain Python: all pairs, flood fill, the smallest in front, the others sorted."""
    near_: dict[str, set[str]] = {one.id: {one.id} for one in documents if len(one.text.split()) >= n}
    by_id = {one.id: one for one in documents}
    for one, two in itertools.combinations(near_, 2):
        if jaccard(by_id[one].text, by_id[two].text, n) >= threshold:
            union = near_[one] | near_[two]
            for name in union:
                near_[name] = union
    made = set()
    for union in near_.values():
        if len(union) > 1:
            first, *rest = sorted(union, key=lambda name: order_of(by_id[name], priority))
            made.add((first, *sorted(rest)))
    return made


def near_duplicates(folder: Path) -> None:
    """Clusters, what is kept and what is counted are those of plain Python, in two orders and cuts."""
    documents, priority = related(), ["books", "web"]
    expected = expected_clusters(documents, 2, 0.5, priority)
    assert any(len(one) > 3 for one in expected)
    assert {"half0", "half1"} <= {name for one in expected for name in one}  # just at the threshold
    gone = {name for one in expected for name in one[1:]}
    for run, parts in enumerate((1, 4)):
        kept, numbers = search(folder / f"run{run}", documents, parts, SURE, memory=4800, priority=priority)
        found = [json.loads(line) for line in cluster_lines(kept, folder / "clusters").splitlines()]
        assert {(one["kept"], *sorted(one["dropped"])) for one in found} == expected
        assert kept_ids(kept) == {one.id for one in documents} - gone
        removed = dict.fromkeys(numbers["removed"], 0)
        for one in documents:
            removed[str(one.metadata.get("source", "unknown"))] += one.id in gone
        assert numbers["removed"] == removed
        assert numbers["short"] == 1
        documents = documents[::-1]


def later_data(folder: Path) -> None:
    """Nothing known before is dropped; whatever hangs together with it is."""
    documents = related()
    old = sorted((one for one in documents if one.id < "2"), key=lambda one: one.id)
    new = [one for one in documents if one.id >= "2"]
    near.index_part(lambda: iter(old), folder / "keys", folder / "sets", SURE)
    kept, numbers = search(
        folder / "run", new, 2, SURE, near.Indexed((folder / "keys",), (folder / "sets",)), memory=4800
    )
    by_id = {one.id: one for one in new}
    copies = {
        name
        for name, one in by_id.items()
        if any(
            jaccard(one.text, known.text, 2) >= 0.5 for known in old if len(known.text.split()) > 1 and name != "short"
        )
    }
    assert copies
    assert not copies & kept_ids(kept)
    assert sum(numbers["removed"].values()) == len(new) - len(kept_ids(kept))


def every_band(folder: Path) -> None:
    """The pairs that are compared are those that share any band."""
    documents, form = related(), MinHash(Shingling(2), bands=5, rows=3)
    keys = band_keys(sign([one.text for one in documents], form)[0], form)
    signed = [at for at, one in enumerate(documents) if one.id != "short"]
    pairs = sum(bool((keys[:, a] == keys[:, b]).any()) for a, b in itertools.combinations(signed, 2))
    for memory in (10**6, 1200):
        _, numbers = search(folder / f"{memory}", documents, 2, form, memory=memory)
        assert numbers["candidates"] == pairs


def recall(folder: Path) -> None:
    """2,000 pairs each at two similarities are found as often as 1 - (1 - s^r)^b says."""
    draw, form = np.random.default_rng(1), MinHash()
    for shared, own in ((60, 12), (60, 7)):
        both = draw.integers(0, 2**64, (2000, shared), dtype=np.uint64)
        sides = [np.hstack([both, draw.integers(0, 2**64, (2000, own), dtype=np.uint64)]) for _ in range(2)]
        starts = np.arange(2001) * (shared + own)
        one, two = (band_keys(signatures(Ragged(side.reshape(-1), starts), form), form) for side in sides)
        found = (one == two).any(axis=0).mean()
        assert abs(found - chance(shared / (shared + 2 * own), 14, 8)) < 0.025


def signature(folder: Path) -> None:
    """The smallest in each order, by Python's integers; of documents longer than a block too."""
    draw, form = np.random.default_rng(2), MinHash(bands=2, rows=2)
    sizes = [4, 0, 40_000, 3]
    found = Ragged(draw.integers(0, 2**64, sum(sizes), dtype=np.uint64), np.cumsum([0, *sizes]))
    a, b = (one.tolist() for one in minhash._orders(form))
    for document, row in enumerate(signatures(found, form).tolist()):
        values = [value >> 32 for value in found.of(document).tolist()]
        assert row == [min(((v * x + y) % 2**32 for v in values), default=2**32 - 1) for x, y in zip(a, b, strict=True)]


def folding(folder: Path) -> None:
    """What is folded away, what isn't, and that no word is cut where blocks end."""
    same = ["The c\u00e1fe, 12 years!", "the CA\u0301FE 7\nyears", "the\u00a0cafe 0 years"]
    assert len(set(folded(same))) == 1
    found = shingles([*same, "the cafe years 0"], Shingling(4))
    assert found.counts.tolist() == [1, 1, 1, 1]
    assert len(set(found.values.tolist())) == 2
    long = " ".join(WORDS * 12)
    assert len(long) > words.BLOCK
    hashes = words.words([long, WORDS[7]]).hashes
    assert len(set(hashes.values.tolist())) == len(WORDS)
    assert shingles([" ".join(WORDS[:4])], Shingling(5)).counts.tolist() == [0]


def chains(folder: Path) -> None:
    """A long chain, in any order, is one component."""
    order = np.random.default_rng(3).permutation(400)
    assert (components(400, order[:-1], order[1:]) == 0).all()
    assert components(5, np.array([4, 2]), np.array([3, 0])).tolist() == [0, 1, 0, 3, 3]


def equal_documents(folder: Path) -> None:
    """By folded words; documents without words are no copies."""
    documents = [
        Document("b", "One, two", {"source": "web"}),
        Document("a", "one TWO!", {"source": "books"}),
        Document("c", "one two three", {"source": "web"}),
        *(Document(f"none{n}", "!" * n, {"source": "web"}) for n in (0, 1, 2)),
    ]
    for number, order in enumerate((documents, documents[::-1])):
        paths = [folder / f"{number}-{part}" for part in range(2)]
        for path, opened in zip(paths, parts_of(order, 2), strict=True):
            exact.digest_part(opened(), path)
        kept = exact.exact_duplicates(paths, priority=["books"], pieces=3)
        assert kept_ids(kept) == {"a", "c", "none0", "none1", "none2"}


def repeated_lines(folder: Path) -> None:
    """One copy of each line stays: that of the wanted source."""
    documents = [
        Document("1", "Page 1\nown\nshared", {"source": "web"}),
        Document("2", "shared\nPage 2\nown too\nown too", {"source": "books"}),
    ]
    for number, order in enumerate((documents, documents[::-1])):
        lines.lines_part(order, folder / f"{number}")
        parts = open_parts([folder / f"{number}"], lines.described("line"))
        cut = lines.joined([lines.repeated(parts, ["books"], piece, 3) for piece in range(3)])
        left = {one.id: lines.without(one.text, "line", cut.of(at)) for at, one in enumerate(order)}
        assert left == {"1": "own", "2": "shared\nPage 2\nown too"}


def simhashes(folder: Path) -> None:
    """Pairs at most 3 bits apart, of numbers made so; a fourth bit is too much."""
    draw, form = random.Random(4), simhash.SimHash()
    votes = [0b1011, 0b0011, 0b1001]
    signed = simhash.simhashes(Ragged(np.array(votes, np.uint64), np.array([0, 3, 3])))
    assert signed.tolist() == [0b1011, 0]
    assert len(form.masks()) == 10
    for apart in (0, 1, 2, 3, 4):
        for _ in range(20):
            value, changed = draw.getrandbits(64), sum(1 << bit for bit in draw.sample(range(64), apart))
            both = np.array([value, value ^ changed], np.uint64)
            meet = ((both[0] & form.masks()) == (both[1] & form.masks())).any()
            assert meet or apart > 3
    shared = text(draw, 1500).split()
    documents = [Document(f"{n}", " ".join(shared[: 1500 - n])) for n in range(3)] + [Document("x", text(draw, 300))]
    values = simhash.simhashes(shingles([one.text for one in documents], form.shingling)).tolist()
    simhash.simhash_part(documents, folder / "keys", form)
    kept, _ = simhash.simhash_duplicates([folder / "keys"], form, pieces=2)
    near_ = [(values[a] ^ values[b]).bit_count() <= 3 for a, b in ((0, 1), (1, 2))]
    assert all(near_)
    assert len(kept_ids(kept)) == 2
    for distance in ((values[0] ^ values[1]).bit_count(), (values[0] ^ values[1]).bit_count() - 1):
        if distance >= 0:
            exactly = simhash.SimHash(distance=distance)
            simhash.simhash_part(documents[:2], folder / f"keys{distance}", exactly)
            kept, _ = simhash.simhash_duplicates([folder / f"keys{distance}"], exactly)
            assert len(kept_ids(kept)) == 2 - (distance == (values[0] ^ values[1]).bit_count())


def substrings(folder: Path) -> None:
    """100 bytes are cut out of the document that isn't wanted; 99 aren't; and what the first of others needs stays."""
    form = substring.Substrings()
    body = "".join(random.Random(5).choices("abcdefgh", k=100))
    for shared in (body, body[:99]):
        documents = [Document("1", f"({shared})", {"source": "web"}), Document("2", f"[{shared}]", {"source": "books"})]
        name = folder / f"{len(shared)}"
        substring.list_part(documents, name, form)
        parts, files = open_parts([name], form.described), [folder / f"{len(shared)}-{piece}" for piece in range(3)]
        for piece, path in enumerate(files):
            substring.repeats(parts, [lambda held=documents: iter(held)], form, path, ["books"], piece, 3)
        spans = substring.cuts(files, form, 0, 2)
        left = [substring.without(one.text, mine, form) for one, mine in zip(documents, spans, strict=True)]
        assert left == (["()", documents[1].text] if len(shared) == 100 else [one.text for one in documents])
    run = [Document("a", "a" * 150)]
    substring.list_part(run, folder / "run", form)
    substring.repeats(open_parts([folder / "run"], form.described), [lambda: iter(run)], form, folder / "windows")
    assert substring.cuts([folder / "windows"], form, 0, 1) == [[(100, 150)]]


def benchmarks(folder: Path) -> None:
    """13 words of a benchmark are a hit, 12 aren't; items of 8 words are found whole; cuts and margins are as said."""
    draw = random.Random(6)
    question, short, tiny = (text(draw, length) for length in (20, 8, 7))
    (folder / "quiz.txt").write_text("\n\n".join([question, short, tiny]))
    told = write_index([folder / "quiz.txt"], folder / "index")
    assert [(one["items"], one["too_short"]) for one in told] == [(3, 1)]
    index = read_index(folder / "index")
    parts = question.split()
    texts = [" ".join(parts[3:16]), " ".join(parts[3:15]), short, " ".join(short.split()[:7]), tiny, question.upper()]
    assert [len(one) for one in find(texts, index)] == [1, 0, 1, 0, 0, 1]
    assert [one[0].ngrams for one in find([texts[0], texts[5]], index)] == [1, 8]
    step = Decontaminate(str(folder / "index"), mode="cut", margin=3, piece=4, cuts=2)
    unit = f"012345 {short} 678901"
    batch = step.run(Batch([Document("a", unit), Document("b", f"{unit}\n{unit}"), Document("c", f"{unit}\n" * 3)]))
    assert batch.texts[0] == "0123\n\n8901"
    assert batch.signals["decontaminate.cuts"].tolist() == [1, 2, 3]
    assert first_broken(step.rules(), batch.signals, 3).tolist() == [-1, -1, 0]


PROBES: dict[str, Callable[[Path], None]] = {
    probe.__name__: probe
    for probe in (
        *(near_duplicates, later_data, every_band, recall, signature, folding, chains, equal_documents),
        *(repeated_lines, simhashes, substrings, benchmarks),
    )
}
