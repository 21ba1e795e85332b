"""The one exception that a user's mistake raises; command lines turn it into one sentence and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import multiprocessing
import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn

from coretrain.base.interrupts import INTERRUPTED, answered
from coretrain.base.streams import ready_streams

EXIT_USER_ERROR = 2
UNREAD = 141
"""Exit code as of a program that SIGPIPE ends."""
OF_THE_PLACE = (
    *("EACCES", "EPERM", "EROFS", "EEXIST", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "EFBIG", "ENOSPC", "EDQUOT"),
    *("ENOENT", "ELOOP", "ENOTEMPTY"),
)
"""Errors of the system, by name (each has its own numbers), that are for the user to mend."""
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


def exits_cleanly(main: Callable[[], int | None], way_out: str = ANEW) -> Callable[[], None]:
    """Wrap a command line's `main`: a `UserError` or a full disk becomes one sentence and exit code 2, Ctrl-C 130.

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
        except (UserError, OSError) as error:
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
    """Say a `UserError` or a full disk in one sentence; the exit code. None for any other error: it isn't the user's.

    `way_out` is what to do about the disk. Of several processes that a launcher started on one machine, only the first
    speaks.
    """
    if isinstance(error, UserError):
        _say(f"error: {error}")
        return EXIT_USER_ERROR
    if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in OF_THE_PLACE:
        place = f" at {error.filename}" if error.filename else ""
        _say(f"error: {error.strerror}{place}: {way_out}")
        return EXIT_USER_ERROR
    return None


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
    if os.environ.get("LOCAL_RANK", "0") == "0":  # set by torchrun, deepspeed and --spawn
        print(sentence, file=sys.stderr, flush=True)
