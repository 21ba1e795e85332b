"""Random damage to a file: cut off, a bit flipped, zeroed, another's content, gone, or a value of JSON changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.files import flip_bit

KINDS = ("cut", "bit", "zeros", "swap", "gone", "edit")
VALUES: tuple[Any, ...] = (None, True, 7, -1, 1.5, "x", "7", [], {}, [7], 10**30)
"""What a value of JSON is changed to."""
BLOCK = 64
"""Bytes that are zeroed at most."""


def damage(path: Path, draw: np.random.Generator, others: Sequence[Path] = ()) -> str:
    """Damage the file at `path` in some way, or swap it with one of `others`; in words, '' where it is as it was."""
    before = path.read_bytes()
    kinds = [kind for kind in KINDS if kind != "edit" or path.suffix in (".json", ".jsonl")]
    kinds = [kind for kind in kinds if before or kind == "gone"]
    kind = str(draw.choice(kinds))
    words = _ways[kind](path, draw, [other for other in others if other != path])
    return "" if path.is_file() and path.read_bytes() == before else f"{kind} {words}".strip()


def _cut(path: Path, draw: np.random.Generator, _: Sequence[Path]) -> str:
    raw = path.read_bytes()
    keep = int(draw.integers(0, len(raw)))
    path.write_bytes(raw[:keep])
    return f"at {keep} of {len(raw)}"


def _bit(path: Path, draw: np.random.Generator, _: Sequence[Path]) -> str:
    where, mask = int(draw.integers(0, path.stat().st_size)), 1 << int(draw.integers(0, 8))
    flip_bit(path, where, mask)
    return f"{mask} of byte {where}"


def _zeros(path: Path, draw: np.random.Generator, _: Sequence[Path]) -> str:
    raw = bytearray(path.read_bytes())
    start = int(draw.integers(0, len(raw)))
    stop = min(len(raw), start + int(draw.integers(1, BLOCK + 1)))
    raw[start:stop] = bytes(stop - start)
    path.write_bytes(raw)
    return f"from {start} to {stop}"


def _swap(path: Path, draw: np.random.Generator, others: Sequence[Path]) -> str:
    if not others:
        return _cut(path, draw, others)
    other = others[int(draw.integers(0, len(others)))]
    ours, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(ours)
    return f"with {other.name}"


def _gone(path: Path, *_: object) -> str:
    path.unlink()
    return ""


def _edit(path: Path, draw: np.random.Generator, others: Sequence[Path]) -> str:
    """A key gone, a key of another name, or a value of another kind, anywhere."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
    number = int(draw.integers(0, len(lines)))
    whole = json.loads(lines[number])
    owners = list(_containers(whole))
    if not owners:
        return _cut(path, draw, others)
    owner = owners[int(draw.integers(0, len(owners)))]
    keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
    key = keys[int(draw.integers(0, len(keys)))]
    way = str(draw.choice(["without", "renamed", "changed"]))
    value = VALUES[int(draw.integers(0, len(VALUES)))]
    if way == "changed":
        owner[key] = value
    else:
        held = owner.pop(key)
        if way == "renamed" and isinstance(owner, dict):
            owner[f"{key}x"] = held
    lines[number] = json.dumps(whole)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {number}: {key} {way} {value if way == 'changed' else ''}"


def _containers(value: Any) -> list[Any]:
    """All objects and lists in a value of JSON that hold something."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if inner else []) + [found for one in inner for found in _containers(one)]


_ways = {"cut": _cut, "bit": _bit, "zeros": _zeros, "swap": _swap, "gone": _gone, "edit": _edit}
