"""Both stacks built from one config, in float64 on the CPU, with the same weights and batches."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
import torch
from flax import nnx

import jaxtrain.model
import torchtrain.model
from coretrain.config import RunConfig, load_config
from coretrain.parameters import initial_parameters, parameter_table
from coretrain.randomness import normal_rows
from coretrain.schedule import clip_factor, learning_rate
from jaxtrain.trainer import Trainer as JaxTrainer
from torchtrain.trainer import Trainer as TorchTrainer

SMALL = {
    "precision.compute": "float64",
    "execution.device": "cpu",
    "execution.attention": "plain",
    "execution.compile": "off",
    "execution.loss_chunk": 50,
    "model.layers": 2,
    "model.width": 48,
    "model.heads": 4,
    "model.context": 40,
    "model.vocab": 301,
    "train.batch_size": 4,
    "train.updates": 50,
    "schedule.warmup_updates": 10,
    "optimizer.clip": 0.5,
}
GPT2 = {
    "model.residual_dropout": 0.1,
    "model.embedding_dropout": 0.1,
    "train.accumulation": 2,
}
LLAMA = {
    "model.norm": "rmsnorm",
    "model.position": "rope",
    "model.mlp": "swiglu",
    "model.kv_heads": 2,
    "model.bias": "false",
    "model.tied": "false",
}
VARIANTS = {
    "gpt2-like": GPT2,
    "llama-like": LLAMA,
    "gpt2-like, full recompute": GPT2 | {"execution.checkpoint_activations": "full"},
    "llama-like, matmuls kept": LLAMA | {"execution.checkpoint_activations": "matmuls"},
    "llama-like, unrolled": LLAMA | {"execution.scan_layers": "false"},
    "llama-like with biases, tied, muon": LLAMA
    | {"model.bias": "true", "model.tied": "true", "optimizer.name": "muon"},
    "gpt2-like without biases, adam": GPT2 | {"model.bias": "false", "optimizer.name": "adam"},
}


def make_config(variant: dict[str, object], **more: object) -> RunConfig:
    """The small config with a variant's switches."""
    fields = SMALL | variant | {key.replace("__", "."): value for key, value in more.items()}
    return load_config("tiny", [(key, str(value)) for key, value in fields.items()])


def scrambled(config: RunConfig) -> dict[str, np.ndarray]:
    """Initial weights with every bias and gain moved away from 0 and 1: at the start a dropped bias changes nothing."""
    weights = initial_parameters(config.model, config.train.seed)
    for row in parameter_table(config.model):
        if row.init != "normal":
            noise = normal_rows(1, f"scramble/{row.name}", (*row.shape, 1), 0.3)[..., 0]
            weights[row.name] = weights[row.name] + noise
    return weights


def batches(config: RunConfig, count: int) -> list[np.ndarray]:
    """Random token rows [B, T + 1] over the whole vocabulary, both its ends among them."""
    rng = np.random.default_rng(0)
    shape = (config.train.batch_size, config.model.context + 1)
    made = [rng.integers(0, config.model.vocabulary, shape, dtype=np.int32) for _ in range(count)]
    for batch in made:
        batch[0, :2] = 0, config.model.vocabulary - 1
    return made


@dataclass
class Pair:
    """The two trainers."""

    config: RunConfig
    torch: TorchTrainer
    jax: JaxTrainer
    start: dict[str, np.ndarray]

    @property
    def stacks(self) -> tuple[TorchTrainer, JaxTrainer]:
        """Torch first."""
        return self.torch, self.jax

    def logits(self, tokens: np.ndarray, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits [B, T, V] of both, with the dropout of `update`."""
        dropout = self.torch._dropout(update, len(tokens))
        with torch.no_grad():
            hidden = self.torch.model(torch.from_numpy(tokens).long(), dropout)
            ours = self.torch.model.logits(hidden).numpy()
        model = nnx.merge(self.jax.graph, self.jax.params)
        masks = self.jax._dropout(update, len(tokens))
        theirs = jax.jit(lambda t, d: model.logits(model(t, d)))(tokens, masks)
        return ours, np.asarray(theirs)

    def gradients(self, batch: np.ndarray, update: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """(loss, norm) of torch and of JAX; the gradients stay in the trainers."""
        first, second = (stack.gradients(batch, update, 1.0) for stack in self.stacks)
        return first, second

    def gradient_tensors(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The last gradients of both by canonical name."""
        named = {name: p.grad for name, p in self.torch.model.named_parameters()}
        ours = torchtrain.model.canonical_tensors(self.config, named)
        return ours, jaxtrain.model.canonical_tensors(self.config, self.jax.grads)

    def apply(self, update: int, norms: tuple[float, float]) -> None:
        """One clipped update of each with its own norm."""
        for stack, norm in zip(self.stacks, norms, strict=True):
            stack.apply(learning_rate(self.config, update), clip_factor(norm, self.config.optimizer.clip), update)

    def states(self) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, np.ndarray]]]:
        """Parameters and moments of both."""
        return self.torch.export(), self.jax.export()


def make_pair(config: RunConfig, weights: dict[str, np.ndarray] | None = None) -> Pair:
    """Both trainers with `weights` (default: scrambled)."""
    weights = scrambled(config) if weights is None else weights
    return Pair(config, TorchTrainer(config, weights), JaxTrainer(config, weights), weights)
