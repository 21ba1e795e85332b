"""Conversations token by token: what the default templates write, which bytes are learnt, how long a sample may be."""

from __future__ import annotations

import numpy as np
import pytest

from coretrain.data.chat import ConversationEncoder
from coretrain.tokenizers.chat_template import CHATML, PLAIN, Template
from coretrain.tokenizers.conversation import Conversation
from coretrain.tokenizers.jinja import TemplateError
from coretrain.tokenizers.registry import bytes_tokenizer
from coretrain.tokenizers.tokenizer import GPT2_PATTERN, Tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": "b"},
]


def chatml() -> Template:
    ranks = {bytes([byte]): byte for byte in range(256)}
    specials = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    roles = {"bos": 256, "eos": 258, "pad": 256}
    return Template(CHATML, "ChatML", Tokenizer("x", ranks, GPT2_PATTERN, 256, specials, roles))


def plain() -> Template:
    return Template(PLAIN, "plain", bytes_tokenizer())


def spelled(template: Template, pieces: list[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
    """Ids and targets of pieces of text; a piece that is a special token is one id, any other its bytes."""
    ids, targets = [], []
    for text, learnt in pieces:
        special = template.tokenizer.specials.get(text)
        new = [special] if special is not None else list(text.encode())
        ids += new
        targets += [learnt] * len(new)
    return ids, targets


def of(template: Template, *unlearnt: int) -> tuple[list[int], list[bool]]:
    ids, targets = template.sample(Conversation(TALK, unlearnt=unlearnt))
    return ids.tolist(), targets.tolist()


def test_the_plain_template_by_hand():
    """An answer is learnt with the end of text that stops it; the head of its turn isn't, nor what the user says. What
    comes after the last answer's end is left out."""
    end = "<|endoftext|>"
    head = "### System:\nBe brief.\n\n### User:\nhi\n\n### Assistant:\n"
    between = "\n### User:\na?\n\n### Assistant:\n"
    assert of(plain()) == spelled(
        plain(), [(head, False), ("yo", True), (end, True), (between, False), ("b", True), (end, True)]
    )
    assert of(plain(), 2) == spelled(
        plain(), [(head + "yo", False), (end, False), (between, False), ("b", True), (end, True)]
    )
    assert of(plain(), 4) == spelled(plain(), [(head, False), ("yo", True), (end, True)])
    assert plain().question("hi") == list(b"### User:\nhi\n\n### Assistant:\n")
    assert plain().end() == 256


def test_chatml_by_hand():
    start, end = ("<|im_start|>", False), ("<|im_end|>", False)
    head = [start, ("system\nBe brief.", False), end, ("\n", False), start, ("user\nhi", False), end, ("\n", False)]
    asked = [start, ("assistant\n", False)]
    between = [("\n", False), start, ("user\na?", False), end, ("\n", False)]
    stop = ("<|im_end|>", True)
    assert of(chatml()) == spelled(chatml(), [*head, *asked, ("yo", True), stop, *between, *asked, ("b", True), stop])
    assert chatml().end() == 258
    ids, _ = spelled(chatml(), [start, ("user\nhi", False), end, ("\n", False), start, ("assistant\n", False)])
    assert chatml().question("hi") == ids


def test_facts_and_how_many_fit():
    """Twice the id, and 1 more for a target. n ids are n - 1 inputs: a row of as many takes them, one of fewer not."""
    document = Conversation(TALK).dump()
    ids, targets = of(plain())
    expected = [2 * token + target for token, target in zip(ids, targets, strict=True)]
    fits = ConversationEncoder(plain(), len(ids) - 1, "refuse")
    assert fits.encode(document).tolist() == expected
    assert fits.encode(document).dtype == np.uint32
    assert (fits.vocab, fits.eot) == (2 * 257, 2 * 256)
    with pytest.raises(TemplateError, match=f"{len(ids) - 1} tokens are more than a row's {len(ids) - 2}"):
        ConversationEncoder(plain(), len(ids) - 2, "refuse").encode(document)
    assert ConversationEncoder(plain(), len(ids) - 2, "drop").encode(document).tolist() == []
    assert fits.encode('{"misfit": "ab"}').tolist() == [2]


def test_all_that_facts_depend_on_is_in_their_fingerprint():
    found = [
        ConversationEncoder(template, context, misfits).fingerprint
        for template in (plain(), chatml(), Template(PLAIN + " ", "plain", bytes_tokenizer()))
        for context in (32, 33)
        for misfits in ("refuse", "drop")
    ]
    assert len(set(found)) == 12
    assert {len(one) for one in found} == {64}
