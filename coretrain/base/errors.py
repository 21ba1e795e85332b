"""The one exception that a user's mistake raises; command lines turn it into one sentence and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import functools
import multiprocessing
import os
import re
import select
import sys
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from coretrain.base.interrupts import INTERRUPTED, answered
from coretrain.base.parse import on_one_line
from coretrain.base.streams import ready_streams

EXIT_USER_ERROR = 2
UNREAD = 141
"""Exit code as of a program that SIGPIPE ends."""
OF_THE_PLACE = (
    *("EACCES", "EPERM", "EROFS", "EEXIST", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "EFBIG", "ENOSPC", "EDQUOT"),
    *("ELOOP", "ENOTEMPTY"),
)
"""Errors of the system, by name (each has its own numbers), that are for the user to mend."""
OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|RESOURCE_EXHAUSTED", re.IGNORECASE)
"""What torch and JAX say in a RuntimeError where there isn't as much memory as is asked for."""
LONGEST = 2000
"""Characters of a sentence that are printed: what a user gave may stand in it, a megabyte long."""
ANEW = "free or change the place and run the same again"
RESUME = (
    "free or change the place (--output, data.cache) and go on with --resume; checkpoints already written are whole"
)


class UserError(Exception):
    """A mistake in what the user gave (config, file, data).

    `code` names the rule that was broken, as "room/rule", and stays when the words improve: what a test or a program
    compares. `text` is one sentence that names the thing and the way out: what a person reads.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)  # both, so that it can be sent to another process
        self.code = code

    def __str__(self) -> str:
        return str(self.args[1])


class Options(argparse.ArgumentParser):
    """argparse whose complaints are a `UserError`: one sentence, as all others."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise UserError("command/bad-arguments", f"{message[0].lower()}{message[1:]} (--help says more)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """What isn't one of an option's choices, with the nearest that is."""
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"{meant(str(value), names)}{value} is none of {', '.join(names)}")


def meant(word: str, names: Collection[str]) -> str:
    """`did you mean NAME? `, with the nearest of `names`; nothing where none is near."""
    lower = {name.lower(): name for name in names}
    near = [name for name in lower if word and name.startswith(word.lower())]
    near = near or difflib.get_close_matches(word.lower(), lower, 1)
    return f"did you mean {lower[near[0]]}? " if near else ""


def exits_cleanly(main: Callable[[], int | None], way_out: str = ANEW) -> Callable[[], None]:
    """Wrap a command line's `main`: a `UserError`, a full disk or memory becomes one sentence and exit code 2, Ctrl-C
    130.

    `way_out` is what to do about the disk. A reader of the output who has seen enough is no error to tell.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        ready_streams()
        answered()
        try:
            try:
                code = main()
            finally:
                sys.stdout.flush()  # where nobody reads it, it fails here and not while the interpreter ends
        except (UserError, OSError, MemoryError, RuntimeError) as error:
            code = UNREAD if isinstance(error, BrokenPipeError) and _unread() else print_user_error(error, way_out)
            if code is None:
                raise
        except KeyboardInterrupt:
            exit_interrupted()
        sys.exit(code or 0)

    return wrapped


def _unread() -> bool:
    """Whether the program that reads this one's output has ended, as `head` does; then no more is written.

    A pipe to another process, as of a data loader, may have broken instead, which is an error.
    """
    asked = select.poll()
    asked.register(sys.stdout.fileno(), 0)
    if not asked.poll(0):  # neither an error nor a reader that hung up
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def print_user_error(error: Exception, way_out: str = ANEW) -> int | None:
    """Say a `UserError`, a full disk or memory in one sentence; the exit code. None for any other: it isn't the user's.

    `way_out` is what to do about the disk. Of several processes that a launcher started on one machine, only the first
    speaks.
    """
    if isinstance(error, UserError):
        _say(f"error: {error}")
        return EXIT_USER_ERROR
    if isinstance(error, OSError) and (errno.errorcode.get(error.errno or 0) in OF_THE_PLACE or _no_folder(error)):
        place = f" at {error.filename}" if error.filename else ""
        _say(f"error: {error.strerror}{place}: {way_out}")
        return EXIT_USER_ERROR
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(first)):
        reason = f" ({first})" if first else ""
        _say(f"error: there isn't as much memory as this takes{reason}: ask for a smaller model, batch or context")
        return EXIT_USER_ERROR
    return None


def _no_folder(error: OSError) -> bool:
    """Whether something was to be written into a folder that isn't there."""
    name = error.filename
    missing = error.errno == errno.ENOENT and isinstance(name, str) and os.path.dirname(name)
    return bool(missing) and not os.path.isdir(os.path.dirname(name))


def exit_interrupted() -> NoReturn:
    """End this process after Ctrl-C: what it wrote is whole or was removed on the way here."""
    _say("interrupted")
    exit_now(INTERRUPTED)


def exit_now(code: int) -> NoReturn:
    """End this process at once, workers and all, whatever its threads wait for.

    An interpreter that ends orderly waits for some threads and aborts for others: orbax's wait for processes that don't
    come, gloo's want a lock that is gone.
    """
    for worker in multiprocessing.active_children():
        worker.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody may read it any more
            stream.flush()
    os._exit(code)


def _say(sentence: str) -> None:
    rank = os.environ.get("LOCAL_RANK", "0")  # set by torchrun, deepspeed and --spawn
    if rank == "0" or not rank.isdecimal():
        print(one_line(sentence), file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """A text as one line of a terminal: line ends and control characters escaped, cut where it is very long."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return on_one_line(cut)
