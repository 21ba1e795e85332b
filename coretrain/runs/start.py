"""Where a new run begins (`train.start`): another run's weights, its model, tokenizer and template.

Its moments are in `moments.py`. What an adapter is to stand on is `adapter.base` (`base.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coretrain.adapters.merge import FREE, fingerprint
from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.base.lazy import LazyTensors
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import Interchange, load_interchange, newest_interchange
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.runs.folder import open_run, run_of
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE
from coretrain.tokenizers.registry import load_tokenizer, saved_tokenizer
from coretrain.tokenizers.tokenizer import SAVED_FACTS

OWN = ("score_head", *FREE)
"""Fields of the model that a run may have otherwise than its start: a head that the start hasn't got begins fresh."""


class StartTensors(LazyTensors):
    """The tensors of a start, of learned positions the first `context`; `folder` is the checkpoint that they are of."""

    def __init__(self, start: Interchange, context: int) -> None:
        self.folder, tensors = start.folder, start.groups["parameters"]
        self.whole, self.config, self.groups, self.progress = tensors, start.config, start.groups, start.progress
        super().__init__(tensors, lambda name: tensors[name][: context if name == "embed.position" else None])

    @property
    def fingerprint(self) -> str:
        """Of the weights, every bit."""
        return fingerprint(self.config, self.whole)


def start_run(place: str, field: str = "train.start") -> Path:
    """The run's folder that a field names. Raises `UserError` where there is none."""
    path = typed_path(place)
    if not path.exists():
        raise UserError(
            "runs/start-not-found",
            f"{field} = {place} is not there: give the folder of a run, as runs/NAME, or preset:NAME",
        )
    return run_of(path)


def like_start(config: RunConfig, given: set[str], stated: bool = False) -> RunConfig:
    """`config` with the model of its start, and with its tokenizer and template where these aren't `given`.

    Raises `UserError` where the start is an adapter's or a reward model, or a `given` field contradicts it, or, where
    what the config's file says of the model is `stated` by the user, one of these.
    """
    place = str(config.train.start)
    folder = start_run(place)
    start = open_run(folder)
    if start.adapter.kind != "none":
        raise UserError(
            "runs/start-is-adapter",
            f"train.start = {place} trained an adapter: merge it first, with twintrain convert merge",
        )
    if start.model.score_head and not config.model.score_head:
        raise UserError(
            "runs/start-has-score-head",
            f"train.start = {place} has a score head, which train.objective = {config.train.objective} has no use for: "
            "give the run that it began with",
        )
    own = {name: getattr(config.model, name) for name in OWN}
    model = start.model.model_copy(update=own)
    typed = {name for name in ModelConfig.model_fields if f"model.{name}" in given and name not in OWN}
    for name in sorted(typed):
        if getattr(config.model, name) != getattr(model, name):
            raise UserError(
                "runs/model-field-set-by-start",
                f"model.{name} = {getattr(config.model, name)}, and train.start = {place} has {getattr(model, name)}: "
                "leave it out",
            )
    for name in sorted(config.model.model_fields_set - set(OWN)) if stated else ():
        if (ours := getattr(config.model, name)) is not None and ours != getattr(model, name):
            raise UserError(
                "runs/config-of-another-shape",
                f"model.{name} is {ours} in the config that is named, and {getattr(model, name)} in {place}: give the "
                "config of that run's preset, or none and the fields that are to be others",
            )
    if model.context > start.model.context and model.position == "learned":
        raise UserError(
            "runs/context-exceeds-start",
            f"model.context = {model.context} is longer than the {start.model.context} positions that train.start = "
            f"{place} has learned: lower it",
        )
    data: dict[str, Any] = {}
    if "data.tokenizer" not in given and (saved := saved_tokenizer(folder)):
        data["data__tokenizer"] = str(saved.absolute())
    template = folder / CHAT_TEMPLATE
    if config.data.format != "text" and config.data.chat_template is None and template.is_file():
        data["data__chat_template"] = str(template.absolute())
    return config.changed(model=model, **data)


def open_start(config: RunConfig) -> StartTensors | None:
    """The weights of `train.start`; None where a run has none. Raises `UserError` where its model is another one."""
    if config.train.start is None or config.adapter.kind != "none":
        return None
    start_run(config.train.start)
    found = load_interchange(newest_interchange(typed_path(config.train.start)))
    ours, theirs = config.model, found.config.model
    for name in ModelConfig.model_fields:
        if name not in OWN and getattr(ours, name) != getattr(theirs, name):
            raise UserError(
                "runs/start-model-differs",
                f"model.{name} = {getattr(ours, name)}, and train.start = {config.train.start} has "
                f"{getattr(theirs, name)}: leave it out",
            )
    return StartTensors(found, ours.context)


def keep_start(start: StartTensors) -> str:
    """Have the start's run keep this checkpoint when it goes on: a reference needs it. What to warn of, or ''."""
    folder = CheckpointFolder(start.folder.parent)
    if start.folder.parent.name != "interchange" or start.folder.name in folder.pins():
        return ""
    try:
        folder.pin(start.folder.name, start.fingerprint)
    except OSError as error:
        return (
            f"{start.folder} can't be marked as in use ({error.strerror}): don't go on with that run, which would "
            "remove it, or copy it before"
        )
    return ""


def check_same_tokenizer(place: str, field: str, found: str) -> None:
    """Raise `UserError` unless the data's tokenizer, of this fingerprint, is that of the run at `place`."""
    folder = start_run(place, field)
    if (folder / SAVED_FACTS).is_file() and load_tokenizer(folder).fingerprint != found:
        raise UserError(
            "runs/tokenizer-not-start",
            f"the data's tokenizer isn't that of {field} = {place}: leave data.tokenizer out, or give "
            f"{saved_tokenizer(folder)}",
        )
