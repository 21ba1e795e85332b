"""Pictures of the report, as SVG: how a signal is spread over all documents, with the limits that it is held to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.rules import Rule

WIDTH, HEIGHT, FOOT = 300, 84, 16
"""Of a histogram, in units of its own; and the room below it for numbers."""


def histogram(
    borders: NDArray[np.float64], every: Sequence[int], kept: Sequence[int], rules: Sequence[Rule], name: str
) -> str:
    """Bars for all documents and, in front, for those that no rule drops; a line at each limit.

    A bar's height is the square root of its count, so that rare values are seen beside frequent ones. The last bar
    stands for everything above, too.
    """
    count = len(every)
    most = max(max(every, default=0), 1) ** 0.5
    step = WIDTH / count
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" role="img" aria-label="{name}">']
    for at in range(count):
        low, high = _number(borders[at]), _number(borders[at + 1])
        words = f"{low} to {high}" if at < count - 1 else f"{low} and more"
        title = f"<title>{words}: {every[at]:,} documents, {kept[at]:,} of them kept</title>"
        bars = ""
        for value, kind in ((every[at], "gone"), (kept[at], "kept")):
            if value:
                height = max(1.0, value**0.5 / most * (HEIGHT - 6))
                bars += (
                    f'<rect class="{kind}" x="{at * step + 0.5:.1f}" y="{HEIGHT - height:.1f}" '
                    f'width="{step - 1:.1f}" height="{height:.1f}"/>'
                )
        if bars:
            parts.append(f"<g>{title}{bars}</g>")
    parts.append(f'<line class="base" x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"/>')
    taken: list[float] = []
    for rule in rules:
        for limit, sign in ((rule.least, "≥"), (rule.most, "≤")):
            if limit is not None:
                x = position(borders, limit) * WIDTH
                near = any(abs(x - other) < 46 for other in taken)
                taken.append(x)
                side = "end" if x > WIDTH - 40 else "start" if x < 40 else "middle"
                parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}"/>')
                if not near:
                    parts.append(
                        f'<text class="at" x="{x:.1f}" y="{HEIGHT + 12}" text-anchor="{side}">'
                        f"{sign} {_number(limit)}</text>"
                    )
    if not any(x < 60 for x in taken):
        parts.append(f'<text x="0" y="{HEIGHT + 12}">{_number(borders[0])}</text>')
    if not any(x > WIDTH - 70 for x in taken):
        parts.append(f'<text x="{WIDTH}" y="{HEIGHT + 12}" text-anchor="end">{_number(borders[-1])} +</text>')
    return "".join(parts) + "</svg>"


def position(borders: NDArray[np.float64], value: float) -> float:
    """Where a value lies among bars of one width, from 0 to 1."""
    at = int(np.clip(np.searchsorted(borders, value, "right") - 1, 0, len(borders) - 2))
    width = borders[at + 1] - borders[at]
    return float(min(1.0, (at + (value - borders[at]) / width) / (len(borders) - 1)))


def _number(value: float) -> str:
    if value >= 10_000:
        return f"{value:,.0f}" if value < 1e6 else f"{value:.3g}"
    return f"{value:.4g}" if value >= 100 else f"{value:.3g}"
