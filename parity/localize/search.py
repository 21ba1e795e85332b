"""Where our two stacks part: data, rates, taps, cotangents, gradients, clip, moments and steps, in this order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxtrain.layers
import jaxtrain.model
import jaxtrain.objective
import jaxtrain.step
import torchtrain.layers
import torchtrain.model
import torchtrain.objective
import torchtrain.step
from coretrain.base.arrays import Tensors
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import to_jax_tree
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.data.batch import Batch, batch_hash
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.localize.judge import judge
from parity.localize.recorders import JaxRecorder, Record, record_torch
from parity.localize.rounding import evidence_of, judge_rounding, rounding_rows
from parity.localize.rows import (
    GRADIENT,
    GRADIENT_FLOOR,
    SCALAR,
    SCALAR_FLOOR,
    STATE,
    STATE_FLOOR,
    Row,
    distance,
    tap_rows,
    tensor_rows,
)
from parity.localize.show import Report
from parity.page.film import Frame, film
from parity.pair import batches, noise_only, perturbed
from torchtrain.trainer import Trainer as TorchTrainer

UPDATES = 3
"""Updates that are compared: the second has moments, the third has them mixed."""
STEP_ROUNDING = 8
"""A step may be off by so many roundings of its parameter."""


def jax_recorder(stack: JaxTrainer) -> JaxRecorder:
    """The recorder of a JAX trainer's model and loss, layers unrolled; compiled at its first call, then kept."""
    config = stack.config
    unrolled = config.changed(execution__scan_layers=False, execution__checkpoint_activations="none")
    graph, _ = nnx.split(nnx.eval_shape(lambda: jaxtrain.model.GPT(unrolled, stack.kernel.name, scan=False)))
    one = jaxtrain.layers.master_dtype(config).type(1)

    def loss(params: Any, batch: Batch, dropout: Any) -> jax.Array:
        model: Any = _WithLogits(nnx.merge(graph, params))
        scale = jaxtrain.step.target_scale(config, batch, one)
        return jaxtrain.objective.cross_entropy_loss(model, config, batch, scale, dropout)

    return JaxRecorder(loss)


class _WithLogits:
    """A model of either stack that also makes logits, for their tap alone: the loss makes its own, chunk by chunk."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any) -> Any:
        hidden = self.model(*args)
        self.model.logits(hidden)
        return hidden


def torch_taps(stack: TorchTrainer, batch: Batch, update: int) -> tuple[Record, Tensors]:
    """The record of one batch with the dropout of `update`, and the gradients."""
    config, model = stack.config, stack.model
    tapped: Any = _WithLogits(model)
    rows = batch.map(lambda array: torch.from_numpy(array).to(stack.device, torch.long))
    scale = torchtrain.step.target_scale(config, rows, 1.0)
    dropout = torchtrain.step.dropout_masks(config, update, len(batch))
    dropout = dropout and dropout.to(stack.device)
    policy, model.policy = model.policy, "none"  # recomputing would meet every tap twice
    model.zero_grad(set_to_none=True)
    try:
        record = record_torch(lambda: torchtrain.objective.cross_entropy_loss(tapped, config, rows, scale, dropout))
    finally:
        model.policy = policy
    return record, _dense_gradients(stack)


def _dense_gradients(stack: TorchTrainer) -> Tensors:
    named = {name: p.grad.to_dense() for name, p in stack.model.named_parameters() if p.grad is not None}
    return torchtrain.model.canonical_tensors(stack.config, named)


def jax_taps(
    stack: JaxTrainer, recorder: JaxRecorder, batch: Batch, update: int, seats: Record | None = None
) -> tuple[Record, Tensors]:
    """The record of one batch with the dropout of `update`, forced onto torch's where given, and the gradients."""
    dropout = jaxtrain.step.dropout_masks(stack.config, update, len(batch))
    record, gradients = recorder(stack.params, batch, dropout, seats=seats)
    return record, jaxtrain.model.canonical_tensors(stack.config, gradients)


Rate = Callable[[RunConfig, int], float]
Clip = Callable[[float, float], float]


def search(
    config: RunConfig,
    weights: Tensors,
    torch_trainer: TorchTrainer,
    jax_trainer: JaxTrainer,
    recorder: JaxRecorder | None = None,
    feeds: tuple[Sequence[Batch], Sequence[Batch]] | None = None,
    rates: tuple[Rate, Rate] = (learning_rate, learning_rate),
    clips: tuple[Clip, Clip] = (clip_factor, clip_factor),
    evidence: dict[str, np.ndarray] | None = None,
    moments: Mapping[str, Tensors] | None = None,
    begun: tuple[int, int] | None = None,
    frames: list[Frame] | None = None,
) -> Iterator[list[Row]]:
    """Rows, stage by stage in the order of search, of two float64 trainers put at `weights`.

    Data, learning rates over the horizon, values and cotangents at the taps, gradients, what the trainers themselves
    make of the batch (micro-batches included), clip factor, moments and parameters; each update but the first starts
    from torch's state, and all take torch's gradients, in both. What of data, schedule and clip the two sides have of
    their own comes in `feeds`, `rates` and `clips` (torch first); of what both share nothing is
    compared. `evidence` is filled with what reproduces a parting, `frames` with what the player shows.
    From the middle of a run: `moments` by group, and `begun` = (updates, applied updates) that lie behind the state.
    """
    stacks: tuple[TorchTrainer | JaxTrainer, ...] = torch_trainer, jax_trainer
    evidence = {} if evidence is None else evidence
    first, applied = begun or (0, 0)
    made = batches(config, UPDATES)
    feeds = feeds or (made, made)
    if feeds[0] is not feeds[1]:
        yield [
            Row("data", f"batch {i}", float(batch_hash(a) != batch_hash(b)), None, 0, 0, note=_rows_that_differ(a, b))
            for i, (a, b) in enumerate(zip(*feeds, strict=True))
        ]
    if rates[0] is not rates[1]:
        yield [_rate_row(config, rates)]

    zeros = {
        group: {name: np.zeros_like(value) for name, value in tensors.items()}
        for group, tensors in torch_trainer.export().items()
    }
    for stack in stacks:
        stack.adopt({**zeros, **(moments or {}), "parameters": weights}, applied)
    batch, apart = feeds[0][0], noise_only(config)
    ours, our_gradients = torch_taps(torch_trainer, batch, first)
    recorder = recorder or jax_recorder(jax_trainer)
    free, _ = jax_taps(jax_trainer, recorder, batch, first)
    teacher_forced, their_gradients = jax_taps(jax_trainer, recorder, batch, first, ours)
    rows = tap_rows(ours, free, teacher_forced)
    evidence |= evidence_of(judge(rows), ours, teacher_forced)
    evidence |= {"tokens": batch.tokens, "labels": batch.labels}
    if frames is not None:
        frames += film(ours, free, teacher_forced)
    yield rows
    yield tensor_rows("gradient", our_gradients, their_gradients, GRADIENT, GRADIENT_FLOOR, apart)

    for update, batch in enumerate(feeds[0], first):
        (our_loss, our_norm), (their_loss, their_norm) = (stack.gradients(batch, update, 1.0) for stack in stacks)
        our_gradients = _dense_gradients(torch_trainer)
        their_gradients = jaxtrain.model.canonical_tensors(config, jax_trainer.last_gradients)
        note = f"update {update}"
        factors = [clip(our_norm, config.optimizer.clip) for clip in clips]
        yield [
            _scalar("training loss", our_loss, their_loss, note),
            *_noted(tensor_rows("accumulated", our_gradients, their_gradients, GRADIENT, GRADIENT_FLOOR, apart), note),
            _scalar("gradient norm", our_norm, their_norm, note),
            *([_scalar("clip factor", factors[0], factors[1], note)] if clips[0] is not clips[1] else []),
        ]
        tree = to_jax_tree(config.model, our_gradients, config.execution.vocab_multiple)
        jax_trainer.last_gradients = jax.tree_util.tree_map_with_path(
            lambda path, leaf, tree=tree: jnp.asarray(tree[jaxtrain.arrays.dotted(path)], leaf.dtype),
            jax_trainer.last_gradients,
        )
        before = torch_trainer.export()["parameters"]
        # at the end of the warm-up: a step of its first updates is so small that the parameter's rounding hides it
        at = min(update if begun else config.schedule.warmup_updates + update, config.train.updates - 1)
        for stack, rate, factor in zip(stacks, rates, factors, strict=True):
            stack.apply(rate(config, at), factor, applied + update - first)
        ours_after, theirs_after = torch_trainer.export(), jax_trainer.export()
        rows = []
        for group in [group for group in ours_after if group != "parameters"]:
            rows += tensor_rows(group, ours_after[group], theirs_after[group], STATE, STATE_FLOOR)
        ours_moved, theirs_moved = (
            {name: state["parameters"][name] - before[name] for name in before} for state in (ours_after, theirs_after)
        )
        steps = tensor_rows("parameter", ours_moved, theirs_moved, STATE, STATE_FLOOR)
        rows += [_with_rounding(row, before, ours_moved) for row in steps]
        yield _noted(rows, note)
        jax_trainer.adopt(ours_after, applied + update - first + 1)


def localized_tap(
    config: RunConfig, weights: Tensors, torch_trainer: TorchTrainer, jax_trainer: JaxTrainer, **options: Any
) -> str:
    """Name of the first tap where two float64 trainers of `config` part, "" where they don't; stops there.

    `options` are those of `search`. A `recorder = jax_recorder(jax_trainer)` that is passed to many calls is compiled
    once, as long as JAX is left as it was when it was first called.
    """
    for rows in search(config, weights, torch_trainer, jax_trainer, **options):
        first = next((row for row in rows if row.parts), None)
        if first is not None:
            return first.title
    return ""


def localize_config(
    config: RunConfig,
    weights: Tensors | None = None,
    title: str = "",
    below: RunConfig | None = None,
    make_torch: Callable[[RunConfig, Tensors], TorchTrainer] = TorchTrainer,
    make_jax: Callable[[RunConfig, Tensors], JaxTrainer] = JaxTrainer,
    **options: Any,
) -> Report:
    """Both stacks of a float64 `config`; where they agree, those of `below` (float32 and narrower) against float64.

    `options` are those of `search`.
    """
    weights = perturbed(config) if weights is None else weights
    evidence = {f"weights/{name}": value for name, value in weights.items()}
    rows: list[Row] = []
    frames: list[Frame] = []
    stacks = make_torch(config, weights), make_jax(config, weights)
    for stage in search(config, weights, *stacks, evidence=evidence, frames=frames, **options):
        rows += stage
        if any(row.parts for row in stage):
            break
    verdict = judge(rows)
    layers = config.model.layers
    title = title or f"{config.name}: {layers} layer{'s' * (layers > 1)}, {config.model.width} wide"
    if verdict.kind == "same" and below is not None:
        batch = Batch(evidence["tokens"], evidence["labels"])
        stacks[0].adopt({"parameters": weights}, 0)
        exact = torch_taps(stacks[0], batch, 0)[0]
        narrow = make_torch(below, weights), make_jax(below, weights)
        ours = torch_taps(narrow[0], batch, 0)[0]
        theirs = jax_taps(narrow[1], jax_recorder(narrow[1]), batch, 0)[0]
        precision = below.precision.compute
        under = rounding_rows(exact, ours, theirs, precision)
        if found := judge_rounding(under, ours, theirs, precision):
            evidence |= evidence_of(found, ours, theirs)
            return Report(f"{title}, {precision}", under, found, evidence, frames=film(ours, theirs, None))
        worst = max(under, key=lambda row: row.load)
        verdict = replace(
            verdict,
            sentence=f"{verdict.sentence}; in {precision} both are as far from float64 as the other: at worst "
            f"{worst.title}, {worst.error:.1e} against {worst.floor:.1e}",
        )
    return Report(title, rows, verdict, evidence, frames=frames)


def _with_rounding(row: Row, before: Tensors, moved: Tensors) -> Row:
    """The row of a step, its cap widened by what rounding of the parameter itself makes of the difference."""
    size, step = (float(np.linalg.norm(tensors[row.name])) for tensors in (before, moved))
    return replace(row, cap=row.cap + (STEP_ROUNDING * np.finfo(np.float64).eps * size / step if step else 0.0))


def _scalar(name: str, ours: float, theirs: float, note: str) -> Row:
    error = distance(np.array(theirs), np.array(ours))
    return Row("scalar", name, error, None, SCALAR, SCALAR_FLOOR, note=note)


def _noted(rows: Sequence[Row], note: str) -> list[Row]:
    return [replace(row, note=note) for row in rows]


def _rows_that_differ(ours: Batch, theirs: Batch) -> str:
    a, b = (np.concatenate([batch.tokens, batch.labels], 1) for batch in (ours, theirs))
    if a.shape != b.shape:
        return f"shapes {a.shape} and {b.shape}"
    rows = np.flatnonzero((a != b).any(1))
    if not rows.size:
        return ""
    same = sorted(map(bytes, a)) == sorted(map(bytes, b))
    return "the same rows in another order" if same else f"first in row {rows[0]}, {rows.size} of {len(a)} rows"


def _rate_row(config: RunConfig, rates: tuple[Rate, Rate]) -> Row:
    """Learning rates at every update of the horizon: the largest difference, over the peak."""
    errors = [abs(rates[0](config, u) - rates[1](config, u)) / config.optimizer.lr for u in range(config.train.updates)]
    first = next((u for u, error in enumerate(errors) if not error <= SCALAR), None)
    note = "" if first is None else f"from update {first} on"
    worst = float(np.max(errors))  # Python's max loses a NaN
    return Row("scalar", "learning rate", worst, None, SCALAR, SCALAR_FLOOR, note=note)
