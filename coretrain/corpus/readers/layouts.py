"""How published data sets lie on disk: which field of a row is its text, and which tell where it is from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from coretrain.base.errors import UserError, meant
from coretrain.base.parse import from_json, shown
from coretrain.corpus.document import Value
from coretrain.tokenizers.tokenizer import well_formed

AUTO, FIELD, OR = "auto", "field:", "|"


@dataclass(frozen=True)
class Layout:
    """The fields of a row. A dot goes into an object, also into one that is written as JSON in a text."""

    name: str
    text: str
    known_by: tuple[str, ...] = ()
    """Fields besides the text that all its rows have, and that together only it has."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Our name -> its field, or several, of which the first that is there is taken: `url|meta.url`."""

    def columns(self) -> set[str]:
        """The outermost fields that are read."""
        paths = [self.text, *(path for paths in self.metadata.values() for path in paths.split(OR))]
        return {one for path in paths for one in (path, path.partition(".")[0])}

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the fields that it is known by."""
        return all(_at(row, path) is not _NONE for path in (self.text, *self.known_by))

    def text_of(self, row: Mapping[str, Any]) -> str | None:
        """The text; None where the row has none."""
        text = _at(row, self.text)
        return well_formed(text) if isinstance(text, str) else None

    def metadata_of(self, row: Mapping[str, Any]) -> dict[str, Value]:
        """What is known of the document, as far as it is one word or number."""
        found = {name: _first(row, paths) for name, paths in self.metadata.items()}
        return {
            name: well_formed(value) if isinstance(value, str) else value
            for name, value in found.items()
            if isinstance(value, str | int | float | bool)
        }


PAGE = {"url": "url", "date": "timestamp", "source_id": "id"}
FINEWEB = {
    **{"url": "url", "date": "date", "source": "dump", "source_id": "id"},
    **{"language": "language", "language_score": "language_score"},
}
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("pile", "text", ("meta.pile_set_name",), {"source": "meta.pile_set_name"}),
        Layout("slimpajama", "text", ("meta.redpajama_set_name",), {"source": "meta.redpajama_set_name"}),
        Layout(
            "redpajama-v2",
            "raw_content",
            (),
            {
                **{"url": "url|meta.url", "date": "date_download|meta.date_download", "source_id": "doc_id"},
                **{"source": "source_domain|meta.source_domain", "language": "language|meta.language"},
                **{"language_score": "language_score", "bucket": "bucket", "perplexity": "perplexity"},
            },
        ),
        Layout(
            "redpajama-v1",
            "text",
            ("meta",),
            {"url": "meta.url", "date": "meta.timestamp", "source": "red_pajama_subset", "language": "meta.language"},
        ),
        Layout("refinedweb", "content", ("url", "dump"), {"url": "url", "date": "timestamp", "source": "dump"}),
        Layout(
            "fineweb-2",
            "text",
            ("minhash_cluster_size", "url"),
            {**FINEWEB, "script": "language_script", "cluster_size": "minhash_cluster_size"},
        ),
        Layout("fineweb-edu", "text", ("dump", "url", "int_score"), {**FINEWEB, "edu_score": "score"}),
        Layout("fineweb", "text", ("dump", "url", "file_path"), FINEWEB),
        Layout(
            "dclm",
            "text",
            ("url", "language_id_whole_page_fasttext"),
            {"url": "url", "date": "metadata.WARC-Date", "source_id": "metadata.WARC-Record-ID"},
        ),
        Layout(
            "dolma",
            "text",
            ("id", "source", "added"),
            {"source_id": "id", "source": "source", "date": "created", "url": "metadata.url"},
        ),
        Layout("c4", "text", ("timestamp", "url"), PAGE),
        Layout(
            "text",
            "text",
            (),
            {"url": "url", "date": "date", "source": "source", "source_id": "id", "language": "language"},
        ),
    )
}
"""By name; what is looked for first stands first. Sources: the cards of the data sets, and rows of theirs."""
_NONE = object()


def named(name: str) -> Layout:
    """The layout of this name, or `field:NAME` for rows whose text is in a field of one's own.

    Raises `UserError` where there is none.
    """
    if name.startswith(FIELD) and len(name) > len(FIELD):
        return Layout(name, name.removeprefix(FIELD), (), LAYOUTS["text"].metadata)
    if name not in LAYOUTS:
        near = meant(name, LAYOUTS)
        raise UserError(
            "corpus/layout-unknown",
            f"{near}the layout {shown(name)} is none of {', '.join(LAYOUTS)}; {FIELD}NAME says that NAME is the text",
        )
    return LAYOUTS[name]


def recognised(row: Mapping[str, Any], where: str) -> Layout:
    """The layout that a row has. Raises `UserError` with its fields, and `where` it is from, where it has none."""
    found = next((layout for layout in LAYOUTS.values() if layout.fits(row)), None)
    if found is None:
        raise UserError("corpus/layout-not-recognised", f"{where}: {_fields(row)}")
    return found


def check(layout: Layout, row: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` where a row can't have this layout, since it has not even its text."""
    if _at(row, layout.text) is _NONE:
        raise UserError(
            "corpus/layout-other",
            f"{where}: rows of the layout {layout.name} have their text in {layout.text}; {_fields(row)}",
        )


def _fields(row: Collection[str]) -> str:
    shown_ = ", ".join(shown(name) for name in list(row)[:20]) or "none"
    return f"it has the fields {shown_}: say with layout = {FIELD}NAME which of them is the text"


def _first(row: Any, paths: str) -> Any:
    return next((found for path in paths.split(OR) if (found := _at(row, path)) is not _NONE), None)


def _at(row: Any, path: str) -> Any:
    """What stands at a path of fields; `_NONE` where nothing does."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    for name in path.split("."):
        if isinstance(row, str) and row[:1] == "{":
            try:
                row = from_json(row)
            except ValueError:
                return _NONE
        if not isinstance(row, Mapping) or name not in row:
            return _NONE
        row = row[name]
    return row
