"""`twintrain VERB ...`: what can be done with a run, one verb for each. Only what the verb needs is imported."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from coretrain.base.errors import ANEW, EXIT_USER_ERROR, RESUME, UserError, exits_cleanly
from twintrain.loading import loaded
from twintrain.verbs import VERBS

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
"""In a checkout."""


def version() -> str:
    """The installed package's version; in a checkout that isn't installed, its pyproject.toml's."""
    try:
        return importlib.metadata.version("twintrain")
    except importlib.metadata.PackageNotFoundError:
        return str(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"])


def overview() -> str:
    """What `twintrain --help` says: every verb on a line."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    usage = ["usage: twintrain VERB ...", "       twintrain VERB --help", "       twintrain --version"]
    about = "One GPT, trained by PyTorch and by JAX, proven equal."
    stacks = "train, generate and chat take --stack torch (the default) or jax."
    return "\n".join([*usage, "", about, "", *lines, "", stacks])


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the words say. Raises `UserError`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else EXIT_USER_ERROR
    if words[0] == "--version":
        print(f"twintrain {version()}")
        return 0
    name, *rest = words
    if name not in VERBS:
        raise UserError("command/unknown-command", f"{_unknown(name)} (twintrain --help says what each does)")
    return int(loaded(VERBS[name].module).main(rest, f"twintrain {name}"))


def _unknown(name: str) -> str:
    if name.startswith("-"):
        near = difflib.get_close_matches(name, ("--help", "--version"), 1)
        return f"unknown option {name}: " + (f"did you mean {near[0]}?" if near else "the verb comes first")
    near = difflib.get_close_matches(name, VERBS, 1, 0.5)
    return f"unknown verb {name}: " + (f"did you mean {near[0]}?" if near else f"verbs are {', '.join(VERBS)}")


def entry() -> None:
    """`main` as a program: what a user did wrong is one sentence and exit code 2."""
    exits_cleanly(main, RESUME if sys.argv[1:2] == ["train"] else ANEW)()


def script(verb: str) -> None:
    """`python scripts/VERB.py`: the verb as a program under that name."""
    run = loaded(VERBS[verb].module).main
    exits_cleanly(functools.partial(run, program=f"python scripts/{verb}.py"))()
