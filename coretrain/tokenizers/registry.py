"""Tokenizers by name and from a run's folder: above all kinds, so that no kind imports it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tiktoken
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coretrain.base.errors import UserError, meant
from coretrain.base.files import read_json, typed_path
from coretrain.tokenizers.tokenizer import (
    GPT2_PATTERN,
    SAVED_FACTS,
    SAVED_JSON,
    SAVED_RANKS,
    Tokenizer,
    read_ranks,
)

Id = Annotated[int, Field(ge=0, lt=2**32)]


class SavedFacts(BaseModel):
    """What `Tokenizer.save` writes beside the tokens."""

    model_config = ConfigDict(strict=True)
    version: Annotated[int, Field(ge=1)]
    name: str
    pattern: str | None
    eot: Id
    fingerprint: str
    specials: dict[str, Id] | None = None
    roles: dict[str, Id] | None = None
    partial: bool = False


GPT2_FILE = Path(__file__).resolve().parent / "r50k_base.tiktoken"
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


def bytes_tokenizer() -> Tokenizer:
    """256 bytes and `<|endoftext|>` = 256."""
    return Tokenizer("bytes", {bytes([byte]): byte for byte in range(256)}, None, 256)


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's 50257 tokens, from the file that ships with twintrain; its SHA-256 is checked."""
    return Tokenizer("gpt2", read_ranks(GPT2_FILE, GPT2_SHA256), GPT2_PATTERN, 50256)


def openai_tokenizer(name: str) -> Tokenizer:
    """`cl100k_base` or `o200k_base` through tiktoken, which downloads it once and keeps it."""
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:  # requests' errors are OSErrors
        raise UserError(
            "tokenizers/download-failed",
            f"data.tokenizer = {name} could not be downloaded ({type(error).__name__}): go online once, or "
            "use gpt2, trained or bytes, which need no download",
        ) from None
    return Tokenizer(name, dict(encoding._mergeable_ranks), encoding._pat_str, encoding.eot_token)


def file_tokenizer(path: Path) -> Tokenizer:
    """A `.tiktoken` file; one that `Tokenizer.save` wrote brings its own pattern, others are taken with GPT-2's. Or
    the tokenizer.json of a run, or of a Hugging Face folder."""
    if not path.is_file():
        raise UserError(
            "tokenizers/file-not-found",
            f"data.tokenizer: no file {path}: give the path of a .tiktoken file or a {SAVED_JSON}, or trained, gpt2, "
            "cl100k_base, o200k_base or bytes",
        )
    if saved_tokenizer(path.parent) == path:
        return load_tokenizer(path.parent)
    if path.name == SAVED_JSON:
        from coretrain.tokenizers.huggingface import read_tokenizer

        return read_tokenizer(path.parent)
    ranks = read_ranks(path)
    return Tokenizer(path.stem, ranks, GPT2_PATTERN, max(ranks.values()) + 1)


def saved_tokenizer(folder: Path) -> Path | None:
    """The file by which `data.tokenizer` names what `Tokenizer.save` wrote into `folder`, if it has."""
    names = (SAVED_RANKS, SAVED_JSON) if (folder / SAVED_FACTS).is_file() else ()
    return next((folder / name for name in names if (folder / name).is_file()), None)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote into `folder`; its fingerprint is checked."""
    facts = read_json(folder / SAVED_FACTS, "the tokenizer's facts", "restore it, or make the tokenizer again")
    try:
        SavedFacts.model_validate(facts)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(
            "tokenizers/saved-facts-damaged",
            f"{folder / SAVED_FACTS} is damaged ({field} is missing or wrong): restore it, or make the tokenizer again",
        ) from None
    if facts["version"] > 3:
        raise UserError(
            "tokenizers/saved-version-too-new",
            f"{folder / SAVED_FACTS} has version {facts['version']}, newer than this twintrain's 3: upgrade twintrain",
        )
    if facts["version"] == 3:
        from coretrain.tokenizers.json_tokenizer import load_json_tokenizer

        path = folder / SAVED_JSON
        tokenizer: Tokenizer = load_json_tokenizer(path, facts)
    else:
        path = folder / SAVED_RANKS
        tokenizer = _of_ranks(path, facts)
    if tokenizer.fingerprint != facts["fingerprint"]:
        raise UserError(
            "tokenizers/fingerprint-differs",
            f"{path} does not match the fingerprint in {SAVED_FACTS}: "
            "one of the two was changed; restore them, or make the tokenizer again",
        )
    return tokenizer


def _of_ranks(path: Path, facts: Mapping[str, Any]) -> Tokenizer:
    ranks, more = read_ranks(path), (facts.get("specials"), facts.get("roles"), facts.get("partial", False))
    try:
        return Tokenizer(facts["name"], ranks, facts["pattern"], facts["eot"], *more)
    except UserError as error:
        raise UserError(
            "tokenizers/saved-tokenizer-refused",
            f"{path} or {SAVED_FACTS} beside it is damaged ({error}): restore them, or make the tokenizer again",
        ) from None


NAMES = ("trained", "gpt2", "cl100k_base", "o200k_base", "bytes")
"""What `data.tokenizer` may name beside files."""


def named_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names; all but `trained`, which needs a corpus (see `train.py`)."""
    if name == "gpt2":
        return gpt2_tokenizer()
    if name == "bytes":
        return bytes_tokenizer()
    if name in ("cl100k_base", "o200k_base"):
        return openai_tokenizer(name)
    if name.lower().endswith((".tiktoken", SAVED_JSON)):
        return file_tokenizer(typed_path(name))
    raise UserError(
        "tokenizers/unknown-tokenizer-name",
        f"data.tokenizer = {name} is unknown: {meant(name, NAMES)}Known are {', '.join(NAMES)}, "
        f"and the path of a .tiktoken file or a {SAVED_JSON}",
    )
