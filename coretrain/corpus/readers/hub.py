"""Rows of a data set of the Hub (or of a folder that is like one), through the package datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import shown


def hub_rows(name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of `hf:NAME`, `hf:NAME:SUBSET` or `hf:NAME:SUBSET:SPLIT`, in the order of the data set.

    Raises `UserError` where the name is no such name, the package isn't there, or it can't read that.
    """
    parts = name.split(":")[1:]
    if not 1 <= len(parts) <= 3 or not parts[0]:
        raise UserError(
            "corpus/hub-name-malformed", f"{shown(name)}: write hf:NAME, hf:NAME:SUBSET or hf:NAME:SUBSET:SPLIT"
        )
    path, subset, split = (*parts, *[""] * (3 - len(parts)))
    try:
        import datasets
    except ImportError:
        raise UserError(
            "corpus/datasets-package-missing", f"{shown(name)} needs a package: pip install 'twintrain[datasets]'"
        ) from None
    try:
        yield from datasets.load_dataset(path, subset or None, split=split or "train", streaming=True)
    # a script in place of files, an unknown subset, no connection: each library below has exceptions of its own
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            "corpus/hub-unreadable",
            f"{shown(name)} can't be read by the package datasets: {reason.rstrip('.')}; look at name, subset, split "
            "and network, or give its files",
        ) from None
