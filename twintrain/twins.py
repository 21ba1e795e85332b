"""Two runs as a picture and three sentences: their losses, and how far apart they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from coretrain.base.errors import Options, UserError
from coretrain.base.files import check_picture, typed_path
from coretrain.journal.metrics import gaps, read_metrics
from coretrain.journal.page import compare_plot
from coretrain.journal.segments import FRAMEWORKS, read_segments

PROGRAM = "twintrain twins"
STEPS = (1e-6, 1e-4)
"""Differences, in nats, up to which updates are counted."""
TIMED = re.compile(r"-\d{8}-\d{6}(-\d+)?$")
"""The end of a folder's name that a run gets by itself, which says nothing to a reader."""


def sentences(folders: list[Path]) -> str:
    """Batches, first losses, the largest difference and the last validation losses of two runs."""
    runs, text = [], ""
    for folder in folders:
        if not (folder / "metrics.jsonl").is_file():
            raise UserError(
                "command/metrics-file-missing", f"{folder}: no metrics.jsonl there; name the folder of a run"
            )
        updates, evaluations, _ = read_metrics(folder)
        if gap := gaps(folder, max((row["update"] for row in updates), default=-1) + 1):
            text += f"warning: {gap}.\n"
        finite = {row["update"]: row for row in updates if row["loss"] is not None}  # null: it was not a number
        runs.append((finite, {row["update"]: row["val_loss"] for row in evaluations}))
    (a, a_validation), (b, b_validation) = runs
    both = sorted(a.keys() & b.keys())
    if not both:
        raise UserError(
            "command/no-common-update",
            f"{folders[0]} and {folders[1]} have no update in common: give two runs of one config",
        )
    apart_by = [abs(a[u]["loss"] - b[u]["loss"]) for u in both]
    apart = sum(a[u]["batch_hash"] != b[u]["batch_hash"] for u in both)
    one, other = (next((i for i, gap in enumerate(apart_by) if gap > step), len(apart_by)) for step in STEPS)
    text += (
        f"{len(both)} updates; batches with other token ids: {apart}; first losses {a[both[0]]['loss']:.6f} and"
        f" {b[both[0]]['loss']:.6f}.\n"
        f"The first {one} losses are within {STEPS[0]:g}, the first {other} within {STEPS[1]:g};"
        f" {sum(gap == 0 for gap in apart_by)} are equal; the largest difference is {_size(max(apart_by))}.\n"
    )
    if ends := sorted(a_validation.keys() & b_validation.keys()):
        x, y = a_validation[ends[-1]], b_validation[ends[-1]]
        text += f"Validation after {ends[-1]} updates: {x:.4f} and {y:.4f}, {abs(x - y) / y:.2%} apart.\n"
    return text


def _size(gap: float) -> str:
    return f"{gap:.4f}" if gap >= 1e-3 or gap == 0 else f"{gap:.1e}"


def labels(folders: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's, or, where that is a time or the same twice, what tells the runs apart."""
    names = [folder.resolve().name for folder in folders]
    if names[0] != names[1] and not any(TIMED.search(name) for name in names):
        return names
    stacks = ["+".join(dict.fromkeys(str(FRAMEWORKS.get(s.stack, s.stack)) for s in read_segments(f))) for f in folders]
    if all(stacks) and stacks[0] != stacks[1]:
        return stacks
    if fields := differences(folders):
        key, values = fields[0]
        return [f"{key} = {value}" for value in values]
    # nothing that is known tells them apart: as much of their paths as does
    parts = [folder.resolve().parts for folder in folders]
    deep = next((n for n in range(1, max(map(len, parts)) + 1) if parts[0][-n:] != parts[1][-n:]), 1)
    return ["/".join(part[-deep:]) for part in parts]


def differences(folders: Sequence[Path]) -> list[tuple[str, tuple[object, object]]]:
    """The fields in which the configs of two runs differ, but for how they report; none where one can't be read."""
    from coretrain.runs.folder import open_run

    flat: list[dict[str, object]] = []
    for folder in folders:
        try:
            raw = open_run(folder).model_dump(mode="json")
        except UserError:
            return []
        sections = {key: value for key, value in raw.items() if isinstance(value, dict) and key != "journal"}
        flat.append({f"{section}.{key}": value for section, rows in sections.items() for key, value in rows.items()})
    one, other = flat
    return [(key, (value, other[key])) for key, value in one.items() if value != other[key]]


def title(names: Sequence[str], folders: Sequence[Path]) -> str:
    """What the picture shows: of one config, or in which fields the two differ."""
    both = f"{names[0]} and {names[1]}"
    if not all((folder / "config.json").is_file() for folder in folders):
        return both
    fields = [key for key, _ in differences(folders)]
    if not fields:
        return f"{both}: the same config"
    if fields == [key for key in fields if key in names[0]]:
        return both
    more = f" and {len(fields) - 2} more" if len(fields) > 2 else ""
    return f"{both}: other {', '.join(fields[:2])}{more}"


def options(program: str = PROGRAM) -> Options:
    """What is compared, and where the picture goes."""
    parser = Options(prog=program, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs=2, type=typed_path, metavar="RUN", help="folder of a run")
    parser.add_argument("picture", type=typed_path, metavar="PICTURE.png", help="picture to write")
    return parser


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Draw, and say how far apart they are."""
    given = options(program).parse_args(argv)
    check_picture(given.picture, "PICTURE")
    text = sentences(given.runs)
    names = labels(given.runs)
    compare_plot(given.runs, names, given.picture, title(names, given.runs))
    print(text, end="")
    return 0
