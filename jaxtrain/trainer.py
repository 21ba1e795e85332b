"""The stack that the training loop drives: gradients, updates, evaluation and state of one model, in JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from coretrain.config import RunConfig, until
from coretrain.data import Data
from coretrain.errors import UserError
from coretrain.memory import keep_freed_memory
from coretrain.parameters import initial_parameters
from coretrain.sampling import Sampling
from coretrain.tables import dropout_keys, uses_dropout
from jaxtrain.attention import Choice, choose_kernel
from jaxtrain.checkpoint import load_native, save_native
from jaxtrain.data import train_batches
from jaxtrain.generate import generate
from jaxtrain.loss import count_targets, cross_entropy
from jaxtrain.model import Dropout, build_model, canonical_tensors, master_dtype
from jaxtrain.optimizer import Optimizer, global_norm

COMPILE_CACHE_AFTER = 1.0
"""Seconds of compiling above which the result is kept on disk."""
_UNROLLED_LAYERS = 12
"""Most layers that are unrolled on a CPU when execution.scan_layers is unset."""


def choose_device(config: RunConfig) -> Choice:
    """The device to train on; `UserError` where the one asked for isn't there."""
    wanted = {"cuda": "gpu"}.get(config.execution.device, config.execution.device)
    if wanted == "mps":
        raise UserError("execution.device = mps is not a JAX device: use cpu, or train with torchtrain on MPS")
    if wanted == "auto":
        return Choice(jax.default_backend(), "the default of the installed jax")
    try:
        jax.devices(wanted)
    except RuntimeError:
        raise UserError(
            f"execution.device = {wanted} is not available to JAX here: use auto, or see scripts/doctor.py"
        ) from None
    return Choice(wanted, "asked for by execution.device")


def choose_compile(config: RunConfig, device: jax.Device) -> Choice:
    """JAX always compiles; the result is kept between runs."""
    scanned = _with_layers(config, device).execution.scan_layers
    return Choice("on", "JAX always compiles; layers " + ("scanned" if scanned else "unrolled"))


def _will_use_cpu(config: RunConfig) -> bool:
    """Whether JAX will find no accelerator, asked without starting it."""
    plugins = bool(entry_points(group="jax_plugins")) or find_spec("libtpu") is not None
    return config.execution.device == "cpu" or (config.execution.device == "auto" and not plugins)


def _with_layers(config: RunConfig, device: jax.Device) -> RunConfig:
    """`config` with execution.scan_layers decided: unrolled is 6% faster on a CPU, and compiles longer."""
    if config.execution.scan_layers is not None:
        return config
    scan = device.platform != "cpu" or config.model.layers > _UNROLLED_LAYERS
    execution = config.execution.model_copy(update={"scan_layers": scan})
    return config.model_copy(update={"execution": execution})


class Trainer:
    """One model with its optimizer on one device. The public methods are those of `coretrain.loop.Stack`."""

    name = "jax"

    def __init__(self, config: RunConfig, tensors: Mapping[str, np.ndarray] | None = None) -> None:
        if _will_use_cpu(config):
            keep_freed_memory()  # 15% faster, but only if it comes before JAX's threads
        if config.precision.compute == "float64":
            jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_default_matmul_precision", None if config.precision.fast_matmul else "highest")
        jax.config.update("jax_compilation_cache_dir", str(Path(config.data.cache).expanduser() / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", COMPILE_CACHE_AFTER)
        self.device_choice = choose_device(config)
        self.device = jax.devices(self.device_choice.name)[0]
        self.kernel = choose_kernel(config, self.device)
        self.compiled = choose_compile(config, self.device)
        self.config = config = _with_layers(config, self.device)
        self.device_name = self.device.device_kind
        if tensors is None:
            tensors = initial_parameters(config.model, config.train.seed)
        self.graph, self.params = nnx.split(build_model(config, self.kernel.name, tensors, self.device))
        self.optimizer = Optimizer(config, self.params)
        self.moments = jax.device_put(self.optimizer.init(self.params), self.device)
        self.grads: Any = None
        self.saving: Any = None
        self._gradients = jax.jit(functools.partial(_gradients, self.graph, config))
        self._evaluate = jax.jit(functools.partial(_loss, self.graph, config))
        self._step = jax.jit(self.optimizer.step, donate_argnums=(0, 1))

    def describe(self) -> Sequence[tuple[str, str]]:
        """Device, dtypes, attention kernel and compilation, each with its reason."""
        p = self.config.precision
        matmul = "reduced-precision passes allowed in" if p.fast_matmul else "full float32"
        master = master_dtype(self.config)
        return [
            ("framework", f"JAX {jax.__version__}"),
            ("device", f"{self.device_name} ({self.device_choice.reason})"),
            ("dtypes", f"compute {p.compute}; weights, moments, norms, softmax and loss {master}; {matmul} matmuls"),
            ("attention", f"{self.kernel.name} ({self.kernel.reason})"),
            ("compile", f"{self.compiled.name} ({self.compiled.reason})"),
        ]

    def batches(self, data: Data, start: int, stop: int) -> Iterator[np.ndarray]:
        """Global batches [B, T + 1] of the indices [start, stop) of the data order."""
        return train_batches(data, until(self.config, stop), start)

    def gradients(self, batch: np.ndarray, update: int, loss_scale: float) -> tuple[float, float]:
        """Mean loss over the batch's targets, and the global gradient norm (of the unscaled gradients)."""
        wide = master_dtype(self.config)
        loss, norm, self.grads = self._gradients(
            self.params, batch[:, :-1], batch[:, 1:], wide.type(loss_scale), self._dropout(update, len(batch))
        )
        return float(loss) / loss_scale, float(norm) / loss_scale

    def apply(self, lr: float, factor: float, applied: int) -> None:
        """One optimizer update with the last gradients times `factor`, the one after `applied` others."""
        wide = master_dtype(self.config).type
        one, two = self.optimizer.corrections(applied)
        self.params, self.moments = self._step(
            self.params, self.moments, self.grads, wide(lr), wide(factor), (wide(one), wide(two))
        )
        self.grads = None

    def evaluate(self, batch: np.ndarray) -> float:
        """Sum of the losses of the batch's targets, without dropout."""
        size, one = self.config.micro_batch, master_dtype(self.config).type(1)
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        return sum(float(self._evaluate(self.params, part[:, :-1], part[:, 1:], one, None)) for part in parts)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        on_tokens: Callable[[np.ndarray], None] | None = None,
    ) -> list[list[int]]:
        """Up to `tokens` new ids after each prompt; see `generate.generate`."""
        return generate(nnx.merge(self.graph, self.params), prompts, tokens, sampling, stop, on_tokens)

    def save(self, folder: Path) -> None:
        """Start writing parameters and moments into `folder`, in the background."""
        self.saving = save_native(folder, {"parameters": self.params, "moments": self.moments})

    def saved(self) -> bool:
        """Whether the last `save` has ended."""
        return self.saving is None or self.saving.done()

    def wait(self) -> None:
        """Block until the last `save` has ended; raises what it raised."""
        if self.saving is not None:
            self.saving.result()
            self.saving = None

    def load(self, folder: Path, applied: int) -> None:
        """Take parameters and moments from what `save` wrote."""
        state = load_native(folder, {"parameters": self.params, "moments": self.moments})
        self.params, self.moments = state["parameters"], state["moments"]

    def export(self) -> dict[str, dict[str, np.ndarray]]:
        """Parameters and moments in the interchange form."""
        parameters = canonical_tensors(self.config, self.params)
        return {"parameters": parameters} | self.optimizer.moments(self.moments)

    def adopt(self, groups: Mapping[str, Mapping[str, np.ndarray]], applied: int) -> None:
        """Take parameters and moments from the interchange form."""
        self.params = nnx.state(build_model(self.config, self.kernel.name, groups["parameters"], self.device))
        moments = {group: tensors for group, tensors in groups.items() if group != "parameters"}
        if moments:
            self.moments = self.optimizer.load(self.moments, moments)

    def _dropout(self, update: int, rows: int) -> Dropout | None:
        if not uses_dropout(self.config.model):
            return None
        keys = dropout_keys(self.config.model, self.config.train.seed, update)
        return Dropout(keys, np.arange(rows, dtype=np.uint32))


def _loss(
    graph: Any, config: RunConfig, params: Any, tokens: Array, labels: Array, scale: Array, dropout: Dropout | None
) -> Array:
    model = nnx.merge(graph, params)
    m, chunk = config.model, config.execution.loss_chunk
    return cross_entropy(model(tokens, dropout), model.head_weight, labels, m.vocabulary, chunk, scale)


def _gradients(
    graph: Any, config: RunConfig, params: Any, tokens: Array, labels: Array, loss_scale: Array, dropout: Any
) -> tuple[Array, Array, Any]:
    scale = loss_scale / count_targets(labels).astype(loss_scale.dtype)
    value_and_grad = jax.value_and_grad(functools.partial(_loss, graph, config))
    steps = config.train.accumulation
    if steps == 1:
        loss, grads = value_and_grad(params, tokens, labels, scale, dropout)
        return loss, global_norm(jax.tree.leaves(grads)), grads

    def micro(carry: Any, rows: Any) -> tuple[Any, None]:
        part = dropout and Dropout(dropout.keys, rows[2])
        loss, grads = value_and_grad(params, rows[0], rows[1], scale, part)
        return jax.tree.map(jnp.add, carry, (loss, grads)), None

    start = (jnp.zeros((), scale.dtype), jax.tree.map(jnp.zeros_like, params))
    indices = dropout.rows if dropout else jnp.arange(len(tokens))
    split = [part.reshape(steps, config.micro_batch, *part.shape[1:]) for part in (tokens, labels, indices)]
    (loss, grads), _ = jax.lax.scan(micro, start, tuple(split))
    return loss, global_norm(jax.tree.leaves(grads)), grads
