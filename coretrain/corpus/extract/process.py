"""A process that finds the texts of pages, watched: what it was at is known when it hangs, dies or is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.corpus.document import Document, Page, Trouble
from coretrain.corpus.extract.extract import Extractor, as_document
from coretrain.corpus.extract.worker import ANSWER, ASK, BEGUN, DEADLINE, DONE, FLUSH, MEMORY, PAGE, READY

Read = Page | Document | Trouble
AHEAD, FLUSHED = 2**20, 2**18
"""Bytes of pages that are sent before answers are waited for, and after which answers are asked for."""
BLOCK = 2**18
TRIES = 2
PATIENCE = 60.0
"""Seconds besides ten deadlines that a page may take, if it takes no time of a processor meanwhile."""
STARTING, STARTS = 120.0, 5
"""Seconds that a process may take to come up, and how often it is tried where it is killed meanwhile."""
ROOT = Path(__file__).resolve().parents[3]
WORDS = {
    "timeout": "it took longer than deadline_s",
    "memory": "it took more than memory_mb",
    "crashed": "the process ended by",
    "failed": "the extractor says",
}
"""The kinds of trouble that a page can make here."""


@dataclass
class Place:
    """An item on its way: what it came to is known at once of all but pages."""

    item: Read
    result: Document | Trouble | None = None
    tries: int = 0


class Watched:
    """The process, what it was asked, and what it hasn't answered."""

    def __init__(self, extractor: Extractor) -> None:
        self.ahead = 0
        """Bytes of pages that it hasn't answered."""
        self._extractor = extractor
        self._asked = deque[Place]()
        self._answered = 0
        """Pages that this process has answered; of all that were asked, those stand before `_asked`."""
        self._unflushed = 0
        self._idle = 0
        """How many processes ended, one after the other, without a page."""
        self._process: subprocess.Popen[bytes] | None = None
        self._out, self._in = bytearray(), bytearray()
        self._watched = select.poll()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._shared = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process

    def ask(self, place: Place) -> None:
        """Send a page, or as much of it as the pipe takes."""
        self._asked.append(place)
        self.ahead += _size(place)
        self._send(place)
        if len(self._out) >= BLOCK:
            self._talk(0)

    def _send(self, place: Place) -> None:
        self._out += _packed(place)
        self._unflushed += _size(place)
        if self._unflushed >= FLUSHED:
            self._flush()

    def _flush(self) -> None:
        self._out += ASK.pack(FLUSH, 0, 0)
        self._unflushed = 0

    def wait(self) -> None:
        """Wait for answers."""
        before, begun, since = len(self._asked), -1, time.monotonic()
        while len(self._asked) == before and self._asked:
            if self._unflushed:
                self._flush()
            self._talk(1.0)
            if (now := self._begun()) != begun:
                begun, since = now, time.monotonic()
            elif time.monotonic() > since + PATIENCE + 10 * self._extractor.deadline_s:
                self._lost("timeout")

    def close(self) -> None:
        """End the process."""
        self._end()
        self._said.close()
        self._shared.close()

    def _talk(self, seconds: float) -> None:
        """Write and read what can be within `seconds`."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        source, target = process.stdin.fileno(), process.stdout.fileno()
        if self._out:
            self._watched.modify(source, select.POLLOUT)
        else:
            self._watched.modify(source, 0)
        events = dict(self._watched.poll(seconds * 1000))
        if self._out and source in events:
            with contextlib.suppress(BrokenPipeError):  # it ended, which the other pipe tells
                del self._out[: os.write(source, memoryview(self._out)[:AHEAD])]
        if target in events:
            block = os.read(target, AHEAD)
            self._in += block
            self._take()
            if not block:
                self._died()

    def _take(self) -> None:
        at = 0
        while len(self._in) - at >= ANSWER.size:
            word, first, second = ANSWER.unpack_from(self._in, at)
            begin, end = at + ANSWER.size, at + ANSWER.size + first + second
            if len(self._in) < end:
                break
            at = end
            encoding, text = (
                self._in[begin : begin + first].decode("utf-8", "replace"),
                self._in[begin + first : end].decode("utf-8", "replace"),
            )
            place = self._pop()
            page = place.item
            assert isinstance(page, Page)
            if word == DONE:
                place.result = as_document(page, text, encoding)
            else:
                place.result = _trouble(page, "memory" if word == MEMORY else "failed", encoding)
        del self._in[:at]

    def _pop(self) -> Place:
        place = self._asked.popleft()
        self._answered += 1
        self._idle = 0
        self.ahead -= _size(place)
        return place

    def _begun(self) -> int:
        """How many pages the process has begun, of all that it was asked."""
        return int(BEGUN.unpack(os.pread(self._shared.fileno(), BEGUN.size, 0))[0])

    def _died(self) -> None:
        """Find out of what, and go on with a new process."""
        assert self._process is not None
        code = self._process.wait()
        if code == -DEADLINE:
            self._lost("timeout")
            return
        self._said.seek(0)
        said = self._said.read()[-2000:].decode("utf-8", "replace").strip()
        starved = code == -signal.SIGKILL or "memory allocation" in said or "MemoryError" in said
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._lost("memory" if starved else "crashed", how)

    def _lost(self, kind: str, how: str = "") -> None:
        """The process is gone, or has to go. The page that it was at is tried again, or given up; the others go on."""
        at = self._begun() - self._answered - 1
        self._end()
        self._out.clear()  # what was asked is asked again, from the first one that isn't answered
        self._unflushed = 0
        if 0 <= at < len(self._asked):
            place = self._asked[at]
            place.tries += 1
            if kind == "timeout" or place.tries == TRIES:
                del self._asked[at]
                self.ahead -= _size(place)
                assert isinstance(place.item, Page)
                place.result = _trouble(place.item, kind, how)
        elif (idle := self._idle + 1) > STARTS:
            raise self._refused()
        else:
            self._idle = idle
        for place in self._asked:
            self._send(place)

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a process, again where it is killed meanwhile. Raises `UserError` where none comes up."""
        for _ in range(STARTS):
            process = self._process = self._spawned()
            assert process.stdin is not None
            assert process.stdout is not None
            for pipe in (process.stdin, process.stdout):
                os.set_blocking(pipe.fileno(), False)
                _widen(pipe.fileno())
                self._watched.register(pipe.fileno(), select.POLLIN)
            self._watched.modify(process.stdin.fileno(), 0)
            self._watched.poll(STARTING * 1000)
            if process.stdout.read(ANSWER.size) == ANSWER.pack(READY, 0, 0):
                return process
            self._end()
            if process.returncode != -signal.SIGKILL:
                break
        raise self._refused()

    def _refused(self) -> UserError:
        self._said.seek(0)
        reason = self._said.read()[-300:].decode("utf-8", "replace").strip().rpartition("\n")[2]
        return UserError(
            "corpus/extractor-does-not-start",
            f"the process that finds the texts of pages doesn't start ({reason or 'it says nothing'}): look at the "
            f"installation of {self._extractor.kind}",
        )

    def _spawned(self) -> subprocess.Popen[bytes]:
        self._said.seek(0)
        self._said.truncate()
        self._answered = 0
        os.pwrite(self._shared.fileno(), BEGUN.pack(0), 0)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        one = self._extractor
        said = one.kind, one.deadline_s, one.memory_mb, self._shared.fileno()
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "coretrain.corpus.extract.worker", *map(str, said)],
            pass_fds=[self._shared.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path},
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        self._in.clear()
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(KeyError):  # of one that didn't come up
                    self._watched.unregister(pipe.fileno())
                pipe.close()


def _widen(pipe: int) -> None:
    """Let a pipe hold more, where the system can: both sides wake less often."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, AHEAD)


def _size(place: Place) -> int:
    assert isinstance(place.item, Page)
    return len(place.item.body) + ASK.size


def _packed(place: Place) -> bytes:
    page = place.item
    assert isinstance(page, Page)
    charset = page.charset.encode()
    return ASK.pack(PAGE, len(charset), len(page.body)) + charset + page.body


def _trouble(page: Page, kind: str, how: str = "") -> Trouble:
    file, offset = page.metadata.get("file", ""), page.metadata.get("offset", 0)
    words = f"{page.metadata.get('url') or page.id}: {WORDS[kind]} {how}".rstrip()
    return Trouble(kind, str(file), int(offset or 0), words)
