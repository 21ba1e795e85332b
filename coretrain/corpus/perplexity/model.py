"""An n-gram model with interpolated modified Kneser-Ney smoothing, as tables: trained, scored, saved without pickle.

An n-gram is a number: that of its first n - 1 words in the table below, times the vocabulary's size, plus its last
word. A table's numbers are sorted, so that many n-grams are looked up at once, and none is confused with another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.corpus.document import Signal
from coretrain.corpus.perplexity.lines import BEGIN, Ids, Lines, index_of, normalized_blocks, numbered
from coretrain.corpus.text.hashes import Hashes
from coretrain.corpus.text.saved import Arrays, load_arrays, save_arrays
from coretrain.corpus.text.spans import Ints

Floats = NDArray[np.float64]
_FORMAT = 1
MOST_ORDER = 8
"""Of a model that is read again."""


@dataclass(frozen=True)
class Table:
    """All n-grams of one n."""

    keys: Ids
    """[G] Their numbers, sorted."""
    log_probability: NDArray[np.float32]
    """[G] log10 of the last word's probability after the others."""
    log_backoff: NDArray[np.float32]
    """[G] log10 of what is multiplied where no longer n-gram goes on from it; 0 for the largest n."""

    def find(self, keys: Ids) -> Ids:
        """Where each key stands; -1 where it doesn't, or is negative."""
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


@dataclass(frozen=True)
class Model:
    """A trained model: its words, and a table for each n from 1 on."""

    words: tuple[str, ...]
    """Sorted; their numbers begin behind the marks (`lines`)."""
    tables: tuple[Table, ...]

    @property
    def order(self) -> int:
        """The largest n."""
        return len(self.tables)

    @cached_property
    def index(self) -> tuple[Hashes, Ids]:
        """For `numbered`."""
        return index_of(self.words)

    def score(self, lines: Lines) -> Floats:
        """[T] log10 of each word's probability after those before it in its line; 0 for BEGIN.

        The longest n-gram that is known counts; for each longer context that is known, its backoff is added. None goes
        across lines: no text has BEGIN behind END within a line.
        """
        ids, size = lines.ids, len(self.tables[0].keys)
        total = self.tables[0].log_probability[ids].astype(np.float64)
        at = ids  # of the n-gram that ends here, -1 where it isn't known
        for n in range(2, self.order + 1):
            before = np.full(len(ids), -1, np.int64)  # of the n - 1 words that end just before here
            before[1:] = at[:-1]
            table = self.tables[n - 1]
            found = table.find(np.where(before >= 0, before * size + ids, -1))
            known = before >= 0
            total[known] += self.tables[n - 2].log_backoff[before[known]]
            hit = found >= 0
            total[hit] = table.log_probability[found[hit]]
            at = found
        total[ids == BEGIN] = 0.0
        return total

    def perplexities(self, texts: Sequence[str]) -> Signal:
        """[D] 10 ** (-sum of log10 p / (words + 1 a line)), as CCNet has it; NaN of a text without words.

        Rounded to 6 decimals: powers differ in their last bits from processor to processor.
        """
        parts = [np.zeros(0)]
        for block in normalized_blocks(texts):
            lines = numbered(block, *self.index)
            count = len(block.strings)
            owners = np.repeat(lines.documents, np.diff(np.append(lines.starts, len(lines.ids))))
            predicted = np.bincount(owners, lines.ids != BEGIN, minlength=count)
            sums = np.bincount(owners, self.score(lines), minlength=count)
            out = np.full(count, np.nan)
            some = predicted > 0
            out[some] = np.round(10 ** (-sums[some] / predicted[some]), 6)
            parts.append(out)
        return np.concatenate(parts)

    def save(self, path: Path) -> str:
        """Write it as .npz, whole or not at all; returns the file's SHA-256."""
        text = "\n".join(self.words).encode("utf-8", "surrogatepass")
        arrays: Arrays = {
            "format": np.array([_FORMAT, self.order]),
            "words": np.frombuffer(text, np.uint8),
        }
        for n, table in enumerate(self.tables, start=1):
            arrays |= {f"keys{n}": table.keys, f"p{n}": table.log_probability, f"b{n}": table.log_backoff}
        return save_arrays(path, arrays)


def load(path: Path) -> Model:
    """A saved model. Raises `UserError` naming a file that is missing or no such model."""
    try:
        model = _checked(load_arrays(path))
    except OSError as error:
        raise UserError(
            "corpus/perplexity-model-missing",
            f"the perplexity model {shown(str(path))} can't be read ({error.strerror}): correct its path",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            "corpus/perplexity-model-damaged",
            f"{shown(str(path))} is no perplexity model, or is damaged: train it again",
        ) from None
    return model


def _checked(arrays: Arrays) -> Model:
    """The model of a file's arrays. Raises ValueError or KeyError where they don't fit one another."""
    version, order = arrays["format"].tolist()
    if version != _FORMAT or not 1 <= order <= MOST_ORDER:
        raise ValueError("another format")
    text = arrays["words"].astype(np.uint8).tobytes().decode("utf-8", "surrogatepass")
    words = tuple(text.split("\n")) if text else ()
    tables = []
    below = size = 1
    for n in range(1, order + 1):
        table = Table(
            arrays[f"keys{n}"].astype(np.int64), arrays[f"p{n}"].astype(np.float32), arrays[f"b{n}"].astype(np.float32)
        )
        count = len(table.keys)
        if n == 1:
            size = count
            if count != len(words) + 3 or (table.keys != np.arange(count)).any():
                raise ValueError("other words than unigrams")
        elif count and (table.keys[0] < 0 or table.keys[-1] >= below * size or (np.diff(table.keys) <= 0).any()):
            raise ValueError("n-grams out of order")
        if not table.keys.shape == table.log_probability.shape == table.log_backoff.shape == (count,):
            raise ValueError("tables of different lengths")
        if not (np.isfinite(table.log_probability).all() and np.isfinite(table.log_backoff).all()):
            raise ValueError("no numbers")
        below = count
        tables.append(table)
    return Model(words, tuple(tables))


def cuts(perplexities: Signal, percentiles: Sequence[float] = (30, 60)) -> Floats:
    """The perplexities between CCNet's head, middle and tail: of a sample of documents, one language at a time."""
    known = perplexities[~np.isnan(perplexities)]
    return np.percentile(known, percentiles) if len(known) else np.full(len(percentiles), np.nan)


def buckets(perplexities: Signal, limits: Floats) -> Ints:
    """[D] 0 for head, 1 for middle, 2 for tail; a document at a cut is in the lower; -1 where there is none."""
    out = np.searchsorted(limits, perplexities, side="left").astype(np.int64)
    out[np.isnan(perplexities)] = -1
    return out
