"""A process that finds the texts of pages, and may hang or die of one: `guarded.py` watches it.

It reads pages from its standard input, and writes down in shared memory which one it is at. It answers many at once,
since each answer wakes the process that waits for it.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import struct
import sys
import threading
import time

from coretrain.corpus.extract.text import text_of

ASK = struct.Struct("<BII")
"""`PAGE`; bytes of the charset and of the body, which follow. Or `FLUSH` and nothing more."""
PAGE, FLUSH = 1, 2
ANSWER = struct.Struct("<BII")
"""One of the words below; bytes of the encoding (or the error) and of the text, which follow."""
DONE, FAILED, MEMORY, READY = range(4)
BEGUN = struct.Struct("<Q")
"""What is in shared memory: how many pages were begun."""
BLOCK = 2**18
"""Bytes of answers that are held back."""
DEADLINE = signal.SIGPROF
"""Ends the process where nobody handles it, also inside a library that doesn't come back to Python."""


def main(kind: str, deadline_s: float, memory_mb: int, shared: int) -> None:
    """Answer pages until there are no more. `shared` is the file that is the shared memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    signal.signal(DEADLINE, signal.SIG_DFL)  # who started this one may ignore it
    source, target = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(2, 1)  # what a library prints must not come between
    threading.Thread(target=_leave_with, args=[os.getppid()], daemon=True).start()
    text_of(b"<p>ready</p>", "", kind)  # imports what it needs, which is no page's fault
    _limit(memory_mb)
    _write(target, ANSWER.pack(READY, 0, 0))
    held = bytearray()
    with mmap.mmap(shared, BEGUN.size) as memory:
        count = 0
        while len(head := source.read(ASK.size)) == ASK.size:
            word, first, second = ASK.unpack(head)
            if word == PAGE:
                count += 1
                BEGUN.pack_into(memory, 0, count)
                charset = source.read(first).decode("utf-8", "replace")
                body = source.read(second)
                if len(body) < second:
                    return  # nobody asks any more
                signal.setitimer(signal.ITIMER_PROF, deadline_s)
                answer = _answer(body, charset, kind)
                signal.setitimer(signal.ITIMER_PROF, 0)
                held += answer
            if held and (word == FLUSH or len(held) >= BLOCK):
                _write(target, held)
                held.clear()


def _leave_with(parent: int) -> None:
    """End this process after the one that waits for it, also where a page sleeps."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def _answer(body: bytes, charset: str, kind: str) -> bytes:
    word, text, encoding = DONE, b"", b""
    try:
        found, used = text_of(body, charset, kind)
        text, encoding = found.encode("utf-8", "replace"), used.encode()
    except MemoryError:
        word = MEMORY
    except BaseException as error:  # a panic of a library in Rust is no Exception
        word, encoding = FAILED, f"{type(error).__name__}: {error}"[:200].encode("utf-8", "replace")
    return ANSWER.pack(word, len(encoding), len(text)) + encoding + text


def _limit(memory_mb: int) -> None:
    """Let this process have so much more memory than it has."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory_mb * 2**20,) * 2)
    except (OSError, ValueError):  # a system without it, or with less allowed already
        pass


def _write(target: int, answer: bytes | bytearray) -> None:
    at = 0
    while at < len(answer):
        at += os.write(target, answer[at:])


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
