"""A piece of an input file: what one task reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import shown

END = -1
"""An `end` that isn't known: a file that can only be read from its start to its end."""
MEMBERS = ("", "gzip", "zstd")
"""Packings that can be entered in the middle: none, or each record packed by itself."""
STREAMS = ("gzip-stream", "zstd-stream")
"""Packings that can't: the whole file is packed as one."""


@dataclass(frozen=True)
class Piece:
    """A range of a file that begins and ends between records. The pieces of a file, one after the other, give exactly
    what the file whole gives.
    """

    file: str
    """The path to open, or `hf:NAME`."""
    start: int
    end: int
    """Bytes of the file as it lies there; of parquet row groups. `END`: to the end."""
    kind: str
    """`warc` (WET and WAT too), `jsonl`, `parquet`, `cdxj` or `hf`."""
    layout: str = ""
    """Of rows: which field is the text (`layouts.py`). Empty for records of a crawl."""
    name: str = ""
    """The file as documents name it: below the folder that was given, without what is above it."""
    packing: str = ""
    """One of `MEMBERS` or `STREAMS`."""
    first_row: int = 0
    """Of parquet: the number of its first row."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Piece:
        """Out of JSON. Raises `UserError` where a field is missing, unknown or of another kind."""
        kinds = {one.name: int if one.type == "int" else str for one in fields(cls)}
        odd = set(said) ^ set(kinds) or {name for name, kind in kinds.items() if type(said[name]) is not kind}
        if odd:
            raise UserError(
                "corpus/piece-malformed",
                f"a piece of the input, {shown(dict(said))}, has a wrong field {min(odd)}: plan the input again",
            )
        return cls(**said)
