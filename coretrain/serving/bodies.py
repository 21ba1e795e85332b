"""Bodies of requests, as OpenAI's clients send them: what is answered, what has no effect, and what is refused."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coretrain.base.parse import from_json
from coretrain.contract.sampling import Sampling
from coretrain.tokenizers.tokenizer import well_formed

MOST_CHOICES, MOST_STOPS, MOST_TOP, MOST_MESSAGES = 16, 4, 20, 2048
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
Stop = str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MOST_STOPS)]


class HttpError(Exception):  # an answer, with its status
    """What isn't answered: the status, and the words and the parameter of OpenAI's form of an error."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """What else a stream tells."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Part(BaseModel):
    """A part of a message: text alone."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    def plain(self) -> dict[str, Any]:
        """As a chat template gets it."""
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        named = {} if self.name is None else {"name": well_formed(self.name)}
        return {"role": self.role, "content": well_formed("\n".join(parts))} | named


class Body(BaseModel):
    """What completions and chats have in common."""

    model_config = ConfigDict(extra="forbid", strict=True)
    no_effect: ClassVar[frozenset[str]] = frozenset(
        {"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    )
    """Fields that say who asks, and nothing of what is asked."""
    undone: ClassVar[Mapping[str, Sequence[Any]]] = {
        "logit_bias": ({},),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "store": (False,),
        "best_of": (1,),
        "suffix": ("",),
    }
    """Fields of OpenAI that aren't done here, and the values with which they have no effect."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[Stop, Field(union_mode="left_to_right")] | None = None
    stop_token_ids: Annotated[list[Id], Field(max_length=64)] | None = None
    return_token_ids: bool | None = None

    @property
    def choices(self) -> int:
        """How many answers."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """Strings that end an answer."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [well_formed(text) for text in found if text]

    @property
    def most(self) -> int | None:
        """Tokens of an answer at most, where that is said."""
        return self.max_tokens

    @property
    def tops(self) -> int | None:
        """How many likeliest tokens are told at each; None: no log-probabilities."""
        raise NotImplementedError

    def sampling(self) -> Sampling:
        """How tokens are chosen: by OpenAI's defaults, and by a new seed where none is given."""
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Sampling(
            1.0 if self.temperature is None else float(self.temperature),
            max(0, self.top_k or 0),
            1.0 if self.top_p is None else float(self.top_p),
            seed,
        )


class Completion(Body):
    """POST /v1/completions."""

    prompt: str | list[Id] | list[str] | list[list[Id]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None

    @property
    def tops(self) -> int | None:
        """As in `Body`."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more."""
        if isinstance(self.prompt, str):
            return [well_formed(self.prompt)]
        if all(isinstance(one, int) for one in self.prompt):
            return [[one for one in self.prompt if isinstance(one, int)]]
        return [
            well_formed(one) if isinstance(one, str) else list(one) for one in self.prompt if not isinstance(one, int)
        ]


class Chat(Body):
    """POST /v1/chat/completions."""

    undone: ClassVar[Mapping[str, Sequence[Any]]] = dict(Body.undone) | {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": (),
        "web_search_options": (),
    }

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None

    @property
    def most(self) -> int | None:
        """As in `Body`, by its new name or its old one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def tops(self) -> int | None:
        """As in `Body`."""
        return (self.top_logprobs or 0) if self.logprobs else None


Kind = TypeVar("Kind", bound=Body)


def read_body(kind: type[Kind], raw: bytes) -> Kind:
    """The body of a request. Raises `HttpError` where it is no JSON, or asks for what can't be done."""
    try:
        given = from_json(raw)
    except ValueError as error:
        raise HttpError(400, f"the body is no JSON ({_reason(error)})", code="invalid_json") from None
    if not isinstance(given, dict):
        raise HttpError(400, "the body is no JSON object", code="invalid_json")
    given = {name: value for name, value in given.items() if name not in kind.no_effect}
    for name, harmless in kind.undone.items():
        if name in given:
            value = given.pop(name)
            if value is not None and not any(_same(value, one) for one in harmless):
                raise HttpError(400, f"{name} isn't supported here: leave it out", name, "unsupported_parameter")
    try:
        body = kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])[:100]
        if first["type"] == "extra_forbidden":
            raise HttpError(400, f"{place} is no field of this request", place, "unknown_parameter") from None
        raise HttpError(400, f"{place or 'the body'}: {first['msg']}", place or None, "invalid_value") from None
    _check_together(body)
    return body


def _check_together(body: Body) -> None:
    if body.stream_options is not None and not body.stream:
        raise HttpError(400, "stream_options is for stream = true alone", "stream_options")
    if isinstance(body, Chat):
        if body.top_logprobs is not None and not body.logprobs:
            raise HttpError(400, "top_logprobs needs logprobs = true", "top_logprobs")
        if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
            raise HttpError(400, "max_tokens and max_completion_tokens differ: give one", "max_tokens")


def _same(value: Any, one: Any) -> bool:
    """JSON's equality: true is no number."""
    return json.dumps(value, sort_keys=True) == json.dumps(one, sort_keys=True) or (
        isinstance(value, float) and not isinstance(one, bool) and value == one
    )


def _reason(error: ValueError) -> str:
    return "it isn't UTF-8" if isinstance(error, UnicodeError) else str(error)[:200]
