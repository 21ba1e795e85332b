"""Which files a user means: files, folders, patterns; each once, in an order of their own."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.base.parse import shown

PACKINGS = ("", ".gz", ".zst")
CRAWLS = {"warc": (".warc",), "wet": (".warc.wet", ".wet"), "wat": (".warc.wat", ".wat")}
"""What a crawl is published as: pages, their text, their links."""
ENDINGS: dict[str, tuple[str, ...]] = {
    "warc": tuple(f"{end}{packing}" for ends in CRAWLS.values() for end in ends for packing in PACKINGS),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst", ".json.gz", ".json.zst"),
    "parquet": (".parquet",),
}
"""By kind: how names end that are looked for in a folder."""
NAMED: dict[str, tuple[str, ...]] = {"cdxj": (".cdxj",), "jsonl": (".json",)}
"""What is read only where its file is named: beside the files that it tells of, it would give all twice."""
HUB, ANY = "hf:", "**"
KINDS_READ = ".warc .wet .wat .jsonl .ndjson (plain, .gz or .zst), .json.gz, .parquet, .cdxj"


@dataclass(frozen=True)
class File:
    """A file to read."""

    path: str
    """To open it, or `hf:NAME`."""
    name: str
    """As documents have it: below what the user gave."""
    kind: str


@dataclass(frozen=True)
class Survey:
    """What there is to read, by name, and what was passed over."""

    files: tuple[File, ...]
    passed_over: Mapping[str, int]
    """Files of kinds that aren't read, by how their names end."""


def survey(words: Sequence[str]) -> Survey:
    """The files that `words` mean: paths of files and folders, patterns (`*`, `?`, `**`), `hf:NAME`.

    Links to folders are followed, but not round in circles. Neither the order of `words` nor a file that is named twice
    changes anything. Raises `UserError` where a word means nothing, or a file is of no known kind.
    """
    if not words:
        raise UserError("corpus/no-input", f"there is no input: give files, folders or patterns of {KINDS_READ}")
    found = dict[str, tuple[str, str]]()
    """By the file itself: its name below what was given, and its kind."""
    passed_over = Counter[str]()
    for word in words:
        if word.startswith(HUB):
            found[word] = word, "hf"
            continue
        least = len(found)
        for path, root, explicit in _paths(word):
            kind = _kind(path.name, explicit)
            if not kind and explicit:
                raise UserError("corpus/file-kind-unknown", _unknown(path))
            if not kind:
                passed_over[_ending(path.name)] += 1
                continue
            real, name = os.path.realpath(path), path.relative_to(root).as_posix()
            found[real] = min(found.get(real, (name, kind)), (name, kind))
        if len(found) == least and not _known_already(word, found):
            raise UserError("corpus/input-empty", f"{shown(word)} has no file to read: give {KINDS_READ}")
    names = _apart({real: name for real, (name, _) in found.items()})
    files = sorted((File(real, names[real], kind) for real, (_, kind) in found.items()), key=lambda one: one.name)
    return Survey(tuple(files), dict(sorted(passed_over.items())))


def _known_already(word: str, found: Mapping[str, object]) -> bool:
    return any(os.path.realpath(path) in found for path, _, _ in _paths(word))


def _paths(word: str) -> Iterator[tuple[Path, Path, bool]]:
    """(file, what its name is below of, whether it was named itself) for each that a word means."""
    if "://" in word:
        raise UserError(
            "corpus/input-remote", f"{shown(word)} isn't on this machine: copy the files here first, or give hf:NAME"
        )
    path = typed_path(word)
    if path.is_dir():
        yield from ((one, path, False) for one in _below(path, word))
        return
    if path.exists():
        if not path.is_file():
            raise UserError("corpus/input-not-a-file", f"{shown(word)} is neither a file nor a folder: give one")
        yield path, path.parent, True
        return
    fixed = _fixed(path)
    if fixed is None:
        raise UserError("corpus/input-not-found", f"there is no file or folder {shown(word)}: give one that exists")
    wild = path.parts[len(fixed.parts) :]
    if ANY in wild:  # glob would follow links round in circles
        matches = [one for one in _walked(fixed) if _fits(one.relative_to(fixed).parts, wild)]
    else:
        matches = sorted(Path(one) for one in glob.glob(str(path)))
    if not matches:
        raise UserError("corpus/pattern-matches-nothing", f"no file matches {shown(word)}: look at its folder")
    for one in matches:
        if one.is_dir():
            yield from ((inner, fixed, False) for inner in _below(one, word))
        else:
            yield one, fixed, False


def _fits(parts: tuple[str, ...], wild: tuple[str, ...]) -> bool:
    """Whether the parts of a path are as a pattern has them; `**` stands for any number of folders."""
    if not wild:
        return not parts
    if wild[0] == ANY:
        return any(_fits(parts[skipped:], wild[1:] or ("*",)) for skipped in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wild[0]) and _fits(parts[1:], wild[1:])


def _fixed(path: Path) -> Path | None:
    """The folders of a pattern before its first wild part; None where it is no pattern."""
    for number, part in enumerate(path.parts):
        if glob.has_magic(part):
            return Path(*path.parts[:number])
    return None


def _walked(folder: Path) -> list[Path]:
    """Every file in a folder and below it that isn't hidden. Links are followed, each folder looked into once."""
    found, seen = list[Path](), set[str]()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_unlisted):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _below(folder: Path, word: str) -> list[Path]:
    """The same, of a folder that is to be read. Raises `UserError` where it holds the same pages in two forms."""
    found = _walked(folder)
    for path in found:
        if not path.is_file() and _kind(path.name, False):
            raise UserError("corpus/link-to-nothing", f"{path} is a link to nothing, or no file: mend it or remove it")
    forms = {form for path in found for form, ends in CRAWLS.items() if path.name.lower().endswith(_packed(ends))}
    if len(forms) > 1:
        raise UserError(
            "corpus/folder-mixes-crawl-files",
            f"{shown(word)} has {' and '.join(sorted(forms))} files, which tell of the same pages, so that all would "
            f"come twice: give one kind, as {folder / '*.warc.gz'}",
        )
    return found


def _packed(ends: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{end}{packing}" for end in ends for packing in PACKINGS)


def _unlisted(error: OSError) -> None:
    raise UserError(
        "corpus/folder-unreadable", f"{error.filename} can't be looked into ({error.strerror}): let it be read"
    ) from None


def _kind(name: str, named: bool) -> str:
    """The kind of a file, by how its name ends; nothing where it isn't read."""
    lower = name.lower()
    tables = [ENDINGS, NAMED] if named else [ENDINGS]
    return next((kind for table in tables for kind, ends in table.items() if lower.endswith(ends)), "")


def _unknown(path: Path) -> str:
    lower = path.name.lower()
    if lower.endswith((".arc", ".arc.gz")):
        return (
            f"{path} is of the older format ARC, which isn't read: make a WARC of it first, as warcio recompress does"
        )
    if lower.endswith((".cdx", ".cdx.gz", ".cdxj.gz")):
        return (
            f"{path} is an index of a form that isn't read: give it unpacked as .cdxj, with a JSON object in each line"
        )
    return f"{path} is of no kind that is read here: give {KINDS_READ}"


def _ending(name: str) -> str:
    suffixes = Path(name).suffixes
    return "".join(suffixes[-2:] if name.lower().endswith((".gz", ".zst")) else suffixes[-1:]) or "without an ending"


def _apart(names: Mapping[str, str]) -> dict[str, str]:
    """Names that differ: files of one name get as many of the folders above them as tell them apart."""
    apart, more = dict(names), dict.fromkeys(names, 0)
    while True:
        shared = {name for name, count in Counter(apart.values()).items() if count > 1}
        if not shared:
            return apart
        for real, name in apart.items():
            if name in shared:
                more[real] += 1
        for real, name in names.items():
            parts = Path(real).parts
            apart[real] = (
                "/".join(parts[max(1, len(parts) - len(Path(name).parts) - more[real]) :]) if more[real] else name
            )
