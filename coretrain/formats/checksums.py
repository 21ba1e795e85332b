"""SHA-256 of the files of an export, kept beside them as `sha256sum` writes and checks it: their forms hold none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import sha256_of, write_atomically

SUMS, SUFFIX = "SHA256SUMS", ".sha256"
"""The file in a folder that was exported, and what is appended to the name of a file that was."""
NEEDED = (".safetensors", ".json", ".gguf")
"""Endings of files that must be there where they are listed; of others a folder may lack some."""


def place_of(export: Path) -> Path:
    """Where the checksums of an export lie: in its folder, or beside its file."""
    return export / SUMS if export.is_dir() else export.with_name(export.name + SUFFIX)


def write_sums(export: Path, free: Iterable[str] = ()) -> None:
    """Note the SHA-256 of an export's files; those called `free` may be changed by anyone."""
    files = sorted(path for path in export.iterdir() if path.is_file()) if export.is_dir() else [export]
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in files if path.name not in (SUMS, *free)]
    write_atomically(place_of(export), *lines)


def check_sums(export: Path) -> None:
    """Raise `UserError` naming a file that isn't what its checksum says; without checksums all is taken.

    A list of others, made by `sha256sum`, counts too; of their files some may never have been downloaded.
    """
    sums = place_of(export)
    if not sums.is_file():
        return
    way_out = f"export or download it again, or delete {sums} to take what is there"
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        fits = re.fullmatch(r"([0-9A-Fa-f]{64}) [ *](?:\./)?(.+)", line)
        digest, name = fits.groups() if fits else ("", "")
        path = sums.parent / name
        if Path(name).name != name or not name:
            raise UserError("formats/checksums-damaged", f"{sums} is damaged ({line[:40]!r} is no checksum): {way_out}")
        if path.is_file() and sha256_of(path) == digest.lower():
            continue
        if path.is_file() or name.endswith(NEEDED):
            raise UserError(
                "formats/file-not-as-exported", f"{path} isn't what {sums.name} says by its SHA-256: {way_out}"
            )
