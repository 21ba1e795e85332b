"""A task as it lies on disk: NAME.jsonl with its rows, and NAME.toml beside it with its settings, where it has some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from coretrain.base.errors import UserError, meant
from coretrain.base.parse import from_toml, read_bytes, shown
from coretrain.config.fields import Count, Positive, Section
from coretrain.data.files import RECORDS, json_rows, of_kind, parquet_rows, readable

Form = Literal["choice", "schema", "continuation", "generation", "text"]
OfRows = Literal["choice", "schema", "continuation", "generation"]
ASKED = ("question", "query", "context", "prompt")
FIELDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "choice": (ASKED, ("choices",), ("answer", "gold")),
    "schema": (("contexts", "context_options"), ("continuation",), ("answer", "gold")),
    "continuation": (("context",), ("continuation",)),
    "generation": (("prompt", "question"), ("answer", "answers")),
}
"""The fields of a row in each form, by any of their names."""


class Settings(Section):
    """How a task's rows are asked."""

    form: OfRows | None = Field(None, description="What its rows are. Unset: by their fields.")
    metric: Literal["acc", "acc_norm", "acc_bytes", "acc_mean", "acc_pmi", "exact"] | None = Field(
        None,
        description="What the task is judged by; all that its form has are told. Unset: acc_norm of choices, else acc.",
    )
    few_shot: Annotated[int, Field(ge=0, le=100)] = Field(0, description="Worked rows before each question.")
    examples: str | None = Field(
        None, description="File of the worked rows, beside the task's. Unset: the task's own other rows."
    )
    description: str = Field("", description="Text before everything.")
    delimiter: str = Field(" ", description="Between a question and its answer.")
    between: str = Field("\n\n", description="Between two worked rows.")
    unconditional: str = Field("Answer:", description="What acc_pmi takes for a question that says nothing.")
    border: Literal["text", "ids"] = Field(
        "text",
        description="Where what is scored begins: at the answer's text, as in lm-evaluation-harness, or at the first "
        "id that choices don't share, as in CORE.",
    )
    begin: bool = Field(False, description="Put the id that begins a document before everything.")
    until: tuple[str, ...] = Field(("\n",), description="generation: texts that end an answer.")
    tokens: Positive = Field(64, description="generation: tokens of an answer at most.")
    chance: float | None = Field(
        None, ge=0, lt=1, description="Accuracy of guessing. Unset: 1 / choices, 0 where there are none."
    )
    seed: Count = Field(1234, description="Which worked rows a question gets.")


OF_ROWS = {"form", "metric", "few_shot", "examples", "description", "delimiter", "between", "chance", "seed"}
USED: Mapping[str, set[str]] = {
    "choice": OF_ROWS | {"unconditional", "border", "begin"},
    "schema": OF_ROWS | {"border", "begin"},
    "continuation": OF_ROWS | {"begin"},
    "generation": OF_ROWS | {"until", "tokens"},
    "text": set(),
}
"""The settings that a form has a use for."""


@dataclass(frozen=True)
class Row:
    """One question."""

    number: int
    """From 1: its line."""
    question: str
    choices: tuple[str, ...] = ()
    """Answers to choose from; of a schema the contexts, of which one makes `answer` likely."""
    right: int = 0
    answers: tuple[str, ...] = ()
    """What is right: of `generation` any of these, of `schema` and `continuation` the text that follows."""


@dataclass(frozen=True)
class Task:
    """A task, read."""

    name: str
    form: Form
    settings: Settings
    rows: Sequence[Row]
    examples: Sequence[Row] = ()
    """Worked rows of a file of their own; () where the task's own rows are taken."""
    text: str = ""
    """Of form text: what is scored."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a result keeps of it: its file, the hash of its rows."""

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        if self.settings.chance is not None:
            return self.settings.chance
        several = [1 / len(row.choices) for row in self.rows if row.choices]
        return sum(several) / len(several) if several else 0.0


def read_task(path: Path, changed: Mapping[str, Any]) -> Task:
    """The task of a .jsonl, .parquet or .txt file, with settings `changed`.

    Raises `UserError` that names the file, and the line of a row that can't be used.
    """
    if path.suffix == ".txt":
        changed = {}  # of tasks with rows: `open_tasks` refuses them where there are none
    settings_file = path.with_name(f"{_stem(path)}.toml")
    settings = read_settings(settings_file, changed)
    if path.suffix == ".txt":
        check_used(settings, "text", settings_file)
        return _text(path, settings)
    rows, form = _rows(path, settings.form)
    check_used(settings, form, settings_file)
    if not rows:
        raise UserError("evaluation/task-empty", f"{path} has no row: give a file of questions")
    examples: Sequence[Row] = ()
    if settings.examples is not None and settings.few_shot:
        examples, other = _rows(path.parent / settings.examples, form)
        if len(examples) < settings.few_shot or other != form:
            raise UserError(
                "evaluation/examples-too-few",
                f"{path.parent / settings.examples} has {len(examples)} rows of form {form}, and few_shot is "
                f"{settings.few_shot}: give more, or lower it",
            )
    elif settings.few_shot >= len(rows):
        raise UserError(
            "evaluation/few-shot-too-many",
            f"{path} has {len(rows)} rows, too few for few_shot = {settings.few_shot}: lower it",
        )
    return Task(_stem(path), form, settings, rows, examples, facts={"file": str(path)})


def read_settings(path: Path, changed: Mapping[str, Any]) -> Settings:
    """The settings of a task's .toml, or the defaults where there is none, with some `changed`."""
    given: dict[str, Any] = {}
    if path.is_file():
        try:
            given = from_toml(read_bytes(path).decode())
        except (ValueError, OSError) as error:
            raise UserError("evaluation/settings-unreadable", f"{path} can't be read ({error}): mend it") from None
    try:
        return Settings.model_validate(given | dict(changed))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(
                "evaluation/setting-unknown",
                f"{path}: there is no setting {shown(name)}: {meant(name, list(Settings.model_fields))}take it out",
            ) from None
        reason = first["msg"].removeprefix("Input should be ")
        raise UserError("evaluation/setting-wrong", f"{path}: {name} should be {reason}: mend it") from None


def check_used(settings: Settings, form: Form, path: Path) -> None:
    """Raise `UserError` where a setting was given that a task of this form has no use for."""
    idle = sorted(settings.model_fields_set - USED[form])
    if "unconditional" in settings.model_fields_set and settings.metric != "acc_pmi":
        idle.append("unconditional")
    if idle:
        raise UserError(
            "evaluation/setting-without-effect",
            f"{path}: {idle[0]} has no effect on a task of form {form}, judged as it is: take it out",
        )


def _stem(path: Path) -> str:
    name = path.name
    for ending in (*RECORDS, ".txt"):
        name = name.removesuffix(ending)
    return name


def _text(path: Path, settings: Settings) -> Task:
    try:
        text = read_bytes(path, 2**30).decode("utf-8-sig")
    except (ValueError, OSError) as error:
        raise UserError("evaluation/text-unreadable", f"{path} can't be read ({error}): give UTF-8 text") from None
    if not text.strip():
        raise UserError("evaluation/text-empty", f"{path} has no text: give a file with some")
    return Task(_stem(path), "text", settings, (), text=text, facts={"file": str(path)})


def _rows(path: Path, form: Form | None) -> tuple[list[Row], Form]:
    if not path.is_file() or not of_kind(path, RECORDS):
        raise UserError(
            "evaluation/task-not-found", f"{path} is no file of rows: give one of {' '.join(RECORDS)}, or .txt"
        )
    rows: list[Row] = []
    with readable(path):
        for where, raw in parquet_rows(path) if of_kind(path, ".parquet") else json_rows(path):
            if not isinstance(raw, Mapping):
                raise UserError("evaluation/row-not-an-object", f"{where}: {shown(raw)} is no object with fields")
            form = form or _form_of(raw, where)
            rows.append(read_row(raw, form, where, len(rows) + 1))
    return rows, form or "choice"


def _form_of(raw: Mapping[str, Any], where: str) -> Form:
    forms: tuple[Form, ...] = ("choice", "schema", "continuation", "generation")
    for form in forms:
        if all(any(name in raw for name in names) for names in FIELDS[form]):
            return form
    known = "; ".join(f"{form}: {', '.join(names[0] for names in FIELDS[form])}" for form in forms)
    raise UserError(
        "evaluation/row-of-no-form",
        f"{where} has the fields {shown(sorted(raw))} of no form of task ({known}): mend it",
    )


def read_row(raw: Mapping[str, Any], form: Form, where: str, number: int) -> Row:
    """A row of a form. Raises `UserError` naming the place and the field."""
    values = [_field(raw, names, where) for names in FIELDS.get(form, ())]
    if form == "continuation":
        context, after = (_string(value, names[0], where) for value, names in zip(values, FIELDS[form], strict=True))
        if not after:
            raise UserError("evaluation/row-field-empty", f"{where}: continuation is empty: there is nothing to score")
        return Row(number, context, answers=(after,))
    if form == "generation":
        answers = values[1] if isinstance(values[1], list) else [values[1]]
        texts = tuple(_string(one, "answer", where) for one in answers)
        if not texts:
            raise UserError("evaluation/row-without-answers", f"{where}: answer names none: give at least one")
        return Row(number, _string(values[0], "prompt", where), answers=texts)
    listed = values[1] if form == "choice" else values[0]
    if not isinstance(listed, list) or len(listed) < 2:
        raise UserError(
            "evaluation/choices-too-few", f"{where}: {shown(listed)} is no list of two or more to choose from"
        )
    options = tuple(_string(one, "choices", where) for one in listed)
    right = _right(values[2], options, where)
    if form == "schema":
        return Row(number, "", options, right, (_string(values[1], "continuation", where),))
    return Row(number, _string(values[0], "question", where), options, right, (options[right],))


def _field(raw: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    for name in names:
        if raw.get(name) is not None:
            return raw[name]
    raise UserError("evaluation/row-field-missing", f"{where} has no field {names[0]}: give it, or mend the row")


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError("evaluation/row-field-no-text", f"{where}: {name} = {shown(value)} is no text: mend it")
    return value


def _right(value: Any, options: Sequence[str], where: str) -> int:
    """The number of the right option: given so, from 0, or as its letter or its text."""
    if isinstance(value, str) and options.count(value) == 1:
        return options.index(value)
    if isinstance(value, str) and len(value) == 1 and value.isupper() and ord(value) - ord("A") < len(options):
        return ord(value) - ord("A")
    number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(options):
        return number
    raise UserError(
        "evaluation/answer-outside-choices",
        f"{where}: answer {shown(value)} is none of the {len(options)} choices: give its number from 0, or its text",
    )
