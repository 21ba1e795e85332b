"""What the command does: make a corpus in a folder, try other limits on it, and look up what became of a document."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.locks import held
from coretrain.corpus.demo.answers import NAME as ANSWERS
from coretrain.corpus.demo.make import make_demo
from coretrain.corpus.engine.run import Engine, Here, Run
from coretrain.corpus.load import build_recipe
from coretrain.corpus.pipeline import folder
from coretrain.corpus.pipeline.learn import known_of
from coretrain.corpus.pipeline.made import Made
from coretrain.corpus.pipeline.make import finish, made_of, make
from coretrain.corpus.pipeline.seal import RECIPE, WORK, seal
from coretrain.corpus.readers.files import survey
from coretrain.corpus.recipe import Recipe

Say = Callable[[str], None]
Open = Callable[[Path], Engine]
"""An engine for a work folder."""
DEMO = "demo:"
"""In a recipe's input: the crawl that twintrain makes itself."""


def make_corpus(recipe: Recipe, out: Path, engine: Open = Here, fresh: bool = False, say: Say = print) -> Made:
    """Carry out a recipe in the folder `out`; what an earlier run of the same has finished isn't done again.

    Raises `UserError` where the folder is another's, nothing is read or nothing is left.
    """
    folder.check_ours(out)
    given = [path for path in recipe.input.paths if path != DEMO]
    if given or not recipe.input.paths:
        survey(given)  # before anything is written
    with _held(out, say):
        work = folder.begin(out, recipe, fresh)
        paths = _with_demo(recipe.input.paths, out, say)
        made = Made(recipe, [], {})
        try:
            with engine(work) as running:
                make(made, paths, Run(work, running, say), say)
        except UserError as error:
            if error.code == "corpus/everything-dropped":  # for show, which tells why
                _note(out, made, "")
            raise
        _finished(out, made, recipe)
    return made


def retune(out: Path, change: Callable[[Recipe], Recipe], engine: Open = Here, say: Say = print) -> Made:
    """Carry out all but the first stage again with other fields. Raises `UserError` for fields that the first needs."""
    if not (out / RECIPE).is_file():
        raise UserError("corpus/no-corpus-here", f"{out} holds no corpus: give the --output folder of twintrain corpus")
    with _held(out, say):
        before = folder.read_recipe(out)
        recipe = change(before)
        check_retuned(before, recipe)
        work = out / WORK
        with engine(work) as running:
            run = Run(work, running, say)
            made = made_of(recipe, run)
            made.inputs = {key: one for key, one in made.inputs.items() if not key.startswith("dedup.")}
            made.inputs |= known_of(recipe)
            finish(made, run, say, "set filters.{rule} otherwise; " + f"{out} stays as it was")
        folder.write_recipe(out, recipe)
        _finished(out, made, recipe)
    return made


def check_retuned(before: Recipe, after: Recipe) -> None:
    """Raise `UserError` where a field differs that texts and signals depend on. Limits of gates may differ."""
    one, two = before.reading(), after.reading()
    for key in ("extract", "steps", "gates", "options", "decontaminate", "models"):
        if one[key] != two[key]:
            raise UserError(
                "corpus/retune-needs-reading",
                f"{key} is another, which texts and signals depend on: make it anew by twintrain corpus, in another "
                "--output",
            )
    if (
        before.input != after.input
        and before.input.model_copy(update={"priority": after.input.priority}) != after.input
    ):
        raise UserError(
            "corpus/retune-other-input", "retune reads no input: make other input's corpus by twintrain corpus"
        )


def _with_demo(paths: Sequence[str], out: Path, say: Say) -> list[str]:
    """The paths, `demo:` as the files of the crawl that is made for it in the output folder."""
    found: list[str] = []
    for path in paths:
        if path != DEMO:
            found.append(path)
            continue
        place = out / folder.INPUT
        if not (place / ANSWERS).is_file():
            say(f"making a small crawl of this Python's documentation in {place}")
            make_demo(place)
        found.append(str(place / "*.warc.gz"))
    return found


@contextlib.contextmanager
def _held(out: Path, say: Say) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # where nobody may make a folder, as under /proc
        raise UserError(
            "corpus/output-cannot-be-made", f"{error.filename} can't be made: choose another folder as --output"
        ) from None
    with held(out, say):
        yield


def _finished(out: Path, made: Made, recipe: Recipe) -> None:
    """Publish, seal, and keep what was told for the report."""
    files = {"documents": [one["file"] for one in made.documents], "dropped": made.dropped, "index": made.index}
    folder.publish(out, files)
    whole = seal(out, recipe.name, recipe.fingerprint(), made.inputs, made.documents)
    _note(out, made, whole)


def _note(out: Path, made: Made, whole: str) -> None:
    """Keep what the stages told."""
    said = {key: value for key, value in vars(made).items() if key not in ("recipe", "pieces")}
    said |= {"recipe": made.recipe.plain()}  # with numbers in place of percentiles
    said |= {"pieces": [piece.to_dict() for piece in made.pieces], "fingerprint": whole}
    folder.write_told(out / WORK / folder.OUTCOME, said)


def outcome(out: Path) -> tuple[Recipe, dict[str, Any]]:
    """What the last run told, and its recipe with a number for each limit. Raises `UserError`."""
    told = folder.read_told(out / WORK / folder.OUTCOME)
    return build_recipe(told["recipe"], str(out)), told
