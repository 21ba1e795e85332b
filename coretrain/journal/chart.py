"""One curve chart as SVG text: lines with gaps at non-finite values, points, few clean ticks, values for hovering."""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

POINTS = 600
"""Most points of a line that are drawn and can be hovered: a long run is thinned, its extremes kept."""

LARGEST, LEAST = 1e300, 1e-300
"""Size of the largest value that has a place on an axis, and of the smallest range that has more than one tick: beyond
them differences overflow, or are 0."""


@dataclass(frozen=True)
class Line:
    """One value an update; non-finite ones leave a gap. `look` is a class of page.css: main or faint."""

    name: str
    values: Sequence[float]
    look: str = "main"


@dataclass(frozen=True)
class Frame:
    """Ranges of both axes, and the box inside the SVG that they are drawn to."""

    from_x: float
    to_x: float
    low: float
    high: float
    width: int
    height: int
    log: bool
    left: int = 46
    right: int = 12
    top: int = 8
    bottom: int = 26

    def x(self, value: float) -> float:
        """Abscissa of an update."""
        share = (value - self.from_x) / ((self.to_x - self.from_x) or 1)
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Ordinate of a value."""
        place = math.log10 if self.log else float
        share = (place(value) - place(self.low)) / (place(self.high) - place(self.low))
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


def chart(
    title: str,
    unit: str,
    updates: Sequence[int],
    lines: Sequence[Line],
    points: Sequence[tuple[int, float]] = (),
    troubles: Sequence[int] = (),
    wide: bool = False,
    log: bool = False,
) -> str:
    """A `<figure>` of `lines` over `updates`, with validation `points` and `troubles` marked on the axis of updates."""
    width, height = (720, 250) if wide else (360, 210)
    good = [value for line in lines for value in line.values if drawable(value, log)]
    good += [value for _, value in points if drawable(value, log)]
    low, high = limits(good, log)
    places = [*updates, *(x for x, _ in points)]  # an evaluation before the first update has a place too
    frame = Frame(min(places), max(places), low, high, width, height, log, left=34 if wide else 46)
    end = height - frame.bottom
    parts = []
    for value in log_ticks(low, high) if log else linear_ticks(low, high, 5):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{width - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{frame.left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short(value)}</text>')
    for index, value in enumerate(linear_ticks(frame.from_x, frame.to_x, 8 if wide else 4)):
        look = ' class="some"' if index % 2 else ""
        parts.append(
            f'<text{look} x="{frame.x(value):.1f}" y="{height - 8}" text-anchor="middle">{short(value)}</text>'
        )
    for line in lines:
        parts.append(f'<path class="{line.look}" d="{path(frame, updates, line.values)}"/>')
    for x, value in points:
        if drawable(value, log):
            text = f"<title>{html.escape(f'validation after {x} updates: {value:.4f}')}</title>"
            parts.append(f'<circle class="mark" cx="{frame.x(x):.1f}" cy="{frame.y(value):.1f}" r="3">{text}</circle>')
    for x in troubles:
        parts.append(f'<path class="trouble" d="M{frame.x(x):.1f} {end - 6}l3.5 6h-7z"/>')
    parts.append(f'<line class="rule" y1="{frame.top}" y2="{end}"/>')
    kept = [bucket[-1] for bucket in buckets(len(updates))]
    hover = {
        "x": [updates[i] for i in kept],
        "series": [[line.name, [rounded(line.values[i]) for i in kept]] for line in lines],
        "from": frame.from_x,
        "to": frame.to_x,
        "left": frame.left,
        "width": width - frame.left - frame.right,
    }
    key = [(line.look, line.name) for line in lines]
    key += [("mark", "validation")] * bool(points) + [("trouble", "skipped or rolled back")] * bool(troubles)
    legend = "".join(f'<span><i class="{look}"></i>{html.escape(name)}</span>' for look, name in key)
    label = html.escape(f"{title}, {unit}, over updates {updates[0]} to {updates[-1]}. {words(lines)}")
    return (
        f'<figure class="{"wide" if wide else "small"}" tabindex="0" role="group" aria-label="{label}" '
        f'data-points="{html.escape(json.dumps(hover, separators=(",", ":")))}">'
        f"<h2>{html.escape(title)} <small>{html.escape(unit)}</small></h2>"
        f'<div class="key">{legend}</div>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-hidden="true">{"".join(parts)}</svg>'
        '<div class="tip" role="status"></div></figure>'
    )


def buckets(count: int) -> list[range]:
    """The indices 0 to `count` in at most `POINTS` runs of neighbours."""
    edges = [count * i // min(count, POINTS) for i in range(min(count, POINTS) + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def path(frame: Frame, updates: Sequence[int], values: Sequence[float]) -> str:
    """SVG path data: of each bucket its smallest and largest value, so that no spike is lost; gaps stay gaps."""
    text, pen = [], "M"
    for bucket in buckets(len(updates)):
        good = [i for i in bucket if drawable(values[i], frame.log)]
        if len(good) < len(bucket):
            pen = "M"
        for i in sorted({min(good, key=values.__getitem__), max(good, key=values.__getitem__)}) if good else ():
            text.append(f"{pen}{frame.x(updates[i]):.1f} {frame.y(values[i]):.1f}")
            pen = "L"
    return "".join(text)


def drawable(value: float, log: bool) -> bool:
    """Whether a value has a place on the axis."""
    return abs(value) <= LARGEST and (value > 0 or not log)


def limits(values: Sequence[float], log: bool) -> tuple[float, float]:
    """Range of an axis that holds all `values` with a little air."""
    if not values:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(values), max(values)
    if log:
        return low / 1.1, high * 1.1
    air = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return (low - air if low < 0 or low > air else 0.0), high + air


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers in a range, evenly spaced by 1, 2 or 5 times a power of ten."""
    if high - low < LEAST:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * m for m in (1, 2, 5, 10, 20) if (high - low) / (power * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(int((high / step - first) + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in a range, and where those are few also their 2 and 5 times."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [m * 10.0**d for d in decades for m in factors if low <= m * 10.0**d <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: -(-len(ticks) // 6) or 1]


def short(value: float) -> str:
    """A tick's label: 0.0005, 6.2k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if letter == 'k' else size):.4g}{letter}"
    return (
        f"{value:.4g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    )


def rounded(value: float) -> float | None:
    """A value for hovering, in six digits; None where it isn't finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def words(lines: Sequence[Line]) -> str:
    """First and last finite value of each line, for who can't see the curve."""
    said = []
    for line in lines:
        good = [value for value in line.values if math.isfinite(value)]
        said.append(f"{line.name}: from {good[0]:.4g} to {good[-1]:.4g}" if good else f"{line.name}: nothing finite")
    return "; ".join(said)
