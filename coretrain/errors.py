"""The one exception that a user's mistake raises; command lines turn it into one sentence and exit code 2."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake in what the user gave (config, file, data): its text names the thing and the way out."""


def exits_cleanly(main: Callable[[], int | None]) -> Callable[[], None]:
    """Wrap a command line's `main`: a `UserError` or a full disk becomes one sentence and exit code 2.

    Of several processes that a launcher started on one machine, only the first speaks.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            code = main()
        except UserError as error:
            _say(f"error: {error}")
            sys.exit(EXIT_USER_ERROR)
        except OSError as error:
            # EACCES, EEXIST, ENOTDIR, EISDIR, EFBIG, ENOSPC, EDQUOT: for the user to mend
            if error.errno not in (13, 17, 20, 21, 27, 28, 122):
                raise
            place = f" at {error.filename}" if error.filename else ""
            _say(
                f"error: {error.strerror}{place}: free or change the place (--output, data.cache) and go on with "
                "--resume; checkpoints already written are whole"
            )
            sys.exit(EXIT_USER_ERROR)
        sys.exit(code or 0)

    return wrapped


def _say(sentence: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # set by torchrun, deepspeed and --spawn
        print(sentence, file=sys.stderr, flush=True)
