"""Rows of preferences, opened as a run opens them, and what their packed rows hold as texts.

What is checked is imported where it is used, so that a planted bug is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.configs import small_config
from tests.support.corpora import write_rows

IGNORED = -100
BARE = "{% for message in messages %}{{ message.content }}{{ eos_token if message.role == 'assistant' }}{% endfor %}"
"""A prompt, its answer and the end of the text."""
END = 256
"""The end of a text among bytes."""


def config_of(folder: Path, rows: Sequence[Any], **more: object):
    """A run on rows of preferences, with bytes as tokens and no template."""
    source = write_rows(folder / "rows.jsonl", list(rows))
    (folder / "bare.jinja").write_text(BARE)
    fields = {"data__source": source, "data__tokenizer": "bytes", "model__vocab": 257, "data__prepare_processes": 1}
    form = {"data__format": "pairs", "train__objective": "dpo", "data__chat_template": folder / "bare.jinja"}
    return small_config(folder, **fields | form | {"data__validation_fraction": 0.2} | more)


def opened(folder: Path, rows: Sequence[Any], **more: object):
    """A config and its data."""
    from coretrain.data.open import open_data

    config = config_of(folder, rows, **more)
    return config, open_data(config, lambda line: None)


def pair(number: int, chosen: str = "yes", rejected: str = "no", **more: Any) -> dict[str, Any]:
    """A row, with a prompt of its own."""
    return {"prompt": f"{number}:", "chosen": chosen, "rejected": rejected} | more


def label(number: int, completion: str, good: bool) -> dict[str, Any]:
    """A labelled row, with a prompt of its own."""
    return {"prompt": f"{number}:", "completion": completion, "label": good}


def many(count: int) -> list[dict[str, Any]]:
    """Pairs of many lengths."""
    return [pair(n, "y" * (1 + n % 5), "n" * (1 + n % 3)) for n in range(count)]


def many_labels(count: int) -> list[dict[str, Any]]:
    """Labelled answers of many lengths, two of three of them good."""
    return [label(n, "ab" * (1 + n % 4), n % 3 > 0) for n in range(count)]


def sequences(row) -> list[tuple[str, str]]:
    """What each sequence of a row [T] holds and what is learnt of it, as text with | for the end."""

    def text(ids) -> str:
        return "".join("|" if token == END else chr(token) for token in ids)

    found = []
    for number in range(row.segments.max() + 1):
        mine = row.segments == number
        labels = row.labels[mine]
        found.append((text(row.tokens[mine]), text(labels[labels != IGNORED])))
    return found


def rows_of(split) -> Iterator[Any]:
    """All packed rows of a split."""
    return (split.read(window, split.context) for window in range(split.windows(split.context)))


def everything(data) -> list[list[tuple[str, str]]]:
    """The sequences of each sample of both splits, as texts."""
    size = data.train.answers
    found = []
    for part in data.parts:
        for split in (part.train, part.validation):
            for row in rows_of(split):
                texts = sequences(row)
                found += [texts[at : at + size] for at in range(0, len(texts), size)]
    return sorted(found)
