"""Objectives of alignment alone: on a model that is a table of hidden states, whose every number has a gradient."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from coretrain.config.run import RunConfig
from coretrain.contract.parameters import padded_vocab
from coretrain.data.batch import Batch
from jaxtrain.choices import configure_jax
from parity.compiling import quick_jit
from parity.errors import nrel
from parity.gates import FIGURES, OBJECTIVES, Gate
from parity.oracles.alignment import plain_loss
from parity.pair import make_config
from parity.probes.alignment import aligned_fields, alignment_batch, near
from parity.probes.sides import TORCH, Seen, Side
from torchtrain.parallel.axes import ALONE

WIDTH, CHUNK = 8, 9
"""Of the table's states, and of the chunks in which these meet the head."""
SCALE = 4.0
"""Of the loss: a power of two, so that it is taken out again without rounding."""
CLIPS = {"clip_low": 0.1, "clip_high": 0.15}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "reward": ("reward", {}),
    "reward, centred": ("reward", {"center": 0.2}),
    "dpo": ("dpo", {}),
    "dpo, smoothed, nll": ("dpo", {"label_smoothing": 0.1, "nll": 0.3, "beta": 0.25}),
    "dpo, means": ("dpo", {"lengths": "mean", "beta": 2.0}),
    "ipo": ("ipo", {"nll": 0.2}),
    "ipo, sums": ("ipo", {"lengths": "sum", "beta": 0.3}),
    "simpo": ("simpo", {}),
    "simpo, smoothed": ("simpo", {"label_smoothing": 0.2, "simpo_gamma": 1.1, "nll": 0.1}),
    "orpo": ("orpo", {"orpo_lambda": 0.4}),
    "kto": ("kto", {}),
    "grpo": ("grpo", CLIPS),
    "grpo, no clip in reach": ("grpo", {"clip_low": 0.99, "clip_high": 99.0}),
    "grpo, clip-higher": ("grpo", {"clip_low": 0.1, "clip_high": 0.28}),
    "grpo, dual clip": ("grpo", {**CLIPS, "dual_clip": 1.2}),
    "grpo, temperature": ("grpo", {**CLIPS, "temperature": 0.6}),
    "grpo, k1 times ratio": ("grpo", {**CLIPS, "kl": "k1", "kl_coefficient": 0.3, "kl_ratio": "true"}),
    "grpo, k2": ("grpo", {**CLIPS, "kl": "k2", "kl_coefficient": 0.3}),
    "grpo, k3": ("grpo", {**CLIPS, "kl_coefficient": 0.3}),
    "grpo, k3 times ratio": ("grpo", {**CLIPS, "kl_coefficient": 0.3, "kl_ratio": "true"}),
    "gspo": ("grpo", {"ratio": "sequence", "clip_low": 0.02, "clip_high": 0.03}),
    "gspo, dual clip, k3 times ratio": (
        "grpo",
        {"ratio": "sequence", "clip_low": 0.5, "clip_high": 0.02, "dual_clip": 1.02, "kl_coefficient": 0.1,
         "kl_ratio": "true"},
    ),
    "ppo": ("ppo", {**CLIPS, "value_clip": 0.15}),
    "ppo, values free": ("ppo", {**CLIPS, "value_clip": 0.0, "value_coefficient": 0.7}),
    "ppo, k2 in the loss": ("ppo", {**CLIPS, "kl_place": "loss", "kl": "k2", "kl_coefficient": 0.2}),
}  # fmt: skip
"""Every formula: objective and settings, by a name that says what is looked at."""


def config_of(case: str, **more: Any) -> RunConfig:
    """The small config of a case."""
    objective, settings = CASES[case]
    return objective_config(objective, settings, model__width=WIDTH, model__heads=2, model__vocab=31, **more)


def objective_config(objective: str, settings: dict[str, Any], **more: Any) -> RunConfig:
    """A small config of an objective, without dropout; `section__field=value` on top."""
    fields = {name.replace(".", "__"): value for name, value in aligned_fields(objective).items()}
    fields |= {f"align__{name}": value for name, value in settings.items()}
    return make_config({"execution.loss_chunk": CHUNK, "train.accumulation": 1}, **fields | more)


@functools.cache
def tables(config: RunConfig) -> dict[str, np.ndarray]:
    """Random states of the vocabulary [V, D], a head whose rows are padded [V', D], and a score head [1, D]."""
    rng, vocab = np.random.default_rng(5), config.model.vocabulary
    rows = padded_vocab(config.model, config.execution.vocab_multiple)
    shapes = {"states": (vocab, WIDTH), "head": (rows, WIDTH), "score": (1, WIDTH)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


@dataclass
class Table:
    """What an objective asks of a model: a token's hidden states are a row of a table, whatever stands around it."""

    states: Any
    head_weight: Any
    score: Any
    tensor: Any = ALONE
    sharding: Any = None

    def __call__(self, tokens: Any, dropout: Any, positions: Any) -> Any:
        """Hidden states [B, T, D]."""
        return self.states[tokens]

    def scores(self, hidden: Any) -> Any:
        """The score head at each position [B, T]."""
        return hidden @ self.score[0]


def told_and_gradients(
    s: Side, config: RunConfig, batch: Batch, rows: int = 4
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What the objective gives of a batch, and the gradients of its loss by every number of the table; of so many
    `rows` at a time, added up."""
    objective, numbers = s.objective.OBJECTIVES[config.train.objective], tables(config)
    if s is TORCH:
        leaves = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in numbers.items()}
        scale = torch.full((), SCALE, dtype=torch.float64)
        parts = [objective(_table(leaves), config, on_torch(piece), scale) for piece in batch.cut(rows)]
        for part in parts:
            part[0].backward()
        told = torch.stack(parts).sum(0).detach().numpy()
        return _unscaled(told, {name: _gradient(leaf) for name, leaf in leaves.items()})

    configure_jax(config)

    def loss(numbers: Any, batch: Batch) -> Any:
        told = objective(_table(numbers), config, batch, jnp.float64(SCALE))
        return told[0], told

    compiled = quick_jit(jax.value_and_grad(loss, has_aux=True))
    found = [compiled(numbers, piece) for piece in batch.cut(rows)]
    ((_, told), gradients) = jax.tree.map(lambda *parts: np.sum(parts, 0), *found)
    return _unscaled(told, gradients)


def _unscaled(told: np.ndarray, gradients: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Without the scale of the loss; figures have none."""
    loss = [told[0] / SCALE, *told[1:]]
    return np.array(loss), {name: gradient / SCALE for name, gradient in gradients.items()}


def plain(config: RunConfig, batch: Batch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The same by formulas over whole logits."""
    leaves = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in tables(config).items()}
    table, ids = _table(leaves), torch.from_numpy(batch.tokens).long()
    hidden = table(ids, None, None)
    logits = hidden @ table.head_weight[: config.model.vocabulary].T
    loss, figures = plain_loss(config, batch, logits, table.scores(hidden))
    loss.backward()
    return np.array([loss.item(), *figures]), {name: _gradient(leaf) for name, leaf in leaves.items()}


def _table(numbers: Any) -> Table:
    return Table(numbers["states"], numbers["head"], numbers["score"])


def _gradient(leaf: Tensor) -> np.ndarray:
    return np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()


def on_torch(batch: Batch) -> Batch:
    """The batch as the trainer has it."""
    ids = batch.map(torch.from_numpy)
    return ids.map(lambda tensor: tensor if tensor.is_floating_point() else tensor.long())


@functools.cache
def batch_of(case: str) -> Batch:
    """A batch of a case: ratios on both sides of the clips, values on both sides of theirs."""
    config = config_of(case)
    batch = alignment_batch(config)
    if config.train.objective not in ("ppo", "grpo"):
        return batch
    numbers = tables(config)
    hidden = numbers["states"][batch.tokens]
    logits = hidden @ numbers["head"][: config.model.vocabulary].T / config.align.temperature
    logits -= np.logaddexp.reduce(logits, -1, keepdims=True)
    chosen = np.take_along_axis(logits, np.maximum(batch.labels, 0)[..., None], -1)[..., 0]
    return near(batch, chosen, hidden @ numbers["score"][0])


def run_objective(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """One case in two micro-batches, traced afresh."""
    told, gradients = told_and_gradients(s, config_of(variant), batch_of(variant), 2)
    return {"loss": told[:1], "figures": told[1:], "gradients": gradients}


def judge_objective(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """Loss and gradients, and figures one by one."""
    errors = [_apart(ours["loss"][0], theirs["loss"][0])]
    errors += [nrel(ours["gradients"][name], value) for name, value in theirs["gradients"].items()]
    return {OBJECTIVES: largest(errors), FIGURES: largest(map(_apart, ours["figures"], theirs["figures"]))}


def _apart(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / max(abs(theirs), 0.1)  # advantages cancel: a loss near 0 is a sum of larger numbers


def largest(errors: Any) -> float:
    """The largest error; what is no number is larger than all."""
    return max((math.inf if math.isnan(error) else float(error) for error in errors), default=0.0)
