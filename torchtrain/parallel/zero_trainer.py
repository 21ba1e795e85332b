"""The stack under ZeRO: the state is sharded over the data axis, by DeepSpeed or FSDP2, which sum the gradients too.

This file has no twin: in JAX sharded arrays do this (jaxtrain/parallel/sharding.py).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from coretrain.base.arrays import Tensors
from coretrain.base.lazy import LazyTensors
from coretrain.checkpoint.fragments import Fragment
from coretrain.contract.decoding import Sampled
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import Batch
from torchtrain.checkpoint import save_native
from torchtrain.parallel.trainer import ParallelTrainer
from torchtrain.parallel.zero import Zero
from torchtrain.step import loss_in

if TYPE_CHECKING:
    from torchtrain.parallel.fsdp import FullyShard


class ZeroTrainer(ParallelTrainer):
    """A `ParallelTrainer` whose moments, gradients or weights are shards (`parallel.zero` 1, 2 or 3)."""

    optimizer: Zero | FullyShard  # type: ignore[assignment]  # no Optimizer, but all that isn't overridden here is `step`, alike

    def _make(self, tensors: Tensors) -> None:
        where = (self.config, self.kernel.name, self.device, self.grid, tensors)
        self.zero: Zero | FullyShard
        if self.config.parallel.zero_engine == "fsdp2":
            from torchtrain.parallel.fsdp import FullyShard  # torch's own part takes a second to import

            self.zero = FullyShard(*where, self.compiled.name == "on")
        else:
            self.zero = Zero(*where, self._loss_of)
        self.model, self.optimizer, self.loss = self.zero.model, self.zero, self.zero.loss

    def describe(self) -> Sequence[tuple[str, str]]:
        """As without ZeRO, and what it shards."""
        return [*super().describe(), ("ZeRO", self.zero.describe())]

    @property
    def in_step(self) -> bool:
        """As the engine has it."""
        return self.zero.in_step

    def _forget_gradients(self) -> None:
        self.zero.drop()

    def _backward(self, told: Tensor, last: bool) -> None:
        self.zero.backward(loss_in(told), last)

    def _summed_gradients(self) -> dict[str, Tensor]:
        return self.zero.gradients()

    @property
    def _holders(self) -> slice:
        """Each process of the data axis has its own shard of the gradients."""
        return slice(None)

    def token_logprobs(self, batch: Batch, temperature: float = 1.0) -> np.ndarray:
        """Log-probability of each label of the whole batch [B, T], without dropout, on all processes."""
        return self.zero.whole(functools.partial(super().token_logprobs, batch, temperature))

    def token_scores(self, batch: Batch) -> np.ndarray:
        """Each label's log-probability, and 1 where no id is likelier, of the whole batch, [B, T, 2]."""
        return self.zero.whole(functools.partial(super().token_scores, batch))

    def values(self, batch: Batch) -> np.ndarray:
        """What the score head gives at each position of the whole batch [B, T], without dropout, on all processes."""
        return self.zero.whole(functools.partial(super().values, batch))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        on_tokens: Callable[[np.ndarray], None] | None = None,
    ) -> list[list[int]]:
        """Up to `tokens` new ids after each prompt; embeddings and head are gathered for it."""
        return self.zero.whole(functools.partial(super().generate, prompts, tokens, sampling, stop, on_tokens))

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        numbers: Sequence[int] | None = None,
    ) -> list[Sampled]:
        """As `generate`, with the stop id and each id's log-probability; all processes take all rows."""
        return self.zero.whole(functools.partial(super().sample, prompts, tokens, sampling, stop, numbers))

    def replay(
        self, prompts: Sequence[Sequence[int]], tokens: int, temperature: float, answers: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """The log-probabilities of the ids that `sample` gave, by the same steps."""
        return self.zero.whole(functools.partial(super().replay, prompts, tokens, temperature, answers))

    def save(self, folder: Path) -> Future[None]:
        """Start writing this process's shards into `folder`, in the background."""
        self.saving = save_native(folder, list(self.zero.fragments(self.grid)), self.grid.rank)
        return self.saving

    def export(self) -> Mapping[str, Tensors]:
        """Parameters and moments in the interchange form, where one process has all shards."""
        if self.grid.size > 1:
            raise RuntimeError("several processes hold this state: save it, and read the checkpoint")
        parts: dict[str, dict[str, Fragment]] = {}
        for part in self.zero.fragments(self.grid):
            parts.setdefault(part.group, {})[part.name] = part
        groups = {group: LazyTensors(named, functools.partial(_read, named)) for group, named in parts.items()}
        self.exported_views += [weakref.ref(tensors) for tensors in groups.values()]
        return groups

    def adopt(self, groups: Mapping[str, Tensors], applied: int) -> None:
        """Take parameters and moments from the interchange form: each process its shard of one after the other."""
        self._wait_for_readers()
        self.zero.fill(groups["parameters"])
        moments = {group: tensors for group, tensors in groups.items() if group != "parameters"}
        if moments:
            self.zero.load(moments, applied)


def _read(parts: Mapping[str, Fragment], name: str) -> np.ndarray:
    """A copy of the one part that a tensor has where one process holds all."""
    return np.array(parts[name].values.reshape(parts[name].shape))
