"""Preferences packed into rows of tokens: pairs, or labelled answers, several to a row, none cut.

A row holds whole sequences, the prompt and then an answer with its end token, one behind another; positions begin at 0
in each, and `segments` number them. Both answers of a pair stand in one row, each behind its own copy of the prompt, so
that whatever cuts rows cuts no pair. What is left of a row belongs to no sequence.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from coretrain.data.batch import IGNORED, Batch
from coretrain.data.packing import pack
from coretrain.data.preferences.encode import DROPPED, ID, LEARNT, WORSE, read_margin
from coretrain.data.shards import Shard
from coretrain.data.splits import Split

Facts = npt.NDArray[np.int64]
SHARD, START, STOP, PROMPT, FIRST, SECOND, DIGIT = range(7)
"""Columns of the table of samples: the shard, the places of the first token's fact and behind the last one's, the
tokens of the prompt, of the first and of the second answer, and the facts before them that spell a margin."""
FOUND = ("samples", "sizes", "packed", "partners")
"""Properties that don't depend on planes."""
TRIES = 64
"""Samples that are asked for an answer to stand behind another's prompt."""


class PreferenceSplit(Split):
    """A split of preferences, whose windows are packed rows of `context` tokens."""

    answers: int
    """Sequences of a sample."""
    called: str
    """What its samples are."""

    def __init__(
        self, name: str, shards: Sequence[Shard], context: int, slots: int | None = None, margins: bool = False
    ) -> None:
        """`slots`: samples that a row's planes have room for, by default as many as its fullest row has; `margins`:
        whether rows have the plane of margins."""
        super().__init__(name, shards)
        self.context, self.margins, self._slots = context, margins, slots

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.shards, self.context, self._slots, self.margins)

    def like(self, shards: Sequence[Shard]) -> PreferenceSplit:
        """A split of the same kind over other shards."""
        return self if tuple(shards) == self.shards else type(self)(self.name, shards, self.context)

    def with_slots(self, slots: int, margins: bool) -> PreferenceSplit:
        """The same with planes for so many samples a row; what was found out about its samples goes along."""
        other = type(self)(self.name, self.shards, self.context, slots, margins)
        vars(other).update({name: vars(self)[name] for name in FOUND if name in vars(self)})
        return other

    @cached_property
    def samples(self) -> Facts:
        """A line for each sample, int64 [n, 7]; without those that were dropped."""
        found = [np.empty((0, 7), np.int64)]
        for number, shard in enumerate(self.shards):
            stops = shard.ends().astype(np.int64) - 1  # without the end of text
            starts = np.concatenate([[0], stops[:-1] + 1])
            held = stops - starts > 1
            found.append(_table(number, np.asarray(self._map(number)), starts[held], stops[held], self.answers))
        return np.concatenate(found)

    @property
    def sizes(self) -> Facts:
        """Tokens of a row that each sample takes, int64 [n]."""
        raise NotImplementedError

    @cached_property
    def packed(self) -> list[list[int]]:
        """The samples of each row."""
        return pack(self.sizes.tolist(), self.context)

    @cached_property
    def slots(self) -> int:
        """Samples that a row's planes have room for."""
        return self._slots or max(map(len, self.packed), default=1)

    def windows(self, context: int) -> int:
        """How many packed rows there are."""
        if context != self.context:
            raise ValueError(f"rows of {context} tokens asked for, packed for {self.context}")
        return len(self.packed)

    def row(self, window: int, context: int) -> list[int]:
        """The samples of a row. Raises `IndexError`."""
        if not 0 <= window < self.windows(context):
            raise IndexError(f"row {window} of {len(self.packed)} in {self.name}")
        return self.packed[window]

    def facts(self, sample: int) -> tuple[Facts, Facts, Facts]:
        """The facts of a sample's prompt and of its answers, each int64 [n]; a label has no second answer."""
        line = self.samples[sample]
        start, prompt, first = line[START], line[PROMPT], line[FIRST]
        found = np.asarray(self._map(int(line[SHARD]))[start : line[STOP]]).astype(np.int64)
        return found[:prompt], found[prompt : prompt + first], found[prompt + first :]

    def margin(self, sample: int) -> float | None:
        """By how much the chosen answer is better, where somebody said so."""
        line = self.samples[sample]
        return read_margin(np.asarray(self._map(int(line[SHARD]))[line[START] - line[DIGIT] - 1 : line[START]]))

    def plane(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """A number for each sample of a row, and zeros up to `slots`, [slots]."""
        if len(values) > self.slots:
            raise ValueError(f"{len(values)} samples in a row of {self.slots}")
        return np.pad(np.array(values, np.float64), (0, self.slots - len(values)))

    def laid_out(self, sequences: Iterable[tuple[Facts, Facts]]) -> Batch:
        """A row [T] of sequences, each a prompt and an answer, one behind another."""
        tokens, labels, positions, segments = np.zeros((4, self.context), np.int32)
        labels[:], segments[:] = IGNORED, -1
        at = 0
        for number, parts in enumerate(sequences):
            facts = np.concatenate(parts)
            ids, learnt, stop = facts // ID, facts & LEARNT, at + len(facts)
            tokens[at:stop] = ids
            labels[at : stop - 1] = np.where(learnt[1:], ids[1:], IGNORED)
            positions[at:stop] = np.arange(len(facts))
            segments[at:stop] = number
            at = stop
        positions[at:] = np.arange(self.context - at)
        return Batch(tokens, labels, positions, segments=segments)

    def describe(self) -> str:
        """Samples, tokens, targets and how full the rows are, in words."""
        rows, targets = len(self.packed), 0
        for number in range(len(self.shards)):
            lines = self.samples[self.samples[:, SHARD] == number]
            targets += int(_counted(np.asarray(self._map(number)) & LEARNT, lines[:, START], lines[:, STOP]).sum())
        used = int(self.tokens_used.sum())
        return (
            f"{len(self.samples):,} {self.called}, {used:,} tokens, {targets:,} of them targets, in {rows:,} rows "
            f"({used / max(1, rows * self.context):.1%} full), at most {self.slots} in a row" + self.dropped()
        )

    @property
    def tokens_used(self) -> Facts:
        """Tokens of each sample's sequences, int64 [n]."""
        lines = self.samples
        return self.answers * lines[:, PROMPT] + lines[:, FIRST] + lines[:, SECOND]

    def dropped(self) -> str:
        """How many rows were dropped, and why, in words; nothing where none was."""
        counts: Counter[int | None] = Counter()
        for number, shard in enumerate(self.shards):
            stops = shard.ends().astype(np.int64) - 1
            lengths = np.diff(stops, prepend=-1) - 1
            counts[None] += int((lengths == 0).sum())
            counts.update(np.asarray(self._map(number)[stops[lengths == 1] - 1]).tolist())
        reasons = [f"{counts[fact]:,} {reason}" for fact, reason in DROPPED.items() if counts[fact]]
        return f"; rows dropped: {', '.join(reasons)}" if reasons else ""


class PairSplit(PreferenceSplit):
    """Pairs: sequence 2p of a row is the chosen answer of its pair p, and 2p + 1 the rejected one."""

    answers, called = 2, "pairs"

    @property
    def sizes(self) -> Facts:
        """Tokens of a row that each pair takes, int64 [n]."""
        return self.tokens_used

    def read(self, window: int, context: int) -> Batch:
        """Packed row i, of arrays [T] and planes [slots]: `pair_share` is 1 for each pair, 0 where there is none."""
        pairs = self.row(window, context)
        row = self.laid_out((prompt, answer) for prompt, *both in map(self.facts, pairs) for answer in both)
        row = row.with_planes(pair_share=self.plane([1.0] * len(pairs)))
        if self.margins:
            row = row.with_planes(wide=True, margin=self.plane([self.margin(pair) or 0.0 for pair in pairs]))
        return row

    def stated_margins(self) -> int:
        """How many pairs have a margin."""
        return int((self.samples[:, DIGIT] > 0).sum())


class LabelSplit(PreferenceSplit):
    """Labelled answers, each a sequence of its row; and each prompt once more with the answer to another.

    By the latter a policy's distance from its reference is estimated (KTO, Ethayarajh et al. 2024), which takes answers
    that have nothing to do with the prompt. Whose answer that is doesn't depend on batches: it is the next sample's
    that has another prompt, where the two fit into a row.
    """

    answers, called = 1, "labelled answers"

    @cached_property
    def partners(self) -> Facts:
        """The sample whose answer stands behind another's prompt, int64 [n]; -1 where none of the next `TRIES` can."""
        lines, count = self.samples, len(self.samples)
        kinds = np.array([self._prompt_hash(line) for line in lines[:, [SHARD, START, PROMPT]].tolist()], np.int64)
        found, numbers = np.full(count, -1, np.int64), np.arange(count)
        for step in range(1, min(TRIES + 1, count)):
            others = (numbers + step) % count
            fits = lines[:, PROMPT] + lines[others, FIRST] <= self.context
            found = np.where((found < 0) & fits & (kinds != kinds[others]), others, found)
        return found

    def _prompt_hash(self, line: list[int]) -> int:
        shard, start, size = line
        raw = np.asarray(self._map(shard))[start : start + size].tobytes()
        return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little", signed=True)

    @cached_property
    def sizes(self) -> Facts:
        """Tokens of a row that each sample takes, int64 [n]: with its own answer or another's, whichever is longer."""
        lines, partners = self.samples, self.partners
        others = np.where(partners < 0, 0, lines[:, PROMPT] + lines[partners, FIRST])
        return np.maximum(self.tokens_used, others)

    def read(self, window: int, context: int) -> Batch:
        """Packed row i, of arrays [T] and planes [slots]: `sequence_share` is 1 for each answer, 0 where there is none;
        `desirable` is 1 for the good ones."""
        answers = self.row(window, context)
        row = self.laid_out(self.facts(one)[:2] for one in answers)
        good = [float(not self.facts(one)[1][0] & WORSE) for one in answers]
        return row.with_planes(sequence_share=self.plane([1.0] * len(answers)), desirable=self.plane(good))

    def mismatched(self, window: int, context: int) -> Batch:
        """Row i with the answers of other samples behind its prompts, the same sequences in the same order.

        `sequence_share` is 1 for each that has one; those that have none keep nothing but their prompt.
        """
        answers = self.row(window, context)
        others = [int(self.partners[one]) for one in answers]
        row = self.laid_out(
            (self.facts(one)[0], self.facts(other)[1] if other >= 0 else np.empty(0, np.int64))
            for one, other in zip(answers, others, strict=True)
        )
        return row.with_planes(sequence_share=self.plane([float(other >= 0) for other in others]))


def _table(number: int, facts: npt.NDArray[Any], starts: Facts, stops: Facts, answers: int) -> Facts:
    """The samples of one shard: `facts` is its content, and each sample's are facts[start:stop]."""
    if not len(starts):
        return np.empty((0, 7), np.int64)
    digits = facts[starts].astype(np.int64)
    firsts = starts + 1 + digits
    learnt = np.flatnonzero(facts & LEARNT)
    prompts = learnt[np.searchsorted(learnt, firsts)] - firsts
    second = _counted(facts & WORSE, firsts, stops) if answers == 2 else np.zeros_like(firsts)
    first = stops - firsts - prompts - second
    return np.stack([np.full(len(starts), number), firsts, stops, prompts, first, second, digits], 1)


def _counted(flags: npt.NDArray[Any], starts: Facts, stops: Facts) -> Facts:
    """How many are set in each [start, stop), int64 [n]; ascending, none of them empty, none at the end of all."""
    edges = np.stack([starts, stops], 1).ravel()
    return np.add.reduceat(flags != 0, edges, dtype=np.int64)[::2] if len(edges) else starts
