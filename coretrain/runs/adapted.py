"""Runs that train an adapter on another run's weights: their model, tokenizer and base, and what a merge writes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coretrain.adapters.kinds import check_mergeable, shown
from coretrain.adapters.merge import merged
from coretrain.adapters.targets import adapter_targets, trainable_parameters
from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.files import typed_path, write_atomically
from coretrain.checkpoint.interchange import (
    Interchange,
    interchange_of,
    load_interchange,
    newest_interchange,
    save_interchange,
)
from coretrain.checkpoint.manifest import Progress
from coretrain.config.adapter import AdapterConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import parameter_table
from coretrain.contract.quantization import as_held, held_bytes, quantized_parameters
from coretrain.runs.base import Base, BaseTensors, base_run
from coretrain.runs.begin import check_free, new_run
from coretrain.runs.folder import open_run, run_of
from coretrain.runs.translate import best_interchange
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE, read_chat_template
from coretrain.tokenizers.registry import load_tokenizer, saved_tokenizer
from coretrain.tokenizers.tokenizer import SAVED_FACTS


def with_base(config: RunConfig) -> tuple[RunConfig, BaseTensors | None]:
    """The config with its base's fingerprint, and the base's weights; None where the run trains all of a model.

    Raises `UserError` where the base is of another model, or isn't what the adapter was trained on.
    """
    if config.adapter.kind == "none":
        return config, None
    filled, base = on_its_base(config)
    return filled, BaseTensors(base, config.model.context)


def on_its_base(config: RunConfig) -> tuple[RunConfig, Interchange]:
    """As `with_base`, of an adapter's config: the base as it is, at its own context."""
    if config.adapter.base is None:
        raise UserError(
            "runs/adapter-base-not-set",
            "adapter.base is not set: give the folder of the base, as --adapter.base runs/X",
        )
    return Base(typed_path(config.adapter.base)).under(config)


def adapter_config(folder: Path, base: Path | None = None) -> RunConfig:
    """The config of an adapter's run, on `base` where one is given. Raises `UserError` where it has no adapter."""
    config = open_run(folder)
    if config.adapter.kind == "none":
        raise UserError(
            "runs/not-an-adapter-run", f"{folder} trained a whole model and no adapter: give an adapter's run"
        )
    if base is None:
        return config
    return config.changed(adapter__base=str(base))


def open_adapters(
    folders: Sequence[Path], place: Path, say: Callable[[str], None]
) -> tuple[list[tuple[RunConfig, Mapping[str, Array]]], BaseTensors]:
    """Config and best tensors of several adapters' runs, each named by its folder, and the base `place` below them.

    The base is at the context of the first; a damaged checkpoint is passed over with a warning through `say`. Raises
    `UserError` where not all were trained beside the same weights, held in the same way.
    """
    base, result = Base(place), list[tuple[RunConfig, Mapping[str, Array]]]()
    for folder in folders:
        config, loaded = base.under(adapter_config(folder, place))
        name = re.sub(r"[^A-Za-z0-9_-]", "-", folder.absolute().name)
        if any(name == other.adapter.name for other, _ in result):
            raise UserError("runs/adapter-names-repeat", f"--adapter: two folders are named {name}: rename one of them")
        config = config.changed(adapter__name=name)
        tensors = best_interchange(folder, say).groups["parameters"]
        result.append((config, tensors))
        for field in ("quantize", "fingerprint"):
            ours, first = getattr(config.adapter, field), getattr(result[0][0].adapter, field)
            if ours != first:
                raise UserError(
                    "runs/adapter-bases-differ",
                    f"--adapter: adapter.{field} of {folder} is {ours}, that of {folders[0]} {first}, and one base "
                    "can't be both: ask them one at a time",
                )
    return result, BaseTensors(loaded, result[0][0].model.context)


def check_tokenizer(config: RunConfig, found: str) -> None:
    """Raise `UserError` unless the data's tokenizer, of this fingerprint, is the one that the base was trained with."""
    base = config.adapter.base
    if config.adapter.kind == "none" or base is None or not (base_run(base) / SAVED_FACTS).is_file():
        return
    if load_tokenizer(base_run(base)).fingerprint != found:
        raise UserError(
            "runs/tokenizer-not-base",
            f"data.tokenizer = {config.data.tokenizer} isn't the base's: leave it out, or give "
            f"{saved_tokenizer(base_run(base))}",
        )


def carry_chat_template(config: RunConfig, folder: Path) -> None:
    """Copy the base's chat template, if it has one, into the folder of an adapter's run, which exports write out."""
    base = config.adapter.base
    if config.adapter.kind == "none" or base is None or (folder / CHAT_TEMPLATE).exists():
        return
    if template := read_chat_template(base_run(base)):
        write_atomically(folder / CHAT_TEMPLATE, template)


def adapter_summary(config: RunConfig) -> Sequence[tuple[str, str]]:
    """Lines for the run's header; none without an adapter."""
    c = config.adapter
    if c.kind == "none":
        return []
    trained = sum(row.size for row in trainable_parameters(config))
    share = trained / sum(row.size for row in parameter_table(config.model))
    return [
        ("adapter", f"{c.name}: {shown(config, len(adapter_targets(config)))}"),
        ("base", f"{c.base}, frozen (fingerprint {c.fingerprint})"),
        *_held(config),
        ("trained", f"{trained:,} parameters, {share:.2%} of the model's"),
    ]


def _held(config: RunConfig) -> Sequence[tuple[str, str]]:
    """What of the base is in how many bits, and what that takes."""
    kind, rows = config.adapter.quantize, quantized_parameters(config)
    if not rows:
        return []
    master = 8 if config.precision.compute == "float64" else 4
    size, held = sum(row.size for row in rows), sum(held_bytes(kind, row.size) for row in rows)
    rest = sum(row.size for row in parameter_table(config.model)) - size
    return [
        (
            "quantized",
            f"{len(rows)} matrices of the blocks, {kind}: {8 * held / size:.2f} bits a weight, {held / 1e6:.3g} MB in "
            f"place of {size * master / 1e6:.3g}; the rest whole, {rest * master / 1e6:.3g} MB",
        )
    ]


def load_on(checkpoint: Path, base: Path | None) -> Interchange:
    """An interchange checkpoint, of an adapter with `base` as its base where one is given: the base may have moved."""
    loaded = load_interchange(checkpoint)
    if base is None:
        return loaded
    if loaded.config.adapter.kind == "none":
        raise UserError(
            "runs/base-for-whole-model", f"{checkpoint} holds a whole model and no adapter: leave --adapter.base out"
        )
    return replace(loaded, config=loaded.config.changed(adapter__base=str(base)))


def merged_model(loaded: Interchange) -> tuple[RunConfig, dict[str, Array]]:
    """An adapter's checkpoint and its base as one model: its config, at the base's context, and its tensors.

    Of a quantized base the adapter goes into the numbers that its bytes mean, which it was trained beside.
    """
    config, base = on_its_base(loaded.config)
    tensors = merged(config, as_held(config, base.groups["parameters"]), loaded.groups["parameters"])
    return config.changed(model__context=base.config.model.context, adapter=AdapterConfig()), tensors


def merge_run(source: Path, folder: Path, base: Path | None = None) -> list[str]:
    """Make `folder` a run at update 0 of the base with the adapter of `source` merged into it; lines to print.

    `base` is the base's new place, if it has one.
    """
    check_free(folder)
    check_mergeable(adapter_config(source))
    path = newest_interchange(source)
    loaded = load_on(path, base)
    config, tensors = merged_model(loaded)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.absolute().name)
    whole, adapter = config.changed(name=name), loaded.config.adapter
    with new_run(folder):
        target = interchange_of(folder, "update-00000000")
        save_interchange(target, whole, {"parameters": tensors}, Progress(), "import")
        if (run_of(source) / SAVED_FACTS).is_file():
            load_tokenizer(run_of(source)).save(folder)
        if template := read_chat_template(run_of(source)):
            write_atomically(folder / CHAT_TEMPLATE, template)
        carry_chat_template(loaded.config, folder)  # of a run that has none of its own
        write_atomically(folder / "config.json", whole.to_json())
    return [
        f"wrote {folder}: {adapter.base} with the adapter {adapter.name} of {path} merged into it",
        f"text from it: python -m torchtrain.generate {shlex.quote(str(folder))} PROMPT (or jaxtrain.generate)",
    ]
