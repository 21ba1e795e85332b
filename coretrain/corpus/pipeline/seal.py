"""What a finished corpus says of itself, in corpus.json: its recipe, what went in, its files, one fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from coretrain.base.errors import UserError
from coretrain.base.files import read_json, sha256_of, write_atomically

SEAL, RECIPE, WORK = "corpus.json", "recipe.json", "work"
"""In a corpus's folder: the seal, what it is made by, what is kept for the next time."""
VERSION = 1
AGAIN = "make the corpus again (twintrain corpus ... --output there): what is finished isn't done again"


class File(BaseModel):
    """A file of documents."""

    model_config = ConfigDict(strict=True)
    file: str
    sha256: str
    documents: int
    bytes: int
    """Of text."""


class Sealed(BaseModel):
    """The whole seal."""

    model_config = ConfigDict(strict=True)
    version: int
    name: str
    recipe: str
    """The recipe's fingerprint."""
    inputs: dict[str, str]
    """SHA-256 of each input file, by its name."""
    documents: int
    bytes: int
    files: list[File]
    fingerprint: str


def fingerprint(recipe: str, inputs: Mapping[str, str], files: Sequence[Mapping[str, Any]]) -> str:
    """The one hash of a corpus: of its recipe, what went in, and what came out, hex."""
    lines = [recipe, *(f"{name} {digest}" for name, digest in sorted(inputs.items()))]
    lines += [f"{one['file']} {one['sha256']} {one['documents']} {one['bytes']}" for one in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def seal(folder: Path, name: str, recipe: str, inputs: Mapping[str, str], files: Sequence[Mapping[str, Any]]) -> str:
    """Write the seal; the fingerprint."""
    whole = fingerprint(recipe, inputs, files)
    said = {
        "version": VERSION,
        "name": name,
        "recipe": recipe,
        "inputs": dict(sorted(inputs.items())),
        "documents": sum(one["documents"] for one in files),
        "bytes": sum(one["bytes"] for one in files),
        "files": list(files),
        "fingerprint": whole,
    }
    write_atomically(folder / SEAL, json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    return whole


def read_seal(folder: Path) -> Sealed:
    """The seal of a corpus, checked against itself and the sizes of files. Raises `UserError` naming what is wrong."""
    path = folder / SEAL
    raw = read_json(path, "the seal of a corpus", AGAIN)
    if isinstance(raw.get("version"), int) and raw["version"] > VERSION:
        raise UserError(
            "corpus/seal-too-new",
            f"{path} has version {raw['version']}, newer than this twintrain's {VERSION}: upgrade twintrain",
        )
    try:
        found = Sealed.model_validate(raw)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError("corpus/seal-damaged", f"{path} is damaged ({place} is missing or wrong): {AGAIN}") from None
    if found.fingerprint != fingerprint(found.recipe, found.inputs, raw["files"]):
        raise UserError("corpus/seal-fingerprint", f"{path} is damaged (its fingerprint doesn't fit): {AGAIN}")
    here = {f"documents/{one.name}" for one in (folder / "documents").glob("*")}
    if odd := here ^ {one.file for one in found.files}:
        raise UserError(
            "corpus/files-not-sealed", f"{folder / min(odd)} is missing, or isn't what {path} lists: {AGAIN}"
        )
    return found


def is_corpus(folder: Path) -> bool:
    """Whether `twintrain corpus` works or worked in a folder, sealed or not."""
    return (folder / SEAL).is_file() or ((folder / RECIPE).is_file() and (folder / WORK).is_dir())


def check_file(folder: Path, file: File) -> Path:
    """The path of a file that the seal lists. Raises `UserError` where its bytes are others."""
    path = folder / file.file
    if sha256_of(path) != file.sha256:
        raise UserError("corpus/file-damaged", f"{path} isn't the file that {SEAL} lists: {AGAIN}")
    return path
