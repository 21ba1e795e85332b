"""CORE of DCLM (Li et al. 2024): 22 tasks in three forms, read from the bundle of files that nanochat takes.

Rows are shuffled, worked rows drawn and scores made as nanochat's evaluation makes them.
"""

from __future__ import annotations

import csv
import importlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.data.files import json_rows, readable
from coretrain.evaluation.evaluate import Outcome
from coretrain.evaluation.task import Form, Row, Settings, Task, read_row

FORMS: Mapping[str, tuple[Form, str]] = {
    "multiple_choice": ("choice", "acc_mean"),
    "schema": ("schema", "acc_mean"),
    "language_modeling": ("continuation", "acc"),
}
LISTED, CHANCES = "core.yaml", "eval_meta_data.csv"


def find_bundle(folder: Path) -> Path | None:
    """The folder of a bundle: `folder` itself, or `eval_bundle` in it."""
    return next((one for one in (folder, folder / "eval_bundle") if (one / LISTED).is_file()), None)


def core_tasks(folder: Path) -> list[Task]:
    """The tasks of a bundle. Raises `UserError` naming what of it can't be used."""
    chances, listed = _chances(folder / CHANCES), _listed(folder / LISTED)
    return [_task(folder, one, chances) for one in listed]


def core(outcomes: Sequence[Outcome]) -> float:
    """The mean of the tasks' centred accuracies."""
    return sum(one.centred for one in outcomes) / len(outcomes)


def _task(folder: Path, listed: Mapping[str, Any], chances: Mapping[str, float]) -> Task:
    name, kind = str(listed.get("label")), str(listed.get("icl_task_type"))
    if kind not in FORMS:
        raise UserError(
            "evaluation/core-form-unknown",
            f"{folder / LISTED}: {name} is of type {shown(kind)}: known are {', '.join(FORMS)}",
        )
    if name not in chances:
        raise UserError(
            "evaluation/core-chance-missing",
            f"{folder / CHANCES} has no random baseline of {name}: complete the bundle",
        )
    (form, metric), shots = FORMS[kind], listed.get("num_fewshot", [0])
    settings = Settings(
        form=form,
        metric=metric,
        few_shot=int(shots[0] if isinstance(shots, list) else shots),
        delimiter=str(listed.get("continuation_delimiter", " ")),
        border="ids",
        begin=True,
        chance=chances[name],
    )
    path = folder / "eval_data" / str(listed.get("dataset_uri"))
    with readable(path):
        rows = [read_row(raw, form, where, 1) for where, raw in json_rows(path)]
    if form == "continuation":
        rows = [replace(row, question=row.question.strip()) for row in rows]
    random.Random(1337).shuffle(rows)
    numbered = [replace(row, number=number) for number, row in enumerate(rows, 1)]
    return Task(name, form, settings, _checked(numbered, path, settings), facts={"file": str(path), "core": True})


def _checked(rows: Sequence[Row], path: Path, settings: Settings) -> Sequence[Row]:
    if len(rows) <= settings.few_shot:
        raise UserError(
            "evaluation/core-rows-too-few",
            f"{path} has {len(rows)} rows, too few for few_shot = {settings.few_shot}: lower it",
        )
    return rows


def _listed(path: Path) -> list[Mapping[str, Any]]:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        raise UserError("evaluation/yaml-missing", f"{path} needs PyYAML: pip install pyyaml") from None
    try:
        listed = list(yaml.safe_load(path.read_text("utf-8"))["icl_tasks"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            "evaluation/core-list-unreadable", f"{path} can't be read ({error}): get the bundle anew"
        ) from None
    return [one for one in listed if isinstance(one, Mapping)]


def _chances(path: Path) -> dict[str, float]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["Eval Task"]: 0.01 * float(row["Random baseline"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "evaluation/core-chances-unreadable", f"{path} can't be read ({error}): get the bundle anew"
        ) from None
