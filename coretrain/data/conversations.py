"""Conversations opened for training: prepared, packed, and with the template that turned them into text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

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
from coretrain.data.splits import Data, Part
from coretrain.tokenizers.chat_template import Template
from coretrain.tokenizers.registry import named_tokenizer


def open_conversations(config: RunConfig, names: Sequence[tuple[str, float]], say: Callable[[str], None]) -> Data:
    """The data of a run with `data.format = chat`, from sources with weights. Raises as `open_data` does."""
    misfits = config.data.misfits
    sources = [chat_source(name, misfits) for name, _ in names]
    if config.data.tokenizer == "trained":
        tokenizer = trained_tokenizer(sources, config.data, say, said_in)
    else:
        tokenizer = named_tokenizer(config.data.tokenizer)
    coder, parts = open_encoder(config, tokenizer), []
    kind = functools.partial(PackedSplit, context=config.row_tokens)
    for source, (_, weight) in zip(sources, names, strict=True):
        with located(source, misfits):
            folder = prepared_folder(source, coder, config.data, say)
        parts.append(known(open_part(folder, source.name, weight, kind), coder.template))
    for part in parts:
        for split in (part.train, part.validation):
            if not split.windows(config.row_tokens):
                reasons = split.dropped() if isinstance(split, PackedSplit) else ""
                raise UserError(
                    "data/row-tokens-too-few",
                    f"no {split.name} sample of {part.source} can be used in rows of {config.row_tokens} tokens"
                    f"{reasons}: raise data.row_tokens, or mend the samples",
                )
    passed_over = tuple(source.passed_over for source in sources if source.passed_over)
    return Data(tokenizer, tuple(parts), coder.template, passed_over)


def known(part: Part, template: Template) -> Part:
    """`part` whose unread fields are those that this template doesn't read either.

    Raises `UserError` where it would read one, were it given: transformers passes no field of a row to a template.
    """
    for name in part.unread:
        if name in template.variables:
            raise UserError(
                "data/row-field-is-template-variable",
                f"rows of {part.source} have {name}, a variable of {template.name}: write it into the row's "
                "chat_template_kwargs, or take it out",
            )
    # what a template names it reads, and what it makes of that is its own affair
    unread = [name for name in part.unread if not ("." in name and name.split(".")[1] in template.source)]
    return replace(part, unread=tuple(unread))
