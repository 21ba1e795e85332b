"""The data's fields."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Field

from coretrain.config.fields import Count, Countable, Positive, Section

CHAT_DATE = datetime.date(2024, 7, 26)
"""The date that Llama's own chat templates fall back to where nobody tells them one."""


class MixturePart(Section):
    """One source of a mixture and its share of the training rows."""

    source: str = Field(description="A source, as data.source takes it.")
    weight: float = Field(gt=0, description="Its share, relative to the other parts'.")


class DataConfig(Section):
    """Text in, batches out."""

    source: str = Field(
        "stdlib",
        description="`stdlib` (this Python's own library and pydoc topics), a file or folder of "
        ".txt .md .py .jsonl(.gz .zst) .parquet, or `hf:NAME[:SUBSET][:SPLIT]` (needs the datasets extra).",
    )
    mixture: tuple[MixturePart, ...] = Field(
        (), description='Several sources with weights, instead of source: [{source = "a", weight = 95}, ...].'
    )
    text_field: str = Field("text", description="The field that holds the text, in jsonl, parquet and datasets.")
    format: Literal["text", "chat", "pairs", "labels", "prompts"] = Field(
        "text",
        description="text; chat: rows of messages, or of prompt and completion, in .jsonl or .parquet, of which the "
        "assistant's turns are learnt, packed into rows of context tokens; pairs: a prompt, a chosen and a rejected "
        "answer; labels: a prompt, an answer, true or false; prompts: alone, for answers that are sampled.",
    )
    chat_template: str | None = Field(
        None,
        description="File of the Jinja template that turns messages into text; `bare`: prompt and completion as they "
        "are. Unset: the base's or the run's own, else ChatML where the tokenizer has its special tokens, else plain.",
    )
    chat_date: datetime.date = Field(
        CHAT_DATE,
        description="Date that a template's strftime_now tells, the same on every day: data must not change by itself.",
    )
    row_tokens: Positive | None = Field(
        None,
        description="Tokens of a row of packed samples (chat, pairs, labels), at most model.context (unset: as many).",
    )
    misfits: Literal["refuse", "drop"] = Field(
        "refuse",
        description="What to do about a row of chat, pairs, labels or prompts that can't be used: no answer, too long, "
        "equal answers, refused by the template; drop counts them.",
    )
    tokenizer: str = Field(
        "trained",
        description="`trained` (a BPE from this corpus), `gpt2`, `cl100k_base`, `o200k_base`, `bytes`, "
        "or the path of a .tiktoken file or a tokenizer.json.",
    )
    tokenizer_vocab: Annotated[int, Field(ge=257, le=10_000_000)] = Field(
        4096, description="Vocabulary of a trained tokenizer, specials included."
    )
    validation_fraction: float = Field(
        0.02, gt=0, lt=0.5, description="Share of documents, by hash, kept for validation."
    )
    max_documents: Count = Field(0, description="Stop after this many documents of a source (0: all).")
    shard_tokens: Annotated[int, Field(ge=1024), Countable] = Field(16_777_216, description="Tokens in a shard file.")
    cache: str = Field("~/.cache/twintrain", description="Folder of prepared shards and trained tokenizers.")
    prepare_processes: Count = Field(0, le=1024, description="Processes that tokenize (0: one for each core).")
    workers: Count = Field(0, le=1024, description="Loader workers during training (0: in the trainer's own process).")

    @property
    def packed(self) -> bool:
        """Whether rows are samples of their own, several to a row, each with its positions."""
        return self.format in ("chat", "pairs", "labels")
