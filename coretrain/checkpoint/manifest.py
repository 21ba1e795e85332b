"""Where a run stands, and the manifest that makes a checkpoint's folder count.

`manifest.json` is written last: format version, config, `Progress`, and the size and SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from coretrain.base.errors import UserError
from coretrain.base.files import sha256_of, sync_folder, write_atomically
from coretrain.base.numbers import COUNTABLE
from coretrain.base.parse import from_json, read_bytes
from coretrain.config.load import build_config, recorded
from coretrain.config.run import RunConfig

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


Size = Annotated[int, Field(ge=0, le=COUNTABLE)]


class _File(BaseModel):
    model_config = ConfigDict(strict=True)
    bytes: Size
    sha256: str


class _Tensor(BaseModel):
    model_config = ConfigDict(strict=True)
    file: str
    dtype: str
    shape: list[Size]


class _Sealed(BaseModel):
    """What `manifest.json` must hold beside its version and its checksum."""

    model_config = ConfigDict(strict=True)
    config: dict[str, Any]
    progress: dict[str, Any]
    stack: str
    files: dict[str, _File]
    tensors: dict[str, dict[str, _Tensor]]
    beside: dict[str, str] = {}


class DamagedCheckpoint(UserError):
    """A checkpoint that isn't what was written: its text names the file. An older one may still be whole."""


LATER = ("align", "origin")
"""Fields of `Progress` that aren't written where they are empty, as earlier versions don't have them."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: with the config, all that goes on besides the tensors."""

    update: int = 0
    """Updates done, skipped ones included; the next one's index."""
    applied: int = 0
    """Updates that the optimizer really took: what its bias correction counts."""
    tokens: int = 0
    """Tokens seen."""
    data_index: int = 0
    """Next index in the data order; ahead of `update` after a rollback that skipped data."""
    data_fingerprint: str = ""
    batch_size: int = 0
    """Rows of a global batch, which the data order depends on."""
    seed: int = 0
    health: dict[str, Any] = field(default_factory=dict)
    """State of the spike policy's window."""
    loss_scale: dict[str, Any] = field(default_factory=dict)
    """State of float16's scaler."""
    best: dict[str, Any] | None = None
    """The lowest validation loss so far: {"update", "val_loss"}."""
    align: dict[str, Any] = field(default_factory=dict)
    """State of the source of batches, where those depend on more than the data order, as rollouts do."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Where a run's first weights came from: {"fingerprint", "update", "moments", "applied"}; {} of fresh ones."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; floats keep every bit."""
        return {name: value for name, value in asdict(self).items() if value or name not in LATER}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Progress:
        """The inverse of `to_json`. Raises `DamagedCheckpoint` unless it has exactly these fields."""
        names = {f.name for f in fields(Progress)}
        if odd := sorted(names ^ {*raw, *LATER}):
            raise DamagedCheckpoint(
                "checkpoint/progress-fields-wrong",
                f"the checkpoint's progress is damaged: its fields {', '.join(odd)} are not this version's",
            )
        try:
            return _PROGRESS.validate_python(dict(raw))
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise DamagedCheckpoint(
                "checkpoint/progress-value-wrong",
                f"the checkpoint's progress is damaged: {place} has an impossible value",
            ) from None


_PROGRESS = TypeAdapter(Progress)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says."""

    config: RunConfig
    progress: Progress
    stack: str
    """Who wrote it: torch, jax, or import."""
    tensors: dict[str, dict[str, dict[str, Any]]]
    """{group: {canonical name: {"file", "dtype", "shape"}}} of an interchange checkpoint; empty in a native one."""
    beside: dict[str, str]
    """SHA-256 of files of the run's folder on which its text depends, by name; empty where none were noted."""


def seal(
    folder: Path,
    progress: Progress,
    config: RunConfig,
    stack: str,
    tensors: Mapping[str, Mapping[str, Any]] | None = None,
    files: Mapping[str, Mapping[str, Any]] | None = None,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Flush every file in `folder` to disk and write its manifest, which makes the checkpoint count.

    `files` is what `digests` gave, where several processes have shared it out; `beside` is as in `Manifest`. Raises
    OSError (a full disk): then there is no manifest, and the folder doesn't count.
    """
    files = digests(folder) if files is None else dict(sorted(files.items()))
    for path in folder.rglob("*/"):
        sync_folder(path)
    content = {
        "version": FORMAT_VERSION,
        "stack": stack,
        "config": json.loads(config.to_json()),
        "progress": progress.to_json(),
        "files": files,
        "tensors": tensors or {},
    } | ({"beside": dict(beside)} if beside else {})
    write_atomically(folder / MANIFEST, json.dumps(content | {"checksum": _checksum(content)}, indent=1).encode())


def digests(folder: Path, index: int = 0, count: int = 1) -> dict[str, dict[str, Any]]:
    """Flush the files of `folder` to disk and hash them: {name: {"bytes", "sha256"}}; part `index` of `count`."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    sizes.pop(MANIFEST, None)
    found = {}
    for name in _share(sizes, index, count):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
        found[name] = {"bytes": sizes[name], "sha256": sha256_of(folder / name)}
    return found


def _share(sizes: Mapping[str, int], index: int, count: int) -> list[str]:
    """Part `index` of `count` of some files, the parts about as large as each other."""
    loads: list[int] = [0] * count
    mine = []
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = loads.index(min(loads))
        loads[lightest] += sizes[name] + 1
        if lightest == index:
            mine.append(name)
    return sorted(mine)


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_sealed(folder: Path) -> Manifest:
    """A sealed checkpoint's manifest, checked by itself; `verify` checks the files too.

    Raises `DamagedCheckpoint` naming the manifest, and `UserError` for a format newer than this twintrain's.
    """
    return _manifest(folder, _read(folder / MANIFEST))


def verify(folder: Path, index: int = 0, count: int = 1) -> Manifest:
    """Read a sealed checkpoint's manifest and check every file against it, or part `index` of `count` of them.

    Raises `DamagedCheckpoint` naming the file that is missing, truncated or altered, else as `read_sealed` does.
    """
    raw = _read(folder / MANIFEST)
    for name in _share({name: facts["bytes"] for name, facts in raw["files"].items()}, index, count):
        _check_file(folder / name, raw["files"][name]["bytes"], raw["files"][name]["sha256"])
    return _manifest(folder, raw)


def _manifest(folder: Path, raw: Mapping[str, Any]) -> Manifest:
    config = build_config(recorded(raw["config"]), str(folder / MANIFEST))
    return Manifest(config, Progress.from_json(raw["progress"]), raw["stack"], raw["tensors"], raw.get("beside", {}))


def _read(path: Path) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = from_json(read_bytes(path))
        checksum, version = raw.pop("checksum"), raw["version"]
    except FileNotFoundError:
        raise DamagedCheckpoint(
            "checkpoint/manifest-missing", f"{path.parent} is no complete checkpoint: it has no {path.name}"
        ) from None
    except OSError as error:
        raise DamagedCheckpoint("checkpoint/manifest-unreadable", f"{path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedCheckpoint(
            "checkpoint/manifest-damaged", f"{path} is damaged: it is no manifest of a checkpoint"
        ) from None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            "checkpoint/format-too-new",
            f"{path} has format version {version}, newer than this twintrain's {FORMAT_VERSION}: upgrade twintrain",
        )
    if _checksum(raw) != checksum:
        raise DamagedCheckpoint("checkpoint/manifest-checksum-wrong", f"{path} is damaged: its checksum is wrong")
    try:
        _Sealed.model_validate(raw)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise DamagedCheckpoint(
            "checkpoint/manifest-field-wrong", f"{path} is damaged: {place} is missing or wrong"
        ) from None
    return raw


def _check_file(path: Path, size: int, sha256: str) -> None:
    try:
        found = path.stat().st_size
        if found != size:
            raise DamagedCheckpoint(
                "checkpoint/file-length-wrong", f"{path} is damaged: it has {found} bytes, {size} were written"
            )
        if sha256_of(path) != sha256:
            raise DamagedCheckpoint(
                "checkpoint/file-checksum-wrong",
                f"{path} is damaged: its SHA-256 is not that of what was written",
            )
    except FileNotFoundError:
        raise DamagedCheckpoint("checkpoint/file-missing", f"{path} is missing from the checkpoint") from None
    except OSError as error:
        raise DamagedCheckpoint("checkpoint/file-unreadable", f"{path} can't be read: {error.strerror}") from None
