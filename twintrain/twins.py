"""Two runs of one config as a picture and three sentences: their losses, and how far apart they are.

Usage: twintrain twins RUN_A RUN_B PICTURE.png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coretrain.base.errors import Options, UserError
from coretrain.base.files import check_picture, typed_path
from coretrain.journal.metrics import gaps, read_metrics
from coretrain.journal.page import compare_plot

PROGRAM = "twintrain twins"
STEPS = (1e-6, 1e-4)
"""Differences, in nats, up to which updates are counted."""


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
        f" {sum(gap == 0 for gap in apart_by)} are equal; the largest difference is {max(apart_by):.4f}.\n"
    )
    if ends := sorted(a_validation.keys() & b_validation.keys()):
        x, y = a_validation[ends[-1]], b_validation[ends[-1]]
        text += f"Validation after {ends[-1]} updates: {x:.4f} and {y:.4f}, {abs(x - y) / y:.2%} apart.\n"
    return text


def options(program: str = PROGRAM) -> Options:
    """What is compared, and where the picture goes."""
    parser = Options(prog=program, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs=2, type=typed_path, metavar="RUN", help="folder of a run")
    parser.add_argument("picture", type=typed_path, help="PNG to write")
    return parser


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Draw, and say how far apart they are."""
    given = options(program).parse_args(argv)
    check_picture(given.picture, "PICTURE")
    text = sentences(given.runs)
    compare_plot(given.runs, [folder.resolve().name for folder in given.runs], given.picture)
    print(text, end="")
    return 0
