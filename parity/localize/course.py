"""A run's updates made again by either stack: trainers, where they begin, and their figures update by update."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from coretrain.base.arrays import Tensors
from coretrain.checkpoint.interchange import Interchange
from coretrain.config.run import RunConfig
from coretrain.contract.update import Limits, Orders, Standing
from coretrain.data.batches import updates_of, validation_batches
from coretrain.data.splits import Data
from coretrain.planning.flops import update_flops_per_token
from coretrain.training.loop import LossScale
from jaxtrain.choices import configure_jax
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.localize.history import History
from torchtrain.trainer import Trainer as TorchTrainer

TRAINERS: dict[str, type[TorchTrainer] | type[JaxTrainer]] = {"torch": TorchTrainer, "jax": JaxTrainer}
MASTER = {"float64": np.float64}

State = dict[str, Tensors]
"""Parameters and moments by group."""


@dataclass
class Point:
    """Where a training stands."""

    update: int
    applied: int
    state: State | None
    """None: as the stack itself begins."""
    scale: dict[str, Any] = field(default_factory=dict)


def cost(config: RunConfig) -> float:
    """FLOPs of an update."""
    return update_flops_per_token(config) * config.tokens_per_update


def alone(config: RunConfig, device: str | None = None) -> RunConfig:
    """The run's config on one device: its own, or `device`."""
    parallel = type(config.parallel)()
    return config.changed(parallel=parallel, **({"execution__device": device} if device else {}))


@contextlib.contextmanager
def as_configured(config: RunConfig) -> Iterator[None]:
    """JAX set as for a run of `config`; afterwards as it was."""
    names = "jax_enable_x64", "jax_default_matmul_precision", "jax_compilation_cache_dir"
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_enable_x64", config.precision.compute == "float64")
    try:
        configure_jax(config)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


class Bench:
    """Trainers of one verdict: one of each config and stack is made, and compiled once."""

    def __init__(self) -> None:
        self.made: dict[tuple[str, str], Any] = {}

    def trainer(self, stack: str, config: RunConfig, beside: int = 0) -> Any:
        """A trainer of `config`; those `beside` the first have a state of their own and share what is compiled."""
        key = f"{stack} {beside}", config.to_json()
        if key not in self.made:
            if beside and stack == "jax":
                self.made[key] = copy.copy(self.trainer(stack, config))
            else:
                self.made[key] = TRAINERS[stack](config)
        return self.made[key]


class Course:
    """One training of a run's updates: its figures, update by update."""

    def __init__(self, trainer: Any, history: History, config: RunConfig, data: Data, at: Point) -> None:
        """`at` is where it begins; the trainer must have been put there."""
        self.trainer, self.history, self.config = trainer, history, config
        self.batches, self.data = updates_of(data, history.own), data
        self.at = Point(at.update, at.applied, None)
        scaled = config.precision.compute == "float16"
        self.scale = LossScale(**(at.scale or {"scale": config.precision.loss_scale})) if scaled else None

    def step(self) -> tuple[float, float]:
        """(loss, norm) of the next update; it is applied or skipped, at the rate, as in the run."""
        update, scale = self.at.update, self.scale.scale if self.scale else 1.0
        row = self.history.updates[update]
        batch = self.batches.batch(self.history.data_index(update))
        skipped = self.history.decisions.get(update) == "skip"
        limit = -math.inf if skipped else math.inf
        standing = Standing(self.at.applied, 0, False)
        orders = Orders(row["lr"], Limits(limit, limit), scale, standing, alone=True)
        loss, norm, applied, _ = self.trainer.update(batch, update, orders, lambda: None)()
        if skipped:
            if self.scale and row["grad_norm"] is None and row["loss"] is not None:
                self.scale.overflowed()
        elif applied:
            self.at.applied += 1
            if self.scale:
                self.scale.went_well()
        self.at.update += 1
        return loss, norm

    def evaluate(self) -> float:
        """Validation loss in nats a token."""
        batches = validation_batches(self.data, self.history.own)
        return sum(self.trainer.evaluate(batch) for batch in batches) / sum(batch.target_weight for batch in batches)

    def point(self) -> Point:
        """Where it stands, its state copied."""
        scale = dict(vars(self.scale)) if self.scale else {}
        return Point(self.at.update, self.at.applied, state_of(self.trainer), scale)


def state_of(trainer: Any) -> State:
    """A copy of parameters and moments."""
    return {group: {name: np.array(tensors[name]) for name in tensors} for group, tensors in trainer.export().items()}


def beginning(checkpoint: Interchange | None) -> Point:
    """Where a stretch begins."""
    if checkpoint is None:
        return Point(0, 0, None)
    groups: State = {
        group: {name: np.asarray(tensors[name]) for name in tensors} for group, tensors in checkpoint.groups.items()
    }
    progress = checkpoint.progress
    return Point(progress.update, progress.applied, groups, progress.loss_scale)


def put(trainer: Any, at: Point, perturbed: int = 0) -> None:
    """The trainer at a point; with `perturbed` every weight 1 ULP off, one way or the other, by that seed."""
    state = at.state
    if state is None:
        weights = trainer._initial()
        weights = {name: np.asarray(weights[name]) for name in weights}
        zeros = {
            group: {name: np.zeros_like(tensors[name]) for name in tensors}
            for group, tensors in trainer.export().items()
        }
        state = {**zeros, "parameters": weights}
    if perturbed:
        rng = np.random.default_rng(perturbed)
        wide = MASTER.get(trainer.config.precision.compute, np.float32)
        moved = {}
        for name, value in state["parameters"].items():
            value = np.asarray(value, wide)
            towards = np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf).astype(wide)
            moved[name] = np.nextafter(value, towards)
        state = state | {"parameters": moved}
    trainer.adopt(state, at.applied)


def course_of(
    bench: Bench, history: History, stack: str, config: RunConfig, data: Data, at: Point, beside: int = 0
) -> Course:
    """A training by `stack` that begins at a point; those `beside` the first begin 1 ULP from it, by that seed."""
    trainer = bench.trainer(stack, config, beside)
    put(trainer, at, beside)
    return Course(trainer, history, config, data, at)


def in_float64(config: RunConfig) -> RunConfig:
    """The run's config on the CPU in float64, with the kernels that are written out."""
    execution = {"attention": "plain", "device": "cpu", "compile": "off", "checkpoint_activations": "none"}
    return alone(config).changed(
        precision__compute="float64", **{f"execution__{name}": value for name, value in execution.items()}
    )
