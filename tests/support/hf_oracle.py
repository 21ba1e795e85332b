"""transformers' models in real float64, as an oracle, and one stack's logits and gradients to hold against them.

Run as `python -m tests.support.hf_oracle STACK FOLDER`, in a process of its own, since JAX must turn on x64 before any
array.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from coretrain.config.execution import ExecutionConfig
from coretrain.config.run import RunConfig
from coretrain.config.training import PrecisionConfig
from coretrain.formats.huggingface.weights import import_huggingface


def tokens_for(vocab: int, length: int) -> np.ndarray:
    """Two rows [2, T + 1] of token ids."""
    return np.random.default_rng(5).integers(0, vocab, (2, length + 1))


def torch_stack(config: RunConfig, tensors: dict[str, np.ndarray], batch: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, loss and gradients by torchtrain."""
    import torch

    from torchtrain.loss import cross_entropy
    from torchtrain.model import build_model, canonical_tensors

    model = build_model(config, "plain", tensors, torch.device("cpu"))
    ids = torch.from_numpy(batch)
    hidden = model(ids[:, :-1])
    labels = ids[:, 1:].contiguous()
    scale = torch.tensor(1 / labels.numel(), dtype=torch.float64)
    loss = cross_entropy(hidden, model.head_weight, labels, config.model.vocabulary, 16, scale)
    loss.backward()
    gradients = canonical_tensors(config, {name: p.grad for name, p in model.named_parameters()})
    return {"logits": model.logits(hidden).detach().numpy(), "loss": loss.detach().numpy()} | gradients


def jax_stack(config: RunConfig, tensors: dict[str, np.ndarray], batch: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, loss and gradients by jaxtrain."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from flax import nnx

    from jaxtrain.loss import cross_entropy
    from jaxtrain.model import build_model, canonical_tensors

    graph, state = nnx.split(build_model(config, "plain", tensors, jax.devices("cpu")[0]))
    labels = batch[:, 1:]

    @jax.jit
    def both(state):
        def objective(state):
            model = nnx.merge(graph, state)
            hidden = model(batch[:, :-1])
            scale = 1 / labels.size
            loss = cross_entropy(hidden, model.head_weight, labels, config.model.vocabulary, 16, scale)
            return loss, model.logits(hidden)

        return jax.value_and_grad(objective, has_aux=True)(state)

    (loss, logits), gradients = both(state)
    tree = nnx.to_pure_dict(gradients)
    return {"logits": np.asarray(logits), "loss": np.asarray(loss)} | canonical_tensors(config, tree)


def main() -> None:
    """Write what the stack computes for the Hugging Face folder into FOLDER/STACK.npz."""
    stack, folder = sys.argv[1], Path(sys.argv[2])
    model, tensors = import_huggingface(folder)
    tensors = {name: value.astype(np.float64) for name, value in tensors.items()}
    config = RunConfig(
        model=model, precision=PrecisionConfig(compute="float64"), execution=ExecutionConfig(vocab_multiple=64)
    )
    batch = tokens_for(model.vocabulary, model.context)
    compute = {"torch": torch_stack, "jax": jax_stack}[stack]
    np.savez(folder / f"{stack}.npz", **compute(config, tensors, batch))


if __name__ == "__main__":
    main()
