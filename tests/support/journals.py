"""Journals as a loop writes them, without a loop."""

from __future__ import annotations

import io
import math
from pathlib import Path

from rich.console import Console

from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.journal.journal import Journal


def config(**overrides: str) -> RunConfig:
    """That of a run of 12 updates, with `section__field=value` on top."""
    pairs = [("train.updates", "12"), ("schedule.warmup_updates", "2"), ("train.log_interval", "5")]
    return load_config(overrides=pairs + [(k.replace("__", "."), v) for k, v in overrides.items()]).with_vocab(4096)


def journal(folder: Path, start: int = 0, terminal: bool = False, **overrides: str) -> Journal:
    """The journal of a run in `folder`, which begins or goes on at update `start`, with a console of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    run = config(**({"journal__tensorboard": "false"} | overrides))
    (folder / "config.json").write_text(run.to_json())
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)
    return Journal(folder, run, "torch", start, console=console)


def printed(book: Journal) -> str:
    """What the console of `journal` was told."""
    return book.console.file.getvalue()  # type: ignore[attr-defined]  # the console's file is a StringIO here


def train(book: Journal, start: int, stop: int, loss: float | None = None, seconds: float = 0.5) -> None:
    """Updates as a loop would journal them: an evaluation and a checkpoint every 4, update 4 skipped."""
    for n in range(start, stop):
        if n == 4:
            book.event(n, "skip", "gradient norm is nan")
        norm = math.nan if n == 4 else 1.0 + 0.1 * n
        value = 5.0 + 1 / (n + 3) if loss is None else loss
        book.update(n, value, norm, 1e-3 / (n + 1), 2048 * (n + 1), f"{n:016x}", seconds)
        if (n + 1) % 4 == 0:
            book.evaluation(n + 1, 5.5 - 0.1 * n, {"bits_per_byte": 2.0 - 0.01 * n})
            book.event(n + 1, "checkpoint", f"update-{n + 1}")
