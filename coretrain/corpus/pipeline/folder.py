"""The output folder: whose it is, what is published in it, and what of it stays for the next time.

documents/, dropped/, corpus.json (the seal), report.html and card.md are the result; recipe.json says what it is made
by; work/ keeps texts, signals and the ledger, so that other limits can be tried without reading the input again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import TEMPORARY, read_json, sync_folder, write_atomically
from coretrain.base.locks import LOCK
from coretrain.base.parse import from_json, read_bytes
from coretrain.corpus.demo.answers import NAME as ANSWERS
from coretrain.corpus.engine.task import LEDGER
from coretrain.corpus.load import build_recipe
from coretrain.corpus.pipeline.seal import RECIPE, SEAL, WORK
from coretrain.corpus.recipe import Recipe

INPUT = "input"
"""The demo's crawl."""
PUBLISHED = ("documents", "dropped", "index")
OURS = {*PUBLISHED, WORK, INPUT, RECIPE, SEAL, LOCK, "report.html", "card.md", "clusters.jsonl"}
"""What may be in such a folder."""


def check_ours(out: Path) -> None:
    """Raise `UserError` where something else than a corpus is in a folder."""
    if out.exists() and not out.is_dir():
        raise UserError("corpus/output-not-a-folder", f"{out} is a file: give a folder as --output")
    found = [one.name for one in out.iterdir()] if out.is_dir() else []
    # without a recipe of ours, folders of such common names as documents or input are the user's own
    ours = OURS if _has_recipe(out) else {LOCK}
    if foreign := sorted(name for name in found if name not in ours and not name.startswith(TEMPORARY)):
        raise UserError(
            "corpus/output-not-ours",
            f"{out} holds {foreign[0]}, which twintrain corpus didn't write: choose an empty folder, or another "
            "name, as --output",
        )


def _has_recipe(out: Path) -> bool:
    """Whether a corpus was begun in a folder: its recipe is the first that is written, and the last that goes."""
    try:
        raw = from_json(read_bytes(out / RECIPE))
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and {"fingerprint", "recipe"} <= raw.keys()


def _begun(out: Path) -> bool:
    """Whether something of a corpus is there that a mistaken start can't have left."""
    return (out / RECIPE).exists() and ((out / SEAL).exists() or (out / WORK / LEDGER / "read").exists())


def begin(out: Path, recipe: Recipe, fresh: bool) -> Path:
    """Make the folder this recipe's; its work folder. Raises `UserError` where it is another's. `fresh` throws
    another's away. The caller holds the folder's lock.
    """
    if _begun(out) and not fresh:
        before = read_recipe(out)
        ours, theirs = (_identity(one) for one in (recipe, before))
        if ours != theirs:
            what = "inputs" if ours[0] == theirs[0] else "fields"
            raise UserError(
                "corpus/output-of-another",
                f"{out} has the result, or half of it, of the recipe {before.name} with other {what}: choose another "
                "--output, or throw it away with --fresh",
            )
    elif fresh:
        kept = {SEAL, LOCK, RECIPE}  # the recipe is written over below
        if not (out / INPUT / ANSWERS).is_file():
            kept.add(INPUT)  # not the demo's crawl, so the user's own
        for name in (SEAL, *sorted(OURS - kept)):
            path = out / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    write_recipe(out, recipe)
    (out / WORK).mkdir(exist_ok=True)
    return out / WORK


def _identity(recipe: Recipe) -> tuple[str, tuple[str, ...]]:
    return recipe.fingerprint(), tuple(sorted(os.path.abspath(path) for path in recipe.input.paths))


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Keep the whole recipe, defaults included."""
    said = {"fingerprint": recipe.fingerprint(), "recipe": recipe.plain()}
    write_atomically(out / RECIPE, json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def read_recipe(out: Path) -> Recipe:
    """The recipe of a corpus. Raises `UserError` where there is none, or it is damaged."""
    path = out / RECIPE
    raw = read_json(path, "the recipe of a corpus", "give the --output folder of twintrain corpus")
    recipe = raw.get("recipe")
    if not isinstance(recipe, dict):
        raise UserError("corpus/recipe-damaged", f"{path} is damaged (it has no recipe): make the corpus again")
    return build_recipe(recipe, str(path))


def publish(out: Path, files: Mapping[str, Sequence[str]]) -> None:
    """Put finished files of the work folder in their places, by folder; what was there before goes. The seal, which
    is written afterwards, is taken away first: whatever happens on the way, no half result looks whole.
    """
    if all(_same(out, folder, names) for folder, names in files.items()):
        return
    (out / SEAL).unlink(missing_ok=True)
    for folder, names in files.items():
        if not names:
            shutil.rmtree(out / folder, ignore_errors=True)
            continue
        new = out / f"{TEMPORARY}{folder}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for name in names:
            _link(out / WORK / name, new / Path(name).name)
        sync_folder(new)
        shutil.rmtree(out / folder, ignore_errors=True)
        os.replace(new, out / folder)
    sync_folder(out)


def _same(out: Path, folder: str, names: Sequence[str]) -> bool:
    """Whether the files in a place are those of the work folder already."""
    place = out / folder
    if not names and not place.exists():
        return True
    if not place.is_dir() or {one.name for one in place.iterdir()} != {Path(name).name for name in names}:
        return False
    return all(os.path.samefile(out / WORK / name, place / Path(name).name) for name in names)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())


OUTCOME, PLAN = "outcome.json", "plan.json"
"""In the work folder: what the last run told; and pieces and hashes of the input, as the first stage read them."""


def write_told(path: Path, told: Any) -> None:
    """Keep what stages told, with its checksum."""
    text = json.dumps(told)
    write_atomically(path, json.dumps({"sha256": _checksum(text), "told": text}))


def read_told(path: Path) -> dict[str, Any]:
    """What `write_told` kept. Raises `UserError` where it isn't there, or isn't whole."""
    raw = read_json(path, "what a run of twintrain corpus told", "run the same twintrain corpus again, to its end")
    text = raw.get("told")
    if not isinstance(text, str) or raw.get("sha256") != _checksum(text):
        raise UserError(
            "corpus/told-damaged", f"{path} is damaged: run the same twintrain corpus again, which writes it anew"
        )
    told: dict[str, Any] = from_json(text)
    return told


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
