"""What `scripts/convert.py` does: a run's checkpoint out to another form, and a Hugging Face model in as a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from coretrain.checkpoint import (
    Progress,
    interchange_of,
    load_interchange,
    newest_interchange,
    save_interchange,
    write_atomically,
)
from coretrain.config import RunConfig, apply_overrides, build_config
from coretrain.data.tokenizer import SAVED_FACTS, SAVED_RANKS
from coretrain.errors import UserError
from coretrain.hf_tokenizer import read_tokenizer
from coretrain.huggingface import export_huggingface, import_huggingface


def tokenizer_folder(checkpoint: Path) -> Path | None:
    """Where a checkpoint's tokenizer lies: in its own folder, or in its run's (for `RUN/interchange/update-N`)."""
    places = [checkpoint, *checkpoint.absolute().parents[:2]]
    return next((place for place in places if (place / SAVED_FACTS).is_file()), None)


def export_run(source: Path, folder: Path, form: str) -> list[str]:
    """Write the newest interchange checkpoint of `source` (a run or a checkpoint) into `folder`; lines to print.

    `form` is `huggingface` or `interchange`. Raises `UserError` naming what is missing, damaged or not exportable.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose another folder")
    path = newest_interchange(source)
    loaded = load_interchange(path)
    done = f"after update {loaded.progress.update}, written by {loaded.stack}"
    if form == "interchange":
        save_interchange(folder, loaded.config, loaded.groups, loaded.progress, loaded.stack)
        return [f"wrote {folder}: {path} ({done}) with {', '.join(loaded.groups)}"]
    if loaded.config.adapter.kind != "none":
        raise UserError(
            f"{source} holds an adapter alone: merge it first, with scripts/convert.py merge {source} FOLDER"
        )
    tokenizer = tokenizer_folder(path)
    export_huggingface(folder, loaded.config.model, loaded.groups["parameters"], tokenizer)
    say = "with its tokenizer" if tokenizer else f"without a tokenizer: no {SAVED_FACTS} beside it"
    return [
        f"wrote {folder}: {path} ({done}), {say}",
        f'load it with transformers.AutoModelForCausalLM.from_pretrained("{folder}")',
    ]


def import_run(
    source: Path, folder: Path, base: RunConfig | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Make `folder` a run at update 0 that starts from the weights of a Hugging Face folder; lines to print.

    Its config is `base`, with the imported model, then `overrides`. The run holds config.json, an interchange
    checkpoint without moments (the optimizer starts afresh) whose Progress names no data yet, and the source's
    tokenizer where that is a byte-level BPE that ranks describe exactly; `data.tokenizer` then names it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose another folder")
    model, tensors = import_huggingface(source)
    raw = (base or RunConfig()).model_dump(mode="json", exclude_none=True)
    raw |= {"name": re.sub(r"[^A-Za-z0-9._-]", "-", folder.absolute().name)}
    raw |= {"model": model.model_dump(mode="json", exclude_none=True)}
    try:
        tokenizer = read_tokenizer(source)
        say = "its tokenizer is the run's"
        raw["data"]["tokenizer"] = str((folder / SAVED_RANKS).absolute())
    except UserError as obstacle:
        tokenizer = None
        say = f"without a tokenizer ({obstacle}): data.tokenizer = {raw['data']['tokenizer']}"
    config = build_config(apply_overrides(raw, overrides), str(source))
    if tokenizer:
        config.with_vocab(tokenizer.vocab)
    # config.json comes last: without it the folder is no run
    target = interchange_of(folder, "update-00000000")
    save_interchange(target, config, {"parameters": tensors}, Progress(), "import")
    if tokenizer:
        tokenizer.save(folder)
    write_atomically(folder / "config.json", config.to_json())
    return [
        f"wrote {folder}: {source} as a run at update 0, {sum(value.size for value in tensors.values()):,} parameters",
        say,
        f"train it on {config.data.source} with: python -m torchtrain.run --resume {folder} (or jaxtrain.run)",
    ]
