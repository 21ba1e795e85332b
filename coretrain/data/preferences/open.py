"""Preferences opened for training: prepared, packed, and with the template that turned them into text."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.data.conversations import known
from coretrain.data.parts import open_part
from coretrain.data.preferences.encode import PreferenceEncoder, located, open_encoder, preference_source, said_in
from coretrain.data.preferences.rows import MARGIN
from coretrain.data.preferences.split import LabelSplit, PairSplit, PreferenceSplit
from coretrain.data.prepare import prepared_folder, trained_tokenizer
from coretrain.data.sources import Source
from coretrain.data.splits import Data, Part
from coretrain.tokenizers.registry import named_tokenizer

KINDS: dict[str, type[PreferenceSplit]] = {"pairs": PairSplit, "labels": LabelSplit}
"""By `data.format`."""
WITH_MARGINS = ("reward", "dpo")
"""Objectives that read how much better a chosen answer is."""


def open_preferences(config: RunConfig, names: Sequence[tuple[str, float]], say: Callable[[str], None]) -> Data:
    """The data of a run with `data.format` = pairs or labels, from sources with weights. Raises as `open_data` does."""
    form, misfits = config.data.format, config.data.misfits
    sources = [preference_source(name, form, misfits) for name, _ in names]
    if config.data.tokenizer == "trained":
        with _prompts_enough(sources):
            tokenizer = trained_tokenizer(sources, config.data, say, said_in)
    else:
        tokenizer = named_tokenizer(config.data.tokenizer)
    coder = open_encoder(config, tokenizer)
    parts = [_part(config, source, weight, coder, say) for source, (_, weight) in zip(sources, names, strict=True)]
    splits = [split for part in parts for split in _splits(part)]
    margins = _margins(config, splits, parts)
    slots = max(split.slots for split in splits)
    unused = {MARGIN} if not margins and any(_stated(split) for split in splits) else set()
    parts = [replace(_with_slots(part, slots, margins), unread=(*part.unread, *unused)) for part in parts]
    passed_over = tuple(source.passed_over for source in sources if source.passed_over)
    return Data(tokenizer, tuple(parts), coder.template, passed_over)


def _part(
    config: RunConfig, source: Source, weight: float, coder: PreferenceEncoder, say: Callable[[str], None]
) -> Part:
    """One source, prepared and opened. Raises `UserError` where a split has no sample that can be used."""
    form = config.data.format
    with located(source, form, config.data.misfits), _prompts_enough([source]):
        folder = prepared_folder(source, coder, config.data, say)
    part = open_part(folder, source.name, weight, functools.partial(KINDS[form], context=config.row_tokens))
    for split in _splits(part):
        if not split.windows(config.row_tokens):
            raise UserError(
                "data/row-tokens-too-few-for-preferences",
                f"no {split.name} row of {source.name} can be used in rows of {config.row_tokens} tokens"
                f"{split.dropped()}: raise data.row_tokens, or mend the rows",
            )
    # whole conversations may lie beside their messages once more, under the name that every template reads
    beside = tuple(name for name in part.unread if name == "messages")
    part = known(replace(part, unread=tuple(name for name in part.unread if name not in beside)), coder.template)
    return replace(part, unread=(*part.unread, *beside))


@contextlib.contextmanager
def _prompts_enough(sources: Sequence[Source]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if error.code != "data/single-document":
            raise
        raise UserError(
            "data/single-prompt",
            f"{', '.join(source.name for source in sources)}: all rows have one prompt, but training and validation "
            "share none and need one each: give rows with more prompts",
        ) from None


def _margins(config: RunConfig, splits: Sequence[PreferenceSplit], parts: Sequence[Part]) -> bool:
    """Whether pairs have margins that the objective reads. Raises `UserError` where only some have one."""
    stated, every = sum(map(_stated, splits)), sum(len(split.samples) for split in splits)
    if not stated or config.train.objective not in WITH_MARGINS:
        return False
    if stated < every:
        raise UserError(
            "data/margins-of-some-pairs",
            f"{every - stated:,} of {every:,} pairs of {', '.join(part.source for part in parts)} have no margin, and "
            "the others have one: give each pair one (0 where there is none), or none",
        )
    return True


def _splits(part: Part) -> list[PreferenceSplit]:
    return [split for split in (part.train, part.validation) if isinstance(split, PreferenceSplit)]


def _with_slots(part: Part, slots: int, margins: bool) -> Part:
    train, validation = (split.with_slots(slots, margins) for split in _splits(part))
    return replace(part, train=train, validation=validation)


def _stated(split: PreferenceSplit) -> int:
    return split.stated_margins() if isinstance(split, PairSplit) else 0
