"""A run's journal and prepared data that few expect: taken, prepared again, or refused in a sentence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from coretrain.data.open import open_data, open_folder
from coretrain.data.prepare import PROGRESS
from coretrain.journal.metrics import METRICS, rewound
from parity.localize.runs import compare_runs
from tests.support.checkpoints import CONFIG
from tests.support.corpora import configure, make_texts, write_texts
from tests.support.fuzzing import as_json, damaged, ends_well, fuzzed, mutated, mutated_bytes, replaced
from twintrain.twins import sentences


@pytest.fixture(scope="module")
def journals(tmp_path_factory) -> list[Path]:
    """The folders of two runs, with configs and journals."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    for folder in folders:
        rows: list[dict[str, Any]] = [
            {
                "update": n,
                "loss": 8.0 - n,
                "grad_norm": 1.0,
                "lr": 1e-3,
                "tokens": n,
                "batch_hash": "ab",
                "seconds": 0.1,
            }
            for n in range(4)
        ]
        rows += [{"update": 4, "val_loss": 4.5, "bits_per_byte": 1.2}, {"update": 4, "event": "saved", "text": "done"}]
        (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "config.json").write_text(CONFIG.to_json())
    return folders


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder of prepared data."""
    place = tmp_path_factory.mktemp("data")
    return open_data(configure(place, write_texts(place / "texts", make_texts(30))), lambda line: None).parts[0].folder


def fitting(value: dict[str, Any]) -> dict[str, Any]:
    """A manifest whose own hash is right."""
    lines = [value["tokenizer_fingerprint"], *(f"{entry['file']} {entry['sha256']}" for entry in value["shards"])]
    return value | {"fingerprint": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


@fuzzed(8)
def test_journals(journals, random):
    path = journals[0] / METRICS

    def read() -> None:
        rewound(journals[0], 2, ("saved",)).close()
        sentences(journals)
        compare_runs(*journals)

    with replaced(path, damaged(random, path)):
        ends_well("metrics.jsonl", read)


@fuzzed(6)
def test_manifests_of_data(prepared, random):
    path = prepared / "manifest.json"
    with replaced(path, damaged(random, path, fitting)):
        ends_well("prepared manifest", lambda: open_folder(prepared))


@fuzzed(2)
def test_shards_of_data(prepared, random):
    path = random.choice(sorted(prepared.glob("*.bin")))
    with replaced(path, damaged(random, path)):
        ends_well("prepared shards", lambda: open_folder(prepared))


@fuzzed(3)
def test_preparing_that_goes_on(tmp_path_factory, random):
    place = tmp_path_factory.mktemp("goes-on")
    config = configure(place, write_texts(place / "texts", make_texts(20)))
    folder = open_data(config, lambda line: None).parts[0].folder
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    (folder / "manifest.json").unlink()
    (folder / "progress.jsonl").write_bytes(b"\n".join(map(as_json, mutated(random, shards))) + b"\n")
    if random.random() < 0.3:
        (folder / PROGRESS).write_bytes(mutated_bytes(random, (folder / PROGRESS).read_bytes()))
    ends_well("progress.jsonl", lambda: open_data(config, lambda line: None))
