"""What a run says: progress on the terminal, metrics.jsonl, TensorBoard, optional W&B, and report.html at the end."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from coretrain.base.files import write_atomically
from coretrain.base.machine import made_with
from coretrain.config.run import RunConfig
from coretrain.diagnosis.read import Known, verdict_of
from coretrain.journal.answers import keep_answers
from coretrain.journal.figures import best_words, evaluated_words, told, validation_key
from coretrain.journal.metrics import (
    METRICS,
    SAMPLE,
    Rows,
    clock,
    gaps,
    number,
    printable,
    read_metrics,
    rewound,
)
from coretrain.journal.page import write_report
from coretrain.journal.segments import Segment, begin_segment, read_segments, trained_where
from coretrain.journal.sets import TITLE, evaluated_lines, first_of, table
from coretrain.journal.trackers import Trackers, require_wandb
from coretrain.planning.flops import stated_peak, update_flops_per_token

SMOOTHING = 0.95
PYTHON = re.compile(r"\s*(async |await |class |def |for |from |if |import |return |try:|while |with |@\w)")


class Journal:
    """One run's voice. Every update is one line of metrics.jsonl, flushed; non-finite numbers stand there as null.

    A run that goes on at `start_update` first loses what was journalled beyond it; `gaps` says what metrics.jsonl lacks
    before that, or ''. Raises `UserError` where Weights & Biases is asked for and missing, or where metrics.jsonl is
    damaged before its last line.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        stack: str,
        start_update: int = 0,
        device_name: str = "",
        console: Console | None = None,
        processes: int = 1,
    ) -> None:
        self.folder, self.config, self.stack, self.device_name = folder, config, stack, device_name
        self.console = console or Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.peak, self.peak_source = stated_peak(device_name, config)
        self.flops = update_flops_per_token(config)
        self.started, self.first = time.perf_counter(), start_update
        self.smoothed, self.weight = 0.0, 0.0
        self.recent: list[float] = []
        self.live: Live | None = None
        self.known: Known | None = None
        """What the data says for the diagnosis, from whoever has opened it."""
        if config.journal.wandb:
            require_wandb()  # before anything is written
        self.gaps = gaps(folder, start_update, saved=True) if start_update else ""
        # On a resume the checkpoint was saved before any rollback that began from it: that is yet to be met again.
        # A run that begins once more evaluates once more before its first update.
        redone = ("skip", "rollback") if start_update else ("skip", "rollback", "evaluation")
        self.metrics = rewound(folder, start_update, redone)
        begin_segment(folder, Segment(start_update, stack, device_name, made_with(processes)))
        self.last: dict[str, Any] = {}
        self.before: Mapping[str, Any] = {}
        self.final: Mapping[str, Any] | None = None
        self._remember()
        self.boards = self._boards()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end_live()
        self.metrics.close()
        if self.boards:
            self.boards.close()

    def header(self, blocks: Mapping[str, Rows | str]) -> None:
        """Print one block for each title: rows of (label, value), or a sentence."""
        for title, block in blocks.items():
            if self.console.is_terminal:
                grid = Table.grid(padding=(0, 2))
                rows = [("", block)] if isinstance(block, str) else block
                for label, value in rows:  # as Text: a reason may name an extra in brackets, which isn't markup
                    grid.add_row(*([Text(label, "dim"), Text(value)] if label else [Text(value)]))
                self.console.print(Panel(grid, title=title, title_align="left", border_style="cyan"))
            else:
                self._say(f"{title}:" + (f" {block}" if isinstance(block, str) else ""))
                for label, value in () if isinstance(block, str) else block:
                    self._say(f"  {label:<14} {value}")

    def update(
        self,
        update: int,
        loss: float,
        grad_norm: float,
        lr: float,
        tokens: int,
        batch_hash: str,
        seconds: float,
        **extra: float | int | str | None,
    ) -> None:
        """Journal update `update` (from 0): nats a token, norm before the clip, tokens seen, seconds taken, and more.

        The row also has `smoothed_loss`. Tokens a second and MFU follow from `seconds`, the only field of a row that
        differs between two runs of the same thing, and are shown but not written.
        """
        self._smooth(loss)
        smooth = self.smoothed / self.weight if self.weight else math.nan
        row: dict[str, Any] = {"update": update, "loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens": tokens}
        row |= {"batch_hash": batch_hash, "smoothed_loss": smooth, "seconds": seconds}
        self._write(row | extra)
        self.last = row
        more = {f"align/{name}": value for name, value in extra.items() if isinstance(value, int | float)}
        self.recent = [*self.recent[-19:], max(seconds, 1e-9)]
        speed = self.config.tokens_per_update / (sum(self.recent) / len(self.recent))
        self._board(update, {"train/loss": loss, "train/grad_norm": grad_norm, "train/lr": lr})
        self._board(update, {"train/tokens_per_second": self.config.tokens_per_update / max(seconds, 1e-9)} | more)
        done, total = update + 1, self.config.train.updates
        left = (total - done) * self.config.tokens_per_update / speed
        mfu = f"  MFU {speed * self.flops / self.peak:.1%}" if self.peak else ""
        line = (
            f"update {done:>{len(str(total))}}/{total}  loss {loss:.4f}  smoothed {smooth:.4f}  norm {grad_norm:.3f}  "
            f"lr {lr:.2e}{told(self.config, extra)}  {speed:,.0f} tokens/s{mfu}  {clock(left)} left"
        )
        if self.console.is_terminal:
            self._show_live(line, done / total)
        elif update == self.first or done == total or done % self.config.train.log_interval == 0:
            self._say(line)

    def evaluation(self, update: int, val_loss: float, figures: Mapping[str, float]) -> None:
        """Journal an evaluation after `update` updates: the loss that the best one has lowest, and its figures.

        Of text these are nats a token, and bits a byte.
        """
        row = {"update": update, "val_loss": val_loss} | {validation_key(name): v for name, v in figures.items()}
        self._write(row)
        self._board(update, {"validation/loss": val_loss} | {f"validation/{name}": v for name, v in figures.items()})
        if not self.final and not self.last:
            self.before = row
        self.final = row
        first, *others = evaluated_words(self.config, row)
        self.console.print(
            Text.assemble(f"after {update} updates: ", (first, "bold"), "".join(f", {o}" for o in others))
        )
        for line in evaluated_lines(self.before, row):
            self._say(line)

    def answers(self, update: int, answers: Sequence[Mapping[str, Any]]) -> None:
        """Keep some of the answers that were sampled after `update` updates, for the report."""
        if answers:
            keep_answers(self.folder, update, answers)

    def event(self, update: int, kind: str, text: str) -> None:
        """Journal something that happened after `update` updates: checkpoint, skip, rollback, warning."""
        self._write({"update": update, "event": kind, "text": text})
        self._say(f"{kind} at {update}: {text}", {"checkpoint": "dim", "stop": "bold red"}.get(kind, "yellow"))

    def sample(self, prompt: str, text: str) -> None:
        """Show generated text, and keep it for the report."""
        write_atomically(self.folder / SAMPLE, (prompt + text).encode())
        self._end_live()
        if self.console.is_terminal:
            whole = printable(prompt + text)
            python = Syntax(whole, "python", theme="ansi_dark", background_color="default", word_wrap=True)
            content = python if PYTHON.match(prompt) else Text.assemble((prompt, "bold"), whole[len(prompt) :])
            self.console.print(Panel(content, title="sample", title_align="left", border_style="green"))
        else:
            self._say("sample:")
            self._say(printable(prompt + text))

    def rewind(self, start_update: int) -> None:
        """Forget what was journalled from update `start_update` on, but the rollbacks, before a second try."""
        self.metrics.close()
        self.metrics = rewound(self.folder, start_update, ("skip",), keep=("rollback",))
        self._remember()
        if self.boards:
            self.boards.restart(start_update, self.evaluations)

    def close(self, status: str, best: Mapping[str, Any] | None = None) -> None:
        """Print the last words and write report.html."""
        self._end_live()
        self.metrics.flush()
        report = write_report(self.folder, self.stack, status, self.device_name, self.known)
        rows = [("status", f"{status} in {clock(time.perf_counter() - self.started)}")]
        segments = read_segments(self.folder)
        if len({segment.stack for segment in segments}) > 1 and self.last:
            rows.append(("trained", trained_where(segments, self.last["update"] + 1)))
        if self.last:
            smooth = self.last.get("smoothed_loss")
            rows.append(("training", f"loss {number(self.last['loss'])}, smoothed {number(smooth)}"))
        if self.final:
            rows.append(("validation", ", ".join(evaluated_words(self.config, self.final)).removeprefix("validation ")))
        sets = table(self.before, self.final or {})
        if best:
            path = self.folder / "checkpoints" / f"update-{best['update']:08d}"
            where = str(path) if path.exists() else f"after {best['update']} updates, not kept"
            rows.append(("best", f"{where} ({best_words(self.config, best['val_loss'])})"))
        if verdict := verdict_of(self.config, *read_metrics(self.folder), self.known):
            rows.append(("diagnosis", f"{verdict.name}: {verdict.reasons[0]}" if verdict.reasons else verdict.name))
        rows.append(("report", str(report)))
        rows.append(("metrics", str(self.folder / METRICS)))
        if self.config.journal.tensorboard:
            rows.append(("curves", f"tensorboard --logdir {shlex.quote(str(self.folder / 'tensorboard'))}"))
        self.header({**({TITLE: sets} if sets else {}), "result": rows})

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=not self.console.is_terminal)

    def _remember(self) -> None:
        """Take up the smoothed loss and the last figures where metrics.jsonl ends."""
        updates, self.evaluations, _ = read_metrics(self.folder)
        self.smoothed, self.weight = 0.0, 0.0
        for row in updates:
            self._smooth(row["loss"])
        self.last = updates[-1] if updates else {}
        self.before = first_of(self.evaluations, updates)
        self.final = None
        if self.evaluations:
            self.final = self.evaluations[-1]

    def _smooth(self, loss: float | None) -> None:
        if loss is not None and math.isfinite(loss):
            self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
            self.weight = SMOOTHING * self.weight + 1 - SMOOTHING

    def _write(self, row: Mapping[str, Any]) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.metrics.write(json.dumps(clean) + "\n")
        self.metrics.flush()

    def _show_live(self, line: str, share: float) -> None:
        if self.live is None:
            self.live = Live(console=self.console, refresh_per_second=8, transient=True)
            self.live.start()
        width = max(20, min(self.console.width - 2, 100))
        full = round(share * width)
        done, left = "━━" if self.console.encoding.startswith("utf") else "#-"
        self.live.update(f"[cyan]{done * full}[/][dim]{left * (width - full)}[/]\n{line}")

    def _end_live(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None

    def _boards(self) -> Trackers | None:
        if self.config.journal.tensorboard or self.config.journal.wandb:
            return Trackers(self.folder, self.config, self.first, self.evaluations)
        return None

    def _board(self, update: int, values: Mapping[str, float]) -> None:
        if self.boards:
            self.boards.add(update, values)


class SilentJournal(Journal):
    """The journal of every process but the first: it says and writes nothing."""

    def __init__(self) -> None:
        """No folder, no files."""
        self.gaps = ""

    def __enter__(self) -> SilentJournal:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def header(self, blocks: Mapping[str, Rows | str]) -> None:
        """Say nothing."""

    def update(self, *_: Any, **__: Any) -> None:
        """Say nothing."""

    def evaluation(self, update: int, val_loss: float, figures: Mapping[str, float]) -> None:
        """Say nothing."""

    def answers(self, update: int, answers: Sequence[Mapping[str, Any]]) -> None:
        """Keep nothing."""

    def event(self, update: int, kind: str, text: str) -> None:
        """Say nothing."""

    def sample(self, prompt: str, text: str) -> None:
        """Say nothing."""

    def rewind(self, start_update: int) -> None:
        """Undo nothing."""

    def close(self, status: str, best: Mapping[str, Any] | None = None) -> None:
        """Close nothing."""
