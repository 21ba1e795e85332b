"""How the devices of a run share its work: the axes of `parallel`, checked against the model and the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import padded_vocab


@dataclass(frozen=True)
class Layout:
    """Devices along each axis; their product is the number of devices."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    pipeline: int = 1

    @property
    def devices(self) -> int:
        """How many devices the layout takes."""
        return self.data * self.fsdp * self.tensor * self.context * self.pipeline

    @property
    def sharing_rows(self) -> int:
        """Devices (of one tensor, context and pipeline coordinate) that share a micro-batch's rows."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        sizes = {name: size for name, size in vars(self).items() if size > 1}
        return " x ".join(f"{name} {size}" for name, size in sizes.items()) or "1 device"


def layout_of(config: RunConfig, devices: int) -> Layout:
    """The layout of `devices` devices that `config.parallel` asks for.

    Raises `UserError` where the axes don't multiply to `devices`, or don't divide what they share.
    """
    p = config.parallel
    others = {"fsdp": p.fsdp, "tensor": p.tensor, "context": p.context, "pipeline": p.pipeline}
    taken = math.prod(others.values())
    words = " x ".join(f"{name} {size}" for name, size in others.items() if size > 1) or "the other axes' 1"
    if p.data is None and devices % taken:
        raise UserError(
            "processes/axes-not-dividing-devices",
            f"parallel: {words} = {taken} does not divide the {devices} devices: "
            f"choose axes that do, or start {taken} processes (here on the CPU: --spawn)",
        )
    layout = Layout(p.data or devices // taken, **others)
    if layout.devices != devices:
        raise UserError(
            "processes/device-count-differs",
            f"parallel: {layout} = {layout.devices} devices, but there are {devices}: "
            f"start {layout.devices} processes (here on the CPU: --spawn), or change an axis (parallel.data unset "
            "takes what is left)",
        )
    check_layout(config, layout)
    return layout


def check_layout(config: RunConfig, layout: Layout) -> None:
    """Raise `UserError` where an axis doesn't divide what it shares: rows, heads, widths, vocabulary, tokens...

    A vocabulary that no tokenizer has set yet isn't looked at.
    """
    m, axes = config.model, {"data x fsdp": layout.sharing_rows, **vars(layout)}
    rows = f"a micro-batch's rows (train.batch_size / train.accumulation = {config.micro_batch})"
    shared: list[tuple[str, str, int]] = [("data x fsdp", rows, config.micro_batch)]
    if layout.tensor > 1:
        shared += [
            ("tensor", "model.heads", m.heads),
            ("tensor", "the key/value heads (model.kv_heads)", m.kv),
            ("tensor", "the MLP's hidden width (model.mlp_width)", m.hidden),
        ]
    if layout.tensor > 1 and m.vocab is not None:
        vocabulary = padded_vocab(m, config.execution.vocab_multiple)
        shared.append(("tensor", "the vocabulary, padded to execution.vocab_multiple", vocabulary))
    shared += [
        ("fsdp", "model.width", m.width),
        ("context", "model.context", m.context),
        ("pipeline", "model.layers", m.layers),
    ]
    for axis, what, size in shared:
        if size % axes[axis]:
            fits = max(n for n in range(1, axes[axis]) if size % n == 0)
            number = "" if "=" in what else f" = {size}"
            smaller = axis == "data x fsdp" and config.train.accumulation > 1
            also = ", and so may a smaller train.accumulation" if smaller else ""
            raise UserError(
                "processes/axis-does-not-divide",
                f"parallel.{axis} = {axes[axis]} does not divide {what}{number}: {fits} does{also}",
            )
    if layout.pipeline > 1 and config.train.accumulation < layout.pipeline:
        raise UserError(
            "processes/accumulation-below-pipeline",
            f"train.accumulation = {config.train.accumulation} is below parallel.pipeline = {layout.pipeline}: "
            "a pipeline is fed with micro-batches, at least one for each stage",
        )


def rows_of(config: RunConfig, layout: Layout, place: int) -> list[slice]:
    """Of each micro-batch, the rows of the global batch that the device at `place` of data x fsdp takes."""
    share = config.micro_batch // layout.sharing_rows
    starts = range(place * share, config.train.batch_size, config.micro_batch)
    return [slice(start, start + share) for start in starts]
