"""What each way of sharing a run costs on a machine, and which one to choose.

Time is a bound, not a measurement: a roofline of matmuls and memory at an achievable fraction of their peaks, the
communication that can't hide behind it, the pipeline's bubble, the update, and what goes to the host and back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from coretrain.base.errors import UserError
from coretrain.config.execution import ParallelConfig
from coretrain.config.fields import StackName
from coretrain.config.run import RunConfig
from coretrain.planning.accelerators import GIB, Machine
from coretrain.planning.flops import forward_flops_per_token, matmul_parameters, update_flops_per_token
from coretrain.planning.memory import (
    Footprint,
    block_bytes,
    footprint,
    sizes,
    trained_numbers,
)
from coretrain.planning.traffic import EXPOSED, traffic
from coretrain.processes.layout import Layout, check_layout
from coretrain.processes.supported import check_combination

HEADROOM = 0.1
"""Share of a device's and its host's memory left free: the framework's own, fragmentation, evaluation, sampling."""
Policy = Literal["none", "matmuls", "full"]
POLICIES: tuple[Policy, ...] = ("none", "matmuls", "full")


@dataclass(frozen=True)
class Assumptions:
    """Achievable shares of the data sheets' figures, and the host's speed. Printed with every plan."""

    compute: float = 0.6
    bandwidth: float = 0.8
    link: float = 0.7
    host_update: float = 5e8
    """Parameters that the host's cores update in a second, for one device (offload)."""

    def __str__(self) -> str:
        return (
            f"{self.compute:.0%} of peak FLOP/s, {self.bandwidth:.0%} of memory bandwidth, {self.link:.0%} of links; "
            f"offloaded updates at {self.host_update:.0e} parameters/s a device; {HEADROOM:.0%} of memory left free, "
            "the host's too"
        )


@dataclass(frozen=True)
class Setting:
    """One way to share the run, with its memory on the fullest device, traffic, and seconds of an update by cause."""

    config: RunConfig
    layout: Layout
    stack: StackName
    memory: Footprint
    traffic: dict[str, float]
    seconds: dict[str, float]
    fits: bool

    @property
    def update(self) -> float:
        """Seconds of one update."""
        return sum(self.seconds.values())

    def mfu(self, machine: Machine) -> float:
        """Model FLOPs over what the machine's peak could do in that time."""
        return update_flops_per_token(self.config) * self.config.tokens_per_update / (self.update * peak(self, machine))

    def __str__(self) -> str:
        p, c = self.config.parallel, self.config
        by = " by FSDP2" if p.zero and p.zero_engine == "fsdp2" else ""
        words = [
            f"ZeRO {p.zero}{by}" if self.stack == "torch" and (p.zero or self.layout.data > 1) else "",
            str(self.layout),
        ]
        words += [f"offload {p.offload}" if p.offload != "none" else ""]
        words += [f"{c.train.accumulation} x {c.micro_batch} rows", f"recompute {c.execution.checkpoint_activations}"]
        return ", ".join(word for word in words if word)


def peak(setting: Setting, machine: Machine) -> float:
    """Peak FLOP/s of all devices in the run's dtype."""
    return dtype_peak(setting.config, machine) * machine.devices


def dtype_peak(config: RunConfig, machine: Machine) -> float:
    """Peak FLOP/s of one device in the run's dtype. Raises `UserError` for a dtype that it doesn't have."""
    a, dtype = machine.accelerator, config.precision.compute
    if dtype == "float64":
        raise UserError(
            "planning/float64-not-planned",
            "precision.compute = float64 is for proofs: plan with bfloat16, or float32",
        )
    if dtype == "bfloat16" and not a.bfloat16:
        raise UserError(
            "planning/bfloat16-not-available",
            f"{a.name} has no bfloat16 units: plan with --precision.compute float16, or another device",
        )
    return 1e12 * (a.tflops32 if dtype == "float32" else a.tflops)


def estimate(
    config: RunConfig, layout: Layout, machine: Machine, stack: StackName, assumed: Assumptions | None = None
) -> Setting:
    """Memory, traffic and time of `config` on `layout`."""
    memory, sent = footprint(config, layout, stack), traffic(config, layout, stack)
    seconds = _seconds(config, layout, machine, stack, sent, assumed or Assumptions())
    on_device, on_host = (size * (1 - HEADROOM) for size in (machine.memory, machine.accelerator.host_memory * GIB))
    fits = memory.total <= on_device and memory.host <= on_host
    return Setting(config, layout, stack, memory, sent, seconds, fits)


def _seconds(
    config: RunConfig, layout: Layout, machine: Machine, stack: StackName, sent: dict[str, float], assumed: Assumptions
) -> dict[str, float]:
    m, policy, a = config.model, config.execution.checkpoint_activations, machine.accelerator
    tokens = config.tokens_per_update
    again = 0.0
    if policy == "full":
        again = forward_flops_per_token(m, config.row_tokens) - 2.0 * m.vocabulary * m.width
    elif policy == "matmuls":
        again = forward_flops_per_token(m, config.row_tokens) - 2.0 * matmul_parameters(m)
    # the last stage of a pipeline has the head too, and the others wait for it
    head = 6.0 * m.vocabulary * m.width
    slowest = update_flops_per_token(config) + again + (layout.pipeline - 1) * head
    matmuls = slowest * tokens / layout.devices / (dtype_peak(config, machine) * assumed.compute)
    n, bandwidth = sizes(config, layout), a.bandwidth * 1e9 * assumed.bandwidth
    # every kept byte is written and read, and recomputed ones once more; weights are read three times a micro-batch
    kept = block_bytes(config, layout.tensor, stack)["everything"] * m.layers / layout.pipeline
    rows = tokens / layout.sharing_rows / layout.context
    passes = {"none": 3.0, "matmuls": 3.5, "full": 4.0}[policy]
    weights = 3.0 * config.train.accumulation * n.total * 4
    busy = max(matmuls, (kept * passes * rows + weights) / bandwidth)
    mine = n.total / (layout.fsdp * (layout.data if stack == "torch" and config.parallel.zero else 1))
    if config.adapter.kind != "none":  # whole on every device
        mine = trained_numbers(config)
    link = machine.link * assumed.link
    inner = a.link * 1e9 * assumed.link  # a tensor group lies within one node
    hidden = sum(size for kind, size in sent.items() if kind not in EXPOSED) / link
    found = {
        "compute": busy,
        "pipeline bubble": busy * (layout.pipeline - 1) / config.train.accumulation,
        "exposed communication": max(0.0, hidden - busy) + sum(sent.get(kind, 0.0) for kind in EXPOSED) / inner,
        "update": 28.0 * mine / bandwidth,
    }
    if config.parallel.offload != "none":
        weights_too = 2 * config.train.accumulation if config.parallel.offload == "all" else 1
        bytes_moved = 4.0 * mine * (1 + weights_too)
        found["update"] = mine / assumed.host_update
        found["host"] = bytes_moved / (a.host_link * 1e9 * assumed.link)
    return found


AXES = ("data", "fsdp", "tensor", "context", "pipeline")
PARALLEL = frozenset(f"parallel.{field}" for field in (*AXES, "zero", "offload"))


def _powers(most: int) -> Iterator[int]:
    size = 1
    while size <= most:
        yield size
        size *= 2


def layouts(config: RunConfig, machine: Machine, stack: StackName, fixed: frozenset[str] = frozenset()) -> list[Layout]:
    """Ways to lay the machine's devices out, the batch not yet looked at: those with the axes that the user has set.

    Axes that are only taken where they are set: context, and in JAX pipeline. Raises `UserError` where none is left.
    """
    kept = {axis: getattr(config.parallel, axis) for axis in AXES if f"parallel.{axis}" in fixed}
    base = Layout(context=kept.get("context", 1), pipeline=kept.get("pipeline", 1) if stack == "jax" else 1)
    devices, rest = divmod(machine.devices, base.devices)
    tensors = [kept["tensor"]] if "tensor" in kept else list(_powers(min(machine.accelerator.node, devices)))
    found = []
    for tensor in tensors:
        if rest or devices % tensor:
            continue
        for other in (size for size in range(1, devices // tensor + 1) if devices // tensor % size == 0):
            data = devices // tensor // other
            if stack == "jax":
                found.append(dataclasses.replace(base, data=data, fsdp=other, tensor=tensor))
            elif config.model.layers % other == 0:
                found.append(dataclasses.replace(base, data=data, tensor=tensor, pipeline=other))
    found = [layout for layout in found if all(size in (None, getattr(layout, axis)) for axis, size in kept.items())]
    if not found:
        words = " and ".join(f"parallel.{axis} = {size}" for axis, size in kept.items())
        if len(kept) > 1:
            words += f" ({math.prod(size or 1 for size in kept.values())} together)"
        raise UserError(
            "planning/no-layout-fits-axes",
            f"no way to share the run over {machine} has {words}: choose axes that divide its {machine.devices} "
            "devices and, for pipeline, the model's layers, or leave them out",
        )
    return found


def _sharding(config: RunConfig, layout: Layout, stack: StackName, fixed: frozenset[str]) -> list[tuple[int, str]]:
    """Stages of ZeRO and kinds of offload to try."""
    p = config.parallel
    if stack == "jax":
        tried = [(0, "none")]
    elif layout.data == 1:  # nothing to shard over, but a device alone can offload
        tried = [(0, "none"), (1, "optimizer"), (3, "all")] if layout.devices == 1 else [(0, "none")]
    else:
        tried = [(stage, "none") for stage in range(4)]
        tried += [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")]
    found = [
        (stage, offload)
        for stage, offload in tried
        if ("parallel.zero" not in fixed or stage == p.zero)
        and ("parallel.offload" not in fixed or offload == p.offload)
    ]
    return found or [(p.zero, p.offload)]


def settings(
    config: RunConfig,
    machine: Machine,
    stack: StackName,
    assumed: Assumptions | None = None,
    fixed: frozenset[str] = frozenset(),
) -> list[Setting]:
    """Every way that the batch allows, fastest first. `fixed` names fields that the user has set, which stay."""
    found: list[Setting] = []
    batch = config.train.batch_size
    splits = sorted({a for low in range(1, math.isqrt(batch) + 1) if batch % low == 0 for a in (low, batch // low)})
    if "train.accumulation" in fixed:
        splits = [config.train.accumulation]
    policies: tuple[Policy, ...] = POLICIES
    if "execution.checkpoint_activations" in fixed:
        policies = (config.execution.checkpoint_activations,)
    asked = {key.split(".")[1]: getattr(config.parallel, key.split(".")[1]) for key in fixed if key in PARALLEL}
    check_combination(config.changed(parallel=ParallelConfig(**asked)), stack)
    refusals: list[UserError] = []
    for layout in layouts(config, machine, stack, fixed):
        for accumulation in splits:
            split = config.changed(train__accumulation=accumulation)
            try:
                check_layout(split, layout)
            except UserError as refusal:
                refusals.append(refusal)
                continue
            for zero, offload in _sharding(config, layout, stack, fixed):
                axes = dataclasses.asdict(layout) | {"data": None, "zero": zero, "offload": offload}
                sharing = split.changed(**{f"parallel__{name}": value for name, value in axes.items()})
                try:
                    check_combination(sharing, stack, layout)
                except UserError as refusal:
                    refusals.append(refusal)
                    continue
                for policy in policies:
                    tried = sharing.changed(execution__checkpoint_activations=policy)
                    found.append(estimate(tried, layout, machine, stack, assumed))
    if not found and fixed & (PARALLEL | {"parallel.zero_engine"}):
        raise refusals[0]
    if not found:
        raise UserError(
            "planning/batch-size-not-divisible",
            f"train.batch_size = {batch} rows can't be split over {machine}: take a number of devices whose shares "
            f"divide it, or --train.batch_size {-(-batch // machine.devices) * machine.devices}",
        )
    return sorted(found, key=lambda setting: (setting.update, setting.memory.total))


def recommend(found: list[Setting], machine: Machine) -> Setting:
    """The fastest that fits. Raises `UserError` where none does, with the nearest and what it would take."""
    fitting = [setting for setting in found if setting.fits]
    if not fitting:
        nearest = min(found, key=lambda setting: setting.memory.total)
        raise UserError(
            "planning/memory-too-small",
            f"the run fits nowhere on {machine}: the nearest, {nearest}, needs {nearest.memory.total / GIB:.1f} GiB of "
            f"{machine.accelerator.memory * (1 - HEADROOM):.1f} on a device ({nearest.memory.host / GIB:.0f} GiB of "
            f"{machine.accelerator.host_memory * (1 - HEADROOM):.0f} on its host): take more or larger devices",
        )
    # what is within 2% of the fastest is as fast: there, the simplest that leaves most memory
    close = [setting for setting in fitting if setting.update <= 1.02 * fitting[0].update]
    return min(close, key=lambda c: (c.config.parallel.zero > 0, _parts(c), c.memory.total))


def _parts(setting: Setting) -> int:
    split = sum(size > 1 for size in (setting.layout.data, setting.layout.fsdp, setting.layout.tensor))
    split += setting.layout.pipeline > 1
    return split + (setting.config.parallel.offload != "none")
