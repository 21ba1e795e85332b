"""The stack where many devices share a run: one program over a mesh, whose arrays the compiler divides.

What differs from one device stands here: where the devices and the inputs lie. `parallel/step.py` has the update.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from coretrain.base.arrays import Tensors
from coretrain.base.errors import UserError
from coretrain.contract.update import Standing
from coretrain.data.batch import Batch
from jaxtrain.adapters import combine
from jaxtrain.arrays import initial_tensors
from jaxtrain.layers import Dropout
from jaxtrain.model import GPT, abstract_model
from jaxtrain.parallel.processes import choose_devices
from jaxtrain.parallel.sharding import Sharding, make_mesh
from jaxtrain.trainer import Trainer


class ParallelTrainer(Trainer):
    """A `Trainer` on a mesh. Where several processes hold the devices, all of them call its methods in step."""

    alone = False

    def _choose_place(self) -> tuple[jax.Device, Sharding]:
        self.devices = choose_devices(self.config, jax.devices(self.device_choice.name))
        self.sharding = Sharding(make_mesh(self.devices.layout, self.devices.devices), self.config)
        return self.devices.devices[0], self.sharding

    def _initial(self) -> Tensors:
        return initial_tensors(self.config.model, self.config.train.seed)  # one at a time: each host takes a part of it

    def describe(self) -> Sequence[tuple[str, str]]:
        """As on one device, and the mesh."""
        layout = self.devices.layout
        return [
            *super().describe(),
            ("mesh", f"{layout} = {layout.devices} devices ({self.devices.reason})"),
            ("sharding", str(self.sharding.rules)),
        ]

    def _on_device(self, batch: Batch, scale: Any, dropout: Any) -> tuple[Any, ...]:
        """The inputs of `gradients` on the mesh, in micro-batches [A, B / A, T]: their rows are what is shared."""
        on_mesh = batch.map(lambda array: self._put(array, "batch", _time(batch, array)))
        return on_mesh, scale, dropout and Dropout(dropout.keys, self._put(dropout.rows, "batch"))

    def _everywhere(self, standing: Standing) -> Any:
        return Standing(*map(self.sharding.put, standing))

    def _put(self, rows: np.ndarray, *axes: str | None) -> Array:
        """Rows [B, ...] in micro-batches [A, B / A, ...], on the mesh."""
        micro = rows.reshape(self.config.train.accumulation, self.config.micro_batch, *rows.shape[1:])
        return self.sharding.put(micro, None, *axes)

    def _pieces(self, batch: Batch) -> Iterator[Batch]:
        """Micro-batches on the mesh: as many rows in each, some of them without a target at the end."""
        several = self.devices.layout.pipeline > 1  # as its program takes them
        lead: tuple[str | None, ...] = (None, "batch") if several else ("batch",)
        for piece in batch.cut(self.config.micro_batch):
            padded = piece.padded(self.config.micro_batch)
            whole = padded.map(lambda array: array[None]) if several else padded
            yield whole.map(functools.partial(self._put_piece, piece, lead))

    def _put_piece(self, piece: Batch, lead: tuple[str | None, ...], array: np.ndarray) -> Array:
        return self.sharding.put(array, *lead, _time(piece, array))

    def token_logprobs(self, batch: Batch, temperature: float = 1.0) -> np.ndarray:
        """Log-probability of each label of the whole batch [B, T], without dropout, on all processes.

        Raises `UserError` where layers lie in stages.
        """
        if self.devices.layout.pipeline > 1:
            raise UserError(
                "jax/pipeline-without-log-probs",
                f"parallel.pipeline = {self.config.parallel.pipeline}: log-probabilities of tokens are not computed in "
                "stages; set parallel.pipeline = 1",
            )
        return super().token_logprobs(batch, temperature)

    def token_scores(self, batch: Batch) -> np.ndarray:
        """Each label's log-probability, and 1 where no id is likelier, of the whole batch [B, T, 2], on all processes.

        Raises `UserError` where layers lie in stages.
        """
        if self.devices.layout.pipeline > 1:
            return self.token_logprobs(batch)
        pieces = [self.programs.scores(self.params, self.frozen, piece) for piece in self._pieces(batch)]
        return np.concatenate([np.asarray(piece) for piece in pieces])[: len(batch)]

    def values(self, batch: Batch) -> np.ndarray:
        """What the score head gives at each position of the whole batch [B, T], without dropout, on all processes.

        Raises `UserError` where there is none, or layers lie in stages.
        """
        if self.devices.layout.pipeline > 1:
            raise UserError(
                "jax/pipeline-without-values",
                f"parallel.pipeline = {self.config.parallel.pipeline}: scores of positions are not computed in stages; "
                "set parallel.pipeline = 1",
            )
        return super().values(batch)

    def whole_model(self) -> GPT:
        """The model with all of its weights, without a sharding of its own: the compiler follows the weights' places.

        A step of decoding has too few rows to be shared.
        """
        graph = abstract_model(self.config, self.kernel.name, self.device)[0]
        return nnx.merge(graph, combine(self.params, self.frozen))

    def export(self) -> Mapping[str, Tensors]:
        """As on one device, but in the order of the arrays, each of which is fetched once."""
        return self._exported()


def _time(batch: Batch, array: np.ndarray) -> str | None:
    """The second axis of one of a batch's arrays: its tokens; or its pairs or sequences, which no devices share."""
    return "time" if array.shape[-1] == batch.labels.shape[-1] else None
