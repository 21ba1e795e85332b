"""What a run says: progress on the terminal, metrics.jsonl, TensorBoard, optional W&B, and report.html at the end."""

from __future__ import annotations

import json
import math
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

from coretrain.budget import flops_per_token, stated_peak
from coretrain.config import RunConfig
from coretrain.data.files import write_atomically
from coretrain.errors import UserError
from coretrain.report import write_report

METRICS, SAMPLE = "metrics.jsonl", "sample.txt"
SMOOTHING = 0.95
Rows = Sequence[tuple[str, str]]


class Journal:
    """One run's voice. Every update is one line of metrics.jsonl, flushed; non-finite numbers stand there as null."""

    def __init__(
        self, folder: Path, config: RunConfig, stack: str, start_update: int = 0, device_name: str = ""
    ) -> None:
        self.folder, self.config, self.stack = folder, config, stack
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.peak, self.peak_source = stated_peak(device_name, config)
        self.flops = flops_per_token(config.model)
        self.started, self.first = time.perf_counter(), start_update
        self.smoothed, self.weight = 0.0, 0.0
        self.recent: list[float] = []
        self.live: Live | None = None
        self.last: dict[str, Any] = {}
        self.final: tuple[float, float] | None = None
        self.metrics = rewound(folder, start_update)
        for row in read_metrics(folder)[0]:
            self._smooth(row["loss"])
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
                for label, value in rows:
                    grid.add_row(*([f"[dim]{label}", value] if label else [value]))
                self.console.print(Panel(grid, title=title, title_align="left", border_style="cyan"))
            else:
                self.console.print(f"{title}:" + (f" {block}" if isinstance(block, str) else ""))
                for label, value in () if isinstance(block, str) else block:
                    self.console.print(f"  {label:<14} {value}")

    def update(
        self, update: int, loss: float, grad_norm: float, lr: float, tokens: int, batch_hash: str, seconds: float
    ) -> None:
        """Journal update `update` (from 0): nats a token, norm before the clip, tokens seen, seconds taken."""
        row: dict[str, Any] = {"update": update, "loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens": tokens}
        row |= {"batch_hash": batch_hash, "seconds": seconds}
        self._write(row)
        self._smooth(loss)
        self.recent = [*self.recent[-19:], seconds]
        speed = self.config.tokens_per_update / (sum(self.recent) / len(self.recent))
        smooth = self.smoothed / self.weight if self.weight else math.nan
        self.last = {"loss": loss, "smoothed": smooth, "grad_norm": grad_norm, "lr": lr, "tokens/s": speed}
        self._board(update, {"train/loss": loss, "train/grad_norm": grad_norm, "train/lr": lr})
        self._board(update, {"train/tokens_per_second": self.config.tokens_per_update / seconds})
        done, total = update + 1, self.config.train.updates
        left = (total - done) * self.config.tokens_per_update / speed
        mfu = f"  MFU {speed * self.flops / self.peak:.1%}" if self.peak else ""
        line = (
            f"update {done:>{len(str(total))}}/{total}  loss {loss:.4f}  smoothed {smooth:.4f}  norm {grad_norm:.3f}  "
            f"lr {lr:.2e}  {speed:,.0f} tokens/s{mfu}  {clock(left)} left"
        )
        if self.console.is_terminal:
            self._show_live(line, done / total)
        elif done == 1 or done == total or done % self.config.train.log_interval == 0:
            self.console.print(line)

    def evaluation(self, update: int, val_loss: float, bits_per_byte: float) -> None:
        """Journal an evaluation after `update` updates: nats a token, and bits a byte of text."""
        self._write({"update": update, "val_loss": val_loss, "bits_per_byte": bits_per_byte})
        self._board(update, {"validation/loss": val_loss, "validation/bits_per_byte": bits_per_byte})
        self.final = val_loss, bits_per_byte
        self.console.print(
            f"after {update} updates: [bold]validation loss {val_loss:.4f}[/], {bits_per_byte:.4f} bits per byte"
        )

    def event(self, update: int, kind: str, text: str) -> None:
        """Journal something that happened after `update` updates: checkpoint, skip, rollback, warning."""
        self._write({"update": update, "event": kind, "text": text})
        style = {"checkpoint": "dim"}.get(kind, "yellow")
        self.console.print(f"[{style}]{kind} at {update}: {text}[/]")

    def sample(self, prompt: str, text: str) -> None:
        """Show generated text, and keep it for the report."""
        write_atomically(self.folder / SAMPLE, (prompt + text).encode())
        self._end_live()
        if self.console.is_terminal:
            code = Syntax(prompt + text, "python", theme="ansi_dark", word_wrap=True)
            self.console.print(Panel(code, title="sample", title_align="left", border_style="green"))
        else:
            self.console.print("sample:")
            self.console.print(prompt + text, markup=False)

    def rewind(self, start_update: int) -> None:
        """Forget what was journalled from update `start_update` on, before a rollback's second try."""
        self.metrics.close()
        self.metrics = rewound(self.folder, start_update)

    def close(self, status: str, best: Mapping[str, Any] | None = None) -> None:
        """Print the last words and write report.html."""
        self._end_live()
        self.metrics.flush()
        report = write_report(self.folder, self.stack, status)
        rows = [("status", f"{status} in {clock(time.perf_counter() - self.started)}")]
        if self.final:
            rows.append(("validation", f"loss {self.final[0]:.4f}, {self.final[1]:.4f} bits per byte"))
        if best:
            path = self.folder / "checkpoints" / f"update-{best['update']:08d}"
            rows.append(("best", f"{path} (validation loss {best['val_loss']:.4f})"))
        rows.append(("report", str(report)))
        rows.append(("metrics", str(self.folder / METRICS)))
        self.header({"result": rows})

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
        self.live.update(f"[cyan]{'━' * full}[/][dim]{'━' * (width - full)}[/]\n{line}")

    def _end_live(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None

    def _boards(self) -> Boards | None:
        if self.config.journal.tensorboard or self.config.journal.wandb:
            return Boards(self.folder, self.config, self.first)
        return None

    def _board(self, update: int, values: Mapping[str, float]) -> None:
        if self.boards:
            self.boards.add(update, values)


class Boards:
    """TensorBoard's event file, and Weights & Biases where asked for."""

    def __init__(self, folder: Path, config: RunConfig, start_update: int) -> None:
        self.writer: Any = None
        self.wandb: Any = None
        if config.journal.tensorboard:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self.writer = EventFileWriter(str(folder / "tensorboard"))
            if start_update:  # tells TensorBoard to drop what an interrupted run wrote beyond its checkpoint
                start = Event(wall_time=time.time(), step=start_update, session_log=SessionLog(status=SessionLog.START))
                self.writer.add_event(start)
        if config.journal.wandb:
            try:
                import wandb
            except ImportError:
                raise UserError(
                    "journal.wandb needs the wandb package: pip install 'twintrain[wandb]', or set it to false"
                ) from None
            self.wandb = wandb.init(project="twintrain", name=folder.name, dir=folder, config=config.model_dump())

    def add(self, update: int, values: Mapping[str, float]) -> None:
        """Write scalars of one update."""
        if self.writer:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary

            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
            self.writer.add_event(Event(wall_time=time.time(), step=update, summary=summary))
        if self.wandb:
            self.wandb.log(dict(values), step=update)

    def close(self) -> None:
        """Flush and end."""
        if self.writer:
            self.writer.close()
        if self.wandb:
            self.wandb.finish()


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Updates, evaluations and events of a run, in order. A torn last line, as a kill leaves it, is passed over."""
    rows = []
    for line in (folder / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return (
        [row for row in rows if "loss" in row],
        [row for row in rows if "val_loss" in row],
        [row for row in rows if "event" in row],
    )


def rewound(folder: Path, start_update: int) -> Any:
    """metrics.jsonl opened to append, without what was journalled after `start_update` updates were done."""
    path = folder / METRICS
    if path.exists():
        updates, evaluations, events = read_metrics(folder)
        kept = [row for row in updates if row["update"] < start_update]
        kept += [row for row in (*evaluations, *events) if row["update"] <= start_update]
        kept.sort(key=lambda row: row["update"] + ("loss" in row))
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a", encoding="utf-8")


def clock(seconds: float) -> str:
    """Seconds in words: 42s, 3m07s, 2h05m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02}m"
