"""card.md: what a corpus is, for whoever gets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coretrain.corpus.recipe import Recipe
from coretrain.corpus.report.funnel import Row, shares, troubles, words

UNKNOWN = (
    "Not known. Pages of the web belong to those who wrote them; say what you know of the input in the recipe's field "
    "`licence`."
)


def card(recipe: Recipe, told: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The data card, in Markdown. It has no time and no path of a machine: the same corpus has the same card."""
    last = rows[-1]
    tokens = int(last.bytes / recipe.output.bytes_per_token)
    parts = [
        f"# {_plain(recipe.name)}",
        _plain(recipe.about),
        f"{last.documents:,} documents, {last.bytes:,} bytes of text, about {tokens:,} tokens.",
        "- Documents: `documents/*.parquet`, columns id, text, url, date, source, language, metadata (JSON)\n"
        "- What was dropped, and why: `dropped/*.parquet`\n"
        f"- Fingerprint: `{told['fingerprint']}`\n"
        f"- Recipe: `recipe.json`, fingerprint `{recipe.fingerprint()}`",
        "## Licence",
        _plain(recipe.licence) or UNKNOWN,
        "## Input",
        _table(["file", "SHA-256"], [[name, f"`{digest}`"] for name, digest in sorted(told["inputs"].items())]),
        "## What is left after each stage",
        _table(
            ["stage", "documents", "dropped", "bytes"],
            [[row.what, f"{row.documents:,}", f"{row.dropped:,}", f"{row.bytes:,}"] for row in rows],
        ),
        "## Rules",
        _table(
            ["rule", "drops", "documents", "source"],
            [[one.rule, one.meaning, f"{one.documents:,}", one.source] for one in shares(recipe, told)],
        ),
    ]
    for title, name in (("Languages", "language"), ("Sources", "source")):
        found = words(told, name)
        if set(found) > {""} or (found and "" not in found):
            table = [[word or "not known", f"{one[0]:,}", f"{one[2]:,}"] for word, one in found.items()]
            parts += [f"## {title}", _table([name, "documents read", "kept by the rules"], table)]
    if odd := troubles(told):
        parts += ["## Not read", _table(["kind", "records"], [[kind, f"{count:,}"] for kind, count in odd.items()])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Words of others that can't become markup of a table, of a heading or of HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
