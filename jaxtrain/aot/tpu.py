"""The real step through the TPU's own compiler, with no TPU: does it fit, which collectives, how long to compile.

This file has no twin: torch has no compiler for devices that aren't there. It is run as a program of its own, by
`twintrain plan`, with TPU_SKIP_MDS_QUERY=1 and JAX_PLATFORMS=cpu: an installed libtpu makes JAX look for a TPU.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from coretrain.base.errors import UserError, exits_cleanly
from coretrain.config.load import config_from_json
from coretrain.config.run import RunConfig
from coretrain.planning.accelerators import TABLE, machine
from coretrain.planning.flops import update_flops_per_token
from coretrain.planning.hlo.collectives import collectives
from coretrain.planning.hlo.links import Rates
from coretrain.planning.hlo.memory import heap_bytes
from coretrain.planning.hlo.roofline import roofline
from coretrain.planning.planner import Assumptions, dtype_peak
from jaxtrain.aot.step import AbstractStep, abstract_step


def topology(name: str) -> Any:
    """Devices of a TPU slice such as `v5e:4x4`. Raises `UserError` where the compiler knows no such slice."""
    from jax.experimental import topologies

    more = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    except Exception as error:  # a JaxRuntimeError or a NotImplementedError, by the library's version
        reason = re.sub(r"\s+", " ", str(error)).strip()[:160]
        raise UserError(
            "jax/unknown-tpu-topology",
            f"the TPU compiler knows no topology {name} ({reason}): see Google Cloud's list of slices",
        ) from None


def compiled(config: RunConfig, name: str, table: Path = TABLE) -> dict[str, Any]:
    """Memory on one device and collectives of a whole update, one program, by the compiler; and bounds on its time."""
    devices = topology(name)
    # "highest" is of float32: with it Mosaic refuses the splash kernel's bfloat16 products
    exact = config.precision.compute in ("float32", "float64") and not config.precision.fast_matmul
    jax.config.update("jax_default_matmul_precision", "highest" if exact else None)
    step = abstract_step(config, devices)
    found: dict[str, Any] = {
        "layout": str(step.layout),
        "kernel": step.kernel.name,
        "device": devices[0].device_kind,
        "libtpu": _libtpu(),
    }
    begun = time.perf_counter()
    try:
        program, heap = _compiled(step.program.lower(*step.program_inputs))
    except jax.errors.JaxRuntimeError as error:
        words = re.sub(r"\s+", " ", str(error))
        if "RESOURCE_EXHAUSTED" not in words:
            raise
        # the compiler refuses what doesn't fit, and says by how much
        used = re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", words)
        return found | {"fits": False, "reason": used[0] if used else words[:300]}
    memory = program.memory_analysis()
    text = program.as_text()
    counted = collectives(text)
    found["update"] = {
        "seconds": time.perf_counter() - begun,
        "arguments": memory.argument_size_in_bytes,
        "moments": _on_a_device(step.program_inputs[1]),
        # parameters and moments are donated: they lie where the arguments lay
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "scratch": memory.temp_size_in_bytes if heap is None else heap,
        "temp_size": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "calls": dict(counted.calls),
        "sent": dict(counted.sent),
        "loops_without_count": counted.loops_without_count,
    }
    return found | {"fits": True, "bounds": bounds(text, step, config, name, table)}


def bounds(text: str, step: AbstractStep, config: RunConfig, name: str, table: Path = TABLE) -> dict[str, Any]:
    """The least time of an update from its text, at the peaks of `table` and at the shares that the planner assumes."""
    on, assumed = machine(name, table), Assumptions()
    peak = dtype_peak(config, on)
    axes = len((on.topology or "1").split("x"))
    places = [tuple(device.coords)[:axes] for device in step.devices]
    shape = tuple(max(device.coords[axis] for device in topology(name)) + 1 for axis in range(axes))
    model = update_flops_per_token(config) * config.tokens_per_update / len(step.devices)
    found: dict[str, Any] = {}
    for words, shares in (
        ("peaks", (1.0, 1.0, 1.0)),
        ("assumed", (assumed.compute, assumed.bandwidth, assumed.link)),
    ):
        bound = roofline(text, dataclasses.replace(Rates.of(on, peak, *shares), shape=shape), places)
        found[words] = {"update_seconds": bound.update, "mfu": model / (bound.update * peak)} | dataclasses.asdict(
            bound
        )
    return found


def _compiled(lowered: Any) -> tuple[Any, int | None]:
    """The program, and the bytes of its heap; None where the compiler dumps no table of its buffers.

    What counts is the dumped heap: libtpu 0.0.42's `temp_size_in_bytes` is up to a third more than it allocates.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = lowered.compile(compiler_options={"xla_dump_to": folder})
        # one for the program itself; what was compiled beside it has its own
        tables = [path.read_text("utf-8", "replace") for path in Path(folder).glob("*.jit_*buffer-assignment.txt")]
    heaps = [heap for heap in map(heap_bytes, tables) if heap is not None]
    return program, max(heaps, default=None)


def _on_a_device(tree: Any) -> int:
    """Bytes of a tree of shapes on one device, without the padding of tiles."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _libtpu() -> str:
    from importlib.metadata import version

    return version("libtpu")


@exits_cleanly
def main() -> int:
    """Read {config, topology, accelerators} as JSON from stdin, print what `compiled` gives as JSON."""
    asked = json.load(sys.stdin)
    print(json.dumps(compiled(config_from_json(asked["config"]), asked["topology"], Path(asked["accelerators"]))))
    return 0


if __name__ == "__main__":
    main()
