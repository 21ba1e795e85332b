"""What small runs have in common, as asked for on a command line; and the folder where they lie."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import read_json, short_hash, typed_path, write_atomically
from coretrain.base.numbers import whole_number
from coretrain.config.data import DataConfig
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.data.manifest import read_manifest
from coretrain.data.prepare import prepared_folder
from coretrain.data.sources import open_source
from coretrain.tokenizers.tokenizer import Tokenizer
from twintrain.proxies.held_out import Copy, HeldOut, Shared, candidates, copied, unknown
from twintrain.proxies.runs import CURVE, QUIET, options_of, say, scored, trained
from twintrain.proxies.sides import Side, one_tokenizer, sources_of
from twintrain.stacks import add_stack

SMALL = (("train.updates", "200"), ("train.batch_size", "16"), ("data.validation_fraction", "0.1"))
"""Of the preset tiny where no other is named: 0.4 million tokens, about a minute on two free cores."""
BYTES_A_TOKEN = 8
"""More than a token has: so much text of each source is enough for a run."""
SET_HERE = ("data.source", "data.mixture", "train.seed", "train.eval_interval", "checkpoint.interval")
"""Fields that a comparison gives each run by itself."""
ABOUT, MARK = "about.json", "small-runs"
"""The file by which a folder is known as one of small runs, and its field with the hash of all they depend on."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of small runs."""
    add_stack(parser)
    parser.add_argument("--config")
    parser.add_argument("--updates", type=whole_number(1))
    parser.add_argument("--held-out")
    parser.add_argument("--output", type=typed_path)


def fields_of(rest: Sequence[str]) -> list[tuple[str, str]]:
    """`--section.field VALUE` pairs. Raises `UserError` for another word, or a field that is given to each run here."""
    words, found = list(rest), []
    while words:
        key, equals, value = words.pop(0).partition("=")
        if not key.startswith("--"):
            raise UserError("command/proxy-word", f"unexpected word {key}: fields are written --section.field value")
        if not equals:
            if not words:
                raise UserError("command/proxy-field-without-value", f"{key} has no value: write {key} VALUE")
            value = words.pop(0)
        if key[2:] in SET_HERE or key.startswith("--checkpoint.keep"):
            raise UserError(
                "command/proxy-field-set-here", f"{key} is given to each run here: leave it out (--help says more)"
            )
        found.append((key[2:], value))
    return found


@dataclass(frozen=True)
class Setting:
    """One shape, one budget, one tokenizer, one held-out text for all runs of a folder."""

    stack: str
    folder: Path
    config: RunConfig
    words: tuple[str, ...]
    """Of each run's command line, without its data and its seed."""
    copies: tuple[Copy, ...]
    """Of each source."""
    tokenizer: Tokenizer
    tokenizer_told: str
    texts: tuple[HeldOut, ...]

    @property
    def tokens(self) -> int:
        """Tokens that each run reads."""
        return self.config.train.updates * self.config.tokens_per_update

    def sizes(self) -> dict[str, int]:
        """Tokens of each source's training text; of a part of it where that is enough, reckoned up to the whole."""
        found = {}
        for copy in self.copies:
            folder = prepared_folder(open_source(str(copy.path)), self.tokenizer, self.config.data, say)
            train = [one for one in read_manifest(folder).shards if one.split == "train"]
            tokens = sum(one.tokens for one in train)
            if copy.part:
                tokens = round(copy.whole * tokens / sum(one.bytes for one in train))
            found[copy.source] = tokens
        return found

    def copy_of(self, side: Side) -> Side:
        """The side with the copies in place of its sources."""
        paths = {copy.source: str(copy.path.absolute()) for copy in self.copies}
        return Side(side.name, tuple((paths[name], weight) for name, weight in side.parts))

    def run(self, name: str, side: Side, seed: int) -> Any:
        """Train, or go on with, or take what is finished; the scores at its checkpoints."""
        words = [*self.words, *self.copy_of(side).words, f"--train.seed={seed}", f"--name={name}"]
        folder = self.folder / "runs" / name
        config = trained(self.stack, folder, words)
        return scored(self.stack, folder, config, self.texts, self.tokenizer)

    def about(self) -> dict[str, Any]:
        """What holds for all runs, as JSON."""
        return {
            "stack": self.stack,
            "model": self.config.model.model_dump(mode="json"),
            "updates": self.config.train.updates,
            "tokens_each_run": self.tokens,
            "tokenizer": self.tokenizer_told,
            "sources": [
                {"source": one.source, "bytes": one.bytes, "left_out_as_nearly_held_out": one.near}
                for one in self.copies
            ],
            "held_out": [
                {"name": one.name, "documents": len(one.texts), "bytes": sum(one.sizes)}
                | {"left_out_as_known": one.known, "not_needed": one.more}
                for one in self.texts
            ],
        }


def open_setting(
    kind: str, given: Any, rest: Sequence[str], sides: Sequence[Side], more: Sequence[Any] = ()
) -> Setting:
    """The setting that the options ask for, its folder made, or found where it was begun. Raises `UserError`.

    `more` is what else the runs of the folder depend on, as JSON.
    """
    fields = fields_of(rest)
    if given.updates is not None:
        if any(key == "train.updates" for key, _ in fields):
            raise UserError("command/updates-twice", "--updates and --train.updates are given: leave one out")
        fields.append(("train.updates", str(given.updates)))
    overrides = [*QUIET, *(SMALL if given.config is None else ()), *fields]
    config = load_config(given.config, overrides)
    data = config.data
    if data.format != "text":
        raise UserError("command/proxy-not-text", "data.format = chat: small runs compare text: give another config")
    sources = sources_of(sides, data)
    text = None if given.held_out is None else open_source(given.held_out, data.text_field)
    key = short_hash(
        kind,
        given.stack,
        json.loads(config.to_json()),
        [list(side.parts) for side in sides],
        [source.listing for source in sources],
        text.listing if text else None,
        more,
    )
    folder = given.output or Path("runs") / f"{kind}-{key[:10]}"
    _begin(folder, key)
    for source in (*sources, *([text] if text else [])):
        if source.passed_over:
            say(f"{source.name}: not read: {source.passed_over}")
    texts = candidates(sources, data, text)
    shared = Shared(texts)
    most = BYTES_A_TOKEN * config.train.updates * config.tokens_per_update
    copies = [
        copied(source, data, shared, folder / "data" / f"{number}.jsonl", most) for number, source in enumerate(sources)
    ]
    for copy in copies:
        if copy.near:
            say(f"{copy.source}: {copy.near:,} training documents are nearly held-out ones: left out")
    read = [open_source(str(copy.path)) for copy in copies]
    own = {"data.tokenizer": "", "data.text_field": "text", "data.max_documents": "0"}
    if not any(key == "data.cache" for key, _ in fields):
        own["data.cache"] = str((folder / "cache").absolute())
    data = _with(data, own)
    texts = unknown(texts, read, data, shared)
    tokenizer, own["data.tokenizer"], told = one_tokenizer(read, data, folder, say)
    config = config.changed(data=_with(data, own))
    words = [] if given.config is None else [given.config]
    words += [f"--{name}={value}" for name, value in overrides if name not in own]
    words += [f"--{name}={value}" for name, value in own.items()]
    words += options_of(config.train.updates, CURVE if kind == "compare" else 1)
    return Setting(given.stack, folder, config, tuple(words), tuple(copies), tokenizer, told, tuple(texts))


def _with(data: DataConfig, own: Mapping[str, str]) -> DataConfig:
    """The data's fields with those of small runs."""
    values: dict[str, Any] = {name.removeprefix("data."): value for name, value in own.items() if value}
    if "max_documents" in values:
        values["max_documents"] = int(values["max_documents"])
    return data.model_copy(update=values)


def _begin(folder: Path, key: str) -> None:
    """Make the folder, or see that it is of this very comparison. Raises `UserError` where it isn't."""
    path = folder / ABOUT
    began = read_json(path, "what small runs are of").get(MARK) if path.is_file() else None
    if began == key:
        return
    if began and (folder / "runs").exists():
        raise UserError(
            "command/proxies-of-another",
            f"{folder} has small runs of other data, fields or files: give another --output",
        )
    if began:  # nothing was trained for the one before, which may have been refused
        shutil.rmtree(folder / "data", ignore_errors=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("command/proxies-folder-in-use", f"{folder} has other files: give an empty --output")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({MARK: key}))


def save(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write an outcome as JSON."""
    write_atomically(folder / name, json.dumps(content, indent=1))
