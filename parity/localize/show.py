"""The localizer's report: table, verdict and picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from coretrain.base.errors import UserError
from parity.localize.rows import WORDS, Row, Verdict
from parity.page.film import Frame

if TYPE_CHECKING:
    from rich.console import Console

PANELS = {
    "forward": "Values",
    "cotangent": "Cotangents, last to first",
    "loss": "Loss, update by update",
    "norm": "Gradient norm, update by update",
}
"""Stages that are drawn as lines of their own."""


@dataclass
class Report:
    """Everything that was compared, with what can be shown and kept of it."""

    title: str
    rows: list[Row]
    verdict: Verdict
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """What reproduces it: the inputs, and what both sides make of the first tap that parts."""
    reproduce: str = ""
    frames: list[Frame] = field(default_factory=list)
    """What the player shows: every tap, reduced to a small grid (`parity.page.film`)."""
    notes: list[str] = field(default_factory=list)
    """Sentences below the verdict: lines of code, what was not compared."""
    measured: bool = False
    """Caps were measured tap by tap, and are shown."""

    def show(self, console: Console | None = None) -> None:
        """The table and the verdict, on a terminal; plain text where rich isn't installed."""
        try:
            from rich.console import Console
            from rich.markup import escape
            from rich.table import Table
        except ModuleNotFoundError:
            print(self.text())
            return
        console = console or Console()
        for title, headings, rows in self.tables():
            table = Table(title=title, title_style="bold", title_justify="left", header_style="dim")
            for heading in headings:
                if heading == headings[0]:
                    table.add_column(heading, overflow="fold", ratio=1 if console.width < 100 else None)
                else:
                    table.add_column(heading, justify="right")
            for bold, cells in rows:
                texts = [f"[bold red]{escape(text)}[/]" if parts else escape(text) for text, parts in cells]
                table.add_row(f"[bold]{texts[0]}[/]" if bold else texts[0], *texts[1:])
            console.print(table)
        colour = "green" if self.verdict.kind == "same" else "red"
        console.print(f"[bold {colour}]{self.verdict.kind}[/]: {escape(self.verdict.sentence)}", soft_wrap=True)
        for line in self._below():
            console.print(escape(line), soft_wrap=True)

    def text(self) -> str:
        """The same in plain text."""
        lines = []
        for title, headings, rows in self.tables():
            cells = [list(headings), *([f"{text}{' !' * parts}" for text, parts in row] for _, row in rows)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            lines += [title] * bool(title)
            lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        return "\n".join([*lines, f"{self.verdict.kind}: {self.verdict.sentence}", *self._below()])

    def _below(self) -> list[str]:
        lines = [f"usual reasons: {self.verdict.traps}"] * bool(self.verdict.traps)
        return [*lines, *self.notes, *[f"reproduce: {self.reproduce}"] * bool(self.reproduce)]

    def tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[bool, list[tuple[str, bool]]]]]]:
        """Title, headings and rows of each table; a row is (the first that parts, cells), a cell (text, it parts)."""
        made = []
        values, cotangents = ({row.name: row for row in self.rows if row.stage == s} for s in ("forward", "cotangent"))
        if values:
            rows = []
            for name, row in values.items():
                back = cotangents.get(name)
                cells = [(name, False), *(_figure(e, row.cap) for e in (row.free, row.teacher_forced))]
                cells += [_figure(e, back.cap) for e in (back.free, back.teacher_forced)] if back else [("", False)] * 2
                if self.measured:
                    caps = [row.cap] if back is None else [row.cap, back.cap]
                    cells.append((" ".join(dict.fromkeys(f"{cap:.0e}" for cap in caps)), False))
                rows.append((self.verdict.tap in (row.title, back.title if back else ""), cells))
            headings = ("tap", "value, free", "forced", "cotangent, free", "forced", *["cap"] * self.measured)
            made.append((self.title, headings, rows))
        if rest := self.rest():
            rows = []
            for row in rest:
                name = f"{row.title} ({row.note})" if row.note else row.title
                cap = f"{row.cap:.0e}" if np.isfinite(row.cap) else ""
                rows.append((row.title == self.verdict.tap, [(name, False), _figure(row.error, row.cap), (cap, False)]))
            made.append(("" if values else self.title, ("worst of its kind", "error", "cap"), rows))
        return made

    def rest(self) -> list[Row]:
        """What isn't a tap: of each kind the first rows that part (4 at most), or else the worst."""
        found = []
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.stage not in ("forward", "cotangent"):
                groups.setdefault(row.name if row.stage == "scalar" else row.stage, []).append(row)
        for group in groups.values():
            found += [row for row in group if row.parts][:4] or [max(group, key=lambda row: (row.load, row.error))]
        return found

    def save(self, folder: Path) -> None:
        """`localize.html`, `localize.png`, `localize.txt` and `localize.npz` (read with allow_pickle=False)."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / "localize.npz", allow_pickle=False, **self.arrays)
        with open(folder / "localize.txt", "w", encoding="utf-8") as file:
            self._write(file)
        self.picture(folder / "localize.png")
        from parity.page.player import write_player  # templates, which only a page needs

        write_player(self, folder / "localize.html")

    def _write(self, file: TextIO) -> None:
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            file.write(self.text() + "\n")
            return
        self.show(Console(file=file, width=120))

    def picture(self, path: Path) -> None:
        """Tap by tap on a log scale, free and teacher-forced, forward above and cotangents below."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        stages = [s for s in dict.fromkeys(row.stage for row in self.rows) if s in PANELS]
        rest = [row for row in self.rest() if row.stage not in stages]
        panels = [[row for row in self.rows if row.stage == stage] for stage in stages] + ([rest] if rest else [])
        titles = [PANELS[s] for s in stages]
        titles += ["The rest, the worst of each kind"] * bool(rest)
        longest = max(map(len, panels), default=1)
        # constrained, so that long names of taps never run into the panel below
        figure = Figure(figsize=(min(22, max(9, 2.5 + 0.3 * longest)), 0.9 + 3.5 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(max(len(panels), 1), 1, squeeze=False)[:, 0]
        for axis, rows, title in zip(axes, panels, titles, strict=False):
            _panel(axis, rows, title, self.verdict.tap)
        figure.suptitle(f"{self.title}: {self.verdict.kind}", x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.savefig(path, dpi=130)


def check_place(folder: Path) -> None:
    """Before anything is computed: a place that can't be written to costs no work, and a mistake leaves no folder."""
    if not next(place for place in (folder, *folder.absolute().parents) if place.exists()).is_dir():
        raise UserError("parity/output-not-a-folder", f"--output {folder} is a file, or lies in one: name a folder")


def _panel(axis, rows: Sequence[Row], title: str, first: str) -> None:
    lowest, highest = 1e-17, 1e2
    spots = np.arange(len(rows))

    def clipped(values: Iterable[float | None]) -> np.ndarray:
        # an error of 0 is drawn at the lower edge, one that is no number at the upper
        made = [np.nan if v is None else highest if np.isnan(v) else v for v in values]
        return np.clip(np.array(made, float), lowest, highest)

    free, teacher_forced = clipped(row.free for row in rows), clipped(row.teacher_forced for row in rows)
    edges = np.arange(len(rows) + 1) - 0.5
    floors, caps = clipped(row.floor for row in rows), clipped(row.cap for row in rows)
    axis.stairs(floors, edges, baseline=lowest, fill=True, color="#dfe7ee", lw=0, label="floor of a correct pair")
    axis.stairs(caps, edges, baseline=None, color="#8a949e", lw=1, ls="--", label="cap")
    joined = "-" if rows[0].stage in PANELS else ""
    if np.isfinite(free).any():
        axis.plot(spots, free, ls=joined, marker="o", ms=3.5, lw=1.2, color="#3b75af", label="free")
    if np.isfinite(teacher_forced).any():
        axis.plot(
            spots,
            teacher_forced,
            ls=joined,
            marker="D",
            ms=4,
            lw=1.2,
            color="#e08214",
            label="teacher-forced",
            zorder=3,
        )
    parted = [i for i, row in enumerate(rows) if row.parts]
    errors = clipped(row.error for row in rows)
    if parted:
        axis.plot(
            parted,
            errors[parted],
            ls="",
            marker="o",
            ms=11,
            mfc="none",
            mec="#c0392b",
            mew=1.8,
            zorder=4,
            label="parts",
        )
    for i, row in enumerate(rows):
        if row.title == first:
            right = i < len(rows) * 0.7
            axis.annotate(
                f"{row.title}\n{row.error:.1e}", (i, errors[i]), (14 if right else -14, 6), textcoords="offset points",
                ha="left" if right else "right", va="bottom", color="#c0392b", fontsize=9, fontweight="bold",
            )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(lowest / 2, max(1e-10, min(highest, 1e3 * np.nanmax(np.concatenate([free, teacher_forced, [0]])))))
    axis.set_xlim(-0.6, len(rows) - 0.4)
    if rows[0].stage in ("loss", "norm"):
        every = max(1, len(rows) // 20)
        axis.set_xticks(spots[::every], [row.name.rsplit(" ", 1)[-1] for row in rows[::every]], fontsize=8)
        axis.set_xlabel("update", fontsize=9)
    elif joined:
        axis.set_xticks(
            spots, [row.name for row in rows], rotation=45, ha="right", rotation_mode="anchor", fontsize=7.5
        )
    else:
        labels = [
            (WORDS[row.stage] + row.name).replace(" of ", " of\n") if row.stage in WORDS else row.name for row in rows
        ]
        axis.set_xticks(spots, labels, rotation=25, ha="right", rotation_mode="anchor", fontsize=7.5)
    axis.grid(axis="y", color="#eceff1", lw=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_ylabel("relative error", fontsize=9)
    axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1), fontsize=8, frameon=False)


def _figure(error: float | None, cap: float) -> tuple[str, bool]:
    text = "" if error is None else "0" if error == 0 else f"{error:.1e}"
    return text, error is not None and not error <= cap
