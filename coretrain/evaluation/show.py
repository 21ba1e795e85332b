"""Outcomes as tables of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from coretrain.evaluation.compare import Compared
from coretrain.evaluation.evaluate import BITS, Outcome
from coretrain.evaluation.intervals import Estimate


def table(outcomes: Sequence[Outcome]) -> str:
    """A row a task: what it is judged by, with its interval, guessing, and the other figures."""
    rows = [["task", "rows", "judged by", "", "95% interval", "guessing", "also"]]
    for one in outcomes:
        others = "  ".join(f"{name} {_figure(name, each)}" for name, each in one.figures.items() if name != one.metric)
        chance = "" if one.task.form == "text" else f"{one.task.chance:.3f}"
        size = f"{len(one.task.rows):,}" if one.task.form != "text" else f"{len(one.task.text):,} ch"
        rows.append(
            [one.task.name, size, one.metric, _figure(one.metric, one.value), _interval(one.value), chance, others]
        )
    return _aligned(rows)


def compared_table(compared: Sequence[Compared]) -> str:
    """A row a task: before, after, the difference with its interval, and what that says."""
    rows = [["task", "judged by", "before", "after", "gain", "95% interval", ""]]
    for one in compared:
        before, after = (_figure(one.after.metric, each.value) for each in (one.before, one.after))
        gain = f"{one.gain.value:+.4f}" if one.after.metric == BITS else f"{one.gain.value:+.3f}"
        rows.append(
            [one.after.task.name, one.after.metric, before, after, gain, _interval(one.gain, True), one.verdict]
        )
    return _aligned(rows)


def harness_table(results: Mapping[str, Any]) -> str:
    """A row a figure of lm-eval's: its task, its name, what it is, its standard error."""
    rows = [["lm-eval's task", "figure", "", "standard error", ""]]
    for task, figures in results.items():
        for name, value in figures.items():
            metric, _, kind = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = figures.get(f"{metric}_stderr,{kind}")
                told = f"{error:.4f}" if isinstance(error, float) else ""
                rows.append([task, metric, f"{value:.4f}", told, ""])
    return _aligned(rows)


def _figure(metric: str, one: Estimate) -> str:
    return (
        f"{one.value:.4f}" if metric == BITS else f"{one.value:.2f}" if "perplexity" in metric else f"{one.value:.3f}"
    )


def _interval(one: Estimate, signed: bool = False) -> str:
    if not math.isfinite(one.low):
        return "one piece"
    return f"{one.low:+.3f} to {one.high:+.3f}" if signed else f"{one.low:.3f} to {one.high:.3f}"


def _aligned(rows: Sequence[Sequence[str]], width: int = 80) -> str:
    """Columns as wide as what is in them; what doesn't fit into `width` of the last goes into a line of its own."""
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(size) if place == 0 else cell.rjust(size)
            for place, (cell, size) in enumerate(zip(row, wide, strict=True))
        ]
        line = "  ".join(cells[:-1]).rstrip()
        last = row[-1]
        if not last or (number == 0 and last == "also"):
            lines.append(line)
        elif len(line) + 2 + len(last) <= width:
            lines.append(f"{line}  {last}")
        else:
            lines += [line, f"    {last}"]
    return "\n".join(lines)
