"""report.html: one self-contained page of a run's curves; and the picture of two runs over each other."""

from __future__ import annotations

import html
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coretrain.base.files import write_atomically
from coretrain.config.load import config_from_json
from coretrain.config.run import RunConfig
from coretrain.journal.answers import read_answers
from coretrain.journal.chart import Line, chart
from coretrain.journal.figures import (
    JUDGED,
    OF_TEXT,
    REWARDED,
    TASK,
    WHEN_THE_LOSS_IS_0,
    charts_of,
    evaluated_words,
)
from coretrain.journal.segments import Segment, read_segments, trained_where
from coretrain.journal.sets import drawn as drawn_sets
from coretrain.journal.sets import section as sets_section

if TYPE_CHECKING:  # it needs numpy, which pictures of two runs and their help don't
    from coretrain.diagnosis.read import Known
    from coretrain.diagnosis.verdict import Verdict

SHOWN_EVENTS = 200
Row = Mapping[str, Any]


def write_report(folder: Path, stack: str = "", status: str = "", device: str = "", known: Known | None = None) -> Path:
    """Write report.html from the folder's metrics.jsonl, config.json and sample.txt; returns its path.

    `status` is said on the page, and where each update was made; where the folder doesn't tell, `stack` and `device`.
    `known` is what the diagnosis takes from the data.
    """
    from coretrain.diagnosis.read import verdict_of
    from coretrain.journal.metrics import SAMPLE, read_metrics

    updates, evaluations, events = read_metrics(folder)
    config = config_from_json((folder / "config.json").read_text(encoding="utf-8"))
    segments = read_segments(folder) or ([Segment(0, stack, device)] if stack else [])
    place = trained_where(segments, updates[-1]["update"] + 1 if updates else 0)
    badge = f'<span class="status {html.escape(status)}">{html.escape(status)}</span>' if status else ""
    parts = [
        f"<header><h1>{html.escape(config.name)}</h1>{badge}</header>",
        f'<p class="sub">{html.escape(", ".join([_sentence(config), f"trained {place}".rstrip()]))}.</p>',
        '<div class="cards">' + "".join(_cards(config, updates, evaluations)) + "</div>",
    ]
    if verdict := verdict_of(config, updates, evaluations, events, known):
        parts.append(_diagnosis(verdict))
    if updates:
        parts.append('<div class="plots">' + "".join(_charts(config, updates, evaluations, events)) + "</div>")
    parts.append(sets_section(evaluations, updates))
    if config.train.objective in REWARDED:
        title = "What to look at when the loss is 0"
        parts.append(f"<section><details><summary>{title}</summary><p>{WHEN_THE_LOSS_IS_0}</p></details></section>")
    if answers := read_answers(folder):
        parts.append(f"<section><h2>Sampled answers</h2>{_answers(answers)}</section>")
    sample = folder / SAMPLE
    if sample.exists():
        parts.append(f"<section><h2>Sample</h2><pre>{_sample(config, sample)}</pre></section>")
    if events:
        rows = [(f"after {e['update']:,}", f"{e['event']}: {e['text']}") for e in events[-SHOWN_EVENTS:]]
        more = f" (the last {len(rows)} of {len(events):,})" if len(rows) < len(events) else f" ({len(events)})"
        table = _table({"": rows})
        parts.append(f"<section><details><summary>Events{more}</summary>{table}</details></section>")
    sections = {k: v for k, v in config.model_dump(mode="json").items() if isinstance(v, dict)}
    fields = {name: [(key, _value(value)) for key, value in section.items()] for name, section in sections.items()}
    parts.append(f"<section><details><summary>Configuration</summary>{_table(fields)}</details></section>")
    parts.append("<footer>Made by twintrain from metrics.jsonl, which has every figure at full precision.</footer>")
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(config.name)} - twintrain</title><style>{style}</style></head><body>"
        + "\n".join(parts)
        + f"<script>{script}</script></body></html>\n"
    )
    path = folder / "report.html"
    write_atomically(path, page.encode(errors="replace"))
    return path


def compare_plot(folders: Sequence[Path], labels: Sequence[str], output: Path, title: str = "") -> None:
    """Draw two runs' losses over each other, and under them the absolute difference on a log scale, as a PNG.

    Updates are paired by number; where both losses are equal to the last bit there is nothing to draw on a log scale,
    so those stand as dots on the axis.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    from coretrain.journal.metrics import read_metrics

    runs = [read_metrics(folder) for folder in folders]
    losses = [{u["update"] + 1: _finite(u["loss"]) for u in updates} for updates, _, _ in runs]
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    looks = (("#3b5bdb", "-", "o", 8), ("#e8590c", (0, (2, 2)), "x", 6))
    for loss, (_, evaluations, _), label, look in zip(losses, runs, labels, looks, strict=True):
        color, style, marker, size = look
        top.plot(list(loss), list(loss.values()), color=color, linestyle=style, linewidth=1.4, label=label)
        if evaluations:
            x, y = [e["update"] for e in evaluations], [_finite(e["val_loss"]) for e in evaluations]
            said = f"{label}, validation (end: {y[-1]:.4f})"
            top.plot(x, y, marker, color=color, markersize=size, mfc="none", label=said)
    shared = sorted(losses[0].keys() & losses[1].keys())
    difference = [abs(losses[0][x] - losses[1][x]) for x in shared]
    gaps = [d if d > 0 else math.nan for d in difference]  # one between two equal ones is seen by its dot
    bottom.semilogy(shared, gaps, color="#0c8599", linewidth=1, marker=".", markersize=2)
    bottom.yaxis.set_minor_formatter(NullFormatter())
    equal = [x for x, d in zip(shared, difference, strict=True) if d == 0]
    if equal:
        base = bottom.get_xaxis_transform()
        bottom.plot(equal, [0.03] * len(equal), ".", color="#868e96", markersize=3, transform=base, label="equal")
        bottom.legend(frameon=False, fontsize=9, loc="lower right")
    top.set_ylabel("training loss (nats a token)")
    bottom.set_ylabel("difference (nats)")
    bottom.set_xlabel("update")
    top.legend(frameon=False)
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#adb5bd")
        axis.tick_params(color="#adb5bd")
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.margins(x=0.015)
    words = textwrap.wrap(title or f"{labels[0]} and {labels[1]}", 76)
    top.set_title("\n".join(words), loc="left", fontweight="bold")
    figure.savefig(output, dpi=150)


def _sentence(config: RunConfig) -> str:
    m, t = config.model, config.train
    sources = ", ".join(part.source for part in config.data.mixture) or config.data.source
    layers = "1 layer" if m.layers == 1 else f"{m.layers} layers"
    return (
        f"{layers} x {m.width}, {m.norm}, {m.position} positions, {m.mlp}, "
        f"vocabulary {m.vocabulary:,}; "
        f"{t.updates:,} updates of {config.tokens_per_update:,} tokens of {sources}"
    )


def _cards(config: RunConfig, updates: Sequence[Row], evaluations: Sequence[Row]) -> list[str]:
    from coretrain.journal.metrics import clock, number

    cards = []
    if evaluations:
        last = evaluations[-1]
        cards += _evaluated(config, last)
    if updates:
        speed = statistics.median(_speeds(config, updates))
        cards += [
            ("training loss", number(_smooth([_finite(u["loss"]) for u in updates])[-1])),
            ("tokens seen", f"{updates[-1]['tokens']:,}"),
            ("tokens a second", f"{speed:,.0f}"),
            ("time in updates", clock(sum(u["seconds"] for u in updates))),
        ]
    return [f'<div class="card"><b>{value}</b><span>{label}</span></div>' for label, value in cards]


def _charts(config: RunConfig, updates: Sequence[Row], evaluations: Sequence[Row], events: Sequence[Row]) -> list[str]:
    x = [u["update"] + 1 for u in updates]
    loss, norm, lr = ([_finite(u[name]) for u in updates] for name in ("loss", "grad_norm", "lr"))
    speed = _speeds(config, updates)
    marks = [(e["update"], _finite(e["val_loss"])) for e in evaluations]
    troubles = sorted({e["update"] + 1 for e in events if e["event"] in ("skip", "rollback", "stop")})
    troubles = [t for t in troubles if x[0] <= t <= x[-1]]
    raw, smooth = "each update", "smoothed"
    of_text = config.train.objective == "cross_entropy"
    if config.train.objective in REWARDED:
        marks = []
    return [
        chart(
            "Loss",
            "nats a token" if of_text else config.train.objective,
            x,
            [Line(raw, loss, "faint"), Line(smooth, _smooth(loss))],
            marks,
            troubles[-SHOWN_EVENTS:],
            wide=True,
        ),
        *drawn_sets(evaluations),
        *_own_charts(x, updates, evaluations),
        chart("Learning rate", "", x, [Line(raw, lr)]),
        chart("Gradient norm", "before the clip", x, [Line(raw, norm, "faint"), Line(smooth, _smooth(norm))], log=True),
        chart("Throughput", "tokens a second", x, [Line(raw, speed, "faint"), Line(smooth, _smooth(speed))]),
    ]


def _own_charts(x: Sequence[int], updates: Sequence[Row], evaluations: Sequence[Row]) -> list[str]:
    """The charts of the figures that the run's objective adds."""
    fields = list(dict.fromkeys(name for row in updates for name in row if name not in OF_TEXT))
    drawn, zeros = list[str](), list[str]()
    for one in charts_of(fields):
        if not any(row.get(field) for row in updates for field in one.fields):
            zeros.append(f"{one.title} ({one.unit})" if one.unit else one.title)
            continue
        looks = ("main", "faint") if len(one.fields) > 1 else ("main",)
        lines = [
            Line(name, [_finite(row.get(field)) for row in updates], look)
            for (field, name), look in zip(one.fields.items(), looks, strict=True)
        ]
        points = [(e["update"], _finite(e[one.validation])) for e in evaluations if one.validation in e]
        drawn.append(chart(one.title, one.unit, x, lines, points))
    told = f'<p class="sub wide">Always 0: {html.escape("; ".join(zeros))}.</p>'
    return [*_held_out(evaluations), *_tasks(evaluations), *drawn, *([told] if zeros else [])]


def _held_out(evaluations: Sequence[Row]) -> list[str]:
    """The chart of the rewards of answers to held-out prompts, evaluation by evaluation; none where none were asked."""
    asked = [row for row in evaluations if any(key in row for key in JUDGED)]
    names = [key for key in JUDGED if any(key in row for row in asked)]
    if len(asked) < 2:
        return []
    lines = [
        Line(
            JUDGED[key], [_finite(row.get(key)) for row in asked], "faint" if key == "val_reward_likeliest" else "main"
        )
        for key in names
    ]
    return [chart("Answers to held-out prompts", "mean reward", [row["update"] for row in asked], lines)]


def _tasks(evaluations: Sequence[Row]) -> list[str]:
    """A chart of each task that evaluations asked more than once."""
    names = dict.fromkeys(key for row in evaluations for key in row if key.startswith(TASK))
    charts = list[str]()
    for key in names:
        asked = [row for row in evaluations if key in row]
        _, name, metric = key.split("/", 2)
        if len(asked) > 1:
            lines = [Line(metric, [_finite(row[key]) for row in asked])]
            charts.append(chart(f"Task {name}", metric, [row["update"] for row in asked], lines))
    return charts


def _evaluated(config: RunConfig, row: Row) -> list[tuple[str, str]]:
    """The cards of the last evaluation: a value and what it is."""
    cards = list[tuple[str, str]]()
    for words in evaluated_words(config, row):
        first, _, rest = words.partition(" ")
        if rest == "bits per byte":
            cards.append((rest, first))
        else:
            name, _, value = words.rpartition(" ")
            cards.append((name, value))
    return cards[:3]


def _diagnosis(verdict: Verdict) -> str:
    """The verdict with its reasons, and what to change next."""
    why, then = (
        "".join(f"<li>{html.escape(line)}</li>" for line in lines) for lines in (verdict.reasons, verdict.next)
    )
    columns = f"<div><h3>Why</h3><ul>{why}</ul></div><div><h3>What to change next</h3><ul>{then}</ul></div>"
    return f'<section><h2>Diagnosis: {html.escape(verdict.name)}</h2><div class="verdict">{columns}</div></section>'


def _answers(rows: Sequence[Row]) -> str:
    """A table of sampled answers, the newest evaluation first."""
    lines = ["<tr><th>after</th><th>prompt</th><th>answer</th><th>reward</th></tr>"]
    for row in sorted(rows, key=lambda row: -row["update"]):
        cells = (f"{row['update']:,}", row["prompt"], row["answer"] + ("" if row["ended"] else " ..."), row["reward"])
        words = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("<tr>" + "".join(f"<td>{html.escape(word)}</td>" for word in words) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _speeds(config: RunConfig, updates: Sequence[Row]) -> list[float]:
    return [config.tokens_per_update / max(u["seconds"], 1e-9) for u in updates]


def _finite(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _smooth(values: Sequence[float], keep: float = 0.95) -> list[float]:
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        out.append(mean / weight if weight else math.nan)
    return out


def _sample(config: RunConfig, path: Path) -> str:
    text, prompt = path.read_text(encoding="utf-8", errors="replace"), config.train.sample_prompt
    if prompt and text.startswith(prompt):
        return f"<b>{html.escape(prompt)}</b>{html.escape(text[len(prompt) :])}"
    return html.escape(text)


def _value(value: object) -> str:
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _table(groups: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    tables = []
    for title, group in groups.items():
        rows = [f'<tr><th colspan="2">{html.escape(title)}</th></tr>'] if title else []
        rows += [f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in group]
        tables.append(f"<table>{''.join(rows)}</table>")
    return f'<div class="columns">{"".join(tables)}</div>' if len(tables) > 1 else "".join(tables)
