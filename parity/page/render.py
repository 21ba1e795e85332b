"""A template to one page: styles and programs are put into it, text is escaped, nothing is loaded from elsewhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import coretrain.journal

HERE, JOURNAL = Path(__file__).parent, Path(coretrain.journal.__path__[0])


def render(template: str, styles: tuple[str, ...], programs: tuple[str, ...], **facts: Any) -> bytes:
    """The page of a template of this folder, with the journal's styles, `styles`, and `programs` at its end."""
    world = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    world.filters["figure"] = figure
    text = world.get_template(template).render(
        style=Markup(_joined("page.css", styles)),
        program=Markup(_joined("page.js", programs)),
        **facts,
    )
    return text.encode(errors="replace")


def _joined(shared: str, own: tuple[str, ...]) -> str:
    paths = [JOURNAL / shared, *(HERE / name for name in own)]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def figure(value: float | None) -> str:
    """A number as the page shows it: two digits, "1.5e-13"; a dash for none."""
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return "no number" if math.isnan(value) else "infinite"
    if value == 0 or (0.1 <= abs(value) < 1000):
        return f"{value:g}" if value == round(value, 2) else f"{value:.2f}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e+")
