"""A run's adapter out to a folder of PEFT, and a folder of PEFT in as a run on a base."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import quoted, write_atomically
from coretrain.base.half_precision import HalfPrecision
from coretrain.checkpoint.interchange import Interchange, interchange_of, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.config.load import apply_overrides, build_config
from coretrain.config.run import RunConfig
from coretrain.formats.huggingface.card import model_card
from coretrain.formats.peft.reader import import_peft, peft_remarks, trained_beside
from coretrain.formats.peft.writer import export_peft
from coretrain.runs.adapted import carry_chat_template, on_its_base
from coretrain.runs.base import base_run, keep_base
from coretrain.runs.begin import new_run
from coretrain.runs.files import first_template
from coretrain.runs.folder import open_run
from coretrain.runs.score_head import VALUES_LEFT, without_values
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE, read_chat_template
from coretrain.tokenizers.huggingface import read_tokenizer
from coretrain.tokenizers.merges import SAMPLES
from coretrain.tokenizers.registry import load_tokenizer, saved_tokenizer
from coretrain.tokenizers.tokenizer import SAVED_FACTS


def export_adapter(
    source: Path, target: Path, loaded: Interchange, base: Path, how: str, half: bool = False
) -> list[str]:
    """Write the adapter of a checkpoint of `source` as a folder of PEFT that looks for its base in `base`, where
    `convert.py` puts it with the words `how`; lines to print. With `half` its tensors are float16."""
    config, parameters = without_values(loaded.config, loaded.groups["parameters"])
    left = [VALUES_LEFT] if config.model != loaded.config.model else []
    if config.adapter.kind not in ("lora", "dora"):
        what = "a whole model" if config.adapter.kind == "none" else f"an adapter of kind {config.adapter.kind}"
        raise UserError(
            "runs/peft-needs-low-rank", f"{source} holds {what}, not low-rank adapters: give --to hf or gguf"
        )
    weights = functools.cache(lambda: on_its_base(config)[1].groups["parameters"])
    tensors = HalfPrecision(parameters) if half else parameters
    card = model_card(loaded, "f16" if half else "none")
    export_peft(target, config, tensors, str(base), weights, card)
    say = "" if base.is_dir() else f", to be written with: twintrain convert {how}"
    how = f"load it with peft.AutoPeftModelForCausalLM.from_pretrained({quoted(target)}); its base is {base}{say}"
    return [how, *left]


def import_adapter(
    source: Path, folder: Path, given: RunConfig, overrides: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Make `folder` the run, at update 0, of a PEFT adapter on the run `adapter.base`; lines to print.

    Its config is `given` with the base's model and tokenizer and the adapter's fields, then `overrides`.
    """
    if given.adapter.base is None:
        raise UserError(
            "runs/import-base-not-set", f"{source} is an adapter: name the run of its base, as --adapter.base runs/X"
        )
    base = open_run(base_run(given.adapter.base))
    if base.adapter.kind != "none":
        raise UserError(
            "runs/import-base-is-adapter",
            f"adapter.base = {given.adapter.base} is itself an adapter's run: merge it first, with twintrain convert "
            "merge",
        )
    if base.model.score_head:
        raise UserError(
            "runs/import-base-has-score-head",
            f"adapter.base = {given.adapter.base} has a score head, for which PEFT's file has no tensor: give the run "
            "that it began with",
        )
    words = saved_tokenizer(base_run(given.adapter.base)) is not None
    fixed = (key for key, _ in overrides if key.startswith("model.") or (words and key == "data.tokenizer"))
    if field := next(fixed, None):
        raise UserError("runs/import-sets-base-field", f"{field} is the base's, {given.adapter.base}: leave it out")
    config, whole = on_its_base(given.changed(model=base.model, adapter__fingerprint=trained_beside(source)))
    config, tensors = import_peft(source, config, lambda: whole.groups["parameters"])
    config = _named(config, folder, overrides)
    template, said = first_template(config, read_chat_template(source)), _tokenizer_beside(source, given.adapter.base)
    with new_run(folder):
        target = interchange_of(folder, "update-00000000")
        save_interchange(target, config, {"parameters": tensors}, Progress(), "import")
        if (base_run(given.adapter.base) / SAVED_FACTS).is_file():
            load_tokenizer(base_run(given.adapter.base)).save(folder)
        if template:
            write_atomically(folder / CHAT_TEMPLATE, template)
        carry_chat_template(config, folder)
        write_atomically(folder / "config.json", config.to_json())
    typed = shlex.quote(str(folder))
    c, remark = config.adapter, keep_base(config, whole.folder)
    return [
        *([f"warning: {remark}"] if remark else []),
        f"wrote {folder}: {source} as a run at update 0, rank {c.rank}, scale {c.scale:g}, {len(tensors)} tensors",
        *(f"note: {remark}" for remark in peft_remarks(source)),
        *said,
        f"train it on {config.data.source} with: python -m torchtrain.run --resume {typed} (or jaxtrain.run)",
        f"text from it: python -m torchtrain.generate {typed} PROMPT (or jaxtrain.generate)",
    ]


def _tokenizer_beside(source: Path, base: str) -> list[str]:
    """What there is to say of a tokenizer in an adapter's folder: the run's is its base's.

    Raises `UserError` where that one makes other ids of the same texts.
    """
    if not (source / "tokenizer.json").is_file() or not (base_run(base) / SAVED_FACTS).is_file():
        return []
    ours = load_tokenizer(base_run(base))
    try:
        theirs = read_tokenizer(source)
    except UserError as obstacle:
        return [f"the tokenizer of its base is the run's; its own can't be read: {obstacle}"]
    if any(list(theirs.encode(text)) != list(ours.encode(text)) for text in SAMPLES):
        raise UserError(
            "runs/import-tokenizer-not-base",
            f"{source} has a tokenizer that makes other ids than its base's, {base}: give the base that it was trained "
            "on, or take its tokenizer files away",
        )
    if (theirs.specials, theirs.vocab) == (ours.specials, ours.vocab):
        return []
    others = ", ".join(sorted(theirs.specials.keys() ^ ours.specials.keys())) or "other ids"
    return [f"the tokenizer of its base is the run's; its own differs in special tokens ({others})"]


def _named(config: RunConfig, folder: Path, overrides: Sequence[tuple[str, str]]) -> RunConfig:
    """The config under the folder's name, with its tokenizer, and what the user asked for."""
    raw = config.model_dump(mode="json", exclude_none=True)
    raw |= {"name": re.sub(r"[^A-Za-z0-9._-]", "-", folder.absolute().name)}
    if saved := saved_tokenizer(base_run(str(config.adapter.base))):
        raw["data"]["tokenizer"] = str((folder / saved.name).absolute())
    named = build_config(apply_overrides(raw, overrides), str(folder), overrides)
    for field in ("rank", "alpha", "rslora", "targets", "bias", "kind"):
        if getattr(named.adapter, field) != getattr(config.adapter, field):
            raise UserError(
                "runs/import-sets-peft-field",
                f"adapter.{field} is the PEFT adapter's, {getattr(config.adapter, field)}: leave it out",
            )
    return named
