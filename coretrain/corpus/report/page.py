"""report.html: one self-contained page about a corpus; and card.md, its data card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coretrain.base.files import write_atomically
from coretrain.corpus.dedup.minhash import chances
from coretrain.corpus.pipeline.alike import form_of
from coretrain.corpus.pipeline.made import troubles_of
from coretrain.corpus.pipeline.select import edges
from coretrain.corpus.recipe import Recipe
from coretrain.corpus.report.card import card
from coretrain.corpus.report.charts import histogram
from coretrain.corpus.report.examples import examples
from coretrain.corpus.report.funnel import Row, Share, funnel, shares, troubles, words

MOST_ROWS = 25
"""Of a table of languages or sources; the others are one row."""


def write_report(out: Path, work: Path, recipe: Recipe, told: Mapping[str, Any]) -> None:
    """Write report.html and card.md of a corpus into `out`."""
    from jinja2 import Environment, StrictUndefined

    here = Path(__file__).parent
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        (here / "page.html").read_text(encoding="utf-8")
    )
    rows = funnel(recipe, told)
    page = template.render(
        name=recipe.name,
        about=recipe.about,
        fingerprint=told["fingerprint"],
        style=(here / "page.css").read_text(encoding="utf-8"),
        cards=_cards(recipe, told, rows),
        warnings=[line for kind in ("exact", "near", "simhash") for line in told.get(kind, {}).get("warnings", ())],
        funnel=rows,
        widest=max(row.documents for row in rows) or 1,
        groups=_groups(recipe, told),
        examples=examples(work, recipe, told),
        duplicates=_duplicates(recipe, told),
        tables=_tables(recipe, told),
        troubles=_troubles(work, told),
        recipe=json.dumps(recipe.plain(), indent=1, ensure_ascii=False),
        number=lambda value: f"{value:,.4g}" if value < 1e5 else f"{value:,.0f}",
        size=size,
        tokens=lambda row: "" if row.what == "pages fetched" else f"{_tokens(recipe, row.bytes):,}",
    )
    write_atomically(out / "report.html", page)
    write_atomically(out / "card.md", card(recipe, told, rows))


def size(count: int) -> str:
    """Bytes in words."""
    for unit, least in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            return f"{count / least:.3g} {unit}"
    return f"{count} B"


def _tokens(recipe: Recipe, count: int) -> int:
    return int(count / recipe.output.bytes_per_token)


def _cards(recipe: Recipe, told: Mapping[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    last, read = rows[-1], next(row for row in rows if row.what == "documents read")
    seconds = sum(told["seconds"].values())
    return [
        (f"{last.documents:,}", "documents written"),
        (f"{last.documents / read.documents:.1%}", f"of {read.documents:,} read"),
        (size(last.bytes), "of text"),
        (f"{_tokens(recipe, last.bytes):,}", f"tokens, at {recipe.output.bytes_per_token:g} bytes each"),
        (f"{sum(troubles(told).values()):,}", "records that could not be read"),
        (f"{seconds:,.0f} s", "of all processes together"),
    ]


def _groups(recipe: Recipe, told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sets of rules, each with a figure a signal."""
    rules = {rule.name: rule for rule in recipe.every_rule()}
    found = {one.rule: one for one in shares(recipe, told)}
    groups: list[dict[str, Any]] = []
    for name in recipe.rules:
        own = recipe.active(name)
        signals = list(dict.fromkeys(rule.signal for rule in own))
        figures = []
        for signal in signals:
            named: list[Share] = [found[rule.name] for rule in own if rule.signal == signal]
            counts = [facts["histograms"][signal] for facts in told["select"]]
            every, kept = ([sum(one) for one in zip(*(side[at] for side in counts), strict=True)] for at in (0, 1))
            limits = [rules[one.rule] for one in named]
            figures.append(
                {
                    "signal": signal,
                    "rules": named,
                    "svg": histogram(edges(list(rules.values()), signal), every, kept, limits, signal)
                    if any(rule.least is not None or rule.most is not None for rule in limits)
                    else "",
                    "missing": sum(facts["not_computed"][named[0].rule] for facts in told["select"]),
                }
            )
        groups.append({"name": name, "figures": figures})
    return groups


def _duplicates(recipe: Recipe, told: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    kinds = {"exact": "Copies, word for word", "near": "Near-duplicates", "simhash": "Near-duplicates, by SimHash"}
    for kind, name in kinds.items():
        facts = told.get(kind)
        if not facts:
            continue
        said = f"{sum(facts['dropped']):,} documents go, {facts['clusters']:,} clusters."
        if kind == "near":
            odds = chances(form_of(recipe.dedup.model_dump()))
            said = (
                f"{odds}. {facts['candidates']:,} pairs were compared word for word; {said} "
                f"{facts['short']:,} documents are too short to be compared so."
            )
        sizes = _sizes(facts["sizes"])
        most = max((count for _, count in sizes), default=1)
        found.append(
            {
                "name": name,
                "words": said,
                "sizes": [(what, count, 100 * count / most) for what, count in sizes],
                "sources": [
                    (source, total, facts["removed"].get(source, 0))
                    for source, total in _first(facts["documents_by_source"])
                ],
            }
        )
    for kind, name in (("lines", "Copied lines"), ("substrings", "Copied substrings")):
        if facts := told[kind]:
            said = f"{facts['edited']:,} documents lost text to them, {size(facts['removed_bytes'][''])} in all; "
            said += f"{sum(facts['dropped']):,} of them had nothing left, and go."
            found.append({"name": name, "words": said, "sizes": [], "sources": []})
    if facts := told.get("cut"):
        said = ", ".join(f"{count:,} {name}" for name, count in sorted(facts["rules"].items()))
        said = f"{sum(facts['dropped']):,} documents broke a rule when they had been cut{said and f': {said}'}."
        found.append({"name": "Rules, after the cuts", "words": said, "sizes": [], "sources": []})
    return found


def _sizes(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    """Clusters by size, the large ones together."""
    found: dict[int, int] = {}
    for text, count in sizes.items():
        one = int(text)
        low = one if one < 10 else 10 ** (len(text) - 1)
        found[low] = found.get(low, 0) + count
    return [(str(low) if low < 10 else f"{low:,} to {10 * low - 1:,}", count) for low, count in sorted(found.items())]


def _first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_ROWS]


Table = tuple[str, list[str], list[list[str]]]


def _tables(recipe: Recipe, told: Mapping[str, Any]) -> list[Table]:
    made: list[Table] = []
    for title, name in (("Languages", "language"), ("Sources", "source")):
        found = words(told, name)
        if set(found) <= {""}:
            continue
        rows = [
            [word or "not known", f"{every:,}", f"{kept:,}", f"{kept / every:.1%}", size(kept_bytes)]
            for word, (every, _, kept, kept_bytes) in list(found.items())[:MOST_ROWS]
        ]
        others = list(found.values())[MOST_ROWS:]
        if others:
            every, _, kept, kept_bytes = (sum(column) for column in zip(*others, strict=True))
            rows.append([f"{len(others)} others", f"{every:,}", f"{kept:,}", f"{kept / every:.1%}", size(kept_bytes)])
        made.append((title, [name, "documents", "kept by the rules", "share", "text kept"], rows))
    if hits := _benchmarks(told):
        made.append(("Benchmarks found", ["benchmark", "documents", "places", "n-grams"], hits))
    made.append(("Seconds", ["step", "seconds", "documents a second"], _seconds(told)))
    return made


def _benchmarks(told: Mapping[str, Any]) -> list[list[str]]:
    from coretrain.corpus.decontaminate.hits import summed

    found = summed([facts["contaminated"] for facts in told["read"]])
    return [[name, *(f"{counts[key]:,}" for key in ("documents", "hits", "ngrams"))] for name, counts in found.items()]


def _seconds(told: Mapping[str, Any]) -> list[list[str]]:
    """Of the steps of reading, and of the other stages, summed over processes."""
    documents = sum(facts["documents"] for facts in told["read"])
    steps: dict[str, float] = {}
    for facts in told["read"]:
        for name, seconds in facts["seconds"].items():
            steps[name] = steps.get(name, 0.0) + seconds
    found = {**{f"read: {name}": seconds for name, seconds in steps.items()}, **told["seconds"]}
    found.pop("read", None)
    return [
        [name, f"{seconds:,.2f}", f"{documents / seconds:,.0f}" if seconds > 0.005 else ""]
        for name, seconds in found.items()
    ]


def _troubles(work: Path, told: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    first: dict[str, str] = {}
    for piece, facts in enumerate(told["read"]):
        if set(facts["troubles"]) - set(first):
            for line in (work / troubles_of(piece)).read_text(encoding="utf-8").splitlines():
                one = json.loads(line)
                first.setdefault(one["kind"], f"{one['file']} at {one['offset']:,} {one['words']}".rstrip())
    return [(kind, count, first.get(kind, "")) for kind, count in troubles(told).items()]
