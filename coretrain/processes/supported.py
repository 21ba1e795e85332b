"""Which settings go together in which stack: said before anything is made, and kept to by the planner."""

from __future__ import annotations

from coretrain.base.errors import UserError
from coretrain.config.fields import StackName
from coretrain.config.run import RunConfig
from coretrain.processes.layout import Layout


def check_combination(config: RunConfig, stack: StackName, layout: Layout | None = None) -> None:
    """Raise `UserError` where `stack` can't carry out the settings of `parallel` together, with the way out.

    `layout` is the one that they come to, where the number of devices is known.
    """
    p = config.parallel
    of_stack = _in_torch(config, layout) if stack == "torch" else _in_jax(config)
    for wrong, sentence in [*_packed(config), *_with_adapter(config, stack), *of_stack]:
        if wrong:
            raise UserError("processes/combination-unsupported", sentence)
    if stack == "torch":
        for name in ("coordinator", "hosts", "host"):
            if getattr(p, name) is not None:
                raise UserError(
                    "processes/field-only-for-jax",
                    f"parallel.{name} is for JAX: torch's processes are told by their launcher (torchrun, deepspeed, "
                    "--spawn); leave it out",
                )


def _packed(config: RunConfig) -> list[tuple[bool, str]]:
    p, form, packed = config.parallel, config.data.format, config.data.packed
    return [
        (
            packed and p.pipeline > 1,
            f"parallel.pipeline = {p.pipeline} passes hidden states alone from stage to stage, and data.format = "
            f"{form} has positions beside them: use parallel.data",
        ),
        (
            packed and p.context > 1,
            f"parallel.context = {p.context} cuts rows without regard to the samples in them: with data.format = "
            f"{form} use parallel.data",
        ),
    ]


def _with_adapter(config: RunConfig, stack: StackName) -> list[tuple[bool, str]]:
    p, c = config.parallel, config.adapter
    if c.kind == "none":
        return []
    not_with = {
        # in torch what cuts weights knows the model's alone; a prefix would be gathered from each device of context
        "zero": stack == "torch",
        "tensor": stack == "torch",
        "context": c.kind == "prefix",
        "pipeline": True,
    }
    return [
        (
            refused and getattr(p, axis) > (0 if axis == "zero" else 1),
            f"parallel.{axis} = {getattr(p, axis)} doesn't go with adapter.kind = {c.kind} in {stack}: use "
            "parallel.data, where each device has the whole base",
        )
        for axis, refused in not_with.items()
    ]


def _in_torch(config: RunConfig, layout: Layout | None) -> list[tuple[bool, str]]:
    p, muon = config.parallel, config.optimizer.name == "muon"
    lone = layout is not None and layout.data == 1 and layout.devices > 1
    return [
        (
            p.fsdp > 1,
            f"parallel.fsdp = {p.fsdp} is for JAX: in torch set parallel.zero = 3, which shards weights over data",
        ),
        (
            p.context > 1,
            f"parallel.context = {p.context} is for JAX: in torch set execution.checkpoint_activations = full and a "
            "larger train.accumulation for long rows, or train with jaxtrain",
        ),
        (
            p.gradient_sum != "master",
            f"parallel.gradient_sum = {p.gradient_sum} is for JAX: torch sums gradients in the weights' own dtype; "
            "leave it out, or train with jaxtrain",
        ),
        (
            p.pipeline > 1 and p.zero > 0,
            f"parallel.zero = {p.zero} hooks into a backward pass of its own, and parallel.pipeline = {p.pipeline} "
            "has another: set one of them to its default",
        ),
        (
            p.tensor > 1 and muon,
            f"parallel.tensor = {p.tensor} cuts matrices, which Muon orthogonalizes whole: "
            "use optimizer.name = adamw, or parallel.tensor = 1",
        ),
        (
            p.zero_engine != "deepspeed" and p.zero == 0,
            f"parallel.zero_engine = {p.zero_engine} shards nothing with parallel.zero = 0: set parallel.zero = 1, 2 "
            "or 3, or leave zero_engine out",
        ),
        (
            p.offload != "none" and p.zero_engine != "deepspeed",
            f"parallel.offload = {p.offload} needs DeepSpeed: set parallel.zero_engine = deepspeed, or offload = none",
        ),
        (
            p.offload != "none" and p.zero == 0,
            f"parallel.offload = {p.offload} needs DeepSpeed: set parallel.zero = 1, 2 or 3",
        ),
        (
            p.offload == "all" and p.zero != 3,
            f"parallel.offload = all needs parallel.zero = 3, not {p.zero}: use it, or offload = optimizer",
        ),
        (
            p.zero > 0 and muon,
            f"parallel.zero = {p.zero} cuts matrices into shards, which Muon can't orthogonalize: "
            "use optimizer.name = adamw, or parallel.zero = 0",
        ),
        (
            p.zero > 0 and p.zero_engine == "deepspeed" and config.precision.compute == "float64",
            f"parallel.zero = {p.zero} keeps DeepSpeed's shards in float32: "
            "precision.compute = float64 needs parallel.zero = 0, or parallel.zero_engine = fsdp2",
        ),
        (
            p.zero > 0 and lone,
            f"parallel.zero = {p.zero} shards over data, and {layout} leaves no data axis: set parallel.zero = 0, or "
            "start more processes",
        ),
    ]


def _in_jax(config: RunConfig) -> list[tuple[bool, str]]:
    p = config.parallel
    return [
        (
            p.zero > 0,
            f"parallel.zero = {p.zero} is for torch: in JAX set parallel.fsdp to the number of devices that share "
            "weights, gradients and moments, and parallel.zero = 0",
        ),
        (
            p.zero_engine != "deepspeed",
            f"parallel.zero_engine = {p.zero_engine} is for torch: in JAX leave it at deepspeed, which is its default "
            "and means nothing there",
        ),
        (
            p.offload != "none",
            f"parallel.offload = {p.offload} is for torch: in JAX leave it out, and raise parallel.fsdp",
        ),
    ]
