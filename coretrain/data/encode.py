"""Tokenize documents over processes, in order, with bounded memory; and show a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from coretrain.base.errors import UserError
from coretrain.base.interrupts import ctrl_c_for_parent, end_with_parent

CHUNK = 2**20
WORTH_A_PROCESS = 64 * 2**20


class HasText(Protocol):
    """Anything that carries a text."""

    @property
    def text(self) -> str:
        """The text."""


class Encoder(Protocol):
    """What turns documents into numbers that a shard can hold: a tokenizer, or that of conversations."""

    @property
    def name(self) -> str:
        """Name of its tokenizer."""

    @property
    def vocab(self) -> int:
        """The largest number + 1."""

    @property
    def eot(self) -> int:
        """The number that ends a document."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits that tell it from others."""

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Numbers of a document, uint32 [n]."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer into `folder`."""


D = TypeVar("D", bound=HasText)
Encoded = tuple[D, npt.NDArray[Any]]


def encode_in_order(
    documents: Iterable[D], tokenizer: Encoder, processes: int, size: int | None
) -> Iterator[Encoded[D]]:
    """Pairs (document, ids [n], `<|endoftext|>` last), in the documents' order, the same for any number of processes.

    `processes` 0 takes one for each core, but no more than `size` bytes of text are worth starting.
    """
    count = processes or max(1, min(_cores(), _cores() if size is None else size // WORTH_A_PROCESS))
    if count == 1:
        for document in documents:
            yield document, _encode(tokenizer, document.text)
        return
    # spawn: a fork would copy the locks of threads that jax or torch have started
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start, (tokenizer,))
    waiting: deque[tuple[list[D], Future[list[npt.NDArray[Any]]]]] = deque()
    try:
        for chunk in _chunks(documents):
            with ctrl_c_for_parent():  # it may start processes
                waiting.append((chunk, pool.submit(_encode_all, [document.text for document in chunk])))
            if len(waiting) > 2 * count:
                yield from _first(waiting)
        while waiting:
            yield from _first(waiting)
    except BrokenProcessPool:
        raise UserError(
            "data/tokenizing-process-died",
            "a process that tokenizes died (out of memory?): lower data.prepare_processes, then run again; "
            "finished shards are kept",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _first(waiting: deque[tuple[list[D], Future[list[npt.NDArray[Any]]]]]) -> Iterator[Encoded[D]]:
    chunk, future = waiting.popleft()
    yield from zip(chunk, future.result(), strict=True)


def _chunks(documents: Iterable[D]) -> Iterator[list[D]]:
    chunk: list[D] = []
    length = 0
    for document in documents:
        chunk.append(document)
        length += len(document.text)
        if length >= CHUNK:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _encode(tokenizer: Encoder, text: str) -> npt.NDArray[Any]:
    return np.append(tokenizer.encode(text), np.uint32(tokenizer.eot))


_worker_tokenizer: list[Encoder] = []


def _start(tokenizer: Encoder) -> None:
    _worker_tokenizer[:] = [tokenizer]
    end_with_parent()


def _encode_all(texts: list[str]) -> list[npt.NDArray[Any]]:
    return [_encode(_worker_tokenizer[0], text) for text in texts]


class Advance(Protocol):
    """Wraps an iterable: every item passed on moves the bar."""

    def __call__(self, items: Iterable[Any], amount: Callable[[Any], int] = ...) -> Iterator[Any]:
        """The same items."""


@contextlib.contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Advance]:
    """A rich progress bar on stderr when that is a terminal, otherwise nothing; `total` and amounts are bytes."""
    if not sys.stderr.isatty():
        yield lambda items, amount=len: iter(items)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=total)

        def advance(items: Iterable[Any], amount: Callable[[Any], int] = len) -> Iterator[Any]:
            for item in items:
                yield item
                bar.advance(task, amount(item))

        yield advance
