"""What is sent back, in OpenAI's forms."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from coretrain.serving.answering import Job, Piece
from coretrain.serving.bodies import Body, Chat, Completion
from coretrain.tokenizers.tokenizer import Tokenizer


def shown(tokenizer: Tokenizer, id: int) -> str:
    """A token's text, with U+FFFD for what is no whole character."""
    return tokenizer.token_bytes(id).decode(errors="replace")


class Shape:
    """The answer to one request, whole or in chunks."""

    def __init__(self, body: Body, job: Job) -> None:
        self.body, self.job, self.chat = body, job, isinstance(body, Chat)
        self.tokenizer, self.began = job.model.tokenizer, int(time.time())
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)
        self.object = "chat.completion" if self.chat else "text_completion"
        self.offsets = [0] * (len(job.prompts) * job.choices)
        self.completion_tokens = self.reused = 0

    def count(self, piece: Piece) -> None:
        """What it adds to the usage."""
        if piece.answer is not None and piece.reason is not None:
            self.completion_tokens += len(piece.answer.tokens)
            self.reused += piece.answer.reused

    def usage(self) -> dict[str, Any]:
        """Tokens of all prompts and answers."""
        asked = sum(len(prompt) for prompt in self.job.prompts)
        total = {"prompt_tokens": asked, "completion_tokens": self.completion_tokens}
        details = {"prompt_tokens_details": {"cached_tokens": min(self.reused, asked)}}
        return total | {"total_tokens": asked + self.completion_tokens} | details

    def head(self, kind: str = "") -> dict[str, Any]:
        """What each answer and each chunk has."""
        return {
            "id": self.id,
            "object": self.object + kind,
            "created": self.began,
            "model": self.job.model.name,
            "system_fingerprint": None,
        }

    def logprobs(self, number: int, piece: Piece) -> dict[str, Any] | None:
        """Of a piece's tokens, in the form of chats or of completions."""
        if self.job.tops is None:
            return None
        if self.chat:
            return {
                "content": [self._told(token.id, token.logprob, token.top) for token in piece.tokens],
                "refusal": None,
            }
        tokens = piece.prompt + piece.tokens
        texts, offsets = [shown(self.tokenizer, token.id) for token in tokens], []
        for text in texts:
            offsets.append(self.offsets[number])
            self.offsets[number] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                None if token.logprob is None else {shown(self.tokenizer, id): logprob for id, logprob in token.top}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _told(self, id: int, logprob: float | None, top: Sequence[tuple[int, float]] | None) -> dict[str, Any]:
        told = {"token": shown(self.tokenizer, id), "logprob": logprob, "bytes": list(self.tokenizer.token_bytes(id))}
        return told if top is None else told | {"top_logprobs": [self._told(*one, None) for one in top]}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        """What a choice has, whole or in chunks."""
        ids = {"token_ids": [token.id for token in piece.tokens]} if self.body.return_token_ids else {}
        given = {"index": piece.choice, "logprobs": self.logprobs(piece.choice, piece)}
        return given | {"finish_reason": piece.reason} | ids

    def chunk(self, piece: Piece, first: bool = False) -> dict[str, Any]:
        """A part of a stream."""
        choice = self._choice(piece)
        if self.chat:
            role = {"role": "assistant"} if first else {}
            choice["delta"] = role | ({"content": piece.text} if piece.text or first else {})
        else:
            choice["text"] = piece.text
        more = self._prompt_ids(piece.choice, choice) if first and self.body.return_token_ids else {}
        with_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        usage = {"usage": None} if with_usage else {}
        return self.head(".chunk" if self.chat else "") | {"choices": [choice]} | more | usage

    def whole(self, answers: Sequence[Piece]) -> dict[str, Any]:
        """All of it at once."""
        choices, more = [], dict[str, Any]()
        for piece in answers:
            choice = self._choice(piece)
            if self.chat:
                choice["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
            else:
                choice["text"] = piece.text
            if self.body.return_token_ids:
                more |= self._prompt_ids(piece.choice, choice)
            choices.append(choice)
        return self.head() | {"choices": choices, "usage": self.usage()} | more

    def _prompt_ids(self, number: int, choice: dict[str, Any]) -> dict[str, Any]:
        """Of a chat beside the choices, of completions in each of them, which may have prompts of their own."""
        ids = list(self.job.prompts[number // self.job.choices])
        if self.chat:
            return {"prompt_token_ids": ids}
        choice["prompt_token_ids"] = ids
        return {}


def is_echo(body: Body) -> bool:
    """Whether the prompt is a part of the answer."""
    return isinstance(body, Completion) and bool(body.echo)
