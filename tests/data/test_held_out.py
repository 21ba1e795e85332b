"""Named validation sets: which rows and bytes they have, what they are called, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.data.held_out import held_out_batches, part_names, scored_bytes
from coretrain.data.open import open_data
from tests.support.corpora import configure, make_texts, quiet, tokens_of, write_texts


def sets(*wanted: str) -> str:
    return "[" + ", ".join(f'"{one}"' if "{" not in one else one for one in wanted) + "]"


def refused(config: RunConfig, code: str) -> str:
    with pytest.raises(UserError) as caught:
        quiet(config)
    assert caught.value.code == code
    return str(caught.value)


def test_held_out_documents_and_all(tmp_path: Path, corpus: Path) -> None:
    other = write_texts(tmp_path / "other", make_texts(60, seed=4))
    whole = f'{{name = "exam", source = "{other}", documents = "all"}}'
    more = {"data.validation": sets(f"general={corpus}", f"domain={other}", whole)}
    data = quiet(configure(tmp_path, corpus, **more))
    general, domain, exam = data.sets
    assert [one.name for one in data.sets] == ["general", "domain", "exam"]
    assert np.array_equal(tokens_of(general.split), tokens_of(data.validation))
    documents = {text.encode() for text in make_texts(60, seed=4)}
    assert exam.split.documents == len(documents) > domain.split.documents > 0
    assert exam.split.bytes == sum(map(len, documents))
    assert data.fingerprint == quiet(configure(tmp_path, corpus)).fingerprint, "what is evaluated isn't trained on"


def test_rows_and_bytes(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus, **{"data.validation": sets(f"general={corpus}"), "train.eval_batches": 10_000})
    data = quiet(config)
    batches = held_out_batches(data.sets[0], config)
    assert sum(map(len, batches)) == data.validation.windows(32)
    assert len(batches[-1]) < 8, "the last batch must be one of fewer rows"
    labels = np.concatenate([batch.labels.ravel() for batch in batches])
    text = data.tokenizer.decode([int(label) for label in labels if label != data.tokenizer.eot])
    assert (labels == data.tokenizer.eot).any()
    assert scored_bytes(batches, data.tokenizer) == len(text.encode(errors="surrogateescape"))


def test_the_parts_of_a_mixture_are_sets_and_stand_once(tmp_path: Path, corpus: Path) -> None:
    other = write_texts(tmp_path / "other", make_texts(60, seed=4))
    mixture = f'[{{source = "{corpus}", weight = 3}}, {{source = "{other}", weight = 1}}]'
    data = quiet(configure(tmp_path, "unused", **{"data.mixture": mixture}))
    assert [one.name for one in data.sets] == ["corpus", "other"]
    named = quiet(configure(tmp_path, "x", **{"data.mixture": mixture, "data.validation": sets(f"domain={other}")}))
    assert [one.name for one in named.sets] == ["corpus", "domain"]
    more = {"data.mixture": mixture, "data.validation": sets(f"corpus={other}")}
    data = quiet(configure(tmp_path, "x", **more | {"data.validation": sets(f"other={other}")}))
    assert [one.name for one in data.sets] == ["corpus", "other"]
    third = write_texts(tmp_path / "third", make_texts(60, seed=6))
    clash = configure(tmp_path, "x", **more | {"data.validation": sets(f"corpus={third}")})
    assert "another name" in refused(clash, "data/validation-name-of-a-part")


def test_names_of_parts() -> None:
    assert part_names(["stdlib", "a/wiki/", "b/wiki", "hf:x/y:z"]) == ["stdlib", "wiki", "wiki-2", "y-z"]


def test_what_is_refused(tmp_path: Path, corpus: Path) -> None:
    short = write_texts(tmp_path / "short", ["one", "two"])
    small = configure(tmp_path, corpus, **{"data.validation": sets(f"tiny={short}")})
    assert "fewer than a row of 32" in refused(small, "data/validation-set-too-small")
    gone = configure(tmp_path, corpus, **{"data.validation": sets(f"gone={tmp_path / 'nowhere'}")})
    assert "gone=" in refused(gone, "data/validation-set-unreadable")
    whole = f'[{{name = "x", source = "{corpus}", documents = "all"}}]'
    refused(configure(tmp_path, corpus, **{"data.validation": whole}), "data/validation-set-trained-on")
    for wanted, code in (
        (sets("plain"), "data/validation-set-unnamed"),
        (sets("a=x", "a=y"), "data/validation-name-twice"),
        (sets("a b=x"), "config/value-wrong"),
    ):
        with pytest.raises(UserError) as caught:
            configure(tmp_path, corpus, **{"data.validation": wanted})
        assert caught.value.code == code


def test_a_prepared_folder_must_be_of_the_runs_tokenizer(tmp_path: Path, corpus: Path) -> None:
    data = quiet(configure(tmp_path, corpus))
    folder = data.parts[0].folder
    same = quiet(configure(tmp_path, corpus, **{"data.validation": sets(f"kept={folder}")}))
    assert np.array_equal(tokens_of(same.sets[0].split), tokens_of(data.validation))
    other = {"data.tokenizer": "trained", "data.tokenizer_vocab": 300, "data.validation": sets(f"kept={folder}")}
    config = configure(tmp_path, corpus, **other)
    assert "prepared with tokenizer bytes" in refused(config, "data/validation-tokenizer-differs")
    assert open_data(config.changed(data__validation=()), lambda line: None).sets == ()
