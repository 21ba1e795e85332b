"""What an evaluation says of named sets, against sums made row by row; bugs in it are planted, and seen."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import coretrain.data.held_out
import coretrain.training.text
from coretrain.checkpoint.manifest import Progress
from coretrain.data.batch import Batch
from coretrain.journal.journal import Journal
from coretrain.training.loop import Loop
from coretrain.training.text import Text
from tests.support.corpora import configure, make_texts, quiet, write_texts
from tests.support.journals import printed


def nats(batch: Batch) -> float:
    """A loss that is another one for each label."""
    return float(((batch.labels % 7) + 1.5).sum())


STACK = SimpleNamespace(name="torch", evaluate=nats)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Two sets, whose last batches have fewer rows than the others."""
    folder = tmp_path_factory.mktemp("sets")
    corpus = write_texts(folder / "corpus", make_texts(120))
    other = write_texts(folder / "other", ["aaa bbb " * (n + 1) for n in range(60)])
    sets = f'["general={corpus}", "domain={other}"]'
    config = configure(folder, corpus, **{"data.validation": sets, "train.eval_batches": 1000})
    return config, quiet(config)


def check(config: Any, data: Any) -> None:
    _, figures = Text(config, STACK, data).evaluate()
    for one in data.sets:
        rows = [one.split.read(window, 32) for window in range(one.split.windows(32))]
        assert len(rows) % 8, "the last batch must have fewer rows"
        total = sum(nats(row) for row in rows)
        labels = [int(label) for row in rows for label in row.labels]
        text = data.tokenizer.decode([label for label in labels if label != data.tokenizer.eot])
        size = len(text.encode(errors="surrogateescape"))
        # sums of some hundred numbers of 1.5 to 7.5: exact in float64, then two divisions; a special token's bytes
        # or a last batch that counts as a whole one move it by more than 1e-3
        assert figures[f"loss/{one.name}"] == pytest.approx(total / len(labels), rel=1e-14)
        assert figures[f"bits_per_byte/{one.name}"] == pytest.approx(total / math.log(2) / size, rel=1e-14)


def test_an_evaluation_has_each_set(setting: tuple[Any, Any]) -> None:
    check(*setting)


def _specials_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(batches: Any, tokenizer: Any) -> int:
        lengths = tokenizer.byte_lengths() + (np.arange(tokenizer.vocab) == tokenizer.eot) * len("<|endoftext|>")
        return int(sum(lengths[batch.labels].sum() for batch in batches))

    monkeypatch.setattr(coretrain.training.text, "scored_bytes", counted)


def _mean_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(self: Text) -> dict[str, float]:
        told = {}
        for one in self.data.sets:
            cut = coretrain.data.held_out.held_out_batches(one, self.config)
            mean = float(np.mean([nats(batch) / batch.target_weight for batch in cut]))
            told[f"loss/{one.name}"] = mean
            told[f"bits_per_byte/{one.name}"] = mean * 32 * sum(map(len, cut)) / math.log(2) / self._bytes[one.name]
        return told

    monkeypatch.setattr(Text, "_sets", figures)


def _bytes_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Text._bytes.func  # type: ignore[attr-defined]  # that of a cached property

    def swapped(self: Text) -> dict[str, int]:
        return dict(zip(sizes(self), reversed(sizes(self).values()), strict=True))

    prop = cached_property(swapped)
    prop.__set_name__(Text, "_bytes")
    monkeypatch.setattr(Text, "_bytes", prop)


def _rows_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []  # a cache without a key
    cut = coretrain.data.held_out.held_out_batches

    def cached(one: Any, config: Any) -> Any:
        kept.append(cut(one, config))
        return kept[0]

    monkeypatch.setattr(coretrain.training.text, "held_out_batches", cached)


@pytest.mark.parametrize("plant", [_specials_counted, _mean_of_means, _bytes_of_another, _rows_of_another])
def test_a_planted_bug_is_seen(
    setting: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(*setting)


class Falling(SimpleNamespace):
    """A stack whose losses fall by a tenth with every update but those of `rising` labels, which rise."""

    in_step, writes_in_place, device_name = True, False, ""
    done = 0

    def batches(self, data: Any, start: int, stop: int) -> Any:
        from coretrain.data.batches import global_batch

        return (global_batch(data, self.config, n) for n in range(start, stop))

    def update(self, *_: Any) -> Any:
        from coretrain.contract.update import Figures

        self.done += 1
        return lambda: Figures(2.0, 1.0, True)

    def evaluate(self, batch: Batch) -> float:
        return nats(batch) * (1 - 0.1 * self.done)


def staged(tmp_path: Path, **more: Any) -> tuple[Any, Any, Path, Path]:
    """A run of 4 updates over two sources, whose weights change at update 2, and its data."""
    corpus = write_texts(tmp_path / "corpus", make_texts(120))
    other = write_texts(tmp_path / "other", make_texts(60, seed=4))
    mixture = f'[{{source = "{corpus}", weight = 3}}, {{source = "{other}", weight = 1}}]'
    fields = {
        "data.mixture": mixture, "data.stages": "[{update = 2, weights = [1, 3]}]", "train.start": "somewhere",
        "train.updates": 4, "train.eval_interval": 2, "checkpoint.interval": 100, "journal.tensorboard": "false",
    }  # fmt: skip
    config = configure(tmp_path, "unused", **fields | more)
    data = quiet(config)
    return config.with_vocab(data.tokenizer.vocab), data, corpus, other


def rows_from(run: Path, config: Any, data: Any, update: int) -> tuple[list[dict[str, Any]], str]:
    """metrics.jsonl of a run that begins, or goes on, at an update; and what was printed."""
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(config.to_json())
    with Journal(run, config, "torch", update, console=Console(file=io.StringIO(), width=80)) as book:
        loop = Loop(config, Falling(config=config), data, run, book, Progress(update=update, data_index=update))
        loop.save = lambda *_, **__: None  # type: ignore[method-assign]
        assert loop.train() == "finished"
        book.close("finished")
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()], printed(book)


def test_a_run_goes_on_in_the_middle_of_either_stage(tmp_path: Path) -> None:
    config, data, *_ = staged(tmp_path)
    whole, _ = rows_from(tmp_path / "run", config, data, 0)
    hashes = [row["batch_hash"] for row in whole if "batch_hash" in row]
    assert len(set(hashes)) == 4
    for update, told in ((1, 1), (2, 0), (3, 0)):
        found, _ = rows_from(tmp_path / f"from-{update}", config, data, update)
        assert [row["batch_hash"] for row in found if "batch_hash" in row] == hashes[update:]
        assert not any(row["update"] == update for row in found if "val_loss" in row), "it is evaluated as it begins"
        assert sum(row.get("event") == "stage" for row in found) == told


def test_the_first_evaluation_the_stages_and_the_table(tmp_path: Path) -> None:
    config, data, corpus, other = staged(tmp_path)
    run = tmp_path / "run"
    rows, said = rows_from(run, config, data, 0)
    assert [row["update"] for row in rows if "val_loss" in row] == [0, 2, 4]
    assert [(row["update"], row["text"]) for row in rows if row.get("event") == "stage"] == [
        (2, f"25.0% {corpus}, 75.0% {other}")
    ]
    before, *_, after = (row["bits_per_byte/other"] for row in rows if "val_loss" in row)
    assert after == pytest.approx(0.6 * before, rel=1e-12)
    assert f"  other          {before:.4f} -> {after:.4f}  gain {before - after:+.4f}  forgotten 0.0000" in said
    assert all(len(line) <= 80 for line in said.splitlines() if "->" in line or "bits per byte" in line)
    page = (run / "report.html").read_text()
    assert (
        f"<td>other</td><td>{before:.4f}</td><td>{after:.4f}</td><td>{before - after:+.4f}</td><td>0.0000</td>" in page
    )
    assert "Validation sets" in page
    assert 'class="set1"' in page
