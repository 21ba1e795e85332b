"""How a run is carried out, on which devices: their fields."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from coretrain.config.fields import (
    AttentionKernel,
    Count,
    Positive,
    Section,
)


class ExecutionConfig(Section):
    """How the same numbers are computed: nothing here changes what is trained beyond rounding."""

    device: Literal["auto", "cpu", "mps", "cuda", "gpu", "tpu"] = Field(
        "auto", description="Where to run (gpu and tpu are JAX's names; cuda and gpu mean the same)."
    )
    attention: AttentionKernel = Field(
        "auto", description="Attention kernel; auto takes the first of the stack's table that can run here."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile: auto compiles where a compiler exists and the run is long enough to "
        "pay for it. JAX always compiles.",
    )
    checkpoint_activations: Literal["none", "full", "matmuls"] = Field(
        "none", description="Recompute in the backward pass: nothing, whole blocks, or all but matmul outputs."
    )
    scan_layers: bool | None = Field(
        None,
        description="JAX: one compiled block scanned over layers (off: unrolled). Unset: unrolled on a CPU up to "
        "12 layers where nothing is recomputed, else scanned.",
    )
    loss_chunk: Positive = Field(1024, description="Tokens per chunk of the output head and cross-entropy.")
    vocab_multiple: Positive = Field(
        64,
        le=1_000_000,
        description="Rows of the embedding are padded to this multiple for speed; padding never reaches the loss, "
        "checkpoints or exports.",
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="Peak to state MFU against (unset: none is stated on CPU)."
    )


class ParallelConfig(Section):
    """How one update is shared by many devices: the same training on any number of them.

    The axes multiply to the number of devices. A micro-batch's rows are shared by data x fsdp of them.
    """

    data: Positive | None = Field(
        None, description="Copies of the model, each with its rows of a micro-batch. Unset: what the other axes leave."
    )
    fsdp: Positive = Field(
        1, description="JAX: devices that share weights, gradients and moments as well as rows (torch: parallel.zero)."
    )
    tensor: Positive = Field(
        1, description="Devices that share each layer's heads, hidden width and vocabulary; must divide all of them."
    )
    context: Positive = Field(1, description="JAX: devices that share each row's tokens, for long rows.")
    pipeline: Positive = Field(
        1, description="Stages that share the layers, fed with the update's micro-batches; must divide model.layers."
    )
    zero: Literal[0, 1, 2, 3] = Field(
        0,
        description="torch: ZeRO's stage over the data axis. 1 shards moments, 2 gradients too, 3 weights too.",
    )
    zero_engine: Literal["deepspeed", "fsdp2"] = Field(
        "deepspeed",
        description="torch, with ZeRO: what shards. deepspeed: can offload; fsdp2: torch's own fully_shard, needs no "
        "other package, sends less in stages 1 and 2, and is compiled block by block.",
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="torch, with ZeRO: keep the optimizer's state, or weights too (stage 3), in host memory."
    )
    gradient_sum: Literal["master", "compute"] = Field(
        "master",
        description="JAX: the dtype in which gradients of matrices are summed over devices. master: float32, the "
        "weights' own; compute: precision.compute, which sends half the bytes and rounds what is summed.",
    )
    coordinator: str | None = Field(
        None, description="JAX on several hosts: ADDRESS:PORT of the first. Unset: found where the cluster tells it."
    )
    hosts: Positive | None = Field(
        None, description="JAX: how many hosts take part. Unset: found where the cluster tells it, else one."
    )
    host: Count | None = Field(None, description="JAX: which of them this one is, from 0. Unset: found, as above.")
    timeout: int = Field(
        300,
        ge=5,
        le=1_000_000,
        description="Seconds that a process may keep the others waiting before the run ends and names it.",
    )
    silence: Positive = Field(
        40,
        le=1_000_000,
        description="Seconds without any sign from a process after which it is dead: the run ends and names it. "
        "More where the run's folder shows the hosts each other's files late.",
    )
