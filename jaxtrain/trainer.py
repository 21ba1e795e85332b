"""The stack that the training loop drives, on one device: gradients, updates, evaluation and state of one model.

Read it side by side with `torchtrain/trainer.py`; `step.py` has the update itself, `parallel/` what shares it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from coretrain.adapters.targets import trainable_parameters, with_adapter
from coretrain.alignment.planes import check_planes
from coretrain.base.arrays import Tensors
from coretrain.base.lazy import LazyTensors
from coretrain.base.malloc import keep_freed_memory
from coretrain.config.run import RunConfig
from coretrain.contract.branches import Branches
from coretrain.contract.decoding import Sampled
from coretrain.contract.optimizer import bias_corrections
from coretrain.contract.parameters import check_score_head, initial_parameters
from coretrain.contract.sampling import Sampling
from coretrain.contract.update import Figures, Orders, Read, Standing
from coretrain.data.batch import Batch
from coretrain.data.splits import Data
from jaxtrain import step
from jaxtrain.adapters import combine, partition
from jaxtrain.arrays import exported_tree, placed_tree
from jaxtrain.attention import choose_kernel
from jaxtrain.checkpoint import load_native, save_native
from jaxtrain.choices import choose_compile, choose_device, configure_jax
from jaxtrain.data import train_batches
from jaxtrain.decode import generate, replay, sample
from jaxtrain.lanes import Lanes
from jaxtrain.layers import master_dtype
from jaxtrain.model import GPT, build_model
from jaxtrain.parallel.sharding import Sharding
from jaxtrain.programs import programs


class Trainer:
    """One model with its optimizer on one device. The public methods are those of `training.stack.Stack`."""

    name, alone = "jax", True

    def __init__(self, config: RunConfig, tensors: Tensors | None = None) -> None:
        self.config = config
        configure_jax(config)
        self.device_choice = choose_device(config)
        self.device, self.device_or_sharding = self._choose_place()
        self.kernel = choose_kernel(config, self.device)
        self.compiled = choose_compile(config, self.device)
        self.device_name = self.device.device_kind
        self.saving: Future[None] | None = None
        self.donation_blocked = False
        self._make(with_adapter(config, self._initial() if tensors is None else tensors))

    def _choose_place(self) -> tuple[jax.Device, jax.Device | Sharding]:
        return (jax.devices(self.device_choice.name)[0],) * 2

    def _initial(self) -> Tensors:
        return initial_parameters(self.config.model, self.config.train.seed)

    def _make(self, tensors: Tensors) -> None:
        self.programs = programs(self.config, self.kernel.name, self.device_or_sharding)
        self.optimizer = self.programs.optimizer
        state = nnx.state(build_model(self.config, self.kernel.name, tensors, self.device_or_sharding))
        self.params, self.frozen = partition(self.config, state)
        self.moments: Any = None
        self.last_gradients: Any = None
        self.more: Sequence[float] = ()
        self.standing: Any = None

    def describe(self) -> Sequence[tuple[str, str]]:
        """Device, dtypes, attention kernel and compilation, each with its reason."""
        p = self.config.precision
        master = master_dtype(self.config)
        matmul = "reduced-precision passes allowed in" if p.fast_matmul else "full float32"
        return [
            ("framework", f"JAX {jax.__version__}"),
            ("device", f"{self.device_name} ({self.device_choice.reason})"),
            ("dtypes", f"compute {p.compute}; weights, moments, norms, softmax and loss {master}; {matmul} matmuls"),
            ("attention", f"{self.kernel.name} ({self.kernel.reason})"),
            ("compile", f"{self.compiled.name} ({self.compiled.reason})"),
        ]

    def batches(self, data: Data, start: int, stop: int) -> Iterator[Batch]:
        """Global batches of the indices [start, stop) of the data order."""
        return train_batches(data, self.config, start, stop_update=stop)

    @property
    def in_step(self) -> bool:
        """Whether an update is done when `update` returns: never, it is one program, begun and not waited for."""
        return False

    def update(self, batch: Batch, update: int, orders: Orders, change: Callable[[], None]) -> Read:
        """Begin an update: gradients, verdict, and, where it is healthy, the optimizer's step."""
        if self.device.platform == "cpu":
            keep_freed_memory()  # from the first update on
        check_planes(self.config.train.objective, batch)
        told, standing = step.told_of(self.config, orders)
        on_device, _, dropout = self._on_device(batch, None, step.dropout_masks(self.config, update, len(batch)))
        change()
        self._wait_for_readers()
        if orders.alone:
            self.standing = self._everywhere(standing)
        self.last_gradients = None
        state = self.params, self._moments_now(), self.standing
        state, figures = self.programs.update(*state, self.frozen, on_device, dropout, told)
        self.params, self.moments, self.standing = state
        for figure in figures:
            figure.copy_to_host_async()

        def read() -> Figures:
            loss, norm, applied, *more = figures
            return Figures(float(loss), float(norm), bool(applied), tuple(np.asarray(more[0]).tolist()) if more else ())

        return read

    def _everywhere(self, standing: Standing) -> Any:
        """Scalars where the next update leaves them: from elsewhere they would have it compiled once more."""
        return jax.device_put(standing, self.device)

    def gradients(self, batch: Batch, update: int, loss_scale: float) -> tuple[float, float]:
        """Mean of the objective over the batch's targets, and the global gradient norm, both unscaled."""
        if self.device.platform == "cpu":
            keep_freed_memory()  # from the first update on
        check_planes(self.config.train.objective, batch)
        dropout, wide = step.dropout_masks(self.config, update, len(batch)), master_dtype(self.config)
        inputs = self._on_device(batch, wide.type(loss_scale), dropout)
        told, norm, self.last_gradients = self.programs.gradients(self.params, self.frozen, *inputs)
        loss, *self.more = np.asarray(told).reshape(-1).tolist()
        return loss / loss_scale, float(norm) / loss_scale

    def _on_device(self, batch: Batch, scale: Any, dropout: Any) -> tuple[Any, ...]:
        return batch, scale, dropout  # the call itself puts them on the one device

    def apply(self, lr: float, factor: float, applied: int) -> None:
        """One optimizer update with the last gradients times `factor`, the one after `applied` others.

        torch's AdamW counts its updates itself; here the bias corrections come from `applied`.
        """
        self._wait_for_readers()
        wide = master_dtype(self.config).type
        corrections = tuple(map(wide, bias_corrections(self.config.optimizer, applied)))
        state = self.params, self._moments_now(), self.last_gradients
        self.params, self.moments = self.programs.step(*state, wide(lr), wide(factor), corrections)
        self.last_gradients = None

    def _wait_for_readers(self) -> None:
        """Before the state changes: wait for what is written from where it lies; keep what `export` gave out."""
        if self.saving is not None and self.writes_in_place:
            wait([self.saving])  # what went wrong is for whoever asked for the save
        if self.donation_blocked:  # what was exported lies in these arrays, which the step takes for its own
            self.params, self.moments = jax.tree.map(jnp.copy, (self.params, self._moments_now()))
            self.donation_blocked = False

    def evaluate(self, batch: Batch) -> float:
        """Sum of the losses of the batch's targets, without dropout."""
        return self.measure(batch)[0]

    def measure(self, batch: Batch) -> list[float]:
        """That sum, and the objective's figures, without dropout."""
        check_planes(self.config.train.objective, batch)
        one, pieces = master_dtype(self.config).type(1), self._pieces(batch)
        told = [self.programs.evaluate(self.params, self.frozen, piece, one) for piece in pieces]
        read = [np.asarray(each).reshape(-1).tolist() for each in told]  # when all are begun
        return [sum(column) for column in zip(*read, strict=True)]

    def _pieces(self, batch: Batch) -> Iterator[Batch]:
        return batch.cut(self.config.micro_batch)

    def token_logprobs(self, batch: Batch, temperature: float = 1.0) -> np.ndarray:
        """Log-probability of each label [B, T], of logits / temperature, without dropout; 0 without a target."""
        pieces = [self.programs.logprobs(self.params, self.frozen, piece, temperature) for piece in self._pieces(batch)]
        return np.concatenate([np.asarray(piece) for piece in pieces])[: len(batch)]

    def token_scores(self, batch: Batch) -> np.ndarray:
        """Log-probability of each label, and 1 where no id is likelier, [B, T, 2], without dropout; 0 without one."""
        # as a whole: who scores says how many rows fit
        return np.asarray(self.programs.scores(self.params, self.frozen, batch))

    def branch_scores(self, rows: Branches) -> np.ndarray:
        """The same of each label of rows whose beginnings are shared, [P, 2], without dropout."""
        return np.asarray(self.programs.branches(self.params, self.frozen, *rows.arrays()))

    def values(self, batch: Batch) -> np.ndarray:
        """What the score head gives at each position [B, T], without dropout. Raises `UserError` without one."""
        check_score_head(self.config.model)
        pieces = [self.programs.values(self.params, self.frozen, piece) for piece in self._pieces(batch)]
        return np.concatenate([np.asarray(piece) for piece in pieces])[: len(batch)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        on_tokens: Callable[[np.ndarray], None] | None = None,
    ) -> list[list[int]]:
        """Up to `tokens` new ids after each prompt; see `decode.generate`."""
        return generate(self.whole_model(), prompts, tokens, sampling, stop, on_tokens)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        numbers: Sequence[int] | None = None,
    ) -> list[Sampled]:
        """As `generate`, with the stop id and each id's log-probability; see `decode.sample`."""
        return sample(self.whole_model(), prompts, tokens, sampling, stop, numbers)

    def replay(
        self, prompts: Sequence[Sequence[int]], tokens: int, temperature: float, answers: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """The log-probabilities of the ids that `sample` gave, by the same steps; see `decode.replay`."""
        return replay(self.whole_model(), prompts, tokens, temperature, answers)

    def lanes(self, rows: int, slots: int) -> Lanes:
        """Rows of a cache for requests that come and go one by one, each of at most so many tokens."""
        return Lanes(self.config, self.whole_model(), rows, slots)

    def whole_model(self) -> GPT:
        """The model with all of its weights, those that train and those that don't."""
        return nnx.merge(self.programs.graph, combine(self.params, self.frozen))

    @property
    def writes_in_place(self) -> bool:
        """Whether a save is written from where the state lies, so that the next update waits for it."""
        return self.device.platform == "cpu"

    def save(self, folder: Path) -> Future[None]:
        """Start writing parameters and moments into `folder`, in the background.

        From an accelerator Orbax copies them to the host at once. On a CPU they are held once: the next update waits.
        """
        self.saving = save_native(folder, {"parameters": self.params, "moments": self._moments_now()})
        return self.saving

    def load(self, folder: Path, applied: int | None) -> None:
        """Take parameters and moments from what `save` wrote, after `applied` updates; with None parameters alone."""
        self.params = self.moments = None  # not two models at once
        moments = {} if applied is None else {"moments": self.programs.moments}
        state = load_native(folder, {"parameters": self.programs.params} | moments, self.config.model.vocabulary)
        self.params, self.moments, self.donation_blocked = state["parameters"], state.get("moments"), False

    def export(self) -> Mapping[str, Tensors]:
        """Parameters and moments in the interchange form, in the table's order, each read when it is asked for."""
        groups = self._exported()
        names = [row.name for row in trainable_parameters(self.config)]
        return {g: LazyTensors([n for n in names if n in group], group.__getitem__) for g, group in groups.items()}

    def _exported(self) -> dict[str, Tensors]:
        """In the order of the arrays, each of which is fetched once."""
        self.donation_blocked = True
        parameters = exported_tree(trainable_parameters(self.config), self.params)
        return {"parameters": parameters, **self.optimizer.moments(self._moments_now())}

    def adopt(self, groups: Mapping[str, Tensors], applied: int) -> None:
        """Take parameters and moments from the interchange form, one tensor at a time."""
        self.params, self.donation_blocked = None, False  # not two models at once
        self.params = self._trained(groups["parameters"])
        if moments := {group: tensors for group, tensors in groups.items() if group != "parameters"}:
            self.moments = None
            self.moments = self.optimizer.load(self.programs.moments, moments)

    def _moments_now(self) -> Any:
        """The optimizer's state, of zeros where none was loaded: made for the first update, as text needs none."""
        if self.moments is None:
            self.moments = self.optimizer.load(self.programs.moments, {})
        return self.moments

    def _trained(self, tensors: Tensors) -> Any:
        if self.frozen is None:
            return nnx.state(build_model(self.config, self.kernel.name, tensors, self.device_or_sharding))
        multiple = self.config.execution.vocab_multiple
        return placed_tree(trainable_parameters(self.config), self.programs.params, tensors, multiple)
