"""What a run takes of this machine: the device, and how it is compiled, each with its reason.

`configure_jax` and `scans_layers` have no twin: torch is told nothing before it starts, and always unrolls layers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.base.malloc import give_back_freed_memory
from coretrain.base.processor import processor, usable_cores
from coretrain.config.run import RunConfig
from coretrain.contract.choices import Choice
from coretrain.contract.compute import Matmuls

COMPILE_CACHE_AFTER = 1.0
"""Seconds of compiling above which the result is kept on disk."""
UNROLLED_LAYERS = 12
"""Most layers that are unrolled on a CPU when execution.scan_layers is unset."""


def choose_device(config: RunConfig) -> Choice:
    """The device to train on; `UserError` where the one asked for isn't there."""
    wanted = {"cuda": "gpu"}.get(config.execution.device, config.execution.device)
    if wanted == "mps":
        raise UserError(
            "jax/mps-not-a-device",
            "execution.device = mps is not a JAX device: use cpu, or train with torchtrain on MPS",
        )
    if wanted == "auto":
        return Choice(jax.default_backend(), "the default of the installed jax")
    try:
        jax.devices(wanted)
    except RuntimeError:
        raise UserError(
            "jax/device-not-available",
            f"execution.device = {wanted} is not available to JAX here: use auto, or see twintrain doctor",
        ) from None
    return Choice(wanted, "asked for by execution.device")


def choose_compile(config: RunConfig, device: jax.Device) -> Choice:
    """JAX always compiles; the result is kept between runs."""
    return Choice("on", "JAX always compiles; layers " + ("scanned" if scans_layers(config, device) else "unrolled"))


def matmuls(config: RunConfig) -> Matmuls:
    """Square matmuls on the run's device, for `precision.compute = auto`."""
    configure_jax(config.changed(precision__compute="float32"))
    device = jax.local_devices(backend=choose_device(config).name)[0]
    product = jax.jit(lambda a: a @ a)

    def multiplier(dtype: str, size: int) -> Callable[[], object]:
        rows = np.random.default_rng(0).standard_normal((size, size), np.float32)
        a = jax.device_put(rows.astype(jnp.dtype(dtype)), device)
        return lambda: product(a).block_until_ready()

    return Matmuls(
        {
            "library": f"jax {jax.__version__}",
            "device": f"{device.device_kind}, {processor()}" if device.platform == "cpu" else device.device_kind,
            "instructions": os.environ.get("XLA_FLAGS", ""),
            "threads": usable_cores(),
            "fast_matmul": config.precision.fast_matmul,
        },
        multiplier,
    )


def configure_jax(config: RunConfig) -> None:
    """Set what JAX takes from its global configuration, before it makes a first array."""
    if _will_use_cpu(config):
        give_back_freed_memory()  # before JAX's threads
    if config.precision.compute == "float64":
        jax.config.update("jax_enable_x64", True)
    # "highest" is of float32: with it Mosaic refuses the splash kernel's bfloat16 products
    exact = config.precision.compute in ("float32", "float64") and not config.precision.fast_matmul
    jax.config.update("jax_default_matmul_precision", "highest" if exact else None)
    with contextlib.suppress(UserError):  # without a home folder nothing compiled is kept
        jax.config.update("jax_compilation_cache_dir", str(typed_path(config.data.cache) / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", COMPILE_CACHE_AFTER)


def _will_use_cpu(config: RunConfig) -> bool:
    """Whether JAX will find no accelerator, asked without starting it."""
    plugins = bool(entry_points(group="jax_plugins")) or find_spec("libtpu") is not None
    return config.execution.device == "cpu" or (config.execution.device == "auto" and not plugins)


def scans_layers(config: RunConfig, device: jax.Device) -> bool:
    """Whether layers are compiled once and scanned, or unrolled: 6% faster on a CPU, and longer to compile.

    Recomputation needs the scan there: XLA's CPU compiler finds unrolled layers' second values equal to the first, and
    keeps those (6 layers x 256: 387 MB of scratch with whole blocks recomputed, 99 MB scanned).
    """
    if config.execution.scan_layers is not None:
        return config.execution.scan_layers
    few = config.model.layers <= UNROLLED_LAYERS and config.execution.checkpoint_activations == "none"
    return device.platform != "cpu" or not few
