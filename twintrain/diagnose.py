"""`twintrain diagnose`: over- or underfitted, unstable, short of data, and the next thing to change."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coretrain.base.errors import Options, UserError
from coretrain.base.files import typed_path, write_atomically
from coretrain.base.help import Fitted
from coretrain.config.run import RunConfig
from coretrain.training.help import asks_for_help
from twintrain.loading import loaded
from twintrain.stacks import add_stack

SAYS = """\
How a run on text went, in words: unstable, overfitted, short of data, underfitted, at its limit, or as it should be;
why, and what to change next. It reads metrics.jsonl, and the prepared data for the number of epochs."""


def options(program: str = "twintrain diagnose") -> argparse.ArgumentParser:
    """The options of `program`."""
    parser = Options(prog=program, description=SAYS, formatter_class=Fitted)
    parser.add_argument("run", type=typed_path, help="folder of a run, finished or not")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also open its best checkpoint: the loss of rows that it read beside that of others, and the gradient "
        "noise scale, which says whether the batch size fits",
    )
    add_stack(parser)
    parser.add_argument("--output", type=typed_path, metavar="FILE", help="all of it as JSON, in a new file")
    return parser


def main(argv: Sequence[str] | None = None, program: str = "twintrain diagnose") -> int:
    """Tell the verdict on a run."""
    typed = sys.argv[1:] if argv is None else argv
    parser = options(program)
    if asks_for_help(typed):
        parser.print_help()
        return 0
    given = parser.parse_args(typed)
    if given.output and given.output.exists():
        raise UserError("command/diagnosis-there", f"{given.output} is there already: name a new file, or remove it")
    told = diagnosed(given.run, given.stack if given.measure else "")
    if given.output:
        write_atomically(given.output, json.dumps(finite(told), indent=1, allow_nan=False).encode())
    return 0


def finite(value: Any) -> Any:
    """A tree whose numbers that JSON hasn't got, as a noise scale without an end, are null."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def diagnosed(run: Path, stack: str) -> dict[str, Any]:
    """Print the verdict on a run, and what a stack measures of it where one is named; the same as an object."""
    from coretrain.data.open import open_data
    from coretrain.diagnosis.read import in_words, known_of, verdict_of
    from coretrain.journal.metrics import METRICS, read_metrics
    from coretrain.runs.files import with_own_files
    from coretrain.runs.folder import open_run

    config = open_run(run)
    if config.train.objective != "cross_entropy":
        raise UserError(
            "command/diagnosis-not-of-text",
            f"{run} was trained by {config.train.objective}, whose loss says little: read its report.html",
        )
    if not (run / METRICS).is_file():
        raise UserError(
            "command/diagnosis-without-journal", f"{run} has no {METRICS}: name the folder of a trained run"
        )
    updates, evaluations, events = read_metrics(run)
    data = open_data(with_own_files(config, run), lambda line: print(line, file=sys.stderr))
    verdict = verdict_of(config, updates, evaluations, events, known_of(config, data))
    if verdict is None:
        raise UserError("command/diagnosis-of-nothing", f"{run} has made no update: train it first")
    print(f"{run}: {verdict.name}\n{in_words(verdict)}")
    told: dict[str, Any] = {"run": str(run), "verdict": asdict(verdict)}
    if stack:
        from coretrain.inference.diagnose import measure

        make = loaded(f"{stack}train.trainer").Trainer
        found = measure(run, make, data, [row["loss"] for row in updates])
        told |= {"stack": stack, "measured": asdict(found)}
        print("\n".join(measured_lines(found, config)))
    return told


def measured_lines(found: Any, config: RunConfig) -> list[str]:
    """What was measured, for a terminal of 80 columns."""
    from coretrain.diagnosis.noise import advice
    from coretrain.diagnosis.read import in_columns

    apart = found.unread - found.read
    word = "above" if apart >= 0 else "below"
    lines = [
        "measured at the best checkpoint:",
        f"  read rows      {found.read:.4f} nats a token now, {found.at_first_sight:.4f} at first sight",
        f"  other rows     {found.unread:.4f}, {abs(apart):.4f} {word} (± {found.error:.4f})",
    ]
    if found.noise is not None:
        noise, rows = found.noise, config.train.batch_size
        lines += [
            f"  noise scale    {noise.rows:,.0f} rows (90%: {noise.low:,.0f} to {noise.high:,.0f})",
            *in_columns("  batch size     ", f"{rows:,}: {advice(noise, rows)}"),
        ]
    return lines
