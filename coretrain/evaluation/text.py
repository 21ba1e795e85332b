"""From texts to the ids that are scored: where a context ends, what begins a document, how long texts are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.evaluation.requests import Continuation
from coretrain.tokenizers.tokenizer import Tokenizer


def beginning(tokenizer: Tokenizer) -> int:
    """The id that stands before a text with nothing before it."""
    return tokenizer.roles.get("bos", tokenizer.eot)


def encoded_pair(tokenizer: Tokenizer, context: str, continuation: str, begin: bool = False) -> Continuation:
    """Both encoded as one text, since tokens may span the border; the context's own ids end it.

    Blanks at the context's end belong to the continuation, as lm-evaluation-harness has it: most tokens begin with one.
    `begin` puts the id that begins a document before the context.
    Raises `UserError` where there is nothing to score.
    """
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    if not continuation:
        raise UserError("evaluation/continuation-empty", f"nothing follows {shown(context[-40:], True)}: give a text")
    if not context:
        return Continuation((beginning(tokenizer),), _ids(tokenizer, continuation))
    whole, start = _ids(tokenizer, context + continuation), len(_ids(tokenizer, context))
    start = min(start, len(whole) - 1)  # a border inside the last token leaves that one to be scored
    if begin or start == 0:
        return Continuation((beginning(tokenizer), *whole[:start]), whole[start:])
    return Continuation(whole[:start], whole[start:])


def differing(tokenizer: Tokenizer, texts: Sequence[str], begin: bool, from_end: bool) -> list[Continuation]:
    """Of several texts the ids from the first on that they don't share: nanochat's evaluation of CORE scores these.

    `from_end`: the ids that all of them end with are scored, and what is before them differs (a schema).
    """
    first = (beginning(tokenizer),) if begin else ()
    rows = [(*first, *_ids(tokenizer, text)) for text in texts]
    columns = zip(*(reversed(row) if from_end else row for row in rows), strict=False)
    shared = next((place for place, column in enumerate(columns) if len(set(column)) > 1), min(map(len, rows)))
    if shared == 0:
        row = rows[0] if from_end else texts[0]
        raise UserError("evaluation/choices-share-nothing", f"the choices of {shown(row)} share no token: mend the row")
    starts = [len(row) - shared if from_end else shared for row in rows]
    starts = [max(1, min(start, len(row) - 1)) for start, row in zip(starts, rows, strict=True)]
    return [Continuation(row[:start], row[start:]) for start, row in zip(starts, rows, strict=True)]


def windows(tokenizer: Tokenizer, text: str, context: int) -> Iterator[Continuation]:
    """A text in pieces of at most `context` ids, each id scored once.

    A piece has one id before it, and the last, which is shorter, as many as there is room for: as
    lm-evaluation-harness has it for `loglikelihood_rolling`.
    """
    ids = (beginning(tokenizer), *_ids(tokenizer, text))
    for start in range(1, len(ids), context):
        stop = min(start + context, len(ids))
        first = start - 1 if stop - start == context or start == 1 else max(0, stop - context - 1)
        yield Continuation(ids[first:start], ids[start:stop])


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(int(token) for token in tokenizer.encode(text))


def cut(asked: Continuation, context: int) -> tuple[tuple[int, ...], int]:
    """The last `context` + 1 ids of both, and how many of them are scored: what is too long loses its beginning."""
    kept = (*asked.context, *asked.ids)[-(context + 1) :]
    return kept, min(len(asked.ids), len(kept) - 1)
