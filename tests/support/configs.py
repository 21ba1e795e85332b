"""The smallest useful config."""

from __future__ import annotations

from pathlib import Path

from coretrain.config.load import load_config
from coretrain.config.run import RunConfig

SMALL = {
    "model.layers": 2,
    "model.width": 32,
    "model.heads": 4,
    "model.context": 24,
    "model.vocab": 101,
    "train.batch_size": 4,
    "train.updates": 8,
    "schedule.warmup_updates": 2,
    "execution.device": "cpu",
    "execution.attention": "plain",
    "execution.compile": "off",
    "model.norm": "layernorm",
    "model.position": "learned",
    "model.mlp": "gelu",
    "model.bias": "true",
    "model.tied": "true",
}


def small_config(cache: Path, **more: object) -> RunConfig:
    """In float32, with `section__field=value` on top; `cache` is where compiled functions and prepared data lie."""
    fields = SMALL | {"data.cache": cache} | {key.replace("__", "."): value for key, value in more.items()}
    return load_config("tiny", [(key, str(value)) for key, value in fields.items()])
