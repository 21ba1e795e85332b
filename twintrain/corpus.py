"""Make a corpus for training out of raw pages: read, clean, deduplicate, write.

Usage: twintrain corpus RECIPE --output DIR [--input FILE ...] [options]
       twintrain corpus show DIR [--why URL|ID]
       twintrain corpus retune DIR --set FIELD=VALUE ...
       twintrain corpus compare A B [options]
       twintrain corpus mix SOURCE ... [options]

RECIPE is a preset ({presets})
or the path of a .toml file. DIR gets documents/ (parquet, which --data.source
of a run takes), what was dropped and why, report.html and card.md.

  --input FILE ...    files, folders or patterns: WARC, WET, jsonl, parquet
  --output DIR        an empty folder, or one to go on with: what is finished
                      there isn't done again
  --set FIELD=VALUE   a field of the recipe, as filters.gopher.min_words=30
  --workers N         processes (every core); 0: this process alone
  --engine E          pool (this machine), slurm (writes its script), or
                      ray://HOST:PORT; the same bytes come out of each
  --fresh             throw away what another recipe left in DIR

show prints how many documents each rule drops; --why what became of one.
retune tries other limits on the numbers kept: no input is read again.
compare trains small models on two corpora, and mix looks for the weights of
several; both have a --help of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from coretrain.base.errors import Options, UserError
from coretrain.base.files import typed_path
from coretrain.base.help import Fitted, fitted
from coretrain.base.numbers import whole_number
from twintrain.loading import loaded

if TYPE_CHECKING:
    from coretrain.corpus.recipe import Recipe

PROGRAM = "twintrain corpus"
VERBS = ("show", "retune")
SMALL_RUNS = ("compare", "mix")
"""Verbs that train small models, with options of their own: modules of `twintrain.proxies`."""
PACKAGES = ("fastwarc", "resiliparse", "scipy", "pyarrow", "zstandard", "jinja2")


def options(program: str = PROGRAM) -> Options:
    """What can be asked for."""
    parser = Options(prog=program, formatter_class=Fitted, add_help=False)
    parser.add_argument("words", nargs="+")
    parser.add_argument("--input", nargs="+", action="extend", default=[])
    parser.add_argument("--output", type=typed_path)
    parser.add_argument("--set", nargs="+", action="extend", default=[], dest="sets")
    parser.add_argument("--workers", type=whole_number(0, 1024))
    parser.add_argument("--engine")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--why")
    return parser


def help_text(program: str = PROGRAM) -> str:
    """What --help says."""
    from coretrain.corpus.presets import presets

    names = ", ".join(presets())
    return fitted((__doc__ or "").replace("{presets}", names).replace(PROGRAM, program))


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Make, show or retune a corpus. Raises `UserError`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in SMALL_RUNS:
        return int(loaded(f"twintrain.proxies.{words[0]}").main(words[1:], f"{program} {words[0]}"))
    if not words or {"-h", "--help"} & set(words):
        print(help_text(program))
        return 0 if words else 2
    given = options(program).parse_args(words)
    verb = given.words[0] if given.words[0] in VERBS else ""
    rest = given.words[1:] if verb else given.words
    if len(rest) != 1:
        what = f"a folder after {verb}" if verb else "one recipe"
        raise UserError("command/corpus-words", f"{program} takes {what}, and got {' '.join(rest) or 'none'}")
    _check(given, verb, program)
    check_packages()
    if verb == "show":
        return show(typed_path(rest[0]), given.why)
    return retune(typed_path(rest[0]), given) if verb else make(rest[0], given)


def check_packages() -> None:
    """Raise `UserError` where a package isn't installed that all recipes need."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(
            "command/corpus-packages-missing",
            f"{', '.join(missing)}, which twintrain corpus needs, can't be imported: pip install 'twintrain[corpus]'",
        )


def _check(given: Any, verb: str, program: str) -> None:
    """Refuse options that say nothing to the verb."""
    every = ("input", "output", "sets", "workers", "engine", "fresh", "why")
    values = {name: getattr(given, name) for name in every}
    used = {name for name, value in values.items() if value is not None and value is not False and value != []}
    of_verb = {"": {*every} - {"why"}, "show": {"why"}, "retune": {"sets", "workers", "engine"}}
    if odd := sorted(used - of_verb[verb]):
        name = "set" if odd[0] == "sets" else odd[0]
        raise UserError("command/corpus-option", f"{program} {verb or 'RECIPE'} has no option --{name}: leave it out")
    if not verb and given.output is None:
        raise UserError("command/corpus-without-output", f"{program} needs --output DIR, the folder to write")
    if verb == "retune" and not given.sets:
        raise UserError("command/retune-without-set", f"{program} retune needs --set FIELD=VALUE: what to try")


def make(name: str, given: Any) -> int:
    """Carry out a recipe, then print the funnel."""
    from coretrain.corpus.load import load_recipe, parse_sets
    from coretrain.corpus.pipeline.corpus import make_corpus

    recipe = load_recipe(name, parse_sets(given.sets), given.input)
    words = [name, "--input", *map(os.path.abspath, given.input)] if given.input else [name]
    words += ["--output", os.path.abspath(given.output)]
    words += ["--set", *given.sets] if given.sets else []
    return _carried(lambda: make_corpus(recipe, given.output, _engine(given, words), given.fresh, say), given.output)


def retune(folder: Path, given: Any) -> int:
    """Try other fields, then print the funnel."""
    from coretrain.corpus.load import build_recipe, parse_sets, with_sets
    from coretrain.corpus.pipeline.corpus import retune as carry_out

    sets = parse_sets(given.sets)

    def changed(before: Recipe) -> Recipe:
        return build_recipe(with_sets(before.plain(), sets), str(folder), sets)

    words = ["retune", os.path.abspath(folder), "--set", *given.sets]
    return _carried(lambda: carry_out(folder, changed, _engine(given, words), say), folder)


def _carried(work: Callable[[], object], folder: Path) -> int:
    """Do it, then report; with Slurm, say how to submit the next stage."""
    from coretrain.corpus.engine.slurm import Submit

    try:
        work()
    except Submit as submit:
        print(submit)
        return 0
    except MemoryError:
        raise UserError(
            "command/corpus-out-of-memory",
            f"there isn't as much memory as a task in {folder} takes: lower --workers, execution.piece_bytes or "
            "execution.memory, then run the same again; finished tasks are kept",
        ) from None
    return _reported(folder)


def _reported(folder: Path) -> int:
    """Write the report of what was just made, and print the funnel."""
    from coretrain.corpus.pipeline.corpus import outcome
    from coretrain.corpus.pipeline.seal import WORK
    from coretrain.corpus.report.page import write_report

    write_report(folder, folder / WORK, *outcome(folder))
    return show(folder, None)


def show(folder: Path, sought: str | None) -> int:
    """Print what the last run told, or what became of one document."""
    from coretrain.corpus.pipeline.corpus import outcome
    from coretrain.corpus.pipeline.seal import WORK
    from coretrain.corpus.pipeline.why import why
    from coretrain.corpus.report.funnel import as_text

    recipe, told = outcome(folder)
    if sought is not None:
        print(within(why(folder / WORK, recipe, told, sought), sys.stdout))
        return 0
    print(within(as_text(recipe, told), sys.stdout))
    print(f"\n{folder / 'documents'}  fingerprint {told['fingerprint'][:16]}")
    print(f"why: {folder / 'report.html'}")
    return 0


def say(line: str) -> None:
    """Print a line for whoever waits."""
    print(within(line, sys.stderr), file=sys.stderr, flush=True)


def within(text: str, stream: TextIO) -> str:
    """Lines broken between words where `stream` is a terminal; the rest of one stands below its words."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns - 1
    lines = []
    for line in text.splitlines():
        start = re.match(r"[ \d,]*", line)
        below = " " * len(start[0] if start else "")
        lines += textwrap.wrap(line, width, subsequent_indent=below, break_on_hyphens=False) if line.strip() else [line]
    return "\n".join(lines)


def _engine(given: Any, words: Sequence[str] = ()) -> Any:
    """The engine for a work folder; `words` are those of the command that goes on. Raises `UserError`."""
    from coretrain.corpus.engine.open import open_engine

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = cores if given.workers is None else given.workers
    engine = given.engine or "pool"
    most = ["--workers", str(workers)] if given.workers is not None else []
    command = [sys.executable, "-m", "twintrain", "corpus", *words, "--engine", engine, *most]
    return open_engine(engine, workers if engine == "pool" else given.workers or 0, command)
