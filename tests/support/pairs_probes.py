"""What preferences must come to as a source of batches: checks with known answers, which raise AssertionError.

What is checked is imported where it is used, so that a planted bug is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.corpora import write_rows
from tests.support.preferring import (
    IGNORED,
    config_of,
    many,
    many_labels,
    opened,
    pair,
    sequences,
)

Probe = Callable[[Path], None]
PROBES: dict[str, Probe] = {}


def probe(check: Probe) -> Probe:
    """A check, by its name."""
    PROBES[check.__name__] = check
    return check


def shares_of(batch) -> dict[str, float]:
    """What each pair of a batch counts, by its prompt; the answers of a pair stand together, the better one first."""
    found: dict[str, float] = {}
    for at in range(len(batch)):
        row = batch.rows(slice(at, at + 1)).map(lambda array: array[0])
        texts = sequences(row)
        for place, share in enumerate(row.planes["pair_share"].tolist()):
            if share:
                prompt = texts[2 * place][0].split(":")[0]
                assert texts[2 * place + 1][0].startswith(f"{prompt}:"), "both answers of a pair stand together"
                assert texts[2 * place][1].startswith("y")
                assert texts[2 * place + 1][1].startswith("n")
                found[prompt] = found.get(prompt, 0.0) + share
            else:
                assert len(texts) <= 2 * place
    return found


def source_of(folder: Path, rows: Sequence[Any], reference=None, policy=None, most: int | None = None, **more: object):
    """A config, its data, its updates, and the source of its batches."""
    from coretrain.alignment.kept import MOST
    from coretrain.alignment.pairs import Pairs
    from coretrain.data.batches import updates_of

    config, data = opened(folder, rows, **more)
    updates = updates_of(data, config)

    def loader(start: int, stop: int) -> Iterator[Any]:
        return (updates.batch(update) for update in range(start, stop))

    def measure(batch) -> list[float]:
        share = next(batch.planes[name] for name in ("pair_share", "sequence_share") if name in batch.planes)
        from coretrain.alignment.figures import FIGURES

        return [float(share.sum()), *[2 * float(share.sum())] * len(FIGURES[config.train.objective])]

    return updates, Pairs(loader, data, config, measure, reference, policy, MOST if most is None else most)


def by_tokens(scale: float = 0.01) -> Callable[[Any], np.ndarray]:
    """A model's log-probabilities: a function of a token, its label and its position."""

    def score(batch) -> np.ndarray:
        assert batch.segments is None
        assert not batch.planes, "a scoring model reads none of them"
        return np.where(batch.labels == IGNORED, 0, -scale * (batch.labels + batch.tokens / 3 + batch.positions / 7))

    return score


@probe
def all_pairs_count_alike(folder: Path) -> None:
    """1 over the pairs of the whole batch, whatever the packing: rows of one pair, and rows of several."""
    rows = many(30)
    shares = {}
    for context in (20, 25, 70):
        (folder / str(context)).mkdir()
        updates, source = source_of(
            folder / str(context), rows, model__context=context, train__objective="simpo", train__batch_size=4
        )
        windows = updates.splits[0].windows(context)
        updates, source = source_of(
            folder / str(context), rows, model__context=context, train__objective="simpo", train__batch_size=windows
        )
        for batch in source.batches(0, 2):  # each an epoch
            shares[context] = shares_of(batch)
            for parts in (batch.rows(slice(0, 2)), batch.rows(slice(2, None))):
                own = shares_of(parts)
                assert own == {name: shares[context][name] for name in own}, "also in a piece of it"
        assert abs(sum(shares[context].values()) - 1) < 1e-6
    assert shares[20].keys() == shares[25].keys() == shares[70].keys()
    every = [value for by_pair in shares.values() for value in by_pair.values()]
    assert max(every) - min(every) < 1e-9
    assert updates.splits[0].slots > 2


def scored_rows(calls: list[int], score: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """`score`, with the rows of each call counted; each row's scores tell what was scored beside it, in their last
    bits."""

    def counting(batch) -> np.ndarray:
        calls.append(len(batch))
        noise = 1e-12 * float(batch.tokens.sum() + np.argsort(batch.tokens[:, 0]) @ np.arange(len(batch)))
        return np.where(batch.labels == IGNORED, 0, score(batch) * (1 + noise))

    return counting


@probe
def each_row_is_scored_once_under_the_reference(folder: Path) -> None:
    """Over three epochs, in order, from any update on, and where memory is short; bit for bit the same."""
    shape = {"model__context": 40, "train__batch_size": 3, "precision__compute": "float64"}
    calls: list[int] = []
    updates, source = source_of(folder, many(30), scored_rows(calls, by_tokens()), **shape)
    windows = updates.splits[0].windows(40)
    count = -(-3 * windows // 3)
    whole = [batch.planes["reference"] for batch in source.batches(0, count)]
    assert windows <= sum(calls) <= windows + 3, "the last batch of an epoch has rows of the next"
    for update, plane in enumerate(whole):
        batch = updates.batch(update)
        plain = by_tokens()(type(batch)(batch.tokens, batch.labels, batch.positions))
        assert np.abs(plane - plain).max() < 1e-6, "of this row and no other"
        assert np.array_equal(plane != 0, batch.labels != IGNORED)
    for start in (1, windows // 3, windows // 3 + 2, count - 2):
        _, later = source_of(folder, many(30), scored_rows([], by_tokens()), **shape)
        for update, batch in enumerate(later.batches(start, count), start):
            assert np.array_equal(batch.planes["reference"], whole[update]), "as if it had never stopped"
    few: list[int] = []
    short = {"most": 5 * 40 * 8}
    _, limited = source_of(folder, many(30), scored_rows(few, by_tokens()), **shape, **short)
    kept = [batch.planes["reference"] for batch in limited.batches(0, count)]
    assert sum(few) > sum(calls)
    assert limited.kept is not None
    assert len(limited.kept._kept) == 5
    assert max(np.abs(one - other).max() for one, other in zip(kept, whole, strict=True)) < 1e-6
    _, again = source_of(folder, many(30), scored_rows([], by_tokens()), **shape, **short)
    for update, batch in enumerate(again.batches(4, count), 4):
        assert np.array_equal(batch.planes["reference"], kept[update])


def noisy(policy: Callable[[Any], np.ndarray]) -> tuple[Callable[[Any], np.ndarray], Callable[[Any], np.ndarray]]:
    """A reference and a policy whose last bits depend on what is scored beside a row."""
    return scored_rows([], by_tokens()), scored_rows([], policy)


@probe
def the_reference_of_a_mixture(folder: Path) -> None:
    """Two sources of other sizes and shares: each row has its own scores in every epoch, however often it came."""
    from coretrain.alignment.kept import Kept
    from coretrain.data.batches import updates_of
    from coretrain.data.open import open_data

    (folder / "more").mkdir()
    write_rows(folder / "more" / "b.jsonl", [pair(n, "y" * (6 + n % 2), "n") for n in range(100, 107)])
    mixed = [{"source": str(folder / "rows.jsonl"), "weight": 2.0}, {"source": str(folder / "more"), "weight": 1.0}]
    config = config_of(folder, many(25), model__context=40, train__batch_size=3)
    config = type(config).model_validate(config.model_dump() | {"data": config.data.model_dump() | {"mixture": mixed}})
    updates = updates_of(open_data(config, lambda line: None), config)
    calls: list[int] = []
    kept = Kept(scored_rows(calls, by_tokens()), updates, updates.batch, wide=True)
    for update in range(20):
        batch = updates.batch(update)
        plain = by_tokens()(type(batch)(batch.tokens, batch.labels, batch.positions))
        assert np.abs(kept.plane(update, batch) - plain).max() < 1e-6
    parts = [split.windows(40) for split in updates.splits]
    assert len(kept._kept) == sum(parts)
    assert sum(calls) < 20 * 3, "what came before isn't scored again"
    late = Kept(scored_rows([], by_tokens()), updates, updates.batch, wide=True)
    assert np.array_equal(late.plane(19, updates.batch(19)), kept.plane(19, updates.batch(19)))


@probe
def the_baseline_of_kto_by_hand(folder: Path) -> None:
    """z0: the batch's mean of policy less reference in answers to other prompts, at least 0, the same for all."""
    policy_scale = [0.004]

    def policy(batch) -> np.ndarray:
        return by_tokens(policy_scale[0])(batch)

    shape = {"data__format": "labels", "train__objective": "kto", "model__context": 40, "train__batch_size": 3}
    more = {"precision__compute": "float64", "align__desirable_weight": 1.5, "align__undesirable_weight": 0.5}
    updates, source = source_of(folder, many_labels(30), by_tokens(), policy, **shape, **more)
    assert source.follows_weights
    split = updates.splits[0]
    for update, batch in enumerate(source.batches(0, 4)):
        total, answers, own = 0.0, 0, 0
        for window in updates.rows(update)[:, 1]:
            for sample in split.packed[window]:
                own += 1
                prompt, answer = split.facts(sample)[0] // 4, split.facts(split.partners[sample])[1] // 4
                assert split.partners[sample] != sample
                whole = [*prompt, *answer]
                answers += 1
                for place in range(len(prompt), len(whole)):
                    at = place - 1
                    total += 0.006 * (whole[place] + whole[at] / 3 + at / 7)
        expected = total / answers
        planes = batch.planes
        # a sum of some hundred terms in float64: 1e-14 at most; a sequence or a token left out is 1e-3
        assert np.abs(planes["kl_baseline"] - expected).max() < 1e-12 * expected
        shares = planes["sequence_share"][planes["sequence_share"] > 0]
        assert len(shares) == own
        assert {round(float(share * own), 9) for share in shares} <= {1.5, 0.5}
        assert np.array_equal(planes["sequence_share"] * own > 1, planes["desirable"] > 0)
    _, source = source_of(folder, many_labels(30), *noisy(policy), **shape, **more)
    whole = [batch.planes for batch in source.batches(0, 20)]
    for start in (3, 17):  # the first epoch, and a later one
        _, later = source_of(folder, many_labels(30), *noisy(policy), **shape, **more)
        for update, batch in enumerate(later.batches(start, 20), start):
            assert all(np.array_equal(batch.planes[name], whole[update][name]) for name in whole[update])
    policy_scale[0] = 0.02
    assert not next(source.batches(0, 1)).planes["kl_baseline"].any(), "at least 0"


@probe
def validation_is_a_mean_over_its_pairs(folder: Path) -> None:
    """Shares sum to 1 over all batches of it; the same at each evaluation; the reference scores it once."""
    for objective, rows in (("dpo", many(60)), ("kto", many_labels(60))):
        (folder / objective).mkdir()
        calls: list[int] = []
        more: Mapping[str, object] = {"data__format": "labels" if objective == "kto" else "pairs"}
        _, source = source_of(
            folder / objective,
            rows,
            scored_rows(calls, by_tokens()),
            by_tokens(0.004),
            model__context=30,
            train__batch_size=2,
            train__objective=objective,
            **more,
        )
        loss, figures = source.evaluate()
        scored = sum(calls)
        assert abs(loss - 1) < 1e-6
        assert all(abs(value - 2) < 1e-5 for name, value in figures.items() if "desirable" not in name)
        assert len(figures) > 3
        assert source.evaluate() == (loss, figures)
        assert sum(calls) == scored
        assert len(source._validation) > 1
