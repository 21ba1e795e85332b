"""The one exception that a user's mistake raises; command lines turn it into one sentence and exit code 2."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake in what the user gave (config, file, data): its text names the thing and the way out."""


def exits_cleanly(main: Callable[[], int | None]) -> Callable[[], None]:
    """Wrap a command line's `main`: a `UserError` or a full disk becomes one sentence and exit code 2."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            code = main()
        except (UserError, OSError) as error:
            code = said(error)
            if code is None:
                raise
        sys.exit(code or 0)

    return wrapped


def said(error: Exception) -> int | None:
    """Say a `UserError` or a full disk in one sentence; the exit code. None for any other error: it isn't the user's.

    Of several processes that a launcher started on one machine, only the first speaks.
    """
    if isinstance(error, UserError):
        _say(f"error: {error}")
        return EXIT_USER_ERROR
    # EACCES, EEXIST, ENOTDIR, EISDIR, EFBIG, ENOSPC, EDQUOT: for the user to mend
    if isinstance(error, OSError) and error.errno in (13, 17, 20, 21, 27, 28, 122):
        place = f" at {error.filename}" if error.filename else ""
        _say(
            f"error: {error.strerror}{place}: free or change the place (--output, data.cache) and go on with "
            "--resume; checkpoints already written are whole"
        )
        return EXIT_USER_ERROR
    return None


def leave(code: int) -> NoReturn:
    """End this process at once, workers and all, whatever its threads wait for.

    An interpreter that ends orderly waits for some threads and aborts for others: orbax's wait for processes that don't
    come, gloo's want a lock that is gone.
    """
    for worker in multiprocessing.active_children():
        worker.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say(sentence: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # set by torchrun, deepspeed and --spawn
        print(sentence, file=sys.stderr, flush=True)
