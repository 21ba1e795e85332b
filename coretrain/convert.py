"""What `scripts/convert.py` does: a run's checkpoint out to another form, and a Hugging Face model in as a run."""

from __future__ import annotations

from pathlib import Path

from coretrain.checkpoint import (
    Progress,
    interchange_of,
    load_interchange,
    newest_interchange,
    save_interchange,
    write_atomically,
)
from coretrain.config import RunConfig, build_config
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
    tokenizer = tokenizer_folder(path)
    export_huggingface(folder, loaded.config.model, loaded.groups["parameters"], tokenizer)
    say = "with its tokenizer" if tokenizer else f"without a tokenizer: no {SAVED_FACTS} beside it"
    return [
        f"wrote {folder}: {path} ({done}), {say}",
        f'load it with transformers.AutoModelForCausalLM.from_pretrained("{folder}")',
    ]


def import_run(source: Path, folder: Path) -> list[str]:
    """Make `folder` a run at update 0 that starts from the weights of a Hugging Face folder; lines to print.

    It holds config.json, an interchange checkpoint without moments (an optimizer starts afresh) and, where the folder's
    tokenizer is a byte-level BPE that ranks describe exactly, the tokenizer, which `data.tokenizer` then names.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose another folder")
    model, tensors = import_huggingface(source)
    lines = []
    try:
        tokenizer = read_tokenizer(source)
    except UserError as obstacle:
        tokenizer = None
        lines.append(f"without a tokenizer: {obstacle}")
    if tokenizer and tokenizer.vocab > model.vocabulary:
        raise UserError(f"{source} has more tokens ({tokenizer.vocab}) than the model has rows ({model.vocabulary})")
    raw = {"name": folder.name, "model": model.model_dump()}
    if tokenizer:
        tokenizer.save(folder)
        raw["data"] = {"tokenizer": str((folder / SAVED_RANKS).absolute())}
    config: RunConfig = build_config(raw, str(source))
    target = interchange_of(folder, "update-00000000")
    save_interchange(target, config, {"parameters": tensors}, Progress(seed=config.train.seed), "import")
    write_atomically(folder / "config.json", config.to_json())
    return [
        f"wrote {folder}: {source} as a run at update 0, {sum(value.size for value in tensors.values()):,} parameters",
        *lines,
        f"train it on with --resume {folder} --data.source YOUR_TEXT (and the learning rate you want)",
    ]
