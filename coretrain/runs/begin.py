"""The folder of a run that is made of something else, by an import or a merge: whole, or as it was before."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import TEMPORARY
from coretrain.base.interrupts import tidied_at_sigterm
from coretrain.base.locks import LOCK, held
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE
from coretrain.tokenizers.tokenizer import SAVED_FACTS, SAVED_JSON, SAVED_RANKS

MADE = ("interchange", SAVED_RANKS, SAVED_JSON, SAVED_FACTS, CHAT_TEMPLATE)
"""What an import writes before config.json, without which the folder is no run."""


def check_free(folder: Path) -> None:
    """Raise `UserError` unless there is nothing in `folder`, or only what an import left that was killed."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    left = LOCK in names and all(name in (LOCK, *MADE) or name.startswith(TEMPORARY) for name in names)
    if (folder.exists() and not folder.is_dir()) or (names and not left):
        raise UserError("runs/import-target-not-empty", f"{folder} exists and is not empty: choose another folder")


@contextlib.contextmanager
def new_run(folder: Path) -> Iterator[None]:
    """Make `folder` a run in the block, config.json last; after an error nothing of it is left.

    Raises `UserError` where something is there already, or another process is making it.
    """
    check_free(folder)
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, _warn), tidied_at_sigterm():
        check_free(folder)  # another may have finished since
        _clear(folder)
        try:
            yield
        except BaseException:
            _clear(folder)
            (folder / LOCK).unlink(missing_ok=True)
            if not there:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def _clear(folder: Path) -> None:
    for path in [*(folder / name for name in MADE), *folder.glob(f"{TEMPORARY}*")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
