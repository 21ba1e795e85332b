"""Copies within texts: lines or paragraphs, and substrings, are cut out of all documents but one.

The texts of a piece are written anew; rows stay where they are. A document of which nothing is left goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.corpus.applied import Applied
from coretrain.corpus.dedup import lines as by_line
from coretrain.corpus.dedup import substring
from coretrain.corpus.dedup.arrays import read_arrays, write_arrays
from coretrain.corpus.dedup.bands import ranges
from coretrain.corpus.dedup.parts import open_parts
from coretrain.corpus.document import Document
from coretrain.corpus.engine.run import Run
from coretrain.corpus.engine.task import Facts, Task
from coretrain.corpus.pipeline.alike import reasons_in, staying, write_reasons
from coretrain.corpus.pipeline.annotate import Steps, batched
from coretrain.corpus.pipeline.made import HERE, Made, learned_by, reasons_files, without_execution
from coretrain.corpus.rules import first_broken
from coretrain.corpus.steps import LEARNED
from coretrain.corpus.store import Writer, read_documents

KIND = "lines that go"
Arguments = Mapping[str, Any]
Paths = list[Path]


def lines(made: Made, run: Run) -> None:
    """Cut lines or paragraphs that stand in an earlier document too, as CCNet does."""
    told: Facts = {"unit": made.recipe.dedup.lines}
    each = range(len(made.pieces))
    keys = [f"lines/keys-{index:06d}" for index in each]
    tasks = [_task("lines keys", i, told, (made.texts[i], made.decided[i]), (keys[i],)) for i in each]
    keyed = run.stage("lines keys", tasks)
    counts = [result.facts["documents"] for result in keyed]
    pieces = ranges(sum(result.facts["lines"] for result in keyed), _memory(made))
    told |= {"pieces": pieces, "priority": list(made.recipe.input.priority)}
    run.stage("lines repeated", [_task("lines repeated", 0, told, keys, ("lines/repeated",))])
    made.lines = _edited(made, run, "lines", told, counts, ("lines/repeated",))


def substrings(made: Made, run: Run) -> None:
    """Cut substrings that occur twice, as Lee et al. do."""
    config = made.recipe.dedup
    told: Facts = {"unit": config.substrings, "n": config.substring_length, "parts": len(made.pieces)}
    told |= {"priority": list(made.recipe.input.priority)}
    each = range(len(made.pieces))
    lists = [f"substrings/list-{index:06d}" for index in each]
    tasks = [_task("substrings list", i, told, (made.texts[i], made.decided[i]), (lists[i],)) for i in each]
    counts = [result.facts["documents"] for result in run.stage("substrings list", tasks)]
    parts = open_parts([run.folder / name for name in lists], _form(told).described)
    pieces = substring.ranges(parts, _memory(made))
    found = [f"substrings/found-{piece:04d}" for piece in range(pieces)]
    inputs = [*lists, *made.texts, *made.decided]
    tasks = [
        _task("substrings found", piece, told | {"piece": piece, "pieces": pieces}, inputs, (name,))
        for piece, name in enumerate(found)
    ]
    run.stage("substrings found", tasks)
    made.substrings = _edited(made, run, "substrings", told, counts, found)


def _memory(made: Made) -> int:
    return made.recipe.execution.memory


def _form(told: Arguments) -> substring.Substrings:
    return substring.Substrings(told["unit"], told["n"])


def _task(stage: str, index: int, told: Facts, inputs: Sequence[str], outputs: Sequence[str]) -> Task:
    return Task(stage, index, f"{HERE}.cutting:{stage.replace(' ', '_')}", told, tuple(inputs), tuple(outputs))


def _edited(made: Made, run: Run, kind: str, told: Facts, counts: Sequence[int], found: Sequence[str]) -> Facts:
    """The last stage of a kind: the texts of each piece without what goes."""
    texts = [f"{kind}/texts-{index:06d}.parquet" for index in range(len(counts))]
    after = reasons_files(f"{kind}/decided", made)
    firsts = np.concatenate([[0], np.cumsum(counts)]).tolist()
    learned = learned_by(made.recipe) if made.recipe.dedup.limits_again else {}
    again: Facts = {"again": made.reason("cut"), "recipe": without_execution(made.recipe), "learned": list(learned)}
    tasks = [
        _task(
            f"{kind} edit",
            i,
            told
            | {"first": firsts[i], "count": count, "reason": made.reason(kind)}
            | (again if made.recipe.dedup.limits_again else {}),
            (made.texts[i], made.decided[i], *found, *learned.values()),
            (texts[i], after[i]),
        )
        for i, count in enumerate(counts)
    ]
    facts = [result.facts for result in run.stage(f"{kind} edit", tasks)]
    made.texts, made.decided = texts, after
    before = made.cut or {"dropped": [0] * len(counts), "removed_bytes": {"": 0}, "rules": {}}
    made.cut = {
        "dropped": [a + one["broke"] for a, one in zip(before["dropped"], facts, strict=True)],
        "removed_bytes": {"": before["removed_bytes"][""] + sum(one["broke_bytes"] for one in facts)},
        "rules": dict(sum((Counter(one["broke_rules"]) for one in facts), Counter(before["rules"]))),
    }
    return {
        "dropped": [one["dropped"] for one in facts],
        "removed_bytes": {"": sum(one["removed_bytes"] for one in facts)},
        "edited": sum(one["edited"] for one in facts),
    }


def lines_keys(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: texts and reasons of a piece to the keys of its lines."""
    by_line.lines_part(staying(*inputs), outputs[0], arguments["unit"])
    part = open_parts([outputs[0]], by_line.described(arguments["unit"])).parts[0]
    return {"documents": part.documents, "lines": int(part.data["keys"].shape[1])}


def lines_repeated(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: all keys to the lines that go."""
    parts, pieces = open_parts(inputs, by_line.described(arguments["unit"])), arguments["pieces"]
    cut = by_line.joined([by_line.repeated(parts, arguments["priority"], piece, pieces) for piece in range(pieces)])
    write_arrays(outputs[0], KIND, {}, {"numbers": cut.numbers, "places": cut.places})
    return {"lines": len(cut.places)}


def lines_edit(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: texts, reasons and the lines that go to texts and reasons."""
    texts, before, found, *_ = inputs
    held = read_arrays(found, KIND)
    cut = by_line.Cut(held["numbers"], held["places"])
    return _write(
        arguments, inputs, outputs, by_line.edited(staying(texts, before), arguments["first"], cut, arguments["unit"])
    )


def substrings_list(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: texts and reasons of a piece to a list of its documents."""
    substring.list_part(staying(*inputs), outputs[0], _form(arguments))
    return {"documents": int((reasons_in(inputs[1]) < 0).sum())}


def substrings_found(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: all lists, texts and reasons to the windows of one range that occur twice."""
    count, form = arguments["parts"], _form(arguments)
    lists, texts, before = inputs[:count], inputs[count : 2 * count], inputs[2 * count :]
    passes: list[Callable[[], Iterable[Document]]] = [
        partial(staying, *both) for both in zip(texts, before, strict=True)
    ]
    parts = open_parts(lists, form.described)
    where = arguments["priority"], arguments["piece"], arguments["pieces"]
    return {"copies": substring.repeats(parts, passes, form, outputs[0], *where)}


def substrings_edit(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: texts, reasons and the windows that occur twice to texts and reasons."""
    texts, before, *found = inputs[: len(inputs) - len(arguments.get("learned", ()))]
    first, count = arguments["first"], arguments["count"]
    edited = substring.edited(staying(texts, before), found, _form(arguments), first, count)
    return _write(arguments, inputs, outputs, edited)


def _write(arguments: Arguments, inputs: Paths, outputs: Paths, edited: Iterator[Document]) -> Facts:
    """Write all texts of a piece, those that stay as they were `edited`; reasons; and what went."""
    reasons = reasons_in(inputs[1]).copy()
    dropped = changed = removed = 0
    less: list[tuple[int, Document]] = []
    """Documents that were cut, with their rows, to be held to the rules once more."""
    with Writer(outputs[0]) as writer:
        for row, old in enumerate(read_documents(inputs[0])):
            new = next(edited) if reasons[row] < 0 else old
            changed += new.text != old.text
            removed += len(old.text.encode()) - len(new.text.encode())
            if reasons[row] < 0 and not new.text.strip():
                reasons[row], dropped = arguments["reason"], dropped + 1
                removed += len(new.text.encode())
                new = replace(new, text=old.text)  # to look at
            elif new.text != old.text:
                less.append((row, new))
            writer.add([new])
    broken = _broken(arguments, inputs, less) if "again" in arguments else {}
    sizes = {row: len(one.text.encode()) for row, one in less if row in broken}
    reasons[list(sizes)] = arguments.get("again", -1)
    write_reasons(outputs[1], reasons)
    facts = {"broke": len(sizes), "broke_bytes": sum(sizes.values()), "broke_rules": dict(Counter(broken.values()))}
    return {"dropped": dropped, "edited": changed, "removed_bytes": removed} | facts


def _broken(arguments: Arguments, inputs: Paths, cut: Sequence[tuple[int, Document]]) -> dict[int, str]:
    """By row the first rule that a document breaks now: its signals are computed once more, and not kept."""
    recipe, learned = arguments["recipe"], arguments["learned"]
    options = {step: dict(own) for step, own in recipe["options"].items()}
    for step, path in zip(learned, inputs[len(inputs) - len(learned) :], strict=True):
        options[step][LEARNED[step]] = str(path)
    steps, rules = Steps(recipe["steps"], options, {}), Applied(recipe).every_rule()
    found: dict[int, str] = {}
    rows = iter([row for row, _ in cut])
    for batch in batched(one for _, one in cut):
        broken = first_broken(rules, steps.run(batch).columns, len(batch)).tolist()
        found |= {row: rules[number].name for number, row in zip(broken, rows, strict=False) if number >= 0}
    return found
