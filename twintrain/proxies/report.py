"""Outcomes of small runs as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {"A": "#1f77b4", "B": "#d95f02"}


def curves(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Bits per byte of the held-out text along each run, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    seen = set[str]()
    for run in runs:
        side = run["side"]
        axes.plot(
            run["updates"],
            run["bits_per_byte"],
            marker="o",
            markersize=3,
            color=COLOURS[side],
            label=None if side in seen else side,
        )
        seen.add(side)
    axes.set_xlabel("updates")
    axes.set_ylabel("bits per byte, held out")
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def comparison(told: Mapping[str, Any]) -> str:
    """The report of `compare`."""
    lines = ["# A and B compared", "", *(f"{sentence}\n" for sentence in told["verdicts"].values())]
    lines += ["| | source | weight | training tokens | epochs |", "|---|---|---|---|---|"]
    for letter, side in told["sides"].items():
        lines += [
            f"| {letter} | {_cell(one['source'])} | {one['weight']:.3f} | {one['training_tokens']:,} "
            f"| {one['epochs']:.2f} |"
            for one in side["sources"]
        ]
    lines += ["", "Bits per byte, the mean over seeds; the intervals are of 95%.", ""]
    lines += [
        "| held-out text | A | B | B less A | interval | of other documents | of other seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in told["results"].items():
        low, high = one["interval"]
        less, more = one["interval_documents"]
        lines.append(
            f"| {_cell(name)} | {_mean(one['a'])} | {_mean(one['b'])} | {one['b_less_a']:+.4f} | {low:+.4f} to "
            f"{high:+.4f} | {less:+.4f} to {more:+.4f} | ± {one['half_width_seeds']:.4f} |"
        )
    seeds = len(told["seeds"])
    lines += [
        "",
        f"Each run: {told['updates']:,} updates, {told['tokens_each_run']:,} tokens, stack {told['stack']}, "
        f"{told['model']['layers']} layers of width {told['model']['width']}; seeds "
        f"{', '.join(map(str, told['seeds']))}. Tokenizer: {told['tokenizer']}.",
        "",
        *(_held_out(one) for one in told["held_out"]),
        *(
            f"- {one['source']}: {one['left_out_as_nearly_held_out']} training documents left out, as they are nearly "
            "held-out ones."
            for one in told["sources"]
        ),
        "",
        "The interval over documents says how far these very models would differ on other text of the same kind. The "
        "one over seeds says how far other models of the same data would; it is Student's t with "
        f"{2 * (seeds - 1)} degrees of freedom, and few seeds make it wide. The verdict goes by both: their half "
        "widths add as squares.",
        "",
        "![bits per byte along the runs](curves.png)",
        "",
    ]
    return "\n".join(lines)


def _held_out(one: Mapping[str, Any]) -> str:
    more = f"; {one['left_out_as_known']} left out, as training text has them too" if one["left_out_as_known"] else ""
    return f"- Held out of {one['name']}: {one['documents']} documents, {one['bytes']:,} bytes{more}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4f}"


def mixtures(told: Mapping[str, Any]) -> str:
    """The report of `mix`."""
    lines = ["# A mixture looked for", "", told["verdict"], ""]
    lines += ["| source | training tokens | natural | best | 95% of the bootstrap |", "|---|---|---|---|---|"]
    low, high = told["best_interval"]
    for row in zip(told["sources"], told["training_tokens"], told["natural"], told["best"], low, high, strict=True):
        name, size, natural, best, least, most = row
        lines.append(f"| {_cell(name)} | {size:,} | {natural:.3f} | {best:.3f} | {least:.3f} to {most:.3f} |")
    setting = told["setting"]
    lines += [
        "",
        f"{len(told['proxies'])} runs of {setting['updates']:,} updates, {setting['tokens_each_run']:,} tokens each, "
        f"stack {setting['stack']}; the first is the natural mixture. Tokenizer: {setting['tokenizer']}.",
        "",
        *(_held_out(one) for one in setting["held_out"]),
        "",
        "The loss is in bits per byte, the mean over held-out texts. The small runs repeat a small source less often "
        "than a long run does, and their sizes are small: what is best for them may not be best for it.",
        "",
        f"| run | {' | '.join(map(_cell, told['sources']))} | bits per byte |",
        "|---" * (len(told["sources"]) + 2) + "|",
    ]
    for number, one in enumerate(told["proxies"]):
        lines.append(f"| {number} | {' | '.join(f'{share:.3f}' for share in one['shares'])} | {one['loss']:.4f} |")
    return "\n".join([*lines, ""])
