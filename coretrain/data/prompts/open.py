"""Prompts opened for a run: prepared, by number, and in the order in which rollouts ask them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.data.order import Int64s, parts_at, rows_at
from coretrain.data.parts import open_part
from coretrain.data.prepare import prepared_folder, trained_tokenizer
from coretrain.data.prompts.encode import located, open_encoder, prompt_source, said_in
from coretrain.data.prompts.split import PromptSplit
from coretrain.data.splits import Data, Split
from coretrain.tokenizers.registry import named_tokenizer


def open_prompts(config: RunConfig, names: Sequence[tuple[str, float]], say: Callable[[str], None]) -> Data:
    """The data of a run with `data.format` = prompts, from sources with weights. Raises as `open_data` does."""
    misfits = config.data.misfits
    sources = [prompt_source(name, misfits) for name, _ in names]
    if config.data.tokenizer == "trained":
        tokenizer = trained_tokenizer(sources, config.data, say, said_in)
    else:
        tokenizer = named_tokenizer(config.data.tokenizer)
    coder, parts = open_encoder(config, tokenizer), []
    kind = functools.partial(PromptSplit, vocab=tokenizer.vocab)
    for source, (_, weight) in zip(sources, names, strict=True):
        with located(source, misfits):
            folder = prepared_folder(source, coder, config.data, say)
        parts.append(open_part(folder, source.name, weight, kind))
        for split in (parts[-1].train, parts[-1].validation):
            if not len(_prompts(split)):
                raise UserError(
                    "data/no-usable-prompt",
                    f"no {split.name} prompt of {source.name} can be used{_prompts(split).dropped()}: mend the rows, "
                    "lower align.tokens, or raise model.context",
                )
    passed_over = tuple(source.passed_over for source in sources if source.passed_over)
    return Data(tokenizer, tuple(parts), coder.template, passed_over)


def _prompts(split: Split) -> PromptSplit:
    assert isinstance(split, PromptSplit)
    return split


class Prompts:
    """A run's prompts by number: first those to train on, part after part, then the held-out ones."""

    def __init__(self, data: Data, seed: int) -> None:
        """`data` was opened with `data.format` = prompts."""
        assert data.template is not None
        self.tokenizer, self.fingerprint, self.seed, self.weights = data.tokenizer, data.fingerprint, seed, data.weights
        self._train = [_prompts(part.train) for part in data.parts]
        self._held_out = [_prompts(part.validation) for part in data.parts]
        sizes = [len(split) for split in (*self._train, *self._held_out)]
        self._starts = np.array([0, *accumulate(sizes)], np.int64)
        self.number = int(self._starts[len(self._train)])
        """How many prompts there are to train on."""
        self.stop: tuple[int, ...] = tuple(dict.fromkeys((*self.tokenizer.ends, data.template.end())))
        """Ids that end an answer."""

    def prompt(self, number: int) -> tuple[list[int], dict[str, Any]]:
        """Ids of a prompt, the head of its answer included, and the fields of its row, its `prompt` among them."""
        if not 0 <= number < self._starts[-1]:
            raise IndexError(f"prompt {number} of {self._starts[-1]}")
        split = int(np.searchsorted(self._starts, number, "right")) - 1
        return [*self._train, *self._held_out][split].prompt(number - int(self._starts[split]))

    def of_rollout(self, rollout: int, count: int) -> Int64s:
        """Numbers of the prompts that rollout `rollout` asks, int64 [count], where each rollout asks so many.

        A pure function of fingerprint, seed, rollout and count: walks through all prompts, each time in another order.
        """
        positions = np.arange(rollout * count, (rollout + 1) * count)
        windows = [len(split) for split in self._train]
        rows = rows_at(positions, windows, self.weights, self.fingerprint, self.seed)
        return self._starts[rows[:, 0]] + rows[:, 1]

    def validation(self, count: int) -> Int64s:
        """Numbers of at most `count` held-out prompts, the same every time; a mixture's in its proportions."""
        parts, places = parts_at(np.arange(count), self.weights)
        sizes = np.array([len(split) for split in self._held_out])
        there = places < sizes[parts]
        return self._starts[len(self._train) + parts[there]] + places[there]

    def decoded(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        return self.tokenizer.decode(ids)


def prompts_of(data: Data, config: RunConfig) -> Prompts:
    """The prompts of a run's data. Raises `UserError` where it has none."""
    if config.data.format != "prompts":
        raise UserError(
            "data/format-without-prompts",
            f"train.objective = {config.train.objective} asks prompts, and data.format = {config.data.format} has "
            "none: set data.format = prompts",
        )
    return Prompts(data, config.train.seed)
