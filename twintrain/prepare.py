"""Prepare a run's data: tokenizer and shards into the cache, then what is there.

Usage: python scripts/prepare.py [CONFIG] [--data.source PATH] [--section.field VALUE ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from coretrain.base.errors import UserError, exits_cleanly
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.data.open import open_data


def parse(arguments: Sequence[str]) -> RunConfig:
    """The config that the arguments describe: an optional name or path, then pairs `--section.field value`."""
    rest = list(arguments)
    config = rest.pop(0) if rest and not rest[0].startswith("--") else None
    overrides = []
    while rest:
        key = rest.pop(0)
        if not key.startswith("--"):
            raise UserError(f"unexpected argument {key}: write [CONFIG] --section.field value")
        key, equals, value = key[2:].partition("=")
        if not equals:
            if not rest:
                raise UserError(f"--{key} needs a value: write --{key} VALUE")
            value = rest.pop(0)
        overrides.append((key, value))
    return load_config(config, overrides)


def main() -> int:
    """Prepare, then print each part's manifest summary."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    data = open_data(parse(sys.argv[1:]))
    lines = data.summary()
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        print(f"{label:<{width}}  {value}")
    for part in data.parts:
        shards = json.loads((part.folder / "manifest.json").read_text(encoding="utf-8"))["shards"]
        print(f"{'shards':<{width}}  {len(shards)} in {part.folder / 'manifest.json'}")
    return 0


if __name__ == "__main__":
    exits_cleanly(main)()
