"""The stack that the training loop drives: gradients, updates, evaluation and state of one model, in PyTorch."""

from __future__ import annotations

import contextlib
import functools
import shutil
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coretrain.adapters.targets import (
    run_keys,
    run_uses_dropout,
    trained_table,
    with_adapter,
)
from coretrain.base.errors import UserError
from coretrain.base.lazy import LazyTensors
from coretrain.base.malloc import give_back_freed_memory, keep_freed_memory
from coretrain.checkpoint.fragments import Fragment
from coretrain.config.run import RunConfig, until
from coretrain.contract.dropout import dropout_keys
from coretrain.contract.parameters import InitialParameters, initial_parameters
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import planes
from coretrain.data.splits import Data
from coretrain.planning.flops import run_flops
from coretrain.processes.layout import rows_of
from torchtrain.attention import Choice, choose_kernel
from torchtrain.checkpoint import load_native, save_native
from torchtrain.data import train_batches
from torchtrain.decode import generate
from torchtrain.layers import Dropout, master_dtype
from torchtrain.loss import IGNORED, count_targets, cross_entropy
from torchtrain.model import (
    build_model,
    exported,
    fill,
    hold,
)
from torchtrain.optimizer import Optimizer, global_norm, replicated_names
from torchtrain.parallel.axes import ALONE, Axis
from torchtrain.parallel.processes import place_of

COMPILE_PAYS_AFTER = 1e13
"""FLOPs of a CPU run for each of its layers, about a minute on 2 cores, above which compiling them is repaid.

It takes half a minute for 6 layers, and two minutes for 30 with adapters: they are unrolled.
"""


def choose_device(config: RunConfig) -> Choice:
    """The device to train on; `UserError` where the one asked for isn't there."""
    wanted = {"gpu": "cuda"}.get(config.execution.device, config.execution.device)
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    double = config.precision.compute == "float64"
    if wanted == "auto":
        usable = [name for name, here in present.items() if here and not (name == "mps" and double)]
        missing = ", ".join(f"no {name}" for name in ("cuda", "mps") if name not in usable)
        return Choice(usable[0], missing or "the fastest present")
    if wanted not in present:
        raise UserError(f"execution.device = {wanted} is not a torch device: choose auto, cpu, mps or cuda")
    if not present[wanted]:
        raise UserError(
            f"execution.device = {wanted} is not available to torch here: use auto, or see twintrain doctor"
        )
    if wanted == "mps" and double:
        raise UserError("execution.device = mps has no float64: use cpu for precision.compute = float64")
    return Choice(wanted, "asked for by execution.device")


def choose_compile(config: RunConfig, device: torch.device) -> Choice:
    """Whether to use torch.compile, and why: on or off."""
    wanted = config.execution.compile
    obstacle = None
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        obstacle = "no C++ compiler is installed"
    if config.parallel.tensor > 1 or config.parallel.pipeline > 1:
        obstacle = "tensor and pipeline parallelism communicate inside the model"
    if config.parallel.zero == 3:
        obstacle = "ZeRO 3 gathers weights by hooks on modules"
    if device.type == "mps":
        obstacle = "compiled LayerNorm gradients are wrong on MPS in torch 2.13"
    if wanted == "on" and obstacle:
        raise UserError(f"execution.compile = on can't be done here: {obstacle}; use auto")
    if wanted != "auto":
        return Choice(wanted, "asked for by execution.compile")
    if obstacle:
        return Choice("off", obstacle)
    if device.type == "cpu" and run_flops(config) < COMPILE_PAYS_AFTER * config.model.layers:
        why = f"the run's {run_flops(config):.1e} FLOPs are too few to repay compiling {config.model.layers} layers"
        return Choice("off", why)
    return Choice("on", "the run is long enough to repay it")


class Trainer:
    """One model with its optimizer on one device. The public methods are those of `training.stack.Stack`."""

    name = "torch"

    def __init__(self, config: RunConfig, tensors: Mapping[str, np.ndarray] | None = None) -> None:
        self.config, self.place = config, place_of(config)
        self.device_choice = choose_device(config)
        self.device = torch.device(self.device_choice.name)
        if self.device.type == "cpu":
            give_back_freed_memory()
        self.kernel = choose_kernel(config, self.device)
        self.compiled = choose_compile(config, self.device)
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        torch.set_float32_matmul_precision("high" if config.precision.fast_matmul else "highest")
        if tensors is None:
            start = InitialParameters if self.place.talks else initial_parameters  # one at a time; all of them at once
            tensors = start(config.model, config.train.seed)
        tensors = with_adapter(config, tensors)
        self.saving: Future[None] | None = None
        self.lent: list[weakref.ref[LazyTensors]] = []
        self.zero, self.pipeline = None, None
        if config.parallel.zero and self.place.talks:
            from torchtrain.parallel.zero import Zero

            self.zero = Zero(config, self.kernel.name, self.device, self.place, tensors, self._micro_loss)
            self.model, self.optimizer, self.micro_loss = self.zero.model, self.zero, self.zero.loss
            return
        tensor, pipeline = self.place.tensor, self.place.pipeline
        if pipeline.size > 1:
            from torchtrain.parallel.pipeline import Pipeline, Stage

            with torch.device("meta"):
                stage = Stage(config, self.kernel.name, tensor, pipeline)
            self.model = hold(config, stage, tensors, self.device)
            self.pipeline = Pipeline(config, self.model, self.place)
        else:
            self.model = build_model(config, self.kernel.name, tensors, self.device, tensor)
        self.optimizer = Optimizer(config, self.model)
        self.micro_loss = self._micro_loss(self.model)

    def _micro_loss(self, model: Any) -> Callable[..., Tensor]:
        tensor = self.place.tensor
        loss = functools.partial(_loss, model, self.config, **({} if tensor.size == 1 else {"tensor": tensor}))
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
            *([("processes", self.place.describe())] if self.place.size > 1 else []),
            *([("ZeRO", self.zero.describe())] if self.zero else []),
        ]

    def batches(self, data: Data, start: int, stop: int) -> Iterator[np.ndarray]:
        """Global batches [B, T + 1] of the indices [start, stop) of the data order."""
        return train_batches(data, until(self.config, stop), start)

    def gradients(self, batch: np.ndarray, update: int, loss_scale: float) -> tuple[float, float]:
        """Mean loss over the batch's targets, and the global gradient norm (of the unscaled gradients)."""
        c = self.config
        if self.device.type == "cpu":
            keep_freed_memory()  # from the first update on
        ids = torch.from_numpy(batch).to(self.device, torch.long)
        tokens, labels, *packed = planes(ids)
        scale = loss_scale / count_targets(labels).to(master_dtype(c))
        dropout = self._dropout(update, len(batch))
        if self.zero:
            self.zero.drop()
        else:
            self.model.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=master_dtype(c), device=self.device)
        shares = rows_of(c, self.place.layout, self.place.data.index)
        if self.pipeline:
            mine = torch.cat([torch.arange(rows.start, rows.stop, device=self.device) for rows in shares])
            part = dropout and Dropout(dropout.keys, dropout.rows[mine])
            loss, shares = self.pipeline.gradients(tokens[mine], labels[mine], scale, part), []
        for number, rows in enumerate(shares, 1):
            part = dropout and Dropout(dropout.keys, dropout.rows[rows])
            micro = self.micro_loss(
                tokens[rows].contiguous(),
                labels[rows].contiguous(),
                scale,
                part,
                *(p[rows].contiguous() for p in packed),
            )
            if self.zero:
                self.zero.backward(micro, last=number == len(shares))
            else:
                micro.backward()
            loss += micro.detach()
        loss, norm = self._shared(loss)
        return loss.item() / loss_scale, norm.item() / loss_scale

    def _shared(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient norm of the whole batch from this process's part, the same bits on all processes."""
        trained = ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
        gradients = {n: p.grad for n, p in trained} if not self.zero else self.zero.gradients()
        if self.place.size == 1:
            return loss, global_norm(gradients.values())
        if not self.zero:
            self.place.sum_gradients(list(gradients.values()))
        twice = replicated_names(self.config) if self.place.tensor.size > 1 else frozenset()
        for name in self._copies:
            del gradients[name]
        own = global_norm([g for name, g in gradients.items() if name not in twice] or [torch.zeros(1)])
        shared = global_norm([g for name, g in gradients.items() if name in twice] or [torch.zeros(1)])
        table = self.place.table(loss, own**2, shared**2)
        holders = slice(None) if self.zero else slice(1)  # of gradients: each a part of them, or all the same ones
        norm = (table[holders, :, :, 1].sum() + table[holders, :, 0, 2].sum()).sqrt()
        return table[:, :, 0, 0].sum(), norm

    @property
    def _copies(self) -> frozenset[str]:
        """Parameters that an earlier stage of the pipeline has too: a tied head's embedding."""
        later = self.place.pipeline.index > 0 and self.config.model.tied
        return frozenset({"embed.token"} & dict(self.model.named_parameters()).keys()) if later else frozenset()

    def apply(self, lr: float, factor: float, applied: int) -> None:
        """One optimizer update with the last gradients times `factor`, the one after `applied` others."""
        self._settle()
        self.optimizer.step(lr, factor)

    def _settle(self) -> None:
        """Before the state changes: wait for what is written from where it lies, and read what `export` gave out."""
        if self.saving is not None and self.writes_in_place:
            wait([self.saving])  # what went wrong is for whoever asked for the save
        for lent in self.lent:
            if (tensors := lent()) is not None:
                tensors.settle()
        self.lent.clear()

    @torch.no_grad()
    def evaluate(self, batch: np.ndarray) -> float:
        """Sum of the losses of the batch's targets, without dropout."""
        ids = torch.from_numpy(batch).to(self.device, torch.long)
        one = torch.ones((), dtype=master_dtype(self.config), device=self.device)
        size, data = self.config.micro_batch, self.place.data
        parts = [ids[start : start + size] for start in range(0, len(ids), size)]
        if self.place.size == 1 and not self.zero:
            model, c = self.model, self.config
            cut = [planes(part) for part in parts]
            return sum(_loss(model, c, tokens, labels, one, None, *packed).item() for tokens, labels, *packed in cut)
        total = torch.zeros((), dtype=torch.float64)
        self.model.eval()
        for part in parts:
            share = -(-len(part) // data.size)
            mine = part.new_full((share, *part.shape[1:]), IGNORED)  # all take part, also where there are no rows left
            rows = part[data.index * share : (data.index + 1) * share]
            mine[: len(rows)] = rows
            tokens, labels, *packed = (plane.contiguous() for plane in planes(mine))
            tokens, packed = tokens.clamp_min(0), [positions.clamp_min(0) for positions in packed]
            if self.pipeline:
                total += self.pipeline.evaluate(tokens, labels, one).cpu()
            else:
                total += self.micro_loss(tokens, labels, one, None, *packed).cpu()
        self.model.train()
        return self.place.table(total.to(self.device))[:, :, 0, 0].sum().item()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        on_tokens: Callable[[np.ndarray], None] | None = None,
    ) -> list[list[int]]:
        """Up to `tokens` new ids after each prompt; see `generate.generate`."""
        with self.zero.whole() if self.zero else contextlib.nullcontext():
            return generate(self.model, prompts, tokens, sampling, stop, on_tokens)

    @property
    def writes_in_place(self) -> bool:
        """Whether a save is written from where the state lies, so that the next update waits for it."""
        return self.device.type == "cpu" or self.config.parallel.offload != "none"

    def save(self, folder: Path) -> Future[None]:
        """Start writing this process's part of parameters and moments into `folder`, in the background.

        From a GPU it is copied to the host at once. What lies there already is held once: the next update waits for it.
        """
        state = [part for part in self.optimizer.fragments(self.place) if part.name not in self._copies]
        self.saving = save_native(folder, state, self.place.rank)
        return self.saving

    def load(self, folder: Path, applied: int | None) -> None:
        """Take parameters and moments from what `save` wrote, after `applied` updates; with None parameters alone."""
        groups = load_native(folder)
        self.adopt(groups if applied is not None else {"parameters": groups["parameters"]}, applied or 0)

    def export(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """Parameters and moments in the interchange form, each tensor read when it is asked for, in the table's order.

        Of several processes none holds all (see `save`).
        """
        if self.place.size > 1:
            raise RuntimeError("several processes hold this state: save it, and read the checkpoint")
        groups: dict[str, LazyTensors] = {}
        if self.zero:
            parts: dict[str, dict[str, Fragment]] = {}
            for part in self.zero.fragments(self.place):
                parts.setdefault(part.group, {})[part.name] = part
            for group, of_group in parts.items():
                groups[group] = LazyTensors(of_group, functools.partial(_whole, of_group))
        else:
            groups = {"parameters": exported(self.config, self.optimizer.parameters)} | self.optimizer.moments()
        self.lent += [weakref.ref(tensors) for tensors in groups.values()]
        return groups

    def adopt(self, groups: Mapping[str, Mapping[str, np.ndarray]], applied: int) -> None:
        """Take parameters and moments from the interchange form, one tensor at a time."""
        self._settle()
        if self.zero:
            self.zero.fill(groups["parameters"])
        else:
            trained, table = dict(self.model.named_parameters()), trained_table(self.config)
            fill(self.config, trained, groups["parameters"], self.place.tensor, table)
        moments = {group: tensors for group, tensors in groups.items() if group != "parameters"}
        if moments:
            self.optimizer.load(moments, applied)

    def _dropout(self, update: int, rows: int) -> Dropout | None:
        if not run_uses_dropout(self.config):
            return None
        keys = run_keys(self.config, update, dropout_keys(self.config.model, self.config.train.seed, update))
        keys = keys.view(np.int32)
        indices = torch.arange(rows, dtype=torch.int32, device=self.device)
        return Dropout(torch.from_numpy(keys).to(self.device), indices)


def _whole(parts: Mapping[str, Fragment], name: str) -> np.ndarray:
    """A copy of the one part that a tensor has where one process holds all."""
    return np.array(parts[name].values.reshape(parts[name].shape))


def _loss(
    model: Any,
    config: RunConfig,
    tokens: Tensor,
    labels: Tensor,
    scale: Tensor,
    dropout: Dropout | None,
    positions: Tensor | None = None,
    tensor: Axis = ALONE,
) -> Tensor:
    hidden = model(tokens, dropout, *(() if positions is None else (positions,)))
    m, chunk = config.model, config.execution.loss_chunk
    shared = () if tensor.size == 1 else (tensor,)
    return cross_entropy(hidden, model.head_weight, labels, m.vocabulary, chunk, scale, *shared)
