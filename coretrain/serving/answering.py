"""From a request's prompts to pieces of answers, as they come out of the engine's thread into the server's loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from coretrain.base.errors import UserError
from coretrain.contract.sampling import Sampling
from coretrain.inference.answers import Answer, EngineFull, Handle, Token
from coretrain.inference.engine import Engine
from coretrain.serving.bodies import Body, HttpError
from coretrain.serving.models import Model
from coretrain.serving.stops import Stops

log = logging.getLogger("twintrain.serving")


@dataclass(frozen=True)
class Job:
    """What is asked of the engine: choice k of prompt p is number p * n + k."""

    model: Model
    prompts: Sequence[Sequence[int]]
    choices: int
    tokens: int
    sampling: Sampling
    stop: frozenset[int]
    stops: Sequence[str]
    tops: int | None
    prompt_tops: int | None = None
    """Of the prompt's own tokens, where they are told."""


@dataclass
class Piece:
    """What came of one choice since its last piece."""

    choice: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt: list[Token] = field(default_factory=list)
    """The prompt's, where they are told with the first."""
    reason: str | None = None
    """Its end: stop or length."""
    answer: Answer | None = None
    """What the engine has of it so far."""


class Choice:
    """One answer: its text is handed on where no stop string can still come of it, and its tokens with their text."""

    def __init__(self, number: int, job: Job) -> None:
        self.number, self.decoder, self.stops = number, job.model.tokenizer.stream(), Stops(job.stops)
        self.waiting, self.decoded, self.given, self.ended = list[tuple[int, Token]](), 0, 0, False

    def push(self, token: Token) -> Piece:
        """One token more."""
        text = self.decoder.push(token.id)
        begin, self.decoded = self.decoded, self.decoded + len(text)
        self.waiting.append((begin, token))
        return self._given(self.stops.push(text), last=False)

    def finish(self) -> Piece:
        """No token comes any more."""
        rest = self.stops.push(self.decoder.finish())
        return self._given(rest + self.stops.finish(), last=True)

    def _given(self, text: str, last: bool) -> Piece:
        self.given += len(text)
        # a token without text of its own, as half a character, goes with the next
        ready = len(self.waiting) if last and not self.stops.stopped else sum(b < self.given for b, _ in self.waiting)
        piece = Piece(self.number, text, [token for _, token in self.waiting[:ready]])
        del self.waiting[:ready]
        return piece


def make_job(engine: Engine, model: Model, body: Body, prompts: Sequence[Sequence[int]], otherwise: int) -> Job:
    """The job of a request. Without a number of tokens it is as many as fit, at most `otherwise`."""
    longest = max(map(len, prompts), default=0)
    tokens = min(otherwise, max(1, engine.slots - longest)) if body.most is None else body.most
    stop = frozenset((*model.ends, *(body.stop_token_ids or ())))
    return Job(model, prompts, body.choices, tokens, body.sampling(), stop, body.stops, body.tops)


async def pieces(engine: Engine, job: Job, seconds: float) -> AsyncIterator[Piece]:
    """Pieces of all choices, in the order in which they come; whoever leaves off early ends the request.

    Raises `HttpError` for what the engine refuses, what goes wrong, and an answer that takes longer than `seconds`.
    """
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Token | Answer]]()
    handles, until = list[Handle](), time.monotonic() + seconds

    def submit(number: int) -> Handle:
        def put(item: Token | Answer) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, (number, item))

        return engine.submit(
            job.prompts[number // job.choices], job.sampling, job.tokens, job.stop, job.tops, job.prompt_tops,
            number % job.choices, job.model.adapter, put, put,
        )  # fmt: skip

    choices = [Choice(number, job) for number in range(len(job.prompts) * job.choices)]
    try:
        for choice in choices:
            handles.append(submit(choice.number))
        while not all(choice.ended for choice in choices):
            number, item = await asyncio.wait_for(inbox.get(), until - time.monotonic())
            if not (choice := choices[number]).ended:
                yield _piece(choice, item, handles[number])
    except EngineFull as error:
        raise HttpError(429, str(error), code="queue_full", Retry_After="2") from None
    except UserError as error:
        asked = error.code.startswith(("contract/prompt", "inference/request"))
        status = 400 if asked else 503 if error.code == "inference/engine-closed" else 500
        raise HttpError(status, str(error), code=error.code.partition("/")[2]) from None
    except TimeoutError:
        raise HttpError(
            504, f"the answer takes longer than {seconds:g} s: ask for fewer tokens", code="timeout"
        ) from None
    finally:
        for handle in handles:
            handle.cancel()


def _piece(choice: Choice, item: Token | Answer, handle: Handle) -> Piece:
    if isinstance(item, Token):
        piece = choice.push(item)
        piece.answer = handle.answer
        if choice.stops.stopped:
            handle.cancel()
            choice.ended, piece.reason = True, "stop"
        return piece
    if item.reason == "error":
        log.error("an answer failed", exc_info=item.error)
        raise (item.error if isinstance(item.error, UserError) else HttpError(500, "the answer failed: see the log"))
    if item.reason == "cancelled":
        raise HttpError(503, "the server is being stopped: ask again", code="stopping")
    piece = choice.finish()
    choice.ended, piece.answer = True, item
    piece.reason = "stop" if choice.stops.stopped else item.reason
    return piece
