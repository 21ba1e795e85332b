"""A corpus from its recipe: stage after stage, each as tasks; what is finished of an earlier run isn't done again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from coretrain.base.errors import UserError
from coretrain.corpus.engine.run import Run
from coretrain.corpus.engine.task import Facts, Task, keyed, result_of
from coretrain.corpus.pipeline.cutting import lines, substrings
from coretrain.corpus.pipeline.duplicates import exact, near, simhash
from coretrain.corpus.pipeline.folder import PLAN, read_told, write_told
from coretrain.corpus.pipeline.learn import FIELDS, files_of, learn
from coretrain.corpus.pipeline.made import (
    HERE,
    Made,
    facts_of,
    hits_of,
    learned_by,
    reasons_files,
    signals_of,
    texts_of,
    troubles_of,
    without_execution,
)
from coretrain.corpus.pipeline.select import reasons
from coretrain.corpus.pipeline.write import cut
from coretrain.corpus.readers.files import survey
from coretrain.corpus.readers.open import plan
from coretrain.corpus.readers.piece import Piece
from coretrain.corpus.recipe import Recipe

SHOW = "look at them with twintrain corpus show, then set filters.{rule} otherwise with twintrain corpus retune"


def make(made: Made, paths: Sequence[str], run: Run, say: Callable[[str], None]) -> None:
    """Carry out every stage but the report on what `paths` mean, and note in `made` what they tell.

    Raises `UserError` where nothing is read, or nothing is left.
    """
    recipe = made.recipe
    if odd := survey(paths).passed_over:
        say(
            "passed over, of no kind that is read: " + ", ".join(f"{count:,} {ending}" for ending, count in odd.items())
        )
    pieces = plan(paths, recipe.input.layout, recipe.execution.piece_bytes)
    if not pieces:
        raise UserError("corpus/no-documents", "the input has no record: give other files (--input)")
    made.pieces, made.inputs = pieces, _inputs(run, pieces) | files_of(recipe)
    learn(made, run, say)
    _read(made, run)
    finish(made, run, say)


def finish(made: Made, run: Run, say: Callable[[str], None], way_out: str = SHOW) -> None:
    """The stages behind the first. `way_out`: what to do where nothing is left; `{rule}` is what drops the most."""
    _select(made, run, say, way_out)
    made.copies = [[] for _ in made.pieces]
    made.texts = [texts_of(index) for index in range(len(made.pieces))]
    config = made.recipe.dedup
    if config.exact != "off":
        exact(made, run, say)
    if config.lines != "off":
        lines(made, run)
    if config.near:
        near(made, run, say)
    if config.simhash:
        simhash(made, run, say)
    if config.substrings != "off":
        substrings(made, run)
    _write(made, run)
    deciding = [*made.decided, *(name for names in made.copies for name in names)]
    made.hashes = {name: run.hashes[name] for name in deciding}
    made.seconds = dict(run.seconds)


def made_of(recipe: Recipe, run: Run) -> Made:
    """What the first stage of a finished run left, to be finished otherwise: nothing is read again.

    Raises `UserError` where it isn't there, whole.
    """
    said = read_told(run.folder / PLAN)
    pieces = [Piece.from_dict(one) for one in said["pieces"]]
    made = Made(recipe, pieces, said["inputs"])
    run.hashes |= said["hashes"]
    for index, task in enumerate(_reading(made, said["reading"])):
        found = result_of(run.folder, keyed(task, said["hashes"], run.code))
        if found is None:
            raise UserError(
                "corpus/reading-not-whole",
                f"what was read of {pieces[index].name} isn't there, or was read by another version: run the same "
                "twintrain corpus again first",
            )
        run.hashes |= found.outputs
        run.seconds["read"] = run.seconds.get("read", 0.0) + found.seconds
        made.read.append(found.facts)
    return made


def _inputs(run: Run, pieces: Sequence[Piece]) -> dict[str, str]:
    """The hash of every input file; it is computed again where a file's size or time is another."""
    files = sorted({(piece.name, piece.file) for piece in pieces if piece.kind != "hf"})
    tasks = []
    for index, (_, file) in enumerate(files):
        stat = os.stat(file)
        told = {"file": file, "size": stat.st_size, "time": stat.st_mtime_ns}
        tasks.append(Task("inputs", index, f"{HERE}.read:hash_input", told))
    sizes = [task.arguments["size"] for task in tasks]
    results = run.stage("inputs", tasks, sizes, "bytes")
    return {name: result.facts["sha256"] for (name, _), result in zip(files, results, strict=True)}


def _reading(made: Made, reading: Facts) -> list[Task]:
    """The tasks of the first stage, by the fields that it depends on."""
    lists = {key: one for key, one in made.inputs.items() if key.startswith(FIELDS)}
    learned = learned_by(Recipe.model_validate(reading))
    return [
        Task(
            "read",
            index,
            f"{HERE}.read:read_piece",
            {
                "piece": piece.to_dict(),
                "input": made.inputs.get(piece.name, ""),
                "reading": reading,
                "learned": list(learned),
            }
            | ({"lists": lists} if lists else {}),
            tuple(learned.values()),
            (texts_of(index), signals_of(index), troubles_of(index), hits_of(index)),
        )
        for index, piece in enumerate(made.pieces)
    ]


def _read(made: Made, run: Run) -> None:
    sizes, reading = [_size(piece) for piece in made.pieces], made.recipe.reading()
    made.read = facts_of(run.stage("read", _reading(made, reading), sizes, "bytes"))
    said = {
        "pieces": [piece.to_dict() for piece in made.pieces],
        "inputs": made.inputs,
        "reading": reading,
        "hashes": {name: run.hashes[name] for name in learned_by(made.recipe).values()},
    }
    write_told(run.folder / PLAN, said)
    if not sum(facts["documents"] for facts in made.read):
        raise UserError(
            "corpus/no-documents-read", f"no document could be read{_troubles(made.read)}: give other files"
        )


def _size(piece: Piece) -> int:
    """Bytes of a piece as they lie there, about."""
    if piece.kind == "hf":
        return 1
    if piece.kind == "parquet" or piece.end < 0:
        return os.path.getsize(piece.file)
    return piece.end - piece.start


def _troubles(read: Sequence[Facts]) -> str:
    kinds: dict[str, int] = {}
    for facts in read:
        for kind, count in facts["troubles"].items():
            kinds[kind] = kinds.get(kind, 0) + count
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f" ({words})" if words else ""


def _select(made: Made, run: Run, say: Callable[[str], None], way_out: str) -> None:
    if asked := made.recipe.percentiles():
        told = {"recipe": without_execution(made.recipe)}
        inputs = [signals_of(index) for index in range(len(made.pieces))]
        found = run.stage("percentiles", [Task("percentiles", 0, f"{HERE}.select:percentiles", told, inputs)])[0].facts
        for name, value in found.items():
            say(f"filters.{name} is {value:.6g}, {asked[name][1]:.2%} of what the other rules keep is below")
        made.recipe = made.recipe.with_limits(found)
    recipe = without_execution(made.recipe)
    tasks = [
        Task("select", index, f"{HERE}.select:select_piece", {"recipe": recipe}, (signals_of(index),), (name,))
        for index, name in enumerate(reasons_files("selected", made))
    ]
    made.select = facts_of(run.stage("select", tasks))
    made.decided = reasons_files("selected", made)
    kept, total = (sum(facts[key] for facts in made.select) for key in ("kept", "documents"))
    gate = str(made.reason("gate"))
    if stopped := sum(facts["dropped"].get(gate, 0) for facts in made.select):
        say(
            f"{stopped:,} documents that the limits now keep were stopped by a gate's limit when they were read: their "
            "later signals aren't there, so they stay dropped; to have them, make the corpus anew in another --output"
        )
    if not kept:
        raise UserError("corpus/everything-dropped", _everything(made, total, way_out))


def _everything(made: Made, total: int, way_out: str) -> str:
    """The sentence about a recipe that leaves nothing: which rule drops the most, and which the last ones."""
    counts: dict[int, int] = {}
    for facts in made.select:
        for number, count in facts["dropped"].items():
            counts[int(number)] = counts.get(int(number), 0) + count
    named = reasons(made.recipe)
    most, last = max(counts, key=lambda number: counts[number]), max(counts)
    also = "" if most == last else f", and {named[last]} the last {counts[last]:,}"
    return (
        f"nothing is left of {total:,} documents: {named[most]} drops {counts[most]:,} of them{also}; "
        + way_out.replace("{rule}", named[most])
    )


def _write(made: Made, run: Run) -> None:
    size = made.recipe.output.documents
    gone = [facts["documents"] - facts["kept"] for facts in made.select]
    kept = [facts["kept"] for facts in made.select]
    for facts in filter(None, (made.exact, made.lines, made.near, made.simhash, made.substrings, made.cut)):
        gone = [a + b for a, b in zip(gone, facts["dropped"], strict=True)]
        kept = [a - b for a, b in zip(kept, facts["dropped"], strict=True)]
    tasks = []
    for index, slices in enumerate(cut(kept, size)):
        inputs = [name for one in slices for name in (made.texts[one.piece], made.decided[one.piece])]
        told: Facts = {"slices": [[one.begin, one.end] for one in slices]}
        name = f"documents/part-{index:05d}.parquet"
        tasks.append(Task("write", index, f"{HERE}.write:write_documents", told, inputs, (name,)))
    results = run.stage("write", tasks)
    made.documents = [
        {
            "file": task.outputs[0],
            "sha256": result.outputs[task.outputs[0]],
            "documents": result.facts["documents"],
            "bytes": result.facts["bytes"],
        }
        for task, result in zip(tasks, results, strict=True)
    ]
    tasks = []
    for index, slices in enumerate(cut(gone, size)):
        inputs = [
            name
            for one in slices
            for name in (made.texts[one.piece], signals_of(one.piece), made.decided[one.piece], *made.copies[one.piece])
        ]
        told = {"slices": [[one.begin, one.end] for one in slices], "recipe": without_execution(made.recipe)}
        told["copies"] = len(made.copies[0])
        name = f"dropped/part-{index:05d}.parquet"
        tasks.append(Task("dropped", index, f"{HERE}.write:write_dropped", told, inputs, (name,)))
    run.stage("dropped", tasks)
    made.dropped = [task.outputs[0] for task in tasks]
    if made.recipe.output.index:
        told = {"dedup": made.recipe.dedup.model_dump(mode="json")}
        tasks = [
            Task(
                "index",
                i,
                f"{HERE}.alike:index",
                told,
                (one["file"],),
                (f"index/keys-{i:05d}", f"index/shingles-{i:05d}"),
            )
            for i, one in enumerate(made.documents)
        ]
        run.stage("index", tasks)
        made.index = [name for task in tasks for name in task.outputs]
