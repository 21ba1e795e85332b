"""How fast both stacks are here, and how much memory they take, beside peers.

Usage: twintrain bench [--what training|generation] [--only NAME ...]
       twintrain bench --nanogpt FOLDER --markdown bench.md --json bench.json

Peers are those that are installed: transformers, litgpt, and nanoGPT where you
name its checkout's folder, whose model.py is then run. Every contender trains
the same GPT-2 in a process of its own. They take turns, a few updates each, so
that what else the machine does hits all alike; ratios are taken within a round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from coretrain.base.errors import Options, UserError
from coretrain.base.files import typed_path, write_atomically
from coretrain.base.help import Fitted
from coretrain.base.numbers import whole_number
from twintrain.bench.contenders import PARTS, Shape, check_nanogpt, chosen

PROGRAM = "twintrain bench"
MEANINGS = {
    "layers": ("layers of the model", 1000),
    "width": ("its width; heads are 64 wide, where that divides it, or else there is one", 100_000),
    "vocab": ("its vocabulary", 10_000_000),
    "batch": ("rows of an update, in training", 1_000_000),
    "context": ("tokens of a row", 1_000_000),
}
"""Of each number of the shape: what it is, and the most that is taken."""


def options(program: str = PROGRAM) -> Options:
    """What can be asked for."""
    text, shape = (__doc__ or "").replace(PROGRAM, program), Shape()
    parser = Options(prog=program, description=text, formatter_class=Fitted)
    parser.add_argument(
        "--what", choices=PARTS, default=PARTS[0], metavar="PART", help=f"{' or '.join(PARTS)} (default %(default)s)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="contenders, or parts of their names: torch-f32, jax, bf16, compiled"
    )
    for name, (meaning, most) in MEANINGS.items():
        least = 2 if name == "context" else 1
        told = f"{meaning} (default {getattr(shape, name)})"
        parser.add_argument(f"--{name}", type=whole_number(least, most), metavar="N", help=told)
    parser.add_argument(
        "--rounds", type=whole_number(1, 1_000_000), default=6, metavar="N", help="turns of each (default %(default)s)"
    )
    parser.add_argument("--nanogpt", type=typed_path, metavar="FOLDER", help="a checkout of nanoGPT")
    parser.add_argument("--markdown", type=typed_path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--json", type=typed_path, metavar="FILE", help="write all figures, those of each round too")
    return parser


def check_target(path: Path, option: str) -> None:
    """Raise `UserError` where `path` can't become a file, before anything is measured."""
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UserError("bench/target-not-a-file", f"{option} {path}: {why}: give the name of a file in a folder")


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Measure, then write and show one table. The exit code is 1 where a contender failed."""
    given = options(program).parse_args(sys.argv[1:] if argv is None else argv)
    some = chosen(given.what, given.only)
    if given.what == "generation" and given.batch is not None:
        raise UserError("bench/batch-without-training", "--batch is for training: one text is generated at a time")
    if given.nanogpt:
        check_nanogpt(given.nanogpt)
        if not any(one.maker == "nanogpt" for one in some.values()):
            raise UserError("bench/nanogpt-left-out", "--nanogpt is given, and --only leaves it out: drop one of them")
    targets = {"--markdown": given.markdown, "--json": given.json}
    for option, path in targets.items():
        if path:
            check_target(path, option)
    if given.markdown and given.json and given.markdown.resolve() == given.json.resolve():
        raise UserError("bench/one-file-for-two", f"--markdown and --json are both {given.json}: give two files")
    from rich.console import Console

    from twintrain.bench.rounds import Bench, measured
    from twintrain.bench.table import markdown, show

    def say(text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)

    shape = Shape(**{name: getattr(given, name) for name in MEANINGS if getattr(given, name) is not None})
    result = measured(Bench(given.what, some, shape, given.rounds, given.nanogpt, given.only is None), say)
    if given.json:
        write_atomically(given.json, json.dumps(result, indent=1) + "\n")
    if given.markdown:
        write_atomically(given.markdown, markdown(result))
    show(result, Console(highlight=False))
    return 1 if any(row["status"].startswith("failed") for row in result["rows"]) else 0
