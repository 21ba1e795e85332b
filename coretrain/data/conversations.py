"""Conversations opened for training: prepared, packed, and with the template that turned them into text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.data.chat import (
    chat_source,
    located,
    open_encoder,
    said_in,
)
from coretrain.data.packing import PackedSplit
from coretrain.data.parts import open_part
from coretrain.data.prepare import prepared_folder, trained_tokenizer
from coretrain.data.splits import Data
from coretrain.tokenizers.registry import named_tokenizer


def open_conversations(config: RunConfig, names: Sequence[tuple[str, float]], say: Callable[[str], None]) -> Data:
    """The data of a run with `data.format = chat`, from sources with weights. Raises as `open_data` does."""
    sources = [chat_source(name) for name, _ in names]
    if config.data.tokenizer == "trained":
        tokenizer = trained_tokenizer(sources, config.data, say, said_in)
    else:
        tokenizer = named_tokenizer(config.data.tokenizer)
    coder, parts = open_encoder(config, tokenizer), []
    kind = functools.partial(PackedSplit, context=config.row_tokens)
    for source, (_, weight) in zip(sources, names, strict=True):
        with located(source):
            folder = prepared_folder(source, coder, config.data, say)
        parts.append(open_part(folder, source.name, weight, kind))
    for part in parts:
        for split in (part.train, part.validation):
            if not split.windows(config.row_tokens):
                raise UserError(
                    "data/row-tokens-too-few",
                    f"a row's {config.row_tokens} tokens are too few for every {split.name} sample of "
                    f"{part.source}: raise data.row_tokens, or give shorter samples",
                )
    passed_over = tuple(source.passed_over for source in sources if source.passed_over)
    return Data(tokenizer, tuple(parts), coder.template, passed_over)
