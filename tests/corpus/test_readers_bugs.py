"""Planted bugs in readers and extraction: each changes one line, and each must be noticed by what is known of files."""

from __future__ import annotations

import pytest

from tests.support.known_crawl import ROOMS, differences
from tests.support.planted import planted

BUGS = {
    # a module, what stands there, what it becomes, which facts notice it
    "a record that begins at the end is read too": (
        "readers.warc",
        "while end == END or window.at < end:\n        if not window.has(1):",
        "while end == END or window.at <= end:\n        if not window.has(1):",
        "crawl x.warc",
    ),
    "the place is that behind a record": ("readers.warc", "yield at, raw\n", "yield at + used, raw\n", "offsets"),
    "damage ends a file": (
        "readers.warc",
        "yield _trouble(error, name, at, packing.seek(window))\n            continue",
        "yield _trouble(error, name, at, packing.seek(window))\n            return",
        "crawl flipped.warc.gz",
    ),
    "damage is not told": (
        "readers.warc",
        "yield _trouble(error, name, at, seek_plain(window))",
        "seek_plain(window)",
        "crawl wrong.warc",
    ),
    "a wrong length is believed": ("readers.warc", "if not rest.startswith(BREAK)", "if False", "crawl wrong.warc"),
    "a cut header swallows the next record": (
        "readers.warc",
        "len(TYPE.findall(whole[0])) != 1",
        "False",
        "crawl cut url.warc",
    ),
    "any line may stand in a header": (
        "readers.warc",
        "(?:[^\\s:]+:[^\\r\\n]*\\r\\n",
        "(?:[^\\n]+\\n",
        "crawl cut line.warc",
    ),
    "a record's sign swallows the next record": (
        "readers.warc",
        "or TWO.search(whole[0], len(SIGN))",
        "",
        "crawl cut date.warc",
    ),
    "frames without data hide the end": (
        "readers.warc",
        "if not window.has(1) or window.at >= end != END:",
        "if not window.has(1):",
        "crawl skipped.warc.zst",
    ),
    "a line that begins at the end is read too": (
        "readers.rows",
        "window.at < piece.end)",
        "window.at <= piece.end)",
        "lines",
    ),
    "the end of a file is damage": (
        "readers.warc",
        "if isinstance(error, TruncatedError) and not more:",
        "if False:",
        "crawl ended.warc.gz",
    ),
    "only the first record of a member": (
        "readers.warc",
        "if head and raw[sum(head) :] == BREAK:",
        "if head:",
        "crawl few.warc.gz",
    ),
    "a file that is packed as one is cut": (
        "readers.open",
        "as_one = packing is not None",
        "as_one = False and packing is not None",
        "streams",
    ),
    "a damaged member is passed over in silence": (
        "readers.members",
        "raise DamagedError(str(error)) from None\n            taken",
        "taken += len(chunk)\n                break\n            taken",
        "crawl flipped.warc.gz",
    ),
    "a member's end is counted twice": (
        "readers.members",
        "taken - len(unpacker.unused_data)",
        "taken - len(unpacker.unused_data) - 8",
        "crawl x.warc.gz",
    ),
    "any bytes that look packed begin a record": (
        "readers.members",
        "return self.head(window, len(SIGN)) == SIGN",
        "return True",
        "crawl stored.warc.gz",
    ),
    "frames without data end a file": (
        "readers.members",
        "window.skip(8 + int",
        "window.skip(9 + int",
        "crawl x.warc.zst",
    ),
    "a token across two blocks is lost": (
        "readers.window",
        "len(self) - len(token) + 1",
        "len(self)",
        "small blocks",
    ),
    "rows without a text are empty documents": (
        "readers.rows",
        "if text is None:\n        return",
        "if False:\n        return",
        "lines",
    ),
    "rows are counted from a piece's beginning": (
        "readers.open",
        "row, rows = number, 0, row + rows, 0",
        "row, rows = number, 0, 0, 0",
        "table",
    ),
    "the last row groups are left out": (
        "readers.open",
        "if size >= piece_bytes or number == len(groups):",
        "if size >= piece_bytes:",
        "table",
    ),
    "half a packed body is taken": ("readers.http", "if not unpacker.eof:", "if False:", "bodies"),
    "half a frame is taken": ("readers.streams", "if self._within:", "if False:", "bodies"),
    "chunks that are none are refused": ("readers.http", "if head is None and at == 0:", "if False:", "bodies"),
    "codings are undone in the wrong order": (
        "readers.http",
        "_unpacked(body, coding)\n    return",
        "body\n    return",
        "bodies",
    ),
    "failures are pages": ("readers.warc", "if not 200 <= status < 300:", "if False:", "kinds"),
    "pictures are pages": ("readers.warc", "if (identified or said or HTML[0]) not in HTML:", "if False:", "kinds"),
    "zero bytes are text": ("readers.warc", '(b"\\0" in body[:2048] and not wide)', "False", "kinds"),
    "an index counts from its own place": ("readers.cdx", "source.seek(offset)", "source.seek(offset + 1)", "index"),
    "links go round": ("readers.files", "if real in seen:", "if False:", "files"),
    "files by the order of words": ("readers.files", "key=lambda one: one.name)", "key=lambda one: 0)", "files"),
    "one name for two files": ("readers.files", "if not shared:", "if True:", "files"),
    "hidden files are read": (
        "readers.files",
        'if not name.startswith(".")]\n    return',
        "]\n    return",
        "files",
    ),
    "the server's charset is believed first": (
        "extract.encoding",
        '    try:\n        return body.decode(), "utf-8"',
        '    try:\n        return body.decode(claims[0] or "utf-8"), claims[0]',
        "encodings",
    ),
    "every page is English": ("extract.encoding", "detect_encoding(body) or", "", "encodings"),
    "Edu is FineWeb": ("readers.layouts", '("dump", "url", "int_score")', '("dump", "url", "edu")', "layouts"),
    "the Pile is RedPajama": ("readers.layouts", '("meta.pile_set_name",)', '("meta.pile",)', "layouts"),
    "the page after a bad one is blamed": (
        "extract.process",
        "at = self._begun() - self._answered - 1",
        "at = self._begun() - self._answered",
        "guard memory",
    ),
    "pages on their way are lost with their process": (
        "extract.process",
        "        for place in self._asked:\n            self._send(place)",
        "        self._asked.clear()",
        "guard memory",
    ),
}


def test_without_a_bug_all_is_as_known():
    assert differences() == []


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed(bug):
    module, old, new, noticed = BUGS[bug]
    with planted(f"coretrain.corpus.{module}", old, new, ROOMS):
        try:
            found = differences(noticed)
        except Exception as error:  # a bug may end in any
            found = [f"{noticed}: {error}"]
    assert found != []
