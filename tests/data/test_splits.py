"""Which documents are for training and which for validation."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from coretrain.config.load import load_config
from coretrain.data.prepare import documents_of, survey
from coretrain.data.sources import open_source
from tests.support.corpora import make_texts, write_texts


def splits_of(folder: Path, fraction: float) -> dict[str, str]:
    source = open_source(str(folder))
    config = load_config(None, [("data.validation_fraction", str(fraction))]).data
    return {document.text: document.split for document in documents_of(source, config, survey(source, config))}


def test_a_document_keeps_its_split(tmp_path: Path) -> None:
    texts = make_texts(400)
    first = splits_of(write_texts(tmp_path / "a", texts), 0.1)
    random.Random(1).shuffle(texts)
    assert splits_of(write_texts(tmp_path / "b", texts), 0.1) == first
    more = splits_of(write_texts(tmp_path / "c", texts + [f"new {n}" for n in range(100)]), 0.1)
    assert all(more[text] == split for text, split in first.items())
    assert 15 < sum(split == "validation" for split in first.values()) < 75
    wider = splits_of(tmp_path / "a", 0.3)
    assert all(wider[text] == "validation" for text, split in first.items() if split == "validation")


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_a_tiny_corpus_still_has_both_splits(tmp_path: Path, order: tuple[int, ...]) -> None:
    texts = ["one document", "two document", "three document"]
    splits = splits_of(write_texts(tmp_path / "a", [texts[n] for n in order]), 0.0001)
    reference = splits_of(write_texts(tmp_path / "b", texts), 0.0001)
    assert splits == reference
    assert sorted(splits.values()) == ["train", "train", "validation"]
