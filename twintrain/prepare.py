"""Prepare a run's data: tokenizer and shards into the cache, then what is there.

Usage: twintrain prepare [CONFIG] [--section.field VALUE ...]
       twintrain prepare gpt2-124m --data.source my.jsonl

CONFIG and the fields are as in twintrain train --help; those of data matter,
and model.context. The run that is started with the same then finds it all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coretrain.base.errors import UserError
from coretrain.base.help import fitted
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig

PROGRAM = "twintrain prepare"


def parse(arguments: Sequence[str]) -> RunConfig:
    """The config that the arguments describe: an optional name or path, then pairs `--section.field value`."""
    rest = list(arguments)
    config = rest.pop(0) if rest and not rest[0].startswith("--") else None
    overrides = []
    while rest:
        key = rest.pop(0)
        if not key.startswith("--"):
            raise UserError(
                "command/unexpected-argument",
                f"unexpected argument {key}: write [CONFIG] --section.field value",
            )
        key, equals, value = key[2:].partition("=")
        if not equals:
            if not rest:
                raise UserError("command/option-without-value", f"--{key} needs a value: write --{key} VALUE")
            value = rest.pop(0)
        overrides.append((key, value))
    return load_config(config, overrides)


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Prepare, then print each part's manifest summary."""
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        print(fitted((__doc__ or "").replace(PROGRAM, program)))
        return 0
    from coretrain.data.manifest import MANIFEST, read_manifest
    from coretrain.data.open import open_data

    data = open_data(parse(words))
    lines = data.summary()
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        print(f"{label:<{width}}  {value}")
    for part in data.parts:
        shards = read_manifest(part.folder).shards
        print(f"{'shards':<{width}}  {len(shards)} in {part.folder / MANIFEST}")
    return 0
