"""From a config to opened data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.data.blend import sources_of, stages_of
from coretrain.data.held_out import open_held_out
from coretrain.data.manifest import read_manifest
from coretrain.data.parts import open_part
from coretrain.data.prepare import prepared_folder, trained_tokenizer
from coretrain.data.sources import open_source
from coretrain.data.splits import Data
from coretrain.tokenizers.registry import load_tokenizer, named_tokenizer


def open_data(config: RunConfig, say: Callable[[str], None] = print) -> Data:
    """Open the data of a run, prepared first where the cache lacks it; `say` gets a line for each slow step.

    Raises `UserError` for a source that is missing or too small, a damaged shard, a context longer than the data.
    """
    names, stages = sources_of(config), stages_of(config)
    if config.data.format == "chat":
        from coretrain.data.conversations import open_conversations

        return _with_sets(replace(open_conversations(config, names, say), stages=stages), config, say)
    if config.data.format in ("pairs", "labels"):
        from coretrain.data.preferences.open import open_preferences

        return open_preferences(config, names, say)
    if config.data.format == "prompts":
        from coretrain.data.prompts.open import open_prompts

        return open_prompts(config, names, say)
    sources = [open_source(name, config.data.text_field) for name, _ in names]
    if config.data.tokenizer == "trained":
        tokenizer = trained_tokenizer(sources, config.data, say)
    else:
        tokenizer = named_tokenizer(config.data.tokenizer)
    parts = [
        open_part(prepared_folder(source, tokenizer, config.data, say), source.name, weight)
        for source, (_, weight) in zip(sources, names, strict=True)
    ]
    for part in parts:
        for split in (part.train, part.validation):
            if not split.windows(config.model.context):
                way_out = "" if split.name == "train" else " or raise data.validation_fraction"
                raise UserError(
                    "data/context-exceeds-source",
                    f"model.context = {config.model.context} is longer than the {split.tokens} "
                    f"{split.name} tokens of {part.source}: lower it, give more text{way_out}",
                )
    passed_over = tuple(source.passed_over for source in sources if source.passed_over)
    replayed = config.data.replay is not None
    data = Data(tokenizer, tuple(parts), passed_over=passed_over, stages=stages, replayed=replayed)
    return _with_sets(data, config, say)


def _with_sets(data: Data, config: RunConfig, say: Callable[[str], None]) -> Data:
    return replace(data, sets=open_held_out(config, data.tokenizer, data.parts, say))


def open_folder(folder: Path) -> Data:
    """Open one prepared folder by its path, without its source."""
    manifest = read_manifest(folder)
    return Data(load_tokenizer(folder), (open_part(folder, manifest.source, 1.0),))
