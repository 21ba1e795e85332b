"""report.html: one self-contained page of a run's curves, drawn by matplotlib as SVG; and the picture of two runs."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coretrain.config import RunConfig
from coretrain.data.files import write_atomically

INK, FAINT, ACCENT, SECOND = "#4c6ef5", "#9db2f7", "#e8590c", "#0ca678"
STYLE = """
:root { color-scheme: light dark; --fg: #1b1f24; --dim: #69727d; --bg: #fbfbfc; --card: #fff; --line: #e5e8ec; }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e6e9ed; --dim: #98a2ad; --bg: #14171b; --card: #1c2026; --line: #2d333b; }
}
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', sans-serif; color: var(--fg); background: var(--bg);
       margin: 0 auto; max-width: 1100px; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0 0 .6rem; } .sub { color: var(--dim); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: 1.6rem 0; }
.card, figure, section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.card { padding: .8rem 1rem; } .card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--dim); font-size: .82rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: .8rem; }
figure { margin: 0; padding: 1rem 1rem .4rem; } figure svg { width: 100%; height: auto; display: block; }
figure svg text { fill: var(--dim); }
section { padding: 1rem; margin-top: .8rem; overflow-x: auto; }
pre { margin: 0; font: 13.5px/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; white-space: pre-wrap; }
table { border-collapse: collapse; font-size: .9rem; } td { padding: .12rem 1.2rem .12rem 0; vertical-align: top; }
td:first-child { color: var(--dim); white-space: nowrap; } summary { cursor: pointer; font-weight: 600; }
"""


def write_report(folder: Path, stack: str, status: str) -> Path:
    """Write report.html from the folder's metrics.jsonl, config.json and sample.txt; returns its path."""
    from coretrain.journal import SAMPLE, read_metrics  # it imports this module

    updates, evaluations, events = read_metrics(folder)
    config = RunConfig.from_json((folder / "config.json").read_text(encoding="utf-8"))
    sample = folder / SAMPLE
    framework = {"torch": "PyTorch", "jax": "JAX"}.get(stack, stack)
    parts = [
        f"<h1>{html.escape(config.name)}</h1>",
        f'<div class="sub">{html.escape(_sentence(config))}, trained in {framework}: {status}</div>',
        '<div class="cards">' + "".join(_cards(config, updates, evaluations)) + "</div>",
        '<div class="plots">' + "".join(_figures(config, updates, evaluations)) + "</div>",
    ]
    if sample.exists():
        text = html.escape(sample.read_text(encoding="utf-8", errors="replace"))
        parts.append(f"<section><h2>Sample</h2><pre>{text}</pre></section>")
    if events:
        rows = [(f"after {e['update']}", f"{e['event']}: {e['text']}") for e in events]
        parts.append(f"<section><details><summary>{len(events)} events</summary>{_table(rows)}</details></section>")
    fields = [(f"{k}.{n}", str(v)) for k, s in config.model_dump().items() if isinstance(s, dict) for n, v in s.items()]
    parts.append(f"<section><details><summary>Configuration</summary>{_table(fields)}</details></section>")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(config.name)} - twintrain</title><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def compare_plot(folders: Sequence[Path], labels: Sequence[str], output: Path) -> None:
    """Draw two runs' losses over each other, and under them the absolute difference on a log scale, as a PNG."""
    from matplotlib.figure import Figure

    from coretrain.journal import read_metrics

    runs = [read_metrics(folder) for folder in folders]
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for (updates, evaluations, _), label, color, style in zip(
        runs, labels, (INK, ACCENT), ("-", (0, (2, 2))), strict=True
    ):
        x, y = [u["update"] + 1 for u in updates], [u["loss"] for u in updates]
        top.plot(x, y, color=color, linestyle=style, linewidth=1.4, label=f"{label}, training loss")
        marks = [e["update"] for e in evaluations], [e["val_loss"] for e in evaluations]
        final = evaluations[-1]["val_loss"]
        marker, size = ("o", 8) if label == labels[0] else ("x", 6)
        top.plot(
            *marks, marker, color=color, markersize=size, mfc="none", label=f"{label}, validation (end: {final:.4f})"
        )
    first, second = ([u["loss"] for u in run[0]] for run in runs)
    difference = [max(abs(a - b), 1e-9) for a, b in zip(first, second, strict=False)]
    bottom.semilogy(range(1, len(difference) + 1), difference, color=SECOND, linewidth=1)
    top.set_ylabel("loss (nats a token)")
    bottom.set_ylabel("|difference|")
    bottom.set_xlabel("update")
    top.legend(frameon=False)
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    top.set_title(f"{labels[0]} and {labels[1]}: the same run", loc="left", fontweight="bold")
    figure.savefig(output, dpi=150)


def _sentence(config: RunConfig) -> str:
    m, t = config.model, config.train
    return (
        f"{m.layers} layers x {m.width}, {m.norm}, {m.position} positions, {m.mlp}, vocabulary {m.vocabulary:,}; "
        f"{t.updates:,} updates of {config.tokens_per_update:,} tokens of {config.data.source}"
    )


def _cards(config: RunConfig, updates: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> list[str]:
    cards = []
    if evaluations:
        last = evaluations[-1]
        cards += [("validation loss", f"{last['val_loss']:.4f}"), ("bits per byte", f"{last['bits_per_byte']:.4f}")]
    if updates:
        seconds = sum(u["seconds"] for u in updates)
        cards += [
            (
                "training loss, last update",
                "non-finite" if updates[-1]["loss"] is None else f"{updates[-1]['loss']:.4f}",
            ),
            ("tokens seen", f"{updates[-1]['tokens']:,}"),
            ("tokens a second", f"{len(updates) * config.tokens_per_update / seconds:,.0f}"),
            ("minutes of updates", f"{seconds / 60:.1f}"),
        ]
    return [f'<div class="card"><b>{value}</b><span>{label}</span></div>' for label, value in cards]


def _figures(config: RunConfig, updates: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> list[str]:
    x = [u["update"] + 1 for u in updates]

    def values(name: str) -> list[float]:
        return [math.nan if u[name] is None else float(u[name]) for u in updates]

    losses = values("loss")
    speed = [config.tokens_per_update / u["seconds"] for u in updates]
    marks = [e["update"] for e in evaluations], [e["val_loss"] for e in evaluations]
    return [
        _figure(
            "Loss (nats a token)", [(x, losses, FAINT, "each update"), (x, _smooth(losses), INK, "smoothed")], marks
        ),
        _figure("Learning rate", [(x, values("lr"), INK, "")]),
        _figure("Gradient norm, before the clip", [(x, values("grad_norm"), INK, "")], log=True),
        _figure(
            "Throughput (tokens a second)", [(x, speed, FAINT, "each update"), (x, _smooth(speed), INK, "smoothed")]
        ),
    ]


def _figure(
    title: str,
    lines: Sequence[tuple[list[int], list[float], str, str]],
    marks: tuple[list[int], list[float]] | None = None,
    log: bool = False,
) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": title}):
        figure = Figure(figsize=(6.2, 3.1), layout="constrained")
        figure.patch.set_alpha(0)
        axis = figure.subplots()
        axis.patch.set_alpha(0)
        for x, y, color, label in lines:
            axis.plot(x, y, color=color, linewidth=1.0 if color == FAINT else 1.8, label=label or None)
        if marks and marks[0]:
            axis.plot(*marks, "o", color=ACCENT, markersize=5, label="validation")
        if log:
            axis.set_yscale("log")
        axis.set_xlabel("update")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#8884")
        axis.tick_params(color="#8888")
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.margins(x=0.02)
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return (
        f'<figure role="img" aria-label="{html.escape(title)} over updates"><h2>{html.escape(title)}</h2>{svg}</figure>'
    )


def _smooth(values: list[float], keep: float = 0.95) -> list[float]:
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        out.append(mean / weight if weight else math.nan)
    return out


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{cells}</table>"
