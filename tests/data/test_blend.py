"""Replay and stages: whose rows an update has, row by row against a dealer that counts, and what is refused."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import coretrain.data.order as order
from coretrain.base.errors import UserError
from coretrain.contract.schedule import learning_rate
from coretrain.data.batch import batch_hash
from coretrain.data.batches import global_batch, updates_of
from coretrain.data.blend import first_below, stages_of, with_replay
from coretrain.data.order import Stage, permute, rows_of_update
from tests.support.corpora import configure, make_texts, quiet, write_texts

WINDOWS, WEIGHTS, SIZE = (23, 7, 40), (3.0, 1.0, 0.5), 5
STAGES = (Stage(4, (1.0, 0.0, 2.0)), Stage(9, (0.1, 0.7, 0.2)))


def dealt(windows: Sequence[int], weights: Sequence[float], stages: Sequence[Stage], updates: int) -> list[list[int]]:
    """Every row of `updates` updates, dealt one after another: each stage from its beginning, each part by its own
    count. Of the rows left to parts k, k+1, ... part k gets those at which its exact share passes a half.
    """
    counts, rows = Counter[int](), list[list[int]]()
    starts = {0: weights} | {stage.start: stage.weights for stage in stages}
    for update in range(updates):
        if update in starts:
            shares, seen = [Fraction(repr(weight)) for weight in starts[update]], Counter[int]()
        for _ in range(SIZE):
            for part, share in enumerate(shares):
                rest = sum(shares[part:])
                at = seen[part]
                seen[part] += 1
                if rest and (at + 1) * share / rest + Fraction(1, 2) >= (at * share / rest + Fraction(1, 2)) // 1 + 1:
                    break
            epoch, place = divmod(counts[part], windows[part])
            rows.append([part, int(permute(np.array([place]), windows[part], f"f/3/{part}/{epoch}")[0])])
            counts[part] += 1
    return rows


def check_against_the_dealer(stages: Sequence[Stage] = STAGES) -> None:
    made = [rows_of_update(WINDOWS, WEIGHTS, "f", 3, update, SIZE, stages) for update in range(30)]
    assert np.concatenate(made).tolist() == dealt(WINDOWS, WEIGHTS, STAGES, 30)


def check_every_window_is_read_before_any_is_again(stages: Sequence[Stage] = STAGES) -> None:
    rows = np.concatenate([rows_of_update(WINDOWS, WEIGHTS, "f", 3, update, SIZE, stages) for update in range(60)])
    for part, size in enumerate(WINDOWS):
        read = rows[rows[:, 0] == part, 1]
        for first in range(0, len(read) - size, size):
            assert sorted(read[first : first + size]) == list(range(size)), (part, first)


CHECKS = (check_against_the_dealer, check_every_window_is_read_before_any_is_again)


@pytest.mark.parametrize("check", CHECKS)
def test_stages_are_dealt_as_they_are_said(check: Callable[[], None]) -> None:
    check()


def test_without_stages_nothing_changes() -> None:
    for update in (0, 7, 1000):
        rows = rows_of_update(WINDOWS, WEIGHTS, "f", 3, update, SIZE)
        at = np.arange(update * SIZE, (update + 1) * SIZE)
        assert np.array_equal(rows, order.rows_at(at, WINDOWS, WEIGHTS, "f", 3))


def test_a_switch_one_update_late_is_seen() -> None:
    with pytest.raises(AssertionError):
        check_against_the_dealer([Stage(stage.start + 1, stage.weights) for stage in STAGES])


@pytest.mark.parametrize("check", CHECKS)
def test_rows_repeated_after_a_stage_are_seen(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "part_counts", lambda rows, weights: [0] * len(weights))  # each stage starts afresh
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize(("fraction", "parts"), [(0.05, 1), (0.05, 4), (0.01, 2), (0.3, 3)])
def test_the_replayed_share_is_exact_to_half_a_row(tmp_path: Path, fraction: float, parts: int) -> None:
    config = configure(tmp_path, "x", **{"data.replay": "y", "data.replay_fraction": fraction})
    weights = with_replay([0.1 + n for n in range(parts)], config)
    of, _ = order.parts_at(np.arange(3000), weights)
    replayed = np.cumsum(of == 0)
    exact = [int(Fraction(repr(fraction)) * n + Fraction(1, 2)) for n in range(1, 3001)]
    assert replayed.tolist() == exact
    others = np.bincount(of, minlength=parts + 1)[1:] / (3000 * (1 - fraction))
    wanted = np.array([0.1 + n for n in range(parts)])
    # parts are split off one after another, each to half a row of what is left: at most a row of 2,000 by the third
    assert np.abs(others - wanted / wanted.sum()).max() < 1e-3


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_a_stage_begins_where_the_rate_comes_down(tmp_path: Path, kind: str) -> None:
    more = {"schedule.kind": kind, "schedule.warmup_updates": 12, "train.updates": 200, "schedule.min_lr": 1e-6}
    config = configure(tmp_path, "x", **more)
    for over in (1.5, 5.0, 20.0):
        limit = config.optimizer.lr / over
        scanned = next(n for n in range(12, 200) if learning_rate(config, n) <= limit)
        assert first_below(config, over) == scanned
        assert learning_rate(config, scanned) <= limit < learning_rate(config, scanned - 1)
    assert first_below(config, 1e9) == 200


MIXED = '[{source = "a", weight = 1}, {source = "b", weight = 1}]'


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"data.stages": "[{update = 3, weights = [1, 2]}]"}, "data/stages-without-mixture"),
        ({"data.mixture": MIXED, "data.stages": "[{update = 3, weights = [1]}]"}, "data/stage-weights-count"),
        ({"data.mixture": MIXED, "data.stages": "[{weights = [1, 2]}]"}, "data/stage-without-start"),
        ({"data.mixture": MIXED, "data.stages": "[{update = 3, weights = [0, 0]}]"}, "data/stage-of-nothing"),
        ({"data.mixture": MIXED.replace("weight = 1", "weight = 0")}, "data/mixture-of-nothing"),
        ({"data.mixture": MIXED.replace('b", weight = 1', 'b", weight = 0')}, "data/mixture-part-never-read"),
        ({"data.replay_fraction": 0.1}, "data/replay-fraction-alone"),
        ({"data.replay": "stdlib", "data.format": "chat"}, "data/replay-of-no-text"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(tmp_path: Path, more: dict[str, object], code: str) -> None:
    with pytest.raises(UserError) as caught:
        configure(tmp_path, "x", **more)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("stages", "code"),
    [
        ("[{update = 9, weights = [1, 2]}, {update = 9, weights = [2, 1]}]", "data/stage-out-of-order"),
        ("[{update = 50, weights = [1, 2]}]", "data/stage-beyond-the-end"),
        ("[{peak_over = 1000, weights = [1, 2]}]", "data/stage-never-begins"),
    ],
)
def test_stages_that_never_come_are_refused(tmp_path: Path, stages: str, code: str) -> None:
    config = configure(tmp_path, "x", **{"data.mixture": MIXED, "data.stages": stages})
    with pytest.raises(UserError) as caught:
        stages_of(config)
    assert caught.value.code == code


def test_a_replay_source_that_is_missing_is_refused_with_its_name(tmp_path: Path, corpus: Path) -> None:
    start = tmp_path / "base"
    start.mkdir()
    (start / "config.json").write_text(configure(tmp_path, "the-pile/").to_json())
    more = {"data.replay": tmp_path / "gone", "train.start": start}
    with pytest.raises(UserError, match=r"gone.*no such file.*base was trained on the-pile/: give that") as caught:
        quiet(configure(tmp_path, corpus, **more))
    assert caught.value.code == "data/replay-unreadable"


def staged(tmp_path: Path, corpus: Path, stages: str) -> tuple[object, object]:
    other = write_texts(tmp_path / "other", make_texts(60, seed=4))
    mixture = f'[{{source = "{corpus}", weight = 3}}, {{source = "{other}", weight = 1}}]'
    old = write_texts(tmp_path / "old", make_texts(60, seed=5))
    more = {"data.mixture": mixture, "data.stages": stages, "data.replay": old, "data.replay_fraction": 0.125}
    config = configure(tmp_path, "unused", **more)
    return config, quiet(config)


def test_batches_of_a_staged_run(tmp_path: Path, corpus: Path) -> None:
    config, data = staged(tmp_path, corpus, "[{peak_over = 5, weights = [1, 3]}]")
    (stage,) = data.stages
    assert stage.start == first_below(config, 5.0)
    assert learning_rate(config, stage.start) <= config.optimizer.lr / 5 < learning_rate(config, stage.start - 1)
    updates = updates_of(data, config)
    parts = [np.bincount(updates.rows(n)[:, 0], minlength=3).tolist() for n in range(config.train.updates)]
    assert all(counts[0] == 1 for counts in parts)  # an eighth of 8 rows
    assert np.sum(parts[: stage.start], 0)[1] == pytest.approx(stage.start * 7 * 3 / 4, abs=1)
    after = config.train.updates - stage.start
    assert np.sum(parts[stage.start :], 0)[1] == pytest.approx(after * 7 / 4, abs=1)
    # whoever begins in the middle of either stage reads what the whole run read
    hashes = [batch_hash(global_batch(data, config, n)) for n in range(config.train.updates)]
    halves = [[batch_hash(updates_of(data, config, p, 2).batch(n)) for p in (0, 1)] for n in (3, stage.start, 48)]
    for n, pair in zip((3, stage.start, 48), halves, strict=True):
        whole = global_batch(data, config, n)
        assert pair == [batch_hash(whole.rows(slice(0, 4))), batch_hash(whole.rows(slice(4, 8)))]
    assert len(set(hashes)) == len(hashes)
    assert data.shares(stage.weights) == (
        f"12.5% {tmp_path / 'old'} (replay), 21.9% {corpus}, 65.6% {tmp_path / 'other'}"
    )
    assert (f"from update {stage.start + 1}", data.shares(stage.weights)) in data.summary()


def test_stages_are_of_the_fingerprint(tmp_path: Path, corpus: Path) -> None:
    made = [
        "[]",
        "[{update = 9, weights = [1, 3]}]",
        "[{update = 10, weights = [1, 3]}]",
        "[{update = 9, weights = [1, 2]}]",
    ]
    prints = [staged(tmp_path, corpus, stages)[1].fingerprint for stages in made]
    assert all(one != other for one, other in itertools.combinations(prints, 2))
