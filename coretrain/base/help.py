"""Texts of `--help`, fitted to the terminal: what is written for 80 columns or more is readable in 40."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap

USAGE = re.compile(r"usage: ", re.IGNORECASE)


def columns() -> int:
    """Columns of the terminal, 80 where there is none."""
    return max(20, shutil.get_terminal_size().columns)


def fitted(text: str, width: int | None = None) -> str:
    """`text` in lines of at most `width` columns (unset: the terminal's).

    Prose is filled anew where it doesn't fit. Of a list, as of options, each item goes on below its second column (two
    spaces stand before it), or a little deeper than its first where there is no room.
    """
    width = width or columns()
    return "\n\n".join(_fitted(paragraph.splitlines(), width) for paragraph in text.strip("\n").split("\n\n"))


def _fitted(lines: list[str], width: int) -> str:
    if all(len(line) <= width for line in lines):
        return "\n".join(lines)
    if not any("  " in line for line in lines):  # prose
        return textwrap.fill(" ".join(lines), width, break_on_hyphens=False)
    head = USAGE.match(lines[0])
    base = head.end() if head else min(map(_indent, lines))
    items: list[str] = []
    for line in lines:
        if items and _indent(line) > base:  # the item goes on
            items[-1] += f" {line.strip()}"
        else:
            items.append(line)
    return "\n".join(_item(line, width) for line in items)


def _item(line: str, width: int) -> str:
    first = _indent(line)
    second = re.match(r"\s*(\S+ )*?\S+ {2,}(?=\S)", line)
    hanging = second.end() if second and second.end() <= width // 2 else first + 4
    return textwrap.fill(line, width, subsequent_indent=" " * hanging, break_on_hyphens=False)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


class Fitted(argparse.HelpFormatter):
    """Descriptions keep their lines and their columns as far as the terminal has room."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent(fitted(text, width), indent)
