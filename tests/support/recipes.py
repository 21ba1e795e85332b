"""Small inputs and recipes for tests of `twintrain corpus`."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from coretrain.corpus.load import build_recipe
from coretrain.corpus.recipe import Recipe

WORDS = (
    *("the", "of", "and", "to", "with", "that", "have", "be", "river", "stone", "letter", "garden", "window", "under"),
    *("morning", "paper", "quiet", "number", "seven", "forest", "water", "market", "bridge", "winter", "summer"),
    *("village", "engine", "silver", "pocket", "mountain", "teacher", "story", "simple"),
)


def sentence(dice: random.Random, words: int = 12) -> str:
    """Some words and a point."""
    return " ".join(dice.choice(WORDS) for _ in range(words)).capitalize() + "."


def text(seed: object, lines: int = 8) -> str:
    """Lines of sentences, the same for the same seed."""
    dice = random.Random(str(seed))
    return "\n".join(f"{sentence(dice)} {sentence(dice)}" for _ in range(lines))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_input(folder: Path, documents: int = 60, files: int = 3) -> list[str]:
    """Files of documents: good ones, short ones, copies and near-duplicates across files; their paths."""
    rows: list[list[dict[str, Any]]] = [[] for _ in range(files)]
    for number in range(documents):
        body = text(number)
        if number % 10 == 3:
            body = "Too short."
        if number % 10 == 5:
            body = text(number - 1)  # a copy, in another file
        if number % 10 == 7:
            body = f"{text(number - 1)}\nOne more line is here."
        rows[number % files].append({"text": body, "url": f"https://x.example/{number}", "source": f"s{number % 2}"})
    return [str(write_rows(folder / f"part-{index}.jsonl", own)) for index, own in enumerate(rows)]


def small_recipe(paths: list[str], **more: Any) -> Recipe:
    """Gopher's rules, C4's edits and both kinds of duplicates."""
    raw: dict[str, Any] = {
        "name": "small",
        "steps": ["gopher", "c4", "page"],
        "rules": ["gopher", "c4"],
        "filters": {"c4": {"min_sentences": 2}},
        "output": {"documents": 7},
        "input": {"paths": paths},
    }
    raw |= more
    return build_recipe(raw | {"dedup": {"bands": 6, "rows": 4} | raw.get("dedup", {})}, "small.toml")


def published(out: Path) -> dict[str, str]:
    """SHA-256 of everything that a corpus is: documents, what was dropped, the seal."""
    names = [*out.glob("documents/*"), *out.glob("dropped/*"), out / "corpus.json"]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(names)}
