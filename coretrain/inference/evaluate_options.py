"""The options of `evaluate`. Importing this is quick: its help needs no framework and reads no run."""

from __future__ import annotations

import argparse

from coretrain.base.errors import Options
from coretrain.base.files import typed_path
from coretrain.base.help import Fitted
from coretrain.base.numbers import whole_number

SAYS = """\
How good a run is: tasks whose answers are scored, running text in bits per
byte, and another run beside it. A task is a .jsonl or .parquet of rows, a .txt,
a folder of these, task:NAME, core, or a name of lm-eval where it is installed."""
BASICS = "basics"


def options(program: str) -> argparse.ArgumentParser:
    """The options of `program`."""
    parser = Options(prog=program, description=SAYS, formatter_class=Fitted)
    parser.add_argument("run", type=typed_path, help="folder of a run; its best checkpoint is used")
    parser.add_argument(
        "--tasks", default=BASICS, metavar="A,B", help="what is asked, by name or path (default %(default)s)"
    )
    parser.add_argument(
        "--compare", type=typed_path, metavar="RUN", help="the run before: gain and forgetting, with intervals"
    )
    parser.add_argument("--adapter", type=typed_path, metavar="RUN", help="a run that trained an adapter on this one")
    parser.add_argument("--task-folder", type=typed_path, metavar="FOLDER", help="where names are looked for first")
    parser.add_argument("--few-shot", type=whole_number(most=100), metavar="N", help="worked rows before each question")
    parser.add_argument(
        "--limit", type=whole_number(), default=0, metavar="N", help="ask the first N rows of each task"
    )
    parser.add_argument("--seed", type=whole_number(), metavar="N", help="which worked rows a question gets")
    parser.add_argument(
        "--chat", action="store_true", help="answers are generated to questions in the run's chat template"
    )
    parser.add_argument("--output", type=typed_path, metavar="FILE", help="results as JSON, in a new file")
    parser.add_argument("--samples", type=typed_path, metavar="FILE", help="each row's answer as .jsonl, in a new file")
    return parser
