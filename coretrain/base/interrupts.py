"""Ctrl-C and SIGTERM where no run answers them: nothing half-written stays, and no traceback is shown."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes, as shells give them for these signals."""


def in_main_thread() -> bool:
    """Whether this thread may say what a signal does."""
    return threading.current_thread() is threading.main_thread()


def loading_program() -> None:
    """Let Ctrl-C end one of our programs at once while its modules load: nothing is written yet.

    To be called while a package is imported. `answered` ends it.
    """
    if _ours() and in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ours() -> bool:
    """Whether the program that starts is one of ours; other people's may import us too, and answer Ctrl-C."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    if name != "-m":  # Python's name of `python -m PROGRAM` while its packages are imported
        return name == "twintrain"
    words = sys.orig_argv
    given = words[words.index("-m") + 1 :] if "-m" in words else [w[2:] for w in words if w.startswith("-m")]
    return bool(given) and given[0].split(".")[0] in ("twintrain", "torchtrain", "jaxtrain", "parity")


def answered() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again. Where it is ignored, as under nohup, it stays so."""
    if in_main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def loading_modules() -> Iterator[None]:
    """Let Ctrl-C end this process at once in the block: a library that is being imported may swallow the exception."""
    ends = in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ends:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ends:
            answered()


@contextlib.contextmanager
def tidied_at_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in the block, so that what is half-written can be removed, unless it is answered."""
    ours = in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


@contextlib.contextmanager
def ctrl_c_for_parent() -> Iterator[None]:
    """Let processes that are started in the block never see Ctrl-C, which a terminal sends to all of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Make this worker process exit as soon as the one that started it is gone, also when that was killed."""
    import multiprocessing  # not for a program that only says --help

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent.sentinel,), daemon=True).start()


def _wait_and_exit(sentinel: int) -> None:
    from multiprocessing.connection import wait

    wait([sentinel])
    os._exit(1)
