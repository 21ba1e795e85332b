"""The stack that the training loop drives, on one device: gradients, updates, evaluation and state of one model.

Read it side by side with `jaxtrain/trainer.py`; `step.py` has the update itself, `parallel/` what shares it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coretrain.adapters.targets import trainable_parameters, with_adapter
from coretrain.alignment.planes import check_planes
from coretrain.base.arrays import Tensors
from coretrain.base.lazy import LazyTensors
from coretrain.base.malloc import give_back_freed_memory, keep_freed_memory
from coretrain.config.run import RunConfig
from coretrain.contract.branches import Branches
from coretrain.contract.decoding import Sampled
from coretrain.contract.parameters import check_score_head, initial_parameters
from coretrain.contract.sampling import Sampling
from coretrain.contract.update import Figures, Orders, Read, Standing
from coretrain.data.batch import Batch
from coretrain.data.splits import Data
from coretrain.training.stack import InStep
from torchtrain import step
from torchtrain.attention import choose_kernel
from torchtrain.checkpoint import load_native, save_native
from torchtrain.choices import choose_compile, choose_device
from torchtrain.data import train_batches
from torchtrain.decode import generate, replay, sample
from torchtrain.lanes import Lanes
from torchtrain.layers import Dropout, master_dtype
from torchtrain.model import GPT, build_model, compile_blocks, exported, load_tensors
from torchtrain.objective import OBJECTIVES, branch_scores, label_logprobs, label_scores
from torchtrain.optimizer import Optimizer


class Trainer(InStep):
    """One model with its optimizer on one device. The public methods are those of `training.stack.Stack`."""

    name, alone = "torch", True

    def __init__(self, config: RunConfig, tensors: Tensors | None = None) -> None:
        self.config = config
        self.device_choice = choose_device(config)
        self.device = torch.device(self.device_choice.name)
        if self.device.type == "cpu":
            give_back_freed_memory()
        self.kernel = choose_kernel(config, self.device)
        self.compiled = choose_compile(config, self.device)
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        torch.set_float32_matmul_precision("high" if config.precision.fast_matmul else "highest")
        self.saving: Future[None] | None = None
        self.exported_views: list[weakref.ref[LazyTensors]] = []
        self.standing = Standing(0, 0, False)
        self._make(with_adapter(config, self._initial() if tensors is None else tensors))

    def _initial(self) -> Tensors:
        return initial_parameters(self.config.model, self.config.train.seed)

    def _make(self, tensors: Tensors) -> None:
        """The model of `tensors`, its optimizer, and the loss of some rows of a batch."""
        self.model = build_model(self.config, self.kernel.name, tensors, self.device)
        self.optimizer = Optimizer(self.config, self.model)
        self.loss = self._loss_of(self.model)

    def _loss_of(self, model: GPT) -> step.MicroLoss:
        loss = functools.partial(OBJECTIVES[self.config.train.objective], model, self.config)
        if self.compiled.name == "on" and self.config.adapter.quantize != "none":
            compile_blocks(model)  # as one program, 30 layers of quantized weights take minutes to compile
            return loss
        return torch.compile(loss, dynamic=False) if self.compiled.name == "on" else loss

    def describe(self) -> Sequence[tuple[str, str]]:
        """Device, dtypes, attention kernel and compilation, each with its reason."""
        p = self.config.precision
        master = str(master_dtype(self.config)).removeprefix("torch.")
        matmul = "TF32 allowed" if p.fast_matmul else "full float32"
        return [
            ("framework", f"PyTorch {torch.__version__}"),
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
        """Whether an update is done when `update` returns: but for CUDA, whose kernels are begun and not waited for."""
        return self.device.type != "cuda"

    def update(self, batch: Batch, update: int, orders: Orders, change: Callable[[], None]) -> Read:
        """Begin an update: gradients, verdict, and, where it is healthy, the optimizer's step."""
        if self.in_step:
            return super().update(batch, update, orders, change)
        loss, norm = self._gradients(batch, update, orders.scale)
        change()
        self._wait_for_readers()
        if orders.alone:
            self.standing = Standing(*(torch.full((), number, device=self.device) for number in orders.standing))
        self.standing, figures = step.update(self.config, self.optimizer, self.standing, loss, norm, orders)
        return _read_later(figures)

    def gradients(self, batch: Batch, update: int, loss_scale: float) -> tuple[float, float]:
        """Mean of the objective over the batch's targets, and the global gradient norm, both unscaled."""
        told, norm = self._gradients(batch, update, loss_scale)
        loss, *self.more = told.reshape(-1).tolist()
        return loss / loss_scale, norm.item() / loss_scale

    def _gradients(self, batch: Batch, update: int, loss_scale: float) -> tuple[Tensor, Tensor]:
        if self.device.type == "cpu":
            keep_freed_memory()  # from the first update on
        check_planes(self.config.train.objective, batch)
        masks = step.dropout_masks(self.config, update, len(batch))
        masks = masks and Dropout(self._carried(masks.keys), self._carried(masks.rows))
        return self._summed(self._on_device(batch), loss_scale, masks)

    def _summed(self, batch: Batch, loss_scale: float, dropout: Dropout | None) -> tuple[Tensor, Tensor]:
        """Loss and norm of a whole batch on the device, both scaled; the gradients are left in `.grad`."""
        return step.gradients(self.config, self.model, self.loss, batch, loss_scale, dropout)

    def _on_device(self, batch: Batch) -> Batch:
        """The batch as tensors: ids as torch's embedding wants them, weights as they are."""
        ids = batch.map(lambda array: self._carried(torch.from_numpy(array)))
        return ids.map(lambda tensor: tensor if tensor.is_floating_point() else tensor.long())

    def _carried(self, tensor: Tensor) -> Tensor:
        """A tensor on the device: to CUDA from pinned memory, for which the host doesn't wait."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def apply(self, lr: float, factor: float, applied: int) -> None:
        """One optimizer update with the last gradients times `factor`, the one after `applied` others.

        torch's AdamW counts its updates itself; JAX's is told.
        """
        self._wait_for_readers()
        self.optimizer.step(lr, factor)

    def _wait_for_readers(self) -> None:
        """Before the state changes: wait for what is written from where it lies, and read what `export` gave out."""
        if self.saving is not None and self.writes_in_place:
            wait([self.saving])  # what went wrong is for whoever asked for the save
        for view in self.exported_views:
            if (tensors := view()) is not None:
                tensors.materialize()
        self.exported_views.clear()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> float:
        """Sum of the losses of the batch's targets, without dropout."""
        return self.measure(batch)[0]

    @torch.no_grad()
    def measure(self, batch: Batch) -> list[float]:
        """That sum, and the objective's figures, without dropout."""
        check_planes(self.config.train.objective, batch)
        one = torch.ones((), dtype=master_dtype(self.config), device=self.device)
        loss = OBJECTIVES[self.config.train.objective]
        pieces = self._on_device(batch).cut(self.config.micro_batch)
        told = [loss(self.model, self.config, piece, one, None).reshape(-1) for piece in pieces]
        read = [each.tolist() for each in told]  # when all are begun
        return [sum(column) for column in zip(*read, strict=True)]

    @torch.no_grad()
    def token_logprobs(self, batch: Batch, temperature: float = 1.0) -> np.ndarray:
        """Log-probability of each label [B, T], of logits / temperature, without dropout; 0 without a target."""
        pieces = self._on_device(batch).cut(self.config.micro_batch)
        each = [label_logprobs(self.model, self.config, piece, None, temperature) for piece in pieces]
        return torch.cat(each).cpu().numpy()

    @torch.no_grad()
    def token_scores(self, batch: Batch) -> np.ndarray:
        """Log-probability of each label, and 1 where no id is likelier, [B, T, 2], without dropout; 0 without one."""
        # as a whole: who scores says how many rows fit
        return label_scores(self.model, self.config, self._on_device(batch)).cpu().numpy()

    @torch.no_grad()
    def branch_scores(self, rows: Branches) -> np.ndarray:
        """The same of each label of rows whose beginnings are shared, [P, 2], without dropout."""
        arrays = [self._carried(torch.from_numpy(array)) for array in rows.arrays()]
        arrays = [array if array.dtype is torch.bool else array.long() for array in arrays]
        return branch_scores(self.whole_model(), self.config, *arrays).cpu().numpy()

    @torch.no_grad()
    def values(self, batch: Batch) -> np.ndarray:
        """What the score head gives at each position [B, T], without dropout. Raises `UserError` without one."""
        check_score_head(self.config.model)
        pieces = self._on_device(batch).cut(self.config.micro_batch)
        return torch.cat([self._values(piece) for piece in pieces]).cpu().numpy()

    def _values(self, piece: Batch) -> Tensor:
        return self.model.scores(self.model(piece.tokens, None, piece.positions))

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
        """The model that this process holds, with the weights that train and those that don't."""
        return self.model

    @property
    def writes_in_place(self) -> bool:
        """Whether a save is written from where the state lies, so that the next update waits for it."""
        return self.device.type == "cpu" or self.config.parallel.offload != "none"

    def save(self, folder: Path) -> Future[None]:
        """Start writing parameters and moments into `folder`, in the background.

        From a GPU they are copied to the host at once. What lies there already is held once: the next update waits.
        """
        self.saving = save_native(folder, list(self.optimizer.fragments()))
        return self.saving

    def load(self, folder: Path, applied: int | None) -> None:
        """Take parameters and moments from what `save` wrote, after `applied` updates; with None parameters alone."""
        groups = load_native(folder)
        self.adopt(groups if applied is not None else {"parameters": groups["parameters"]}, applied or 0)

    def export(self) -> Mapping[str, Tensors]:
        """Parameters and moments in the interchange form, in the table's order, each read when it is asked for."""
        groups = {"parameters": exported(self.config, self.optimizer.parameters)} | self.optimizer.moments()
        self.exported_views += [weakref.ref(tensors) for tensors in groups.values()]
        return groups

    def adopt(self, groups: Mapping[str, Tensors], applied: int) -> None:
        """Take parameters and moments from the interchange form, one tensor at a time."""
        self._wait_for_readers()
        parameters = dict(self.model.named_parameters())
        load_tensors(
            self.config, parameters, groups["parameters"], self.model.tensor, trainable_parameters(self.config)
        )
        moments = {group: tensors for group, tensors in groups.items() if group != "parameters"}
        if moments:
            self.optimizer.load(moments, applied)


def _read_later(figures: Tensor) -> Read:
    """Send an update's figures to the host; what is returned waits for them."""
    event: torch.cuda.Event | None = None
    if figures.is_cuda:
        figures = torch.empty_like(figures, device="cpu", pin_memory=True).copy_(figures, non_blocking=True)
        event = torch.cuda.Event()
        event.record()

    def read() -> Figures:
        if event is not None:
            event.synchronize()
        loss, norm, applied, *more = figures.tolist()
        return Figures(loss, norm, bool(applied), tuple(more))

    return read
