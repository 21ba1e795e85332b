"""Prove on this machine that both stacks compute the same training: the judge's tests, by pytest.

Usage: twintrain parity [--device cpu|cuda|mps|tpu]... [--results FILE]
                        [--config NAME_OR_TOML [--layers N] [--width N]]
                        [-m scale|mutation] [-k WORDS] [-n PROCESSES]
                        [other options of pytest]

  --device   where everything below float64 is judged; may be repeated
             (default: every device present)
  --config   send this preset or TOML file through the whole ladder too; its
             vocabulary and rows stay small
  --layers   with --config: so many layers instead of the config's
  --width    with --config: this width; heads and MLP shrink with it
  --results  where the figures go, as JSON (default: in runs/parity)
  -m         scale: many devices and processes against one;
             mutation: every planted bug, 10 minutes or more
  -k         only the tests whose names fit
  -n         processes (default: one for each core, at most 4); 0: this one,
             where a debugger can get in

`python -m parity.report` makes a page of the figures.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import parity
from coretrain.base.errors import UserError
from coretrain.base.help import fitted

NEEDED = {"pytest": "pytest", "xdist": "pytest-xdist"}
"""Packages of the judge alone: as they are imported, and as they are installed."""


def main(argv: Sequence[str] | None = None, program: str = "twintrain parity") -> int:
    """pytest's exit code: 0 where all tests pass, 1 where a test fails."""
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        print(fitted((__doc__ or "").replace("twintrain parity", program)))
        return 0
    if missing := [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]:
        raise UserError(
            "command/judge-package-missing",
            f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} not installed, and the judge is made of tests: "
            "pip install 'twintrain[parity]'",
        )
    return int(importlib.import_module("pytest").main([*settings(), *words]))


def settings() -> list[str]:
    """What pytest is told, whatever project this is called in: the judge's own folder, options and names of tests."""
    judge = Path(parity.__path__[0])
    alone = ["-c", os.devnull, f"--rootdir={judge.parent}", f"--confcutdir={judge}"]
    cache = Path("runs") / "parity" / "pytest_cache"  # beside the results: an installed copy may not be written to
    return [*alone, "-o", f"cache_dir={cache.absolute()}", "-p", "parity.plugin", *MANNERS, str(judge)]


MANNERS = ("-q", "--strict-markers", "-n", "auto")
"""Options that pyproject.toml gives to pytest in a checkout."""
