"""Made-up documents and conversations, and data prepared from them."""

from __future__ import annotations

import inspect
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.data.open import open_data
from coretrain.data.splits import Data
from coretrain.tokenizers.merges import SAMPLES

WORDS = ["def", "return", "class", "import", "for", "while", "if", "else", "self", "value", "index", "print", "None"]
TEXTS = [*SAMPLES, inspect.getsource(json)]
"""What a tokenizer may stumble over, and much of what it is for."""


def write_corpus(folder: Path) -> Path:
    """A few hundred small made-up documents."""
    rng = random.Random(0)
    for n in range(120):
        text = "\n".join(" ".join(rng.choices(WORDS, k=8)) for _ in range(12))
        (folder / f"{n}.txt").write_text(text)
    return folder


def make_texts(count: int, seed: int = 0, size: int = 400) -> list[str]:
    """Texts of many lengths, no two alike, not all of ASCII."""
    words = ["def", "return", "self", "caf\u00e9", "value", "x", "\n", "\u4f60\u597d", "import", "0.5"]
    generator = random.Random(seed)
    return [
        f"{n} " + " ".join(generator.choices(words, k=generator.randint(size // 8, size // 4))) for n in range(count)
    ]


def write_texts(folder: Path, texts: list[str]) -> Path:
    """A folder with a file for each text."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_text(text, encoding="utf-8")
    return folder


def configure(tmp: Path, source: Path | str, **extra: Any) -> RunConfig:
    """The config of a run on `source` whose data is prepared below `tmp`, in several small shards."""
    values = {
        "data.source": source,
        "data.tokenizer": "bytes",
        "data.cache": tmp / "cache",
        "data.shard_tokens": 2048,
        "data.validation_fraction": 0.1,
        "model.context": 32,
        "train.batch_size": 8,
        "train.updates": 50,
        "schedule.warmup_updates": 1,
        "data.prepare_processes": 1,
    } | extra
    return load_config(None, [(key, str(value)) for key, value in values.items()])


def quiet(config: RunConfig) -> Data:
    """The data of a config, without a word."""
    return open_data(config, lambda line: None)


def tokens_of(split: Any) -> np.ndarray:
    """All ids of a split."""
    return np.concatenate([shard.ids() for shard in split.shards])


def chat_rows(count: int) -> list[dict[str, Any]]:
    """Conversations of many lengths."""
    draw = random.Random(0)
    rows = []
    for n in range(count):
        rows.append({"prompt": f"{n} " + "ab " * draw.randrange(4), "completion": "yes " * draw.randrange(1, 5)})
        said = {"role": "assistant", "content": f"no {n}"}
        rows.append({"messages": [{"role": "user", "content": "is it?"}, said, {"role": "user", "content": "!"}, said]})
    return rows


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Conversations as a file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
