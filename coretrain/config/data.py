"""The data's fields."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from coretrain.config.fields import Count, Countable, Positive, Section, conflict

CHAT_DATE = datetime.date(2024, 7, 26)
"""The date that Llama's own chat templates fall back to where nobody tells them one."""


class MixturePart(Section):
    """One source of a mixture and its share of the training rows."""

    source: str = Field(description="A source, as data.source takes it.")
    weight: float = Field(ge=0, description="Its share, relative to the other parts'; 0 where a later stage uses it.")


class ValidationSet(Section):
    """A named set of running text that is evaluated beside the run's own validation split."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=20, description="Its name in tables and metrics.")
    source: str = Field(description="A source, as data.source takes it, or a folder of prepared shards.")
    documents: Literal["held_out", "all"] = Field(
        "held_out", description="held_out: the documents that data.validation_fraction keeps from training; all."
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, raw: Any) -> Any:
        """NAME=SOURCE, as it is typed."""
        if not isinstance(raw, str):
            return raw
        name, sign, source = raw.partition("=")
        if not (name and sign and source):
            raise conflict(
                "data/validation-set-unnamed",
                f"data.validation has {raw!r}: write NAME=SOURCE, as general=stdlib",
            )
        return {"name": name, "source": source}


class MixtureStage(Section):
    """Other weights of the mixture's parts, from an update on: give one of `update` and `peak_over`."""

    update: Positive | None = Field(None, description="The first update, counted from 0, that has these weights.")
    peak_over: float | None = Field(
        None, gt=1, description="k: from the first update after the warm-up whose rate is at most optimizer.lr / k."
    )
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        description="Shares of the parts, in the mixture's order; 0 leaves a part out."
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.update is None) == (self.peak_over is None):
            raise conflict(
                "data/stage-without-start",
                "a stage of data.stages begins at an update or below a learning rate: give one of update and peak_over",
            )
        if not any(self.weights):
            raise conflict("data/stage-of-nothing", "all weights of a stage of data.stages are 0: raise one of them")
        return self


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
    stages: tuple[MixtureStage, ...] = Field(
        (),
        description="Stages of the mixture, each with its own weights: [{update = 100, weights = [1, 4]}], or "
        "[{peak_over = 5, weights = [1, 4]}] where the learning rate falls to optimizer.lr / 5.",
    )
    replay: str | None = Field(
        None, description="A source, as data.source takes it, of what was learnt before; for data.format = text."
    )
    replay_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the training tokens that come from replay, in every stage (unset: 0.05).",
    )
    validation: tuple[ValidationSet, ...] = Field(
        (),
        description='Named sets of text to evaluate too: ["general=stdlib", "domain=notes/"], or [{name = "exam", '
        'source = "exam.jsonl", documents = "all"}]; for data.format = text and chat.',
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

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _check_stages(self)
        _check_replay(self)
        _check_validation(self)
        return self

    @property
    def replayed(self) -> float:
        """Share of the training tokens that come from `replay`."""
        return 0.0 if self.replay is None else 0.05 if self.replay_fraction is None else self.replay_fraction

    @property
    def named_sets(self) -> bool:
        """Whether an evaluation has named sets: those of `validation`, and the parts where there are several."""
        parts = (len(self.mixture) or 1) + (self.replay is not None)
        return self.format in ("text", "chat") and (bool(self.validation) or parts > 1)

    @property
    def packed(self) -> bool:
        """Whether rows are samples of their own, several to a row, each with its positions."""
        return self.format in ("chat", "pairs", "labels")


def _check_stages(data: DataConfig) -> None:
    if data.stages and not data.mixture:
        raise conflict(
            "data/stages-without-mixture", "data.stages weighs the parts of data.mixture: give one of two parts or more"
        )
    if data.stages and data.format not in ("text", "chat"):
        raise conflict(
            "data/stages-of-no-text",
            f"data.stages needs data.format = text or chat, and it is {data.format}: leave it out",
        )
    for stage in data.stages:
        if len(stage.weights) != len(data.mixture):
            raise conflict(
                "data/stage-weights-count",
                f"a stage of data.stages has {len(stage.weights)} weights and data.mixture {len(data.mixture)} parts: "
                "give each part one",
            )
    if data.mixture and not any(part.weight for part in data.mixture):
        raise conflict("data/mixture-of-nothing", "all weights of data.mixture are 0: raise one of them")
    for number, part in enumerate(data.mixture):
        if not part.weight and not any(stage.weights[number] for stage in data.stages):
            raise conflict(
                "data/mixture-part-never-read",
                f"data.mixture: {part.source} has weight 0 at all times: raise it, or leave the part out",
            )


def _check_replay(data: DataConfig) -> None:
    if data.replay is None and data.replay_fraction is not None:
        raise conflict(
            "data/replay-fraction-alone",
            f"data.replay_fraction = {data.replay_fraction:g} has nothing to replay: set data.replay to the text that "
            "was learnt before",
        )
    if data.replay is not None and data.format != "text":
        raise conflict(
            "data/replay-of-no-text",
            f"data.replay is running text, and data.format = {data.format}: leave it out, or mix sources of one form "
            "in data.mixture",
        )


def _check_validation(data: DataConfig) -> None:
    names = [one.name for one in data.validation]
    if data.validation and data.format not in ("text", "chat"):
        raise conflict(
            "data/validation-of-no-text",
            f"data.validation needs data.format = text or chat, and it is {data.format}: leave it out",
        )
    for name in names:
        if names.count(name) > 1:
            raise conflict(
                "data/validation-name-twice", f"data.validation has two sets called {name}: give each its own name"
            )
