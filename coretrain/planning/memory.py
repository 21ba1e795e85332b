"""Bytes on one device at the worst moment of an update, by kind: analytic, and held against measured runs.

What is kept follows the stacks' own code: master weights, gradients and moments in float32, weights cast where they are
used, attention computed blockwise, the head's gradient made in the forward pass with at most `loss_chunk` rows of
logits. Sharding follows ZeRO (Rajbhandari et al. 2020), activations Korthikanti et al. (2022), pipelines 1F1B
(Narayanan et al. 2021). docs/planning.md has the table of what was measured.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from coretrain.adapters.targets import (
    adapter_parameters,
    adapter_targets,
    frozen_matrices,
    trainable_parameters,
)
from coretrain.config.fields import StackName
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import padded_vocab, parameter_table
from coretrain.contract.quantization import held_bytes, quantized_parameters
from coretrain.processes.layout import Layout

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
BUCKET = 2**25
"""Numbers that ZeRO reduces or gathers at once (parallel.zero above 0)."""
PIECES = 8
"""In which JAX sends a head's gradient to the devices that share it (jaxtrain/loss.py)."""
FLAT = 2**24
"""Numbers of gradient that plain data parallelism in torch copies and sums at once."""


def in_gib(number: float) -> str:
    """A number of bytes in words."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Footprint:
    """Bytes by kind at the peak of an update, when that is, and bytes in the host's memory for each device: what is
    offloaded, or else a save's copy of the state."""

    kinds: dict[str, float]
    moment: str
    host: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Sizes:
    """Parameters (elements) that the fullest device of a tensor and pipeline group holds, before ZeRO or fsdp."""

    layer: int
    """One block's."""
    blocks: int
    matrices: int
    """All blocks' matrices."""
    largest: int
    """One block's largest matrix."""
    embedding: int
    """The token embedding or the head: one padded [V, D]."""
    total: int


def sizes(config: RunConfig, layout: Layout) -> Sizes:
    """Parameters of the fullest pipeline stage, each divided by `tensor`; norms', positions' and the biases of summed
    layers are not."""
    return _sizes(config.model, config.execution.vocab_multiple, layout.tensor, layout.pipeline)


@functools.cache
def _sizes(m: ModelConfig, multiple: int, tensor: int, pipeline: int) -> Sizes:
    rows = parameter_table(m)
    shared = {"heads", "kv_heads", "hidden"}  # axes that are cut
    layer = sum(r.size // (tensor if shared & set(r.axes) else 1) for r in rows if r.layer == 0)
    embedding = padded_vocab(m, multiple) * m.width // tensor
    rest = sum(r.size for r in rows if r.layer is None and "vocab" not in r.axes)
    ends = embedding if m.tied or pipeline > 1 else 2 * embedding
    blocks = layer * m.layers // pipeline
    matrices = [r.size // tensor for r in rows if r.layer == 0 and len(r.shape) == 2]
    all_of_them = sum(matrices) * m.layers // pipeline
    return Sizes(layer, blocks, all_of_them, max(matrices), embedding, blocks + ends + rest)


def blockwise(config: RunConfig, layout: Layout) -> bool:
    """Whether the TPU's attention kernel, which makes no whole scores, takes these shapes (jaxtrain/attention.py)."""
    m, share = config.model, config.row_tokens // layout.context
    prefix = config.adapter.virtual_tokens if config.adapter.kind == "prefix" else 0
    if config.execution.attention not in ("auto", "splash") or (prefix and config.data.packed):
        return False
    return (m.head == 64 or m.head % 128 == 0) and share % 128 == 0 and prefix % 128 == 0


def footprint(
    config: RunConfig, layout: Layout | None = None, stack: StackName = "torch", scores: bool | None = None
) -> Footprint:
    """The peak of one update on one device of `layout` (default: one device), with parallel.zero and offload.

    `scores`: JAX's attention makes all of them; unset, where a TPU's kernel doesn't take the shapes.
    """
    layout = layout or Layout()
    c, n = config, sizes(config, layout)
    compute, master = BYTES[c.precision.compute], max(4, BYTES[c.precision.compute])
    zero = c.parallel.zero if stack == "torch" else 0
    fsdp = layout.fsdp
    share = [1 / layout.data if zero >= stage else 1 / fsdp for stage in (1, 2, 3)]
    trained = n.total
    if c.adapter.kind != "none":  # its tensors are whole on every device
        trained, share[:2] = trained_numbers(c), [1.0, 1.0]
    state = {
        "weights": _weights(c, layout, n, master, share[2]),
        "moments": 2 * trained * master * share[0],
        "gradients": trained * master * share[1],
    }
    if zero and (c.parallel.zero_engine == "deepspeed" or zero < 3):
        # DeepSpeed clones its partition, also in float32; FSDP2 has the rows that it gathers whole weights from
        state["weights"] += n.total * master * share[0]
    # a save copies what it writes to the host, but what is offloaded lies there; copies of the model take turns
    copies = 1 if stack == "jax" or zero else layout.data
    host = 3 * trained * master * (share[0] / copies)
    if c.parallel.offload != "none" and zero:
        host = _offloaded(c, state, n.total * master * share[0])
    buffers = _buffers(c, layout, n, zero, compute, master, stack)
    jax = stack == "jax"
    scores = jax and (not blockwise(c, layout) if scores is None else scores)
    kept = _kept(c, layout, n, stack, compute, scores)
    gradients = state.pop("gradients")
    # with one micro-batch torch frees the gradients before the next forward pass; a compiled program holds its results
    standing = gradients if c.train.accumulation > 1 or zero or jax else 0.0
    fresh = trained * master * share[1] if jax and c.train.accumulation > 1 else 0.0
    # with fsdp a matrix' gradient is whole until it is shared out, one at a time
    shared = jax and fsdp > 1 and c.adapter.kind == "none"
    summed = compute if c.parallel.gradient_sum == "compute" else master
    whole = 1.0 * n.largest * summed if shared else 0.0
    head = n.embedding * master if _head_trains(c) else 0.0
    logits = _logits(c, layout, stack, compute, master)
    flat = min(trained, max(FLAT, n.embedding)) * master if not jax and not zero and layout.data > 1 else 0.0
    rows = device_tokens(c, layout)
    if shared and rows * compute <= c.model.width * master:  # made of all logits' gradients, which are kept
        head = head / PIECES + max(0, rows - c.execution.loss_chunk) * n.embedding / c.model.width * compute
    moments = {
        "in the loss": {
            "activations": kept.saved + kept.last,
            "copies": kept.copies * (not shared) + n.embedding * kept.cast,
        }
        | {"logits": logits, "gradients": standing + head + (fresh * n.embedding / n.total if shared else 0.0)},
        "at the start of the backward pass": {"activations": kept.saved + kept.block + (0.0 if jax else kept.last)}
        | {"copies": kept.copies}  # a compiled program is done with the final norm before the blocks' loop
        | {"gradients": standing + whole + (fresh if jax else head)},
        "at the end of the backward pass": {"activations": kept.block, "copies": kept.layer}
        | {"gradients": gradients + fresh + whole + (head if c.train.accumulation > 1 or jax else 0.0) * (not shared)},
        "in the update": {"gradients": gradients + flat},
    }
    totals = {moment: sum(kinds.values()) for moment, kinds in moments.items()}
    worst = max(totals, key=lambda moment: totals[moment])
    kinds = state | {"gradients": 0.0, "activations": 0.0, "copies": 0.0, "logits": 0.0} | moments[worst]
    return Footprint(kinds | {"buffers": buffers}, worst, host)


def trained_numbers(config: RunConfig) -> int:
    """Numbers that have gradients and moments: of a run with an adapter, its own."""
    return sum(row.size for row in trainable_parameters(config))


def _head_trains(config: RunConfig) -> bool:
    """Whether the loss makes a gradient of the head: not of one that is frozen and has no adapter."""
    return config.adapter.kind == "none" or any(target.module == "head" for target in adapter_targets(config))


def _weights(config: RunConfig, layout: Layout, n: Sizes, master: int, share: float) -> float:
    """Bytes of all weights on a device that has `share` of what is cut; an adapter's and bytes are whole everywhere."""
    quantized = quantized_parameters(config)
    less = sum(row.size for row in quantized) * float(master)
    if not quantized:
        less = sum(row.size for row in frozen_matrices(config)) * float(master - BYTES[config.precision.compute])
    cut = n.total * master - less / (layout.tensor * layout.pipeline)
    whole = sum(held_bytes(config.adapter.quantize, row.size) for row in quantized)
    return cut * share + whole + sum(row.size for row in adapter_parameters(config)) * master


@dataclass(frozen=True)
class _Kept:
    saved: float
    """Activations of the blocks at the end of the forward pass."""
    last: float
    """The final norm's."""
    block: float
    """More of them while one block's backward pass runs."""
    copies: float
    """Weights in the compute dtype that the backward pass will want."""
    cast: int
    """Bytes of a cast number of the head; 0 where nothing is cast."""
    layer: float
    """One layer's weights as they are used, where those aren't the weights themselves."""


def block_bytes(config: RunConfig, tensor: int = 1, stack: StackName = "torch") -> dict[str, float]:
    """Bytes of one token in one block that autograd keeps: all of it, the matmuls' outputs, the input."""
    m, compute = config.model, BYTES[config.precision.compute]
    wide = max(4, compute)
    width, heads, keys, hidden = m.width, m.heads * m.head / tensor, m.kv * m.head / tensor, m.hidden / tensor
    # an RMS norm keeps what it divided; below float32 a norm keeps its float32 input too
    rms = width * wide if m.norm == "rmsnorm" else 0
    norm = width * compute + rms + width * wide
    mlp = (4 if m.mlp == "swiglu" else 2) * hidden * compute
    everything = 2 * norm + (2 * heads + 2 * keys) * compute + mlp
    if stack == "jax":  # read in the loops that the TPU's compiler makes: a norm's three float32 forms, six of the MLP
        everything = 6 * width * wide + (3 * width + 2 * heads + 2 * keys + 6 * hidden) * compute
    matmuls = (heads + 2 * keys + (2 if m.mlp == "swiglu" else 1) * hidden + 2 * width) * compute
    return {"everything": everything, "matmuls": matmuls, "input": width * compute}


def _kept(config: RunConfig, layout: Layout, n: Sizes, stack: StackName, compute: int, scores: bool) -> _Kept:
    m, policy = config.model, config.execution.checkpoint_activations
    tokens = config.micro_batch / layout.sharing_rows * config.row_tokens / layout.context
    one = block_bytes(config, layout.tensor, stack)
    layers = m.layers // layout.pipeline
    flying = min(layout.pipeline, config.train.accumulation)
    if stack == "jax" and layout.pipeline > 1:  # one scan over all ticks, differentiated as a whole
        flying = config.train.accumulation + layout.pipeline - 1
    cast = compute if compute < 4 else 0
    layer_cast = 0 if frozen_matrices(config) else cast  # which are held so
    # JAX takes a layer's weights out of the stacked ones
    layer = float(n.layer * (compute if stack == "jax" else layer_cast))
    wide = max(4, compute)
    last = m.width * (compute + wide * (1 if m.norm == "layernorm" else 2) + compute)  # final norm, its gradient
    backward = (m.hidden / layout.tensor + 2 * m.width) * compute
    if stack == "jax":  # the keys and values of whole rows
        one["everything"] += (layout.context - 1) * 2 * m.kv * m.head / layout.tensor * compute
    if stack == "jax" and not scores:  # queries, keys, values and results lie in the TPU's tiles, 128 wide
        one["everything"] += 2 * (m.heads + m.kv) / layout.tensor * (-m.head % 128) * compute
    # of all scores two forms are kept, or four made while a block is computed anew
    form = m.heads / layout.tensor * config.row_tokens * wide if scores else 0.0
    if stack == "jax" and m.mlp == "gelu" and policy != "none":
        backward -= 3 * m.hidden / layout.tensor * compute  # of the forms that a scan keeps, what is made at once
    if stack == "jax" and policy == "none":
        whole: float = n.blocks * layer_cast if layout.fsdp == 1 else 0.0  # what is gathered isn't kept
        saved, block, copies = (one["everything"] + 2 * form) * layers, backward + 2 * form, whole
    elif policy == "none":
        saved, block, copies = one["everything"] * layers, backward, n.blocks * layer_cast
    elif policy == "matmuls":
        saved, copies = (one["matmuls"] + one["input"]) * layers, layer
        # recomputed: all but the matmul outputs that were kept anyway
        again = m.kv * m.head + (2 if m.mlp == "swiglu" else 1) * m.hidden
        block = max(one["everything"] - again / layout.tensor * compute + backward, 4 * form)  # one after the other
    else:
        saved, copies = one["input"] * layers, layer
        block = one["everything"] + backward + 4 * form
        if stack == "jax" and layout.fsdp > 1 and config.adapter.kind == "none":
            # a matrix' gradient is sent before the next is made: by then what it was made of is gone
            heads, hidden = (2 * m.heads + 2 * m.kv) * m.head, (3 if m.mlp == "swiglu" else 2) * m.hidden
            block = (3 * m.width + (heads + hidden) / layout.tensor) * compute + 4 * form
    if quantized := quantized_parameters(config):
        # no copy is kept, and of one matrix at a time there is a whole one: in torch in float32 too
        each = compute + (4.0 if stack == "torch" else 0.0)
        block, copies, layer = block + max(row.size for row in quantized) * each / tokens, 0.0, n.layer * layer_cast
    return _Kept(tokens * saved * flying, tokens * last, tokens * block, copies, cast, layer)


def device_tokens(config: RunConfig, layout: Layout) -> int:
    """Tokens of a micro-batch on one device."""
    return config.micro_batch // layout.sharing_rows * config.row_tokens // layout.context


def exchanges_embedding(config: RunConfig, layout: Layout) -> bool:
    """Whether JAX's devices look tokens up for each other instead of gathering the embedding (jaxtrain/model.py)."""
    rows = padded_vocab(config.model, config.execution.vocab_multiple) // layout.tensor
    at_once = config.train.accumulation if layout.pipeline > 1 else 1  # all micro-batches before the first stage
    return layout.fsdp > 1 and at_once * device_tokens(config, layout) <= rows


def _logits(config: RunConfig, layout: Layout, stack: StackName, compute: int, master: int) -> float:
    tokens = device_tokens(config, layout)
    chunk = min(config.execution.loss_chunk, tokens)
    columns = padded_vocab(config.model, config.execution.vocab_multiple) / layout.tensor
    # torch: one buffer in float32; below, the buffer, and while a chunk is cast what is left of the one before
    if stack == "jax" and layout.fsdp > 1:  # targets' logits aren't gathered there, and no float32 form is made
        return 2 * chunk * columns * compute
    if stack == "jax":
        forms = 2 if tokens > chunk else 1  # the compiler makes no loop of one chunk, and one form fewer
        return chunk * columns * (forms * master + (compute if compute < 4 else 0))
    each = master if compute >= 4 else compute + master + (master + compute if tokens > chunk else compute)
    return chunk * columns * each


def _buffers(
    config: RunConfig, layout: Layout, n: Sizes, zero: int, compute: int, master: int, stack: StackName
) -> float:
    """What communication needs: buckets of ZeRO, gathered weights of two layers (one in use, one on its way).

    JAX casts a device's shares of all blocks and of the head before their loops. The embedding isn't gathered, the head
    for the loss alone; where tokens are many enough that it is, its whole gradient comes to as much.
    """
    if zero and config.parallel.zero_engine == "fsdp2":
        # two blocks: weights in stage 3, where the ends' are whole all the time, or else gradients, as made and as sent
        return (2.0 * n.layer + (n.total - n.blocks) * (zero == 3)) * master
    if zero:
        bucket = min(BUCKET, n.total) * master
        return bucket + (2 * max(n.layer, n.embedding) * master if zero == 3 else bucket)
    if layout.fsdp > 1:
        none = config.execution.checkpoint_activations == "none" or quantized_parameters(
            config
        )  # bytes aren't gathered
        ahead = 0 if none else n.largest * compute
        cast = (n.blocks + n.embedding) / layout.fsdp * compute if compute < 4 else 0.0
        table = 0.0 if exchanges_embedding(config, layout) else n.embedding * master
        return ahead + cast + table
    return 0.0


def _offloaded(config: RunConfig, state: dict[str, float], partition: float) -> float:
    """Move what parallel.offload says from `state` to the host; the bytes moved, with the host's own gradients."""
    offload, before = config.parallel.offload, sum(state.values())
    state["moments"] = 0.0
    state["weights"] -= partition
    if offload == "all":
        state["weights"] = 0.0
    return before - sum(state.values()) + partition


def kv_cache(config: RunConfig, rows: int, tokens: int, tensor: int = 1) -> float:
    """Bytes of the keys and values of `rows` sequences of `tokens` tokens, for generation."""
    m = config.model
    return 2.0 * m.layers * rows * tokens * m.kv * m.head * BYTES[config.precision.compute] / tensor
