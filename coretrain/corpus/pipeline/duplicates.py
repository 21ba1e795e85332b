"""Drives the tasks that look for duplicates: copies first, then near-duplicates among what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.corpus.dedup.bands import ranges
from coretrain.corpus.dedup.minhash import chances
from coretrain.corpus.engine.run import Run
from coretrain.corpus.engine.task import Facts, Task
from coretrain.corpus.pipeline.alike import form_of, simhash_of
from coretrain.corpus.pipeline.made import HERE, Made, reasons_files
from coretrain.corpus.pipeline.seal import read_seal

PAIRS_A_TASK = 2**20
"""Pairs that a task compares word for word."""


def exact(made: Made, run: Run, say: Callable[[str], None]) -> None:
    """Copies: one of each is kept."""
    config, each, before = made.recipe.dedup, range(len(made.pieces)), made.decided
    told = {"compared": config.exact}
    keys = [f"exact/keys-{index:06d}" for index in each]
    tasks = [
        Task("exact digest", i, f"{HERE}.alike:digest", told, (made.texts[i], before[i]), (keys[i],)) for i in each
    ]
    digested = run.stage("exact digest", tasks)
    pieces = ranges(sum(result.facts["documents"] for result in digested), made.recipe.execution.memory)
    made.exact = _decided(made, run, say, "exact", told | {"pieces": pieces}, keys, ())


def near(made: Made, run: Run, say: Callable[[str], None]) -> None:
    """Near-duplicates: of each cluster one is kept."""
    config, count = made.recipe.dedup, len(made.pieces)
    say(chances(form_of(config.model_dump())))
    told: Facts = {"dedup": config.model_dump(mode="json"), "parts": count}
    told["known"] = {folder: known_files(folder) for folder in config.known}
    told["files"] = {key: one for key, one in made.inputs.items() if key.startswith("dedup.")}
    each, before = range(count), made.decided
    texts = made.texts
    keys = [f"near/keys-{index:06d}" for index in each]

    def task(stage: str, index: int, more: Facts, inputs: Sequence[str], outputs: Sequence[str]) -> Task:
        return Task(stage, index, f"{HERE}.alike:{stage.split()[-1]}", told | more, inputs, outputs)

    signed = run.stage("near sign", [task("near sign", i, {}, (texts[i], before[i]), (keys[i],)) for i in each])
    documents = sum(result.facts["documents"] for result in signed)
    pieces = ranges(documents, made.recipe.execution.memory)
    found = [(band, piece) for band in range(config.bands) for piece in range(pieces)]
    pairs = [f"near/pairs-{band:04d}-{piece:04d}" for band, piece in found]
    tasks = [
        task("near pair", i, {"band": band, "piece": piece, "pieces": pieces}, keys, (pairs[i],))
        for i, (band, piece) in enumerate(found)
    ]
    run.stage("near pair", tasks)
    rows = [f"near/rows-{index:06d}" for index in each]
    gathered = run.stage("near gather", [task("near gather", 0, {}, [*keys, *pairs], ["near/pairs", *rows])])[0].facts
    sets = [f"near/sets-{index:06d}" for index in each]
    tasks = [task("near shingle", i, {}, (texts[i], before[i], rows[i]), (sets[i],)) for i in each]
    run.stage("near shingle", tasks)
    slices = max(1, -(-gathered["candidates"] // PAIRS_A_TASK))
    verified = [f"near/verified-{index:04d}" for index in range(slices)]
    tasks = [
        task("near verify", i, {"piece": i, "pieces": slices}, [*keys, *sets, "near/pairs"], (verified[i],))
        for i in range(slices)
    ]
    run.stage("near verify", tasks)
    decided = _decided(made, run, say, "near", told, keys, verified)
    short = sum(result.facts["short"] for result in signed)
    made.near = {**decided, **gathered, "signed": documents, "short": short}


def simhash(made: Made, run: Run, say: Callable[[str], None]) -> None:
    """Near-duplicates by SimHash: of each cluster one is kept."""
    config, each, before = made.recipe.dedup, range(len(made.pieces)), made.decided
    told: Facts = {"dedup": config.model_dump(mode="json")}
    keys = [f"simhash/keys-{index:06d}" for index in each]

    def task(stage: str, index: int, more: Facts, inputs: Sequence[str], output: str) -> Task:
        return Task(stage, index, f"{HERE}.alike:{stage.replace(' ', '_')}", told | more, inputs, (output,))

    tasks = [task("simhash sign", i, {}, (made.texts[i], before[i]), keys[i]) for i in each]
    signed = run.stage("simhash sign", tasks)
    documents = sum(result.facts["documents"] for result in signed)
    pieces = ranges(documents, made.recipe.execution.memory)
    tables = len(simhash_of(told["dedup"]).masks())
    found = [(table, piece) for table in range(tables) for piece in range(pieces)]
    pairs = [f"simhash/pairs-{table:04d}-{piece:04d}" for table, piece in found]
    tasks = [
        task("simhash pair", i, {"table": table, "piece": piece, "pieces": pieces}, keys, pairs[i])
        for i, (table, piece) in enumerate(found)
    ]
    led = sum(result.facts["led"] for result in run.stage("simhash pair", tasks))
    decided = _decided(made, run, say, "simhash", told, keys, pairs)
    short = sum(result.facts["short"] for result in signed)
    made.simhash = {**decided, "in_large_groups": led, "signed": documents, "short": short}


def known_files(folder: str) -> dict[str, list[str]]:
    """The index of a corpus made earlier. Raises `UserError` where it has none, or it isn't whole."""
    place = typed_path(folder)
    read_seal(place)
    found = {kind: sorted(map(str, (place / "index").glob(f"{kind}-*"))) for kind in ("keys", "shingles")}
    if not found["keys"] or len(found["keys"]) != len(found["shingles"]):
        raise UserError(
            "corpus/known-without-index",
            f"dedup.known names {folder}, which has no index: make it by twintrain corpus retune {folder} --set "
            "output.index=true",
        )
    return found


def _decided(
    made: Made,
    run: Run,
    say: Callable[[str], None],
    kind: str,
    told: dict[str, Any],
    keys: Sequence[str],
    found: Sequence[str],
) -> Facts:
    """The last task of a kind: which documents go, and what each is a copy of."""
    before, after = made.decided, reasons_files(f"{kind}/decided", made)
    copies = [f"{kind}/copies-{index:06d}.parquet" for index in range(len(keys))]
    more = {"reason": made.reason(kind), "priority": list(made.recipe.input.priority), "parts": len(keys)}
    inputs, outputs = [*keys, *before, *found], [*after, *copies, f"{kind}/clusters.jsonl"]
    task = Task(f"{kind} decide", 0, f"{HERE}.alike:decide_{kind}", told | more, inputs, outputs)
    facts = run.stage(task.stage, [task])[0].facts
    made.decided = after
    for own, name in zip(made.copies, copies, strict=True):
        own.append(name)
    for warning in facts["warnings"]:
        say(warning)
    return facts
