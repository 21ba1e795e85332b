"""Adapters by name over one model: which are kept, which is at work, and in what order they come and go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from coretrain.adapters.kinds import check_mergeable
from coretrain.adapters.merge import added, other_field
from coretrain.adapters.targets import adapter_targets, frozen_matrices, trainable_parameters
from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import Parameter, check_rows


class AdapterBank(ABC):
    """One adapter at a time is at work, or merged, or none; what that does to a model is each stack's own."""

    def __init__(self, config: RunConfig) -> None:
        """`config` is the model's, and says in how many bits it is held."""
        self.config = config
        self.kept: dict[str, tuple[RunConfig, Mapping[str, Array]]] = {}
        self.active: str | None = None
        self.merged = False
        self._of_weights: dict[str, NDArray[np.float64]] = {}

    def add(self, config: RunConfig, tensors: Mapping[str, Array]) -> None:
        """Keep an adapter, as `Trainer.export` gives it, under `config.adapter.name`, in place of one of that name.

        Raises `UserError` where tensors aren't those of `config`, or it was trained on another model or beside weights
        in other bits.
        """
        name = config.adapter.name
        if name == self.active:
            raise UserError(
                "adapters/adapter-in-use",
                f"adapter {name} is at work: switch to another before it is replaced",
            )
        check_rows(trainable_parameters(config), tensors, f"adapter {name}")
        if field := other_field(config.model, self.config.model):
            ours, theirs = getattr(self.config.model, field), getattr(config.model, field)
            raise UserError(
                "adapters/model-differs",
                f"adapter {name} is of another model: its model.{field} = {theirs}, and here it is {ours}",
            )
        if config.adapter.quantize != (here := self.config.adapter.quantize):
            raise UserError(
                "adapters/base-quantize-differs",
                f"adapter {name} was trained with adapter.quantize = {config.adapter.quantize}, and the weights here "
                f"are held with {here}: open the base as it was trained",
            )
        if config.adapter.kind == "dora" and self._rounded:
            raise UserError(
                "adapters/norms-need-whole-weights",
                f"adapter {name} needs the norms of whole weights, and {self._rounded}",
            )
        self.kept[name] = config, tensors

    @property
    def _rounded(self) -> str:
        """What to say where the weights here are no longer whole; empty where they are."""
        compute = self.config.precision.compute
        if compute not in ("bfloat16", "float16") or not frozen_matrices(self.config):
            return ""
        kind = self.config.adapter.kind
        return f"the base of a run with adapter.kind = {kind} is held in {compute}: open the base's own run instead"

    def switch(self, name: str | None) -> None:
        """Put the adapter `name` to work, or none; one that is merged is taken out first."""
        if name is not None and name not in self.kept:
            raise UserError(
                "adapters/unknown-adapter-name",
                f"no adapter is named {name}: there are {', '.join(self.kept) or 'none'}",
            )
        if self.merged:
            self.unmerge()
        self._clear()
        self.active = name
        if name is not None:
            self._put(*self.kept[name])

    def merge(self) -> None:
        """Add the adapter at work into the weights: W + scale x B A, or DoRA's W'.

        Raises `UserError` where none is at work, or one that is no change of weights.
        """
        if self.active is None or self.merged:
            raise UserError("adapters/nothing-to-merge", "no adapter is at work that isn't merged: switch to one first")
        check_mergeable(self.kept[self.active][0])
        if (held := self.config.adapter.quantize) != "none":
            raise UserError(
                "adapters/merge-into-quantized",
                f"weights in {held} can't take an adapter in without being rounded again: leave it beside "
                "them, or write a run of whole weights with twintrain convert merge",
            )
        if self._rounded:
            raise UserError("adapters/merge-into-rounded", f"an adapter is added to whole weights, and {self._rounded}")
        self._take_off()
        self._add(1)
        self.merged = True

    def unmerge(self) -> None:
        """Take the merged adapter out of the weights; it is at work beside them again."""
        if not self.merged:
            raise UserError("adapters/nothing-merged", "no adapter is merged: merge one first")
        self._add(-1)
        self.merged, self._of_weights = False, {}
        self.switch(self.active)

    def _deltas(self, read: Callable[[Parameter], Array]) -> dict[str, NDArray[np.float64]]:
        """What the active adapter adds to each weight; `read` gives one as it is in the model, canonical.

        DoRA's depends on the weights, and is kept from the merge on: out of W' alone W can't be had again.
        """
        assert self.active is not None
        config, tensors = self.kept[self.active]
        if config.adapter.kind != "dora":
            return added(config, tensors, {})
        if not self.merged:
            rows = [target.row for target in adapter_targets(config)]
            self._of_weights = added(config, tensors, {row.name: read(row) for row in rows})
        return self._of_weights

    @abstractmethod
    def _take_off(self) -> None:
        """Take the adapter's own tensors from beside the matrices; biases that it trained stay."""

    @abstractmethod
    def _clear(self) -> None:
        """The model as it was before any adapter, biases too."""

    @abstractmethod
    def _put(self, config: RunConfig, tensors: Mapping[str, Array]) -> None:
        """Put an adapter beside the matrices, and its biases in place."""

    @abstractmethod
    def _add(self, sign: int) -> None:
        """Add what the active adapter is (`_deltas`) to the weights `sign` times."""
