"""Rows of a dataset of the Hub, or of one in a folder, by the package datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.data.files import stats, walk

HUB = "hf:"


def hub_parts(name: str) -> tuple[str, str, str]:
    """Dataset, subset and split of `hf:NAME[:SUBSET][:SPLIT]`, '' for what it leaves out. Raises `UserError`."""
    parts = name.removeprefix(HUB).split(":")
    if len(parts) > 3 or not parts[0]:
        raise UserError(
            "data/hf-name-malformed",
            f"data.source = {name}: write hf:NAME, hf:NAME:SUBSET or hf:NAME:SUBSET:SPLIT",
        )
    dataset, subset, split = (*parts, *[""] * (3 - len(parts)))
    return dataset, subset, split


def hub_listing(name: str) -> list[tuple[str, int, int]]:
    """The files of a dataset that lies in a folder: what its rows depend on besides the name."""
    folder = typed_path(hub_parts(name)[0])
    return stats([path for path in walk(folder) if path.is_file()], folder) if folder.is_dir() else []


def hub_rows(name: str) -> Iterator[dict[str, Any]]:
    """A pass over the rows, in order. Raises `UserError` where they can't be had."""
    dataset, subset, split = hub_parts(name)
    try:
        import datasets
    except ImportError:
        raise UserError(
            "data/datasets-package-missing",
            f"data.source = {name} needs the package datasets: pip install 'twintrain[datasets]'",
        ) from None
    try:
        yield from datasets.load_dataset(dataset, subset or None, split=split or "train", streaming=True)
    # A script in place of files, an unknown subset or split, files of another kind, no connection: each library
    # below has exceptions of its own, some of them bare RuntimeErrors.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            "data/hf-source-unreadable",
            f"data.source = {name} can't be read by the package datasets: {reason.rstrip('.')}; look at name, "
            "subset, split and network, or give files of text, as .jsonl or .parquet",
        ) from None
