"""Named validation sets: opened beside a run's data, cut into batches, and their bytes counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.config.data import ValidationSet
from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch, stacked
from coretrain.data.manifest import MANIFEST, read_manifest
from coretrain.data.parts import open_part
from coretrain.data.prepare import prepared_folder
from coretrain.data.sources import open_source
from coretrain.data.splits import HeldOut, Part
from coretrain.tokenizers.tokenizer import Tokenizer


def open_held_out(
    config: RunConfig, tokenizer: Tokenizer, parts: Sequence[Part], say: Callable[[str], None]
) -> tuple[HeldOut, ...]:
    """Each part of a mixture, by a short name, and the sets of `data.validation`; in that order.

    A set that is a part's own validation split stands once. Raises `UserError` where two others have one name, a set is
    of another tokenizer, is shorter than a row, or is trained on.
    """
    found = dict[str, HeldOut]()
    if len(parts) > 1:
        for name, part in zip(part_names([part.source for part in parts]), parts, strict=True):
            found[name] = HeldOut(name, part.source, part.validation, part.fingerprint)
    for wanted in config.data.validation:
        one = _open(config, tokenizer, wanted, parts, say)
        same = [name for name, other in found.items() if _same(other, one)]
        for name in same:
            del found[name]
        if wanted.name in found:
            raise UserError(
                "data/validation-name-of-a-part",
                f"data.validation: {wanted.name} is also the name of {found[wanted.name].source}, which is trained on: "
                "give the set another name",
            )
        found[wanted.name] = one
    return tuple(found.values())


def _same(one: HeldOut, other: HeldOut) -> bool:
    return one.fingerprint == other.fingerprint and one.split.tokens == other.split.tokens


def part_names(sources: Sequence[str]) -> list[str]:
    """A short name of each source: the end of its path; of several alike all but the first get a number."""
    names = list[str]()
    for source in sources:
        end = Path(source.rstrip("/")).name or "part"
        plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in end)[:20]
        number = 1
        while (name := plain if number == 1 else f"{plain}-{number}") in names:
            number += 1
        names.append(name)
    return names


def _open(
    config: RunConfig, tokenizer: Tokenizer, wanted: ValidationSet, parts: Sequence[Part], say: Callable[[str], None]
) -> HeldOut:
    said = f"data.validation: {wanted.name}={wanted.source}"
    folder = _prepared(said, wanted.source, tokenizer)
    if folder is None:
        try:
            source = open_source(wanted.source, config.data.text_field)
        except UserError as error:
            why = str(error).removeprefix(f"data.source = {wanted.source}: ")
            raise UserError("data/validation-set-unreadable", f"{said}: {why}") from None
        folder = prepared_folder(source, tokenizer, config.data, say)
    part = open_part(folder, wanted.source, 1.0)
    split = part.validation
    if wanted.documents == "all":
        if part.fingerprint in {other.fingerprint for other in parts}:
            raise UserError(
                "data/validation-set-trained-on",
                f"{said} has all its documents, and the run trains on them: leave documents out, and it has those that "
                "are kept from training",
            )
        split = split.like([*part.train.shards, *part.validation.shards])
    if not split.windows(config.row_tokens):
        more = "" if wanted.documents == "all" else ', or documents = "all" if none of it is trained on'
        raise UserError(
            "data/validation-set-too-small",
            f"{said} has {split.tokens} tokens to evaluate, fewer than a row of {config.row_tokens} and one more: give "
            f"more text{more}",
        )
    return HeldOut(wanted.name, wanted.source, split, part.fingerprint)


def _prepared(said: str, source: str, tokenizer: Tokenizer) -> Path | None:
    """The folder, where `source` is one of prepared shards; they must be of the run's own tokenizer."""
    try:
        folder = typed_path(source)
    except UserError:
        return None
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    if (manifest.tokenizer_fingerprint, manifest.vocab) != (tokenizer.fingerprint, tokenizer.vocab):
        raise UserError(
            "data/validation-tokenizer-differs",
            f"{said} was prepared with tokenizer {manifest.tokenizer} of {manifest.vocab} tokens, and the run has "
            f"{tokenizer.name} of {tokenizer.vocab}: give its source ({manifest.source}) in place of the folder",
        )
    return folder


def held_out_batches(one: HeldOut, config: RunConfig) -> list[Batch]:
    """A set's first rows, the same at every evaluation: at most `train.eval_batches` batches of `train.batch_size`."""
    context, size = config.row_tokens, config.train.batch_size
    count = min(one.split.windows(context), config.train.eval_batches * size)
    rows = [one.split.read(window, context) for window in range(count)]
    return [stacked(rows[first : first + size]) for first in range(0, count, size)]


def scored_bytes(batches: Sequence[Batch], tokenizer: Tokenizer) -> int:
    """Bytes of text that the batches' labels stand for; a special token stands for none."""
    lengths = tokenizer.byte_lengths()
    labels = np.concatenate([batch.labels.ravel() for batch in batches])
    return int(lengths[labels[labels != IGNORED]].sum(dtype=np.int64))
