"""What is compared: a source of data, or a mixture of several in a TOML file; and one tokenizer for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import quoted, short_hash, typed_path
from coretrain.base.locks import locked
from coretrain.base.parse import LARGEST_TOML, from_toml, read_bytes
from coretrain.config.data import DataConfig, MixturePart
from coretrain.data.prepare import documents_of, survey
from coretrain.data.sources import Source, open_source
from coretrain.tokenizers.registry import load_tokenizer, named_tokenizer
from coretrain.tokenizers.tokenizer import SAVED_FACTS, SAVED_RANKS, Tokenizer
from coretrain.tokenizers.train import TRAINING_BYTES, train_tokenizer


@dataclass(frozen=True)
class Side:
    """One of what is compared."""

    name: str
    parts: tuple[tuple[str, float], ...]
    """Sources with their weights; one alone is no mixture."""

    @property
    def words(self) -> list[str]:
        """As options of a run."""
        if len(self.parts) == 1:
            return [f"--data.source={self.parts[0][0]}"]
        return [f"--data.mixture={mixture_line(self.parts)}"]


def mixture_line(parts: Sequence[tuple[str, float]]) -> str:
    """`data.mixture` in TOML, on one line."""
    return "[" + ", ".join(f"{{source = {quoted(Path(name))}, weight = {weight}}}" for name, weight in parts) + "]"


def side_of(word: str) -> Side:
    """A side as typed: what data.source takes, or a .toml file with [data] mixture. Raises `UserError`."""
    if not word.lower().endswith(".toml"):
        return Side(word, ((word, 1.0),))
    path = typed_path(word)
    try:
        data = from_toml(read_bytes(path, LARGEST_TOML).decode()).get("data", {})
        mixture = data.get("mixture") if isinstance(data, dict) else None
        parts = [MixturePart.model_validate(part) for part in mixture or ()]
        if empty := [part.source for part in parts if not part.weight]:
            raise ValueError(f"the weight of {empty[0]} is 0")
    except (OSError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError("command/mixture-unreadable", f"{path} can't be read ({reason}): give a mixture") from None
    if not parts:
        raise UserError(
            "command/mixture-missing",
            f"{path} has no mixture: give a file with [data] and mixture = [{{source = ..., weight = ...}}, ...]",
        )
    return Side(word, tuple((part.source, part.weight) for part in parts))


def sources_of(sides: Sequence[Side], data: DataConfig) -> list[Source]:
    """Each source of all sides once, in the order in which they come."""
    names = dict.fromkeys(name for side in sides for name, _ in side.parts)
    return [open_source(name, data.text_field) for name in names]


def one_tokenizer(
    sources: Sequence[Source], data: DataConfig, folder: Path, say: Callable[[str], None]
) -> tuple[Tokenizer, str, str]:
    """The tokenizer of all runs, how a run is told of it, and what it is, in words.

    `trained`: a BPE of as many bytes of each source's training split, kept in `folder`; else as `data.tokenizer` says.
    """
    if data.tokenizer != "trained":
        tokenizer = named_tokenizer(data.tokenizer)
        return tokenizer, data.tokenizer, f"{data.tokenizer}, as given, {tokenizer.vocab:,} tokens"
    key = short_hash("even", [one.listing for one in sources], data.tokenizer_vocab, _cut(data))
    kept = folder / f"tokenizer-{key[:16]}"
    with locked(folder / ".lock-of-tokenizer", lambda: say("another process trains the tokenizer: waiting")):
        if not (kept / SAVED_FACTS).is_file():
            say(f"training one tokenizer for all, on as many bytes of each of {len(sources)} sources")
            train_tokenizer(even_texts(sources, data), data.tokenizer_vocab).save(kept)
    tokenizer = load_tokenizer(kept)
    return (
        tokenizer,
        str((kept / SAVED_RANKS).absolute()),
        f"a BPE of {tokenizer.vocab:,} tokens, trained on as many bytes of each source",
    )


def _cut(data: DataConfig) -> list[Any]:
    return [data.validation_fraction, data.max_documents, data.text_field]


def even_texts(sources: Sequence[Source], data: DataConfig, limit: int = TRAINING_BYTES) -> Iterator[str]:
    """Documents of all training splits, each from the source that gave the fewest bytes, until one has no more.

    At most about `limit` bytes in all.
    """
    passes = [
        (one for one in documents_of(source, data, survey(source, data)) if one.split == "train") for source in sources
    ]
    given = [0] * len(passes)
    while sum(given) < limit:
        least = given.index(min(given))
        document = next(passes[least], None)
        if document is None:
            return
        given[least] += document.text_bytes
        yield document.text
