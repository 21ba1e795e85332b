"""What `twintrain convert` does: a run's checkpoint out to another form, and a pretrained model in as a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.files import quoted, typed_path, write_atomically
from coretrain.base.half_precision import HalfPrecision
from coretrain.checkpoint.interchange import (
    Interchange,
    interchange_of,
    newest_interchange,
    save_interchange,
)
from coretrain.checkpoint.manifest import MANIFEST, Progress
from coretrain.config.load import apply_overrides, build_config
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import parameter_table
from coretrain.formats.checksums import check_sums, write_sums
from coretrain.formats.gguf.file import GGUFFile
from coretrain.formats.gguf.tokenizer import gguf_chat_template, read_gguf_tokenizer
from coretrain.formats.gguf.weights import GGUFTensors, export_gguf, gguf_model, gguf_remarks
from coretrain.formats.huggingface.card import model_card
from coretrain.formats.huggingface.weights import (
    CARD,
    export_huggingface,
    generation_remarks,
    import_huggingface,
    import_remarks,
)
from coretrain.formats.huggingface.weights import CONFIG as HF_CONFIG
from coretrain.formats.peft.names import CONFIG as PEFT_CONFIG
from coretrain.runs.adapted import load_on, merged_model
from coretrain.runs.base import Base
from coretrain.runs.begin import check_free, new_run
from coretrain.runs.files import first_template
from coretrain.runs.folder import check_config, run_of
from coretrain.runs.peft import export_adapter, import_adapter
from coretrain.runs.score_head import VALUES_LEFT, check_form_has_scores, with_own_head, without_values
from coretrain.tokenizers.chat_template import turn_end
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE, read_chat_template
from coretrain.tokenizers.huggingface import read_tokenizer
from coretrain.tokenizers.registry import load_tokenizer, named_tokenizer
from coretrain.tokenizers.tokenizer import SAVED_FACTS, Tokenizer

PADDING = 1024
"""Rows by which a model's vocabulary may be more than its tokenizer's: models are padded to multiples of 64 to 1024."""


def tokenizer_folder(checkpoint: Path) -> Path | None:
    """Where a checkpoint's tokenizer lies: in its own folder, or in its run's (for `RUN/interchange/update-N`)."""
    places = [checkpoint, *checkpoint.absolute().parents[:2]]
    return next((place for place in places if (place / SAVED_FACTS).is_file()), None)


def exported_to(source: Path, form: str, quantization: str = "none") -> Path:
    """Where an export of a run goes if no place is given: into its own folder."""
    if (source / MANIFEST).is_file():
        raise UserError(
            "runs/export-into-checkpoint",
            f"{source} is a checkpoint, which is sealed: name a target for the export after it",
        )
    return _in_export(source, source.absolute().name + ("" if quantization == "none" else f"-{quantization}"), form)


def _in_export(run: Path, name: str, form: str) -> Path:
    return run / "export" / (f"{name}.{form}" if form in ("gguf", "onnx") else f"{name}-{form}")


def base_export(config: RunConfig) -> tuple[Path, str]:
    """Where an adapter in PEFT's form looks for its base, which need not be there, and how `convert.py` puts it there.

    That is in the base's run; of one that has gone on since, another folder than that of its newest weights.
    """
    place = typed_path(config.adapter.base or "")
    try:
        run, checkpoint = run_of(place), Base(place).checkpoints(config.adapter.fingerprint)[0]
        if checkpoint.name != newest_interchange(run).name:
            target = _in_export(run, f"{run.absolute().name}-{checkpoint.name}", "hf")
            return target, f"{_words(checkpoint, target)} --to hf"
        return exported_to(run, "hf"), f"{_words(run)} --to hf"
    except UserError:  # it has moved, or is a checkpoint alone
        target = place.with_name(f"{place.name}-hf") if (place / MANIFEST).is_file() else exported_to(place, "hf")
        return target, f"{_words(place, target)} --to hf"


def _words(*paths: Path) -> str:
    """Paths as they are typed in a shell."""
    return shlex.join(map(str, paths))


def export_run(
    source: Path, target: Path, form: str, quantization: str = "none", merge: bool = False, base: Path | None = None
) -> list[str]:
    """Write the newest interchange checkpoint of `source` (a run or a checkpoint) to `target`; lines to print.

    `form` is `hf`, `gguf` (one file), `peft` (an adapter alone) or `interchange`; `quantization` one of
    `QUANTIZATIONS`, of which only GGUF has the block ones. With `merge`, an adapter's base with it; `base` is where
    that lies now. Raises `UserError` naming what is missing, damaged or not exportable.
    """
    if form != "gguf" and quantization not in ("none", "f16"):
        raise UserError(
            "runs/quantize-without-gguf",
            f"--quantize {quantization} is a form of GGUF files: give --to gguf, or none or f16 for {form}",
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("runs/export-target-not-empty", f"{target} exists and is not empty: choose another folder")
    if target.resolve() == Path.cwd():
        raise UserError(
            "runs/export-target-is-cwd",
            f"{target} is the folder you are in, which a finished one would replace: choose another folder",
        )
    check_config(source)
    path = newest_interchange(source)
    loaded = load_on(path, base)
    done = f"{path} (after update {loaded.progress.update}, written by {loaded.stack})"
    if form == "interchange":
        if quantization != "none" or merge:
            raise UserError(
                "runs/interchange-takes-no-options",
                "an interchange checkpoint holds what its run does, in float32: leave --quantize and --merge out",
            )
        save_interchange(target, loaded.config, loaded.groups, loaded.progress, loaded.stack)
        return [f"wrote {target}: {done} with {', '.join(loaded.groups)}"]
    tokenizer = tokenizer_folder(path)
    if form == "peft":
        check_form_has_scores(loaded.config, form)
        if merge:
            raise UserError(
                "runs/peft-takes-no-merge",
                "PEFT's files hold an adapter alone: leave --merge out, or give --to hf",
            )
        beside, how = base_export(loaded.config)
        return [f"wrote {target}: {done}", *export_adapter(source, target, loaded, beside, how, quantization == "f16")]
    config, parameters = whole_model(source, loaded, merge)
    left = [VALUES_LEFT] if loaded.config.model.score_head and not config.model.score_head else []
    if form == "gguf":
        check_form_has_scores(config, form)
        return [*_export_gguf(source, target, config, parameters, tokenizer, quantization, done), *left]
    parameters = parameters if quantization == "none" else HalfPrecision(parameters)
    card = model_card(loaded, quantization, merge)
    export_huggingface(target, config.model, parameters, tokenizer, card=card)
    write_sums(target, free=(CARD,))
    say = "with its tokenizer" if tokenizer else f"without a tokenizer: no {SAVED_FACTS} beside it"
    return [
        f"wrote {target}: {done}, {say}",
        f"load it with transformers.{_auto_class(config)}.from_pretrained({quoted(target)})",
        *left,
    ]


def _auto_class(config: RunConfig) -> str:
    return "AutoModelForSequenceClassification" if config.model.score_head else "AutoModelForCausalLM"


def whole_model(source: Path, loaded: Interchange, merge: bool = False) -> tuple[RunConfig, Mapping[str, Array]]:
    """The model of a checkpoint, as config and tensors: as it is, or, with `merge`, an adapter's base with it.

    Without the value head of PPO, which is no part of what it trained.
    Raises `UserError` where there is an adapter and it isn't to be merged, or the other way round.
    """
    if (loaded.config.adapter.kind != "none") != merge:
        raise UserError(
            "runs/merge-option-wrong",
            f"{source} is a whole model: leave --merge out"
            if merge
            else f"{source} holds an adapter alone: add --merge to write it and its base as one, or give --to peft",
        )
    config, tensors = merged_model(loaded) if merge else (loaded.config, loaded.groups["parameters"])
    return without_values(config, tensors)


def _export_gguf(
    source: Path,
    target: Path,
    config: RunConfig,
    tensors: Mapping[str, Array],
    tokenizer: Path | None,
    quantization: str,
    done: str,
) -> list[str]:
    if tokenizer is None:
        raise UserError(
            "runs/gguf-without-tokenizer",
            f"{source} has no tokenizer ({SAVED_FACTS}), which a GGUF file holds: give the run's folder",
        )
    if target.is_dir():
        raise UserError(
            "runs/export-target-is-folder", f"{target} is a folder: name a file, as in {target / 'model.gguf'}"
        )
    words, template = load_tokenizer(tokenizer), read_chat_template(tokenizer)
    remark = export_gguf(target, config.name, config.model, tensors, words, template, quantization)
    write_sums(target)
    lines = [f"wrote {target}: {done}, {target.stat().st_size:,} bytes, {quantization}", remark or ""]
    return [line for line in lines if line]


def import_run(
    source: Path, folder: Path, base: RunConfig | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Make `folder` a run at update 0 with the weights of a GGUF file or a Hugging Face folder; lines to print.

    A folder of PEFT gives the run of an adapter on `adapter.base` (`coretrain/runs/peft.py`).

    Its config is `base`, with the imported model, then `overrides`. The run holds config.json, an interchange
    checkpoint without moments (the optimizer starts afresh) whose Progress names no data yet, the source's chat
    template, and its tokenizer, or the one that `data.tokenizer` names among the overrides. Raises `UserError` where
    there is neither, or the vocabulary isn't the model's: on ids of another tokenizer the weights are worth nothing.
    """
    check_free(folder)
    if base and base.precision.compute == "auto":
        raise UserError(
            "runs/import-compute-auto",
            "precision.compute = auto is chosen where a run begins to train: name a dtype here, and give "
            "--precision.compute auto with --resume",
        )
    if not (source.exists() or _named_gguf(source)):
        raise UserError("runs/import-source-missing", f"{source} does not exist: name a model's folder or a GGUF file")
    if source.is_dir() and not any((source / name).exists() for name in (HF_CONFIG, PEFT_CONFIG)):
        raise UserError(
            "runs/import-source-without-config",
            f"{source} holds no model: it has neither {HF_CONFIG} nor {PEFT_CONFIG}",
        )
    check_sums(source)
    if (source / PEFT_CONFIG).is_file():
        return import_adapter(source, folder, base or RunConfig(), overrides)
    if base and base.adapter.base is not None:
        raise UserError(
            "runs/import-base-without-peft",
            f"adapter.base is for a folder of PEFT, and {source} is a whole model: leave it out",
        )
    found = _gguf_source(source) if source.is_file() or _named_gguf(source) else _huggingface_source(source)
    asked = dict(overrides).get("data.tokenizer")
    tokenizer = _tokenizer(source, found, asked)
    raw = (base or RunConfig()).model_dump(mode="json", exclude_none=True)
    raw |= {"name": re.sub(r"[^A-Za-z0-9._-]", "-", folder.absolute().name)}
    raw |= {"model": found.model.model_dump(mode="json", exclude_none=True)}
    raw["data"]["tokenizer"] = str((folder / tokenizer.file).absolute())
    others = [(key, value) for key, value in overrides if key != "data.tokenizer"]
    config = build_config(apply_overrides(raw, others), str(source), others)
    template = first_template(config, found.chat_template)
    ends = [*tokenizer.ends, turn_end(template, tokenizer)]
    remarks = found.remarks([end for end in ends if end is not None])
    tensors, remark = with_own_head(config, found.tensors)
    with new_run(folder):
        target = interchange_of(folder, "update-00000000")
        save_interchange(target, config, {"parameters": tensors}, Progress(), "import")
        tokenizer.save(folder)
        if template:
            write_atomically(folder / CHAT_TEMPLATE, template)
        write_atomically(folder / "config.json", config.to_json())
    say = f"tokenizer {asked} is the run's" if asked else "its tokenizer is the run's"
    say += ", its chat template too" if found.chat_template else ""
    size = sum(row.size for row in parameter_table(config.model))
    return [
        f"wrote {folder}: {source} as a run at update 0, {size:,} parameters",
        say,
        *remark,
        *(f"note: {remark}" for remark in remarks),
        f"train it on {config.data.source} with: python -m torchtrain.run --resume {_words(folder)} (or jaxtrain.run)",
    ]


def _named_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and not path.is_dir()


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, as it was found."""

    model: ModelConfig
    tensors: Mapping[str, Array]
    tokenizer: Callable[[], Tokenizer]
    """Its own. Raises `UserError` saying why it can't be had."""
    chat_template: str | None
    remarks: Callable[[Collection[int]], list[str]]
    """What it says that isn't followed, as sentences, given the ids at which the run's text ends."""


def _gguf_source(path: Path) -> Pretrained:
    file = GGUFFile(path)
    model = gguf_model(file)
    template = gguf_chat_template(file)

    def remarks(ends: Collection[int]) -> list[str]:
        return gguf_remarks(file, ends)

    return Pretrained(model, GGUFTensors(file, model), lambda: read_gguf_tokenizer(file), template, remarks)


def _huggingface_source(folder: Path) -> Pretrained:
    model, tensors = import_huggingface(folder)

    def remarks(ends: Collection[int]) -> list[str]:
        return import_remarks(folder, model) + generation_remarks(folder, ends)

    return Pretrained(model, tensors, lambda: read_tokenizer(folder), read_chat_template(folder), remarks)


def _tokenizer(source: Path, found: Pretrained, asked: str | None) -> Tokenizer:
    """The source's own tokenizer, or the one that `asked` names; its vocabulary is the model's, up to padding."""
    way_out = "give the tokenizer that the model was trained with, as --data.tokenizer gpt2, or the path of its file"
    if asked == "trained":
        raise UserError(
            "runs/import-tokenizer-trained",
            f"data.tokenizer = trained can't be the tokenizer of trained weights, {source}: {way_out}",
        )
    try:
        tokenizer = named_tokenizer(asked) if asked else found.tokenizer()
    except UserError as obstacle:
        raise (
            obstacle if asked else UserError("runs/import-tokenizer-unusable", f"{obstacle}; or {way_out}")
        ) from None
    if not 0 <= found.model.vocabulary - tokenizer.vocab < PADDING:
        held = found.model.vocabulary
        raise UserError(
            "runs/import-vocabulary-differs",
            f"tokenizer {tokenizer.name} has {tokenizer.vocab} ids, the model {source} {held}: {way_out}",
        )
    return tokenizer
