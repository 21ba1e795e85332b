"""Before anything is read: the index of benchmarks, and the models that are trained on files of the user."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import sha256_of, typed_path
from coretrain.corpus.classify import model as classify
from coretrain.corpus.decontaminate.index import Grams, read_index, write_index
from coretrain.corpus.document import Document, Page, Trouble
from coretrain.corpus.engine.run import Run
from coretrain.corpus.engine.task import Facts, Task
from coretrain.corpus.extract.extract import Extractor
from coretrain.corpus.extract.guarded import guarded
from coretrain.corpus.perplexity.train import train
from coretrain.corpus.pipeline.made import FILES, HERE, Made, learned_by
from coretrain.corpus.pipeline.seal import read_seal
from coretrain.corpus.readers.files import survey
from coretrain.corpus.readers.open import plan, read
from coretrain.corpus.recipe import TRAINED, DecontaminateConfig, ExtractConfig, ModelsConfig, Recipe
from coretrain.corpus.steps import DECONTAMINATE

FIELDS = ("options.", "decontaminate.", "models.")
"""What hashes of files that fields name are called by, besides the input's own."""


def files_of(recipe: Recipe) -> dict[str, str]:
    """The hash of every file that the recipe's fields name, besides the input, by the field."""
    options = recipe.reading()["options"]
    named = {f"options.{step}.{key}": value for step, own in options.items() for key, value in own.items()}
    config = recipe.decontaminate
    named |= _numbered("decontaminate", (*config.files, config.index))
    files = {key: typed_path(value) for key, value in named.items() if isinstance(value, str) and value}
    hashes = {key: sha256_of(path) for key, path in files.items() if path.is_file()}
    for field, words in _texts(recipe):
        try:
            found = survey(words).files
        except UserError as error:
            raise UserError(error.code, f"models.{field}: {error}") from None
        files = {f"models.{field}.{one.name}": Path(one.path) for one in found if one.kind != "hf"}
        hashes |= {key: sha256_of(path) for key, path in files.items()}
    return hashes | known_of(recipe)


def known_of(recipe: Recipe) -> dict[str, str]:
    """The fingerprint of every corpus in `dedup.known`."""
    folders = _numbered("dedup", recipe.dedup.known)
    return {key: read_seal(typed_path(folder)).fingerprint for key, folder in folders.items()}


def _numbered(section: str, paths: Sequence[str]) -> dict[str, str]:
    """Paths by their last part, and their place: two files of one name in different folders are two."""
    return {f"{section}.{place}.{Path(path).name}": path for place, path in enumerate(paths)}


def _texts(recipe: Recipe) -> Iterable[tuple[str, Sequence[str]]]:
    for files in recipe.trained().values():
        yield from files.items()


def learn(made: Made, run: Run, say: Callable[[str], None]) -> None:
    """Make what the recipe's steps need."""
    raw = made.recipe.plain()
    for step in learned_by(made.recipe):
        section = "decontaminate" if step == DECONTAMINATE else "models"
        hashes = {key: one for key, one in made.inputs.items() if key.startswith(f"{section}.")}
        told = {"config": raw[section], "extract": raw["extract"], "files": hashes}
        task = Task(f"learn {step}", 0, f"{HERE}.learn:{step}", told, (), (FILES[step],))
        for line in run.stage(task.stage, [task])[0].facts["said"]:
            say(line)


def decontaminate(arguments: Any, inputs: list[Path], outputs: list[Path]) -> Facts:
    """The task: an index of benchmarks, made of local files or earlier."""
    config = DecontaminateConfig.model_validate(arguments["config"])
    if config.index:
        read_index(typed_path(config.index))
        shutil.copyfile(typed_path(config.index), outputs[0])
        return {"said": []}
    files = [typed_path(file) for file in config.files]
    found = write_index(files, outputs[0], Grams(config.n, config.shortest), config.fields)
    return {
        "said": [
            f"benchmark {one['name']}: {one['items']:,} items, {one['too_short']:,} of them too short to be found"
            for one in found
        ]
    }


def perplexity(arguments: Any, inputs: list[Path], outputs: list[Path]) -> Facts:
    """The task: a model of n-grams of fluent text. It is held in memory."""
    config = ModelsConfig.model_validate(arguments["config"])
    texts, odd = texts_in(config.fluent, arguments["extract"])
    train(texts, config.order).save(outputs[0])
    return {"said": [f"perplexity: trained on {len(texts):,} documents of models.fluent{odd}"]}


def quality(arguments: Any, inputs: list[Path], outputs: list[Path]) -> Facts:
    """The task: a classifier of good and bad documents. They are held in memory."""
    config = ModelsConfig.model_validate(arguments["config"])
    (good, odd), (bad, odd_bad) = (texts_in(words, arguments["extract"]) for words in (config.good, config.bad))
    classify.train(good, bad).save(outputs[0])
    return {"said": [f"quality: trained on {len(good):,} good{odd} and {len(bad):,} bad documents{odd_bad}"]}


def texts_in(words: Sequence[str], extract: Any) -> tuple[list[str], str]:
    """The texts of some files, of any kind that is read; and in words what of them was passed over, "" if nothing."""
    config = ExtractConfig.model_validate(extract)
    extractor = Extractor(config.kind, config.deadline, config.memory // 2**20)
    items: Iterable[Page | Document | Trouble] = (item for piece in plan(words) for item in read(piece))
    texts: list[str] = []
    odd = Counter({f"{ending} file": count for ending, count in survey(words).passed_over.items()})
    for one in guarded(items, extractor):
        if isinstance(one, Trouble):
            odd[one.kind] += 1
        elif one.text.strip():
            texts.append(one.text)
        else:
            odd["without text"] += 1
    said = ", ".join(f"{count:,} {kind}" for kind, count in sorted(odd.items()))
    return texts, f" (not read: {said})" if said else ""


assert set(TRAINED) <= set(FILES)
