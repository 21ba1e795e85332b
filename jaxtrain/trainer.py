"""The stack that the training loop drives: gradients, updates, evaluation and state of one model, in JAX.

`Programs`, `programs` and `choose_layers` have no twin: they say what would be compiled, before there is any array, for
`plan_step.py` too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from coretrain.adapters.targets import (
    run_keys,
    run_uses_dropout,
    trained_table,
    with_adapter,
)
from coretrain.base.errors import UserError
from coretrain.base.lazy import LazyTensors
from coretrain.base.malloc import give_back_freed_memory, keep_freed_memory
from coretrain.config.run import RunConfig, until
from coretrain.contract.dropout import dropout_keys
from coretrain.contract.parameters import check_rows, initial_parameters
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import planes
from coretrain.data.splits import Data
from jaxtrain.adapters import freeze, thaw
from jaxtrain.attention import Choice, choose_kernel
from jaxtrain.checkpoint import load_native, save_native
from jaxtrain.data import train_batches
from jaxtrain.decode import generate
from jaxtrain.layers import Dropout, master_dtype
from jaxtrain.loss import IGNORED, count_targets, cross_entropy
from jaxtrain.model import abstract_model, build_model, dotted
from jaxtrain.optimizer import Optimizer, global_norm
from jaxtrain.parallel.arrays import exported, initial_tensors, placed
from jaxtrain.parallel.processes import choose_devices
from jaxtrain.parallel.sharding import Sharding, make_mesh

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
            f"execution.device = {wanted} is not available to JAX here: use auto, or see twintrain doctor"
        ) from None
    return Choice(wanted, "asked for by execution.device")


def choose_compile(config: RunConfig, device: jax.Device) -> Choice:
    """JAX always compiles; the result is kept between runs."""
    scanned = choose_layers(config, device).execution.scan_layers
    return Choice("on", "JAX always compiles; layers " + ("scanned" if scanned else "unrolled"))


def _will_use_cpu(config: RunConfig) -> bool:
    """Whether JAX will find no accelerator, asked without starting it."""
    plugins = bool(entry_points(group="jax_plugins")) or find_spec("libtpu") is not None
    return config.execution.device == "cpu" or (config.execution.device == "auto" and not plugins)


def choose_layers(config: RunConfig, device: jax.Device) -> RunConfig:
    """`config` with execution.scan_layers decided: unrolled is 6% faster on a CPU, and compiles longer.

    Recomputation needs the scan there: XLA's CPU compiler finds unrolled layers' second values equal to the first, and
    keeps those (6 layers x 256: 387 MB of scratch with whole blocks recomputed, 99 MB scanned).
    """
    if config.execution.scan_layers is not None:
        return config
    scan = device.platform != "cpu" or config.model.layers > _UNROLLED_LAYERS
    scan = scan or config.execution.checkpoint_activations != "none"
    execution = config.execution.model_copy(update={"scan_layers": scan})
    return config.model_copy(update={"execution": execution})


@dataclass(frozen=True)
class Programs:
    """What is compiled of a run on one device or on a mesh, and the form of what goes into it. No array is made."""

    graph: Any
    """The model's structure."""
    params: Any
    moments: Any
    """Trees of shapes, dtypes and places, of what trains."""
    frozen: Any
    """And of what doesn't; None without adapters."""
    optimizer: Optimizer
    gradients: Any
    """(params, tokens, labels, loss scale, dropout) -> loss, norm, gradients; `frozen=` is what doesn't train."""
    evaluate: Any
    """(whole params, tokens, labels, scale, None) -> loss."""
    step: Any
    """(params, moments, gradients, lr, factor, corrections) -> params, moments; takes the first two for its own."""


def programs(config: RunConfig, kernel: str, device: jax.Device | Sharding) -> Programs:
    """The jitted functions of a run. On a mesh their results lie where the next call wants them."""
    graph, whole = abstract_model(config, kernel, device)
    params, frozen = freeze(config, whole)
    optimizer = Optimizer(config, params)
    moments = optimizer.abstract(params)
    gradients, step = functools.partial(_gradients, graph, config), optimizer.step
    evaluate = jax.jit(functools.partial(_loss, graph, config))
    if not isinstance(device, Sharding):
        step_here = jax.jit(step, donate_argnums=(0, 1))
        return Programs(graph, params, moments, frozen, optimizer, jax.jit(gradients), evaluate, step_here)
    everywhere = device.named()
    param_places, moment_places = (jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (params, moments))
    return Programs(
        graph,
        params,
        moments,
        frozen,
        optimizer,
        jax.jit(
            functools.partial(gradients, places=param_places), out_shardings=(everywhere, everywhere, param_places)
        ),
        evaluate,
        jax.jit(step, donate_argnums=(0, 1), out_shardings=(param_places, moment_places)),
    )


class Trainer:
    """One model with its optimizer, on one device or many. The public methods are those of `training.stack.Stack`."""

    name = "jax"

    def __init__(self, config: RunConfig, tensors: Mapping[str, np.ndarray] | None = None) -> None:
        if _will_use_cpu(config):
            give_back_freed_memory()  # before JAX's threads
        if config.precision.compute == "float64":
            jax.config.update("jax_enable_x64", True)
        # "highest" is of float32: with it Mosaic refuses the splash kernel's bfloat16 products
        exact = config.precision.compute in ("float32", "float64") and not config.precision.fast_matmul
        jax.config.update("jax_default_matmul_precision", "highest" if exact else None)
        jax.config.update("jax_compilation_cache_dir", str(Path(config.data.cache).expanduser() / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", COMPILE_CACHE_AFTER)
        self.device_choice = choose_device(config)
        self.devices = choose_devices(config, jax.devices(self.device_choice.name))
        self.device = self.devices.devices[0]
        self.kernel = choose_kernel(config, self.device)
        self.compiled = choose_compile(config, self.device)
        self.config = config = choose_layers(config, self.device)
        self.device_name = self.device.device_kind
        self.sharding = None
        if self.devices.layout.devices > 1:
            mesh = make_mesh(self.devices.layout, self.devices.devices)
            self.sharding = Sharding(mesh, config)
        self.place = self.device if self.sharding is None else self.sharding
        made = programs(config, self.kernel.name, self.place)
        self.graph, self.optimizer = made.graph, made.optimizer
        self.forms = {"parameters": made.params, "moments": made.moments}
        if tensors is None:
            start = initial_parameters if self.sharding is None else initial_tensors
            tensors = start(config.model, config.train.seed)
        tensors = with_adapter(config, tensors)
        self.params, self.frozen = freeze(config, nnx.state(build_model(config, self.kernel.name, tensors, self.place)))
        del tensors  # before there are moments
        self._moments: Any = None
        self.saving: Future[None] | None = None
        self.grads: Any = None
        self.lent = False
        self._gradients, self._evaluate, self._step = made.gradients, made.evaluate, made.step

    def describe(self) -> Sequence[tuple[str, str]]:
        """Device, dtypes, attention kernel and compilation, each with its reason."""
        p = self.config.precision
        matmul = "reduced-precision passes allowed in" if p.fast_matmul else "full float32"
        master = master_dtype(self.config)
        return [
            ("framework", f"JAX {jax.__version__}"),
            ("device", f"{self.device_name} ({self.device_choice.reason})"),
            *self._describe_mesh(),
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
        if self.device.platform == "cpu":
            keep_freed_memory()  # from the first update on
        tokens, labels, *packed = planes(batch)
        inputs = tokens, labels, wide.type(loss_scale), self._dropout(update, len(batch))
        more = {} if self.frozen is None else {"frozen": self.frozen}
        if packed:
            more["positions"] = self._cut(packed[0], "batch", "time") if self.sharding else packed[0]
        inputs = self._shared(*inputs) if self.sharding else inputs
        loss, norm, self.grads = self._gradients(self.params, *inputs, **more)
        return float(loss) / loss_scale, float(norm) / loss_scale

    def apply(self, lr: float, factor: float, applied: int) -> None:
        """One optimizer update with the last gradients times `factor`, the one after `applied` others."""
        wide = master_dtype(self.config).type
        one, two = self.optimizer.corrections(applied)
        if self.saving is not None and self.writes_in_place:
            wait([self.saving])  # it is written from these arrays; what went wrong is for whoever asked for the save
        if self.lent:  # what `export` gave out lies in these arrays, which the step takes for its own
            self.params, self._moments = jax.tree.map(jnp.copy, (self.params, self._moments_now()))
            self.lent = False
        self.params, self._moments = self._step(
            self.params, self._moments_now(), self.grads, wide(lr), wide(factor), (wide(one), wide(two))
        )
        self.grads = None

    def evaluate(self, batch: np.ndarray) -> float:
        """Sum of the losses of the batch's targets, without dropout."""
        size, one = self.config.micro_batch, master_dtype(self.config).type(1)
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        params = self._whole()
        if self.sharding is None:
            cut, evaluate = [planes(part) for part in parts], self._evaluate
            return sum(float(evaluate(params, first, second, one, None, *rest)) for first, second, *rest in cut)
        total = 0.0
        for part in parts:
            missing = ((0, size - len(part)), (0, 0))  # rows without a target, so that all devices have as many
            tokens, labels, *packed = planes(part)
            tokens, labels = np.pad(tokens, missing), np.pad(labels, missing, constant_values=IGNORED)
            axes = ("batch", "time")
            if self.devices.layout.pipeline > 1:
                tokens, labels, axes = tokens[None], labels[None], (None, *axes)
            first, second, *packed = (
                self.sharding.put(rows, *axes) for rows in (tokens, labels, *(np.pad(p, missing) for p in packed))
            )
            total += float(self._evaluate(params, first, second, one, None, *packed))
        return total

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        on_tokens: Callable[[np.ndarray], None] | None = None,
    ) -> list[list[int]]:
        """Up to `tokens` new ids after each prompt; see `generate.generate`."""
        # a step's few rows are not shared: the compiler follows the weights
        graph = self.graph if self.sharding is None else abstract_model(self.config, self.kernel.name, self.device)[0]
        return generate(nnx.merge(graph, self._whole()), prompts, tokens, sampling, stop, on_tokens)

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
        self.params = self._moments = None  # not two models at once
        forms = {group: form for group, form in self.forms.items() if group == "parameters" or applied is not None}
        state = load_native(folder, forms, self.config.model.vocabulary)
        self.params, self._moments, self.lent = state["parameters"], state.get("moments"), False

    def export(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """Parameters and moments in the interchange form, each tensor read when it is asked for.

        In the table's order, but on a mesh in that of the arrays, each of which is fetched once.
        """
        leaves = {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(self.params)}
        table = trained_table(self.config)
        parameters = exported(table, leaves, leaves.__getitem__)
        groups = {"parameters": parameters, **self.optimizer.moments(self._moments_now())}
        self.lent = True
        if self.sharding is not None:
            return groups
        names = [row.name for row in table]
        return {g: LazyTensors([n for n in names if n in group], group.__getitem__) for g, group in groups.items()}

    def adopt(self, groups: Mapping[str, Mapping[str, np.ndarray]], applied: int) -> None:
        """Take parameters and moments from the interchange form."""
        self.params, self.lent = None, False  # not two models at once
        self.params = self._trained(groups["parameters"])
        moments = {group: tensors for group, tensors in groups.items() if group != "parameters"}
        if moments:
            self._moments = None
            self._moments = self.optimizer.load(self.forms["moments"], moments)

    def _moments_now(self) -> Any:
        """The optimizer's state, of zeros where none was loaded: made for the first update, as text needs none."""
        if self._moments is None:
            self._moments = self.optimizer.load(self.forms["moments"], {})
        return self._moments

    def _whole(self) -> Any:
        """What trains and what doesn't, together: the state that the model's structure takes."""
        # Torch's model holds both.
        return thaw(self.params, self.frozen)

    def _trained(self, tensors: Mapping[str, np.ndarray]) -> Any:
        """What trains, from canonical tensors."""
        if self.frozen is None:
            return nnx.state(build_model(self.config, self.kernel.name, tensors, self.place))
        table, form = trained_table(self.config), self.forms["parameters"]
        check_rows(table, tensors, "the parameters")
        flat = {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(form)}
        arrays = placed(table, flat, tensors, self.config.execution.vocab_multiple)
        return jax.tree_util.tree_map_with_path(lambda path, _: arrays[dotted(path)], form)

    def _dropout(self, update: int, rows: int) -> Dropout | None:
        if not run_uses_dropout(self.config):
            return None
        keys = run_keys(self.config, update, dropout_keys(self.config.model, self.config.train.seed, update))
        return Dropout(keys, np.arange(rows, dtype=np.uint32))

    def _shared(self, tokens: np.ndarray, labels: np.ndarray, scale: Any, dropout: Dropout | None) -> tuple[Any, ...]:
        """The inputs of `gradients` on the mesh, in micro-batches [A, B / A, T]: their rows are what is shared."""
        placed = [self._cut(part, "batch", "time") for part in (tokens, labels)]
        return *placed, scale, dropout and Dropout(dropout.keys, self._cut(dropout.rows, "batch"))

    def _cut(self, whole: np.ndarray, *axes: str) -> Array:
        """Rows [B, ...] in micro-batches [A, B / A, ...], on the mesh."""
        assert self.sharding is not None
        micro = whole.reshape(self.config.train.accumulation, self.config.micro_batch, *whole.shape[1:])
        return self.sharding.put(micro, None, *axes)

    def _describe_mesh(self) -> list[tuple[str, str]]:
        if self.sharding is None:
            return [("mesh", f"1 device ({self.devices.reason})")] if len(jax.devices(self.device.platform)) > 1 else []
        return [
            ("mesh", f"{self.devices.layout} = {self.devices.layout.devices} devices ({self.devices.reason})"),
            ("sharding", str(self.sharding.rules)),
        ]


def _loss(
    graph: Any,
    config: RunConfig,
    params: Any,
    tokens: Array,
    labels: Array,
    scale: Array,
    dropout: Dropout | None,
    positions: Array | None = None,
) -> Array:
    model = nnx.merge(graph, params)
    m, chunk = config.model, config.execution.loss_chunk
    shared = () if model.sharding is None else (model.sharding,)
    if model.sharding is not None and m.tied and config.adapter.kind == "none":
        model.embed.token.set_value(model.sharding.own_copies(model.embed.token[...]))
    hidden = model(tokens, dropout, *(() if positions is None else (positions,)))
    return cross_entropy(hidden, model.head_weight, labels, m.vocabulary, chunk, scale, *shared)


def _gradients(
    graph: Any,
    config: RunConfig,
    params: Any,
    tokens: Array,
    labels: Array,
    loss_scale: Array,
    dropout: Any,
    places: Any = None,
    frozen: Any = None,
    positions: Array | None = None,
) -> tuple[Array, Array, Any]:
    """Of tokens [B, T], or cut into micro-batches [A, B / A, T]; `places` are the gradients', on a mesh.

    `frozen` is the rest of the model, where not all of it trains; `positions`, cut as tokens are, those of packed rows.
    """
    packed = () if positions is None else (positions,)
    scale = loss_scale / count_targets(labels).astype(loss_scale.dtype)

    def loss_of(params: Any, *inputs: Any) -> Array:
        return _loss(graph, config, thaw(params, frozen), *inputs)

    value_and_grad = jax.value_and_grad(loss_of)
    steps = config.train.accumulation
    if config.parallel.pipeline > 1:  # which is fed with all of them
        loss, grads = value_and_grad(params, tokens, labels, scale, dropout)
        return loss, global_norm(jax.tree.leaves(grads)), grads
    if steps == 1:
        if places is not None:
            given = (tokens, labels, dropout, packed)
            tokens, labels, dropout, packed = jax.tree.map(lambda x: x[0] if x.ndim > 1 else x, given)
        loss, grads = value_and_grad(params, tokens, labels, scale, dropout, *packed)
        return loss, global_norm(jax.tree.leaves(grads)), grads

    def micro(carry: Any, rows: Any) -> tuple[Any, None]:
        part = dropout and Dropout(dropout.keys, rows[2])
        loss, grads = value_and_grad(params, rows[0], rows[1], scale, part, *rows[3:])
        if places is not None:
            grads = jax.lax.with_sharding_constraint(grads, places)
        return jax.tree.map(jnp.add, carry, (loss, grads)), None

    start = (jnp.zeros((), scale.dtype), jax.tree.map(jnp.zeros_like, params))
    split = (tokens, labels, dropout.rows if dropout else jnp.arange(len(tokens)), *packed)
    if places is None:
        split = tuple(part.reshape(steps, config.micro_batch, *part.shape[1:]) for part in split)
    (loss, grads), _ = jax.lax.scan(micro, start, split)
    return loss, global_norm(jax.tree.leaves(grads)), grads
