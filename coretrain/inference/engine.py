"""Many requests at once: each enters when there is a row, leaves when it ends, and says what it would say alone.

One thread steps. It lets requests in, in the order in which they came; puts a few tokens of new prompts into the cache;
and makes one token for each row. A row's text depends on no other row but by rounding: its tokens, positions and random
numbers are its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.contract.sampling import Sampling, choose_tokens, pad_prompts
from coretrain.inference.answers import Answer, Asked, EngineFull, Handle, Reason, Token, tokens_with
from coretrain.inference.prefixes import Prefixes
from coretrain.training.stack import Stack

ALONE, BESIDE = 256, 64
"""Tokens of prompts between two steps: where no answer waits for the next step, and where one does."""
TURN = 32
"""Steps of one adapter's rows while another's wait."""
WINDOW = 10.0
"""Seconds over which tokens per second are counted."""


@dataclass(eq=False)
class Row:
    """A request that has a row of the cache."""

    handle: Handle
    row: int
    held: list[int]
    """Ids whose keys and values the row holds."""
    last: int = -1
    """The id to be put in next."""
    before: NDArray[Any] | None = field(default=None, repr=False)
    """Logits [1, V] for the next token of a prompt whose log-probabilities are asked for."""

    @property
    def asked(self) -> Asked:
        """What was asked for."""
        return self.handle.asked


@dataclass(frozen=True)
class Statistics:
    """What an engine does, and has done so far."""

    rows: int
    waiting: int
    requests: int
    prompt_tokens: int
    reused_tokens: int
    tokens: int
    tokens_per_second: float
    """Of answers, in the last ten seconds."""


class Engine:
    """A stack's model that answers many requests together. `submit` from any thread; `close` at the end."""

    def __init__(
        self, stack: Stack, rows: int = 8, slots: int | None = None, waiting: int = 64, kept: int | None = None
    ) -> None:
        """`rows` requests are answered at once, each of at most `slots` tokens (the model's context), and `waiting`
        more may wait. Keys and values of earlier requests are kept up to `kept` tokens (twice `slots`)."""
        self.stack, self.config, self.waiting = stack, stack.config, waiting
        self.rows, self.slots = rows, min(slots or self.config.model.context, self.config.model.context)
        self.lanes = stack.lanes(rows, self.slots)
        self.prefixes = Prefixes(2 * self.slots if kept is None else kept)
        self.adapters: dict[str, tuple[RunConfig, Mapping[str, Array]]] = {}
        self.queue, self.filling, self.active = deque[Handle](), deque[Row](), list[Row]()
        self.group: str | None = None
        self.steps = 0
        """Since this group's turn began."""
        self.counts = dict.fromkeys(("requests", "prompt_tokens", "reused_tokens", "tokens"), 0)
        self.recent = deque[tuple[float, int]]()
        self.change, self.ending, self.draining = threading.Condition(), False, False
        self.orders = deque[tuple[Callable[[], None], threading.Event, list[Exception]]]()
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_adapter(self, config: RunConfig, tensors: Mapping[str, Array]) -> None:
        """Answer by this adapter where its `config.adapter.name` is asked for. Raises `UserError` as `AdapterBank.add`
        does."""
        done, faults = threading.Event(), list[Exception]()
        with self.change:
            self._check_open()
            self.orders.append((lambda: self.lanes.add(config, tensors), done, faults))
            self.change.notify_all()
        done.wait()
        if faults:
            raise faults[0]
        self.adapters[config.adapter.name] = config, tensors

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        tokens: int,
        stop: Collection[int] = (),
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        number: int = 0,
        adapter: str | None = None,
        on_token: Callable[[Token], None] | None = None,
        on_end: Callable[[Answer], None] | None = None,
    ) -> Handle:
        """Ask for up to `tokens` ids after `prompt`, ended early by a `stop` id.

        With `logprobs` each token has its log-probability, and those of so many likeliest; with `prompt_logprobs` the
        prompt's tokens too. `number` says which random numbers are drawn: those of this row of a set of prompts.
        `on_token` and `on_end` are called in the engine's thread, and have to be quick; what `on_token` raises ends the
        request. Raises `UserError` for a prompt that can't be answered, `EngineFull` where too many wait.
        """
        asked = Asked(
            tuple(map(int, prompt)), sampling, tokens, frozenset(stop), logprobs, prompt_logprobs, number, adapter,
            on_token, on_end,
        )  # fmt: skip
        self._check(asked)
        handle = Handle(asked)
        with self.change:
            self._check_open()
            if len(self.queue) >= self.waiting:
                raise EngineFull(
                    "inference/queue-full", f"{self.waiting} requests wait already: ask again in some seconds"
                )
            self.queue.append(handle)
            self.counts["requests"] += 1
            self.change.notify_all()
        return handle

    def _check(self, asked: Asked) -> None:
        pad_prompts([asked.prompt], self.config.model.vocabulary, max(self.slots, len(asked.prompt)), 0)
        if len(asked.prompt) + asked.tokens > self.slots or asked.tokens < 0:
            raise UserError(
                "inference/request-too-long",
                f"a prompt of {len(asked.prompt)} tokens and {asked.tokens} new ones don't fit in the {self.slots} "
                f"that a request may have: ask for at most {max(0, self.slots - len(asked.prompt))} tokens, or "
                "shorten the prompt",
            )
        if asked.adapter is not None and asked.adapter not in self.adapters:
            raise UserError(
                "inference/adapter-unknown",
                f"no adapter is named {asked.adapter}: there are {', '.join(self.adapters) or 'none'}",
            )

    def _check_open(self) -> None:
        if self.ending or self.draining:
            raise UserError("inference/engine-closed", "the model is being closed: start it again")

    def statistics(self) -> Statistics:
        """What it does, and has done so far."""
        with self.change:
            since = time.monotonic() - WINDOW
            recent = sum(count for at, count in self.recent if at >= since)
            busy = len(self.active) + len(self.filling)
            return Statistics(busy, len(self.queue), tokens_per_second=recent / WINDOW, **self.counts)

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new, and wait until all that was asked is answered; False where that isn't so in `timeout` s."""
        with self.change:
            self.draining = True
            return self.change.wait_for(lambda: not (self.queue or self.filling or self.active), timeout)

    def close(self, timeout: float = 5.0) -> None:
        """End all requests as cancelled, and the thread; the model is left as it was found."""
        with self.change:
            self.ending = True
            self.change.notify_all()
        if self.thread is not threading.current_thread():
            self.thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self.change:
                self.change.wait_for(
                    lambda: self.ending or self.orders or self.queue or self.filling or self.active,
                )
                if self.ending:
                    break
            try:
                self._turn()
            except Exception as fault:
                self._recover(fault)
            with self.change:
                self.change.notify_all()  # for whoever waits in `drain`
        self._leave()

    def _leave(self) -> None:
        """The thread's last act."""
        with self.change:
            handles = [*(row.handle for row in (*self.active, *self.filling)), *self.queue]
            for held in (self.queue, self.filling, self.active):
                held.clear()
            orders = list(self.orders)
        for handle in handles:
            handle.end("cancelled")
        for _, done, faults in orders:
            faults.append(UserError("inference/engine-closed-meanwhile", "the model is being closed: start it again"))
            done.set()
        with contextlib.suppress(Exception):
            self.lanes.use(None)
            self.lanes.close()
        with self.change:
            self.change.notify_all()

    def _recover(self, fault: Exception) -> None:
        """After a fault of the stack: all that was under way ends with it, and the cache is made anew."""
        for row in (*self.active, *self.filling):
            row.handle.end("error", fault)
        self.active.clear()
        self.filling.clear()
        self.prefixes.clear()
        try:
            self.lanes.close()
            self.lanes = self.stack.lanes(self.rows, self.slots)
            for config, tensors in self.adapters.values():
                self.lanes.add(config, tensors)
            self.group = None
        except Exception as worse:  # nothing can be answered any more: whoever waits is told
            with self.change:
                self.ending, queue = True, list(self.queue)
                self.queue.clear()
            for handle in queue:
                handle.end("error", worse)

    def _turn(self) -> None:
        """Let in, fill, step; each as far as there is something to do."""
        while self.orders:
            self._obey(*self.orders.popleft())
        self._drop_cancelled()
        self._let_in()
        self._choose_group()
        left = BESIDE if any(row.asked.adapter == self.group for row in self.active) else ALONE
        while left > 0 and (mine := [row for row in self.filling if row.asked.adapter == self.group]):
            left -= self._fill(mine[0], left)
        self._step()

    def _obey(self, order: Callable[[], None], done: threading.Event, faults: list[Exception]) -> None:
        try:
            self.lanes.use(None)
            order()
        except Exception as fault:
            faults.append(fault)
        finally:
            self.lanes.use(self.group)
            done.set()

    def _drop_cancelled(self) -> None:
        for row in [row for row in (*self.active, *self.filling) if row.handle.cancelled]:
            self._end(row, "cancelled")
        with self.change:
            gone = [handle for handle in self.queue if handle.cancelled]
            for handle in gone:
                self.queue.remove(handle)
        for handle in gone:
            handle.end("cancelled")

    def _let_in(self) -> None:
        while True:
            with self.change:
                if not self.queue or len(self.active) + len(self.filling) == self.rows:
                    return
                handle = self.queue.popleft()
                taken = {row.row for row in (*self.active, *self.filling)}
                row = Row(handle, next(place for place in range(self.rows) if place not in taken), [])
                self.filling.append(row)  # under the lock, so that `drain` sees it in one place or the other
            asked = row.asked
            if asked.prompt_logprobs is None:
                kept, same = self.prefixes.find(asked.prompt, asked.adapter)
                if kept is not None:
                    self.lanes.restore(row.row, kept.held, same)
                    row.held.extend(asked.prompt[:same])
                    handle.answer.reused = same
            with self.change:
                self.counts["reused_tokens"] += len(row.held)

    def _choose_group(self) -> None:
        """The adapter whose rows are next: as now, until its turn is over and others wait."""
        groups = list(dict.fromkeys(row.asked.adapter for row in (*self.filling, *self.active)))
        others = [group for group in groups if group != self.group]
        if not others or (self.group in groups and self.steps < TURN):
            return
        at = groups.index(self.group) if self.group in groups else -1
        self.group, self.steps = groups[(at + 1) % len(groups)], 0
        self.lanes.use(self.group)

    def _fill(self, row: Row, most: int) -> int:
        """Put one piece of a prompt in, after which another has its turn; how many tokens it was."""
        asked, at = row.asked, len(row.held)
        ids = asked.prompt[at : at + self.lanes.piece(len(asked.prompt) - at, most)]
        every = asked.prompt_logprobs is not None
        logits = self.lanes.prefill(row.row, ids, at, every)
        row.held.extend(ids)
        self.filling.rotate(-1)
        with self.change:
            self.counts["prompt_tokens"] += len(ids)
        if every:
            rows = logits if row.before is None else np.concatenate([row.before, logits])
            told = ids if row.before is not None else ids[1:]
            if row.before is None:
                row.handle.answer.prompt.append(Token(ids[0]))
            row.handle.answer.prompt += tokens_with(rows[: len(told)], told, asked.prompt_logprobs)
            row.before, logits = logits[-1:], logits[-1]
        if len(row.held) == len(asked.prompt):
            self._begin(row, logits)
        return len(ids)

    def _begin(self, row: Row, logits: NDArray[Any]) -> None:
        """The prompt is in: its row goes behind those of the answers, which are the first, and has its first token."""
        place = len(self.active)
        there = next((other for other in self.filling if other.row == place), None)
        if there is not row:
            if there is not None:
                self.lanes.move(place, self.rows, max(1, len(there.held)))
            self.lanes.move(row.row, place, len(row.held))
            if there is not None:
                self.lanes.move(self.rows, row.row, max(1, len(there.held)))
                there.row = row.row
            row.row = place
        self.filling.remove(row)
        self.active.append(row)
        self._say(row, logits[None])

    def _step(self) -> None:
        mine = [row for row in self.active if row.asked.adapter == self.group]
        if not mine:
            return
        count = mine[-1].row + 1
        tokens, at = np.zeros(count, np.int32), np.full(count, self.slots, np.int32)
        for row in mine:
            tokens[row.row], at[row.row] = row.last, len(row.held)
        logits = self.lanes.step(tokens, at)
        self.steps += 1
        for row in mine:  # before any of them ends, and another is moved to its place with all that it holds
            row.held.append(row.last)
        for row, place in [(row, row.row) for row in mine]:
            self._say(row, logits[place : place + 1])

    def _say(self, row: Row, logits: NDArray[Any]) -> None:
        """Choose a row's next token from logits [1, V]; whatever goes wrong is this request's alone."""
        asked, said = row.asked, len(row.handle.answer.tokens)
        try:
            if said == asked.tokens:
                self._end(row, "length")
                return
            token = int(choose_tokens(logits, asked.sampling, said, np.array([asked.number]))[0])
            if token in asked.stop:
                row.handle.answer.stopped_by = token
                self._end(row, "stop")
                return
            row.last = token
            row.handle.say(*tokens_with(logits, [token], asked.logprobs))
            with self.change:
                self.counts["tokens"] += 1
                self.recent.append((time.monotonic(), 1))
                while self.recent[0][0] < self.recent[-1][0] - WINDOW:
                    self.recent.popleft()
            if said + 1 == asked.tokens:
                self._end(row, "length")
        except Exception as error:
            self._end(row, "error", error)

    def _end(self, row: Row, reason: Reason, error: Exception | None = None) -> None:
        """Take a row's request out, keep what it leaves, and put the last of the answers' rows into its place."""
        adapter = row.asked.adapter
        if reason != "error" and self.prefixes.wants(row.held, adapter):
            self.prefixes.add(row.held, adapter, self.lanes.keep(row.row, len(row.held)))
        if row in self.filling:
            with self.change:
                self.filling.remove(row)
        elif row in self.active:
            with self.change:
                last = self.active.pop()
                if last is not row:
                    self.active[row.row] = last
            if last is not row:
                self.lanes.move(last.row, row.row, len(last.held))
                last.row = row.row
        row.handle.end(reason, error)
