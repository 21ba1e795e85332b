"""The server's endpoints, as an ASGI application: whatever comes in, an answer or a status goes out."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from coretrain.inference.engine import Engine
from coretrain.serving.answering import Job, Piece, make_job, pieces
from coretrain.serving.bodies import Body, Chat, Completion, HttpError, read_body
from coretrain.serving.models import Model
from coretrain.serving.shapes import Shape, is_echo
from coretrain.tokenizers.chat_template import Template
from coretrain.tokenizers.conversation import Conversation
from coretrain.tokenizers.jinja import TemplateError
from coretrain.tokenizers.tokenizer import Tokenizer

PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/markdown.js": "markdown.js"}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
COMPLETION_TOKENS = 16
"""Of a completion that doesn't say how many, as OpenAI has it."""
log = logging.getLogger("twintrain.serving")


@dataclass(frozen=True)
class Limits:
    """What a client may ask for."""

    body: int = 2**21
    """Bytes of a request."""
    answer: int = 1024
    """Tokens of a chat's answer that doesn't say how many."""
    seconds: float = 600.0
    prompts: int = 64


class Server:
    """The endpoints over an engine and its models."""

    def __init__(
        self, engine: Engine, models: Mapping[str, Model], limits: Limits, key: str = "", only_loopback: bool = True
    ) -> None:
        """With a `key`, clients have to give it. With `only_loopback`, the Host that they name has to be this machine:
        no page of another site can ask by a name of its own that points here."""
        self.engine, self.models, self.limits, self.began = engine, models, limits, int(time.time())
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name}", self.one_model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            *(Route(path, _page) for path in PAGE),
        ]
        handlers: Any = {HttpError: _refused, HTTPException: _http, ClientDisconnect: _gone, Exception: _fault}
        self.app: ASGIApp = Guard(Starlette(routes=routes, exception_handlers=handlers), key, only_loopback)

    async def health(self, request: Request) -> Response:
        """That it answers, and what it does."""
        told = await asyncio.to_thread(self.engine.statistics)
        alive = self.engine.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "stopped"} | vars(told), 200 if alive else 503)

    async def list_models(self, request: Request) -> Response:
        """Names of all models."""
        return JSONResponse({"object": "list", "data": [self._shown(model) for model in self.models.values()]})

    async def one_model(self, request: Request) -> Response:
        """One of them."""
        return JSONResponse(self._shown(self._model(request.path_params["name"])))

    def _shown(self, model: Model) -> dict[str, Any]:
        more = {"chat": model.template is not None, "context": self.engine.slots}
        return {"id": model.name, "object": "model", "created": self.began, "owned_by": "twintrain"} | more

    def _model(self, name: str) -> Model:
        if name not in self.models:
            there = ", ".join(self.models)
            raise HttpError(404, f"there is no model {name[:100]!r}: there are {there}", "model", "model_not_found")
        return self.models[name]

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = read_body(Chat, await self._raw(request))
        model = self._model(body.model)
        if model.template is None:
            raise HttpError(400, f"{model.name} can't chat: {model.no_chat}", "model", "no_chat_template")
        ids = await asyncio.to_thread(_asked, model.template, body)
        return await self._answer(request, body, make_job(self.engine, model, body, [ids], self.limits.answer))

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = read_body(Completion, await self._raw(request))
        model = self._model(body.model)
        given = body.prompts
        if not 0 < len(given) <= self.limits.prompts:
            raise HttpError(400, f"{len(given)} prompts: give from 1 to {self.limits.prompts}", "prompt")
        ids = await asyncio.to_thread(lambda: [_encoded(model.tokenizer, one) for one in given])
        job = make_job(self.engine, model, body, ids, COMPLETION_TOKENS)
        if is_echo(body):
            job = replace(job, prompt_tops=body.tops)
        return await self._answer(request, body, job)

    async def _raw(self, request: Request) -> bytes:
        """The body, as far as it may be. Raises `HttpError` for a larger one, or another kind."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HttpError(415, "the body has to be JSON: send Content-Type: application/json")
        raw = bytearray()
        async for part in request.stream():
            raw += part
            if len(raw) > self.limits.body:
                raise HttpError(413, f"the body is larger than {self.limits.body:,} bytes", code="body_too_large")
        return bytes(raw)

    async def _answer(self, request: Request, body: Body, job: Job) -> Response:
        shape, stream = Shape(body, job), pieces(self.engine, job, self.limits.seconds)
        if body.stream:
            first = await anext(stream)  # what is refused has a status of its own
            return StreamingResponse(_events(shape, first, stream), media_type="text/event-stream", headers=NO_STORE)
        whole = asyncio.create_task(_whole(shape, stream))
        try:
            while not (await asyncio.wait([whole], timeout=0.25))[0]:
                if await request.is_disconnected():
                    raise ClientDisconnect
            return JSONResponse(whole.result())
        finally:
            whole.cancel()


NO_STORE = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def _asked(template: Template, body: Chat) -> list[int]:
    try:
        return [int(token) for token in template.asked(Conversation([message.plain() for message in body.messages]))]
    except TemplateError as error:
        raise HttpError(400, str(error)[:1000], "messages", "template_refused") from None


def _encoded(tokenizer: Tokenizer, prompt: str | list[int]) -> list[int]:
    """An empty one is a fresh document."""
    ids = [int(token) for token in tokenizer.encode(prompt)] if isinstance(prompt, str) else prompt
    return ids or [tokenizer.eot]


async def _whole(shape: Shape, stream: AsyncIterator[Piece]) -> dict[str, Any]:
    """All choices, put together."""
    job = shape.job
    answers = [Piece(number) for number in range(len(job.prompts) * job.choices)]
    async for piece in stream:
        shape.count(piece)
        mine = answers[piece.choice]
        mine.text, mine.tokens = mine.text + piece.text, mine.tokens + piece.tokens
        mine.reason, mine.answer = piece.reason, piece.answer
    for mine in answers if is_echo(shape.body) else ():
        prompt = _echoed(shape, mine)
        mine.text, mine.prompt = prompt.text + mine.text, prompt.prompt
    return shape.whole(answers)


def _echoed(shape: Shape, piece: Piece) -> Piece:
    """The prompt as a piece, with its log-probabilities where they were asked for."""
    ids = shape.job.prompts[piece.choice // shape.job.choices]
    told = [] if piece.answer is None else piece.answer.prompt
    return Piece(piece.choice, shape.tokenizer.decode(ids), prompt=list(told))


async def _events(shape: Shape, first: Piece, stream: AsyncIterator[Piece]) -> AsyncIterator[str]:
    """Server-sent events: chunks, the usage where it is asked for, and the end."""
    begun = set[int]()
    held = dict[int, Piece]()

    def sent(piece: Piece) -> str:
        shape.count(piece)
        opening = piece.choice not in begun
        begun.add(piece.choice)
        if opening and is_echo(shape.body):
            prompt = _echoed(shape, piece)
            piece = replace(piece, text=prompt.text + piece.text, prompt=prompt.prompt)
        return _event(shape.chunk(piece, opening))

    try:
        piece: Piece | None = first
        while piece is not None:
            if piece.text or piece.reason:
                if (before := held.pop(piece.choice, None)) is not None:
                    piece.tokens = before.tokens + piece.tokens
                yield sent(piece)
            elif piece.tokens:
                held.setdefault(piece.choice, Piece(piece.choice)).tokens.extend(piece.tokens)
            piece = await anext(stream, None)
        if shape.body.stream_options is not None and shape.body.stream_options.include_usage:
            yield _event(shape.head(".chunk" if shape.chat else "") | {"choices": [], "usage": shape.usage()})
    except HttpError as refused:
        yield _event(refused.body())
    except Exception:
        log.exception("a stream failed")
        yield _event(HttpError(500, "the answer failed: see the server's log").body())
    finally:
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    yield "data: [DONE]\n\n"


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


class Guard:
    """Who may ask: by the Host that is named, the page that asks, and the key."""

    def __init__(self, app: ASGIApp, key: str, only_loopback: bool) -> None:
        self.app, self.key, self.only_loopback = app, key, only_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.check(scope["path"], headers)
        except HttpError as refused:
            await _response(refused)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raise `HttpError` for those who may not."""
        host = headers.get("host", "")
        if self.only_loopback and _name(host) not in LOOPBACK:
            raise HttpError(
                403, f"this server answers as localhost alone, and was asked as {host[:100]!r}: start it with --host"
            )
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host:
            raise HttpError(403, "pages of other sites may not ask this server")
        if self.key and path.startswith("/v1/"):
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
                raise HttpError(401, "API key wrong or missing", code="invalid_api_key", WWW_Authenticate="Bearer")


def _place(origin: str) -> str:
    """Host and port of an origin; empty where it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name(host: str) -> str:
    """A Host without its port."""
    return host[1 : host.find("]")] if host.startswith("[") else host.rpartition(":")[0] or host


def _response(refused: HttpError) -> Response:
    return JSONResponse(refused.body(), refused.status, headers=refused.headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return _response(error)


async def _http(request: Request, error: Exception) -> Response:
    """No such path, or another method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    said = HttpError(error.status_code, f"{error.detail}: {request.method} {request.url.path[:100]}")
    return JSONResponse(said.body(), error.status_code, headers=headers)


async def _gone(request: Request, error: Exception) -> Response:
    """The client went away: nobody reads this."""
    return Response(status_code=499)


async def _fault(request: Request, error: Exception) -> Response:
    """Our own fault: its words are for the log."""
    return _response(HttpError(500, "the server failed at this request: see its log"))


async def _page(request: Request) -> Response:
    name = PAGE[request.url.path]
    text = resources.files("coretrain.serving").joinpath(name).read_bytes()
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    headers["Cache-Control"] = "no-cache"
    return Response(text, media_type=KINDS[name.rpartition(".")[2]], headers=headers)
