"""The real training step on devices that need not be there: for `twintrain plan`, which compiles it for a topology.

This file has no twin: torch has no compiler that can be asked beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from coretrain.adapters.targets import run_keys, run_uses_dropout
from coretrain.config.run import RunConfig
from coretrain.contract.choices import Choice
from coretrain.contract.update import Limits, Standing
from coretrain.data.batch import Batch
from coretrain.processes.layout import Layout
from jaxtrain.attention import choose_kernel
from jaxtrain.layers import Dropout, master_dtype
from jaxtrain.parallel.processes import choose_devices
from jaxtrain.parallel.sharding import Sharding, make_mesh
from jaxtrain.programs import programs
from jaxtrain.step import Told


@dataclass(frozen=True)
class AbstractStep:
    """One update of a run, before any of it exists: `program.lower(*program_inputs).compile()`, or its two parts."""

    layout: Layout
    kernel: Choice
    program: Any
    """Jitted: what a run runs. Gradients, verdict and update in one; parameters and moments are taken for its own."""
    program_inputs: tuple[Any, ...]
    """Its arguments' shapes, dtypes and shardings."""
    gradients: Any
    """Jitted: forward and backward over all micro-batches -> loss, norm, gradients."""
    gradients_inputs: tuple[Any, ...]
    update: Any
    """Jitted: the optimizer's update, which takes parameters and moments for its own."""
    update_inputs: tuple[Any, ...]
    devices: tuple[Any, ...]
    """Its devices, in the order in which the compiled text counts them."""


def abstract_step(config: RunConfig, devices: Sequence[jax.Device]) -> AbstractStep:
    """The step that the trainer would compile for `config` on `devices`, of a topology or of this machine.

    Nothing is put on any device. Where they are TPUs, set jax_default_matmul_precision as the trainer does before
    lowering: "highest" for float32 and float64 without precision.fast_matmul, else None. Raises `UserError` as it does.
    """
    chosen = choose_devices(config, devices)
    first = chosen.devices[0]
    kernel = choose_kernel(config, first)
    shared = chosen.layout.devices > 1
    place = Sharding(make_mesh(chosen.layout, chosen.devices), config) if shared else first
    made = programs(config, kernel.name, place)
    wide, rows, T = master_dtype(config), config.train.batch_size, config.row_tokens
    cut = (config.train.accumulation, config.micro_batch) if shared else (rows,)

    def array(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> jax.ShapeDtypeStruct:
        where = place.named(*axes) if isinstance(place, Sharding) else SingleDeviceSharding(first)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    split = (None, "batch") if shared else ("batch",)
    tokens = array((*cut, T), jnp.int32, *split, "time")
    scalar = array((), wide)
    keys = array(run_keys(config, 0).shape, jnp.uint32)
    dropout = Dropout(keys, array(cut, jnp.uint32, *split)) if run_uses_dropout(config) else None
    batch = Batch(tokens, tokens, tokens if config.data.packed else None)
    count, flag = array((), jnp.int32), array((), jnp.bool_)
    told = Told(scalar, Limits(scalar, scalar), scalar, count, array((config.health.lag + 1, 2), wide, None, None))
    return AbstractStep(
        chosen.layout,
        kernel,
        made.update,
        (made.params, made.moments, Standing(count, count, flag), made.frozen, batch, dropout, told),
        made.gradients,
        (made.params, made.frozen, batch, scalar, dropout),
        made.step,
        (made.params, made.moments, made.params, scalar, scalar, (scalar, scalar)),
        tuple(place.mesh.devices.flat) if isinstance(place, Sharding) else (first,),
    )
