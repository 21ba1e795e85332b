"""Bytes that one device sends in one update, by kind: what the collectives need in theory, in rings.

A ring of n sends (n - 1) / n of a buffer in a gather or a reduce-scatter, and twice that in an all-reduce. ZeRO's
volumes are Rajbhandari et al.'s (2020, section 7), but stages 1 and 2 sum gradients with all-reduces, as DeepSpeed
0.19 does by default, not with the paper's reduce-scatters: twice its bytes. FSDP2 has the reduce-scatters; in stage 3
it gathers twice what is in the blocks, but for the last one. Tensor parallelism's are Shoeybi et al.'s (2019): two
all-reduces of the activations a block forward, two backward, two more where JAX recomputes the block (torch recomputes
what the backward pass needs, and so does without the second unless dropout comes after it); one more of the embedding
forward (in the master dtype where positions are learned: they are added before the cast) and of the head backward.
`bench/scale.py bytes` measures how far the stacks are from all this.
"""

from __future__ import annotations

from coretrain.config.fields import StackName
from coretrain.config.run import RunConfig
from coretrain.planning.memory import BYTES, device_tokens, exchanges_embedding, sizes, trained_numbers
from coretrain.processes.layout import Layout

EXPOSED = ("embedding", "tensor", "context")
"""Kinds that the next matmul waits for; the others can run beside the backward pass."""
ID = 4
"""Bytes of a token's id."""


def ring(devices: int) -> float:
    """Share of a buffer that each of `devices` sends in a gather or a reduce-scatter."""
    return (devices - 1) / devices


def traffic(config: RunConfig, layout: Layout, stack: StackName = "torch") -> dict[str, float]:
    """Bytes sent by one device in one update: gradients, weights, embedding, tensor, context, pipeline; no zeros."""
    c, n = config, sizes(config, layout).total
    compute, master = BYTES[c.precision.compute], max(4, BYTES[c.precision.compute])
    micro = c.train.accumulation
    found = dict.fromkeys(("gradients", "weights", "embedding", "tensor", "context", "pipeline"), 0.0)
    if stack == "torch":
        zero, share = c.parallel.zero, ring(layout.data) * n * master
        found["gradients"] = share * {0: 2, 1: 2, 2: 2 * micro, 3: micro}[zero]
        found["weights"] = share * {0: 0, 1: 1, 2: 1, 3: 2 * micro}[zero]
        if zero and c.parallel.zero_engine == "fsdp2":
            found["gradients"] = share * (1 if zero == 1 else micro)
            parts = sizes(config, layout)
            again = (parts.blocks - parts.layer) / n
            found["weights"] = share * (1 if zero < 3 else micro * (1 + again))
    else:
        summed = compute if c.parallel.gradient_sum == "compute" else master
        found |= _fsdp(c, layout, compute, master, summed)
        copies = layout.data * layout.context  # devices that share tokens sum their gradients as those that share rows
        found["gradients"] += micro * 2 * ring(copies) * n / layout.fsdp * summed  # of each micro-batch
    if c.adapter.kind != "none":  # whole on every device, and all that has a gradient
        times = 1 if stack == "torch" else micro
        found["gradients"] = times * 2 * ring(layout.sharing_rows * layout.context) * trained_numbers(c) * master
    m = c.model
    if m.tied and layout.pipeline > 1:  # the first and the last stage have a copy each, and sum its gradient
        found["gradients"] += 2 * ring(2) * sizes(config, layout).embedding * master
    tokens = c.tokens_per_update / layout.sharing_rows / layout.context
    layers = m.layers / layout.pipeline
    passes = 3 if c.execution.checkpoint_activations == "full" else 2
    heads = 1 if layout.pipeline == 1 else 0  # the embedding's device is the head's, or another
    embedding = master if m.position == "learned" else compute  # what is added to it is added before it is cast
    anew = 2 * (passes - 2)
    if stack == "torch" and c.execution.checkpoint_activations != "none":
        anew = 2 if m.residual_dropout else 1
    sums = ((4 + anew) * layers + heads) * compute + embedding
    found["tensor"] = sums * 2 * ring(layout.tensor) * tokens * m.width
    keys = 2 * m.kv * m.head / layout.tensor * tokens * layout.context
    found["context"] = passes * layers * ring(layout.context) * keys * compute
    found["pipeline"] = _passed_on(layout, stack, micro) * tokens * m.width * compute
    return {kind: size for kind, size in found.items() if size}


def _fsdp(config: RunConfig, layout: Layout, compute: int, master: int, summed: int) -> dict[str, float]:
    """What JAX sends along fsdp: matrices, gathered where they are used, and their gradients; what is looked up.

    Blocks' are gathered in the compute dtype, forward and backward, the head for the loss alone, which does both.
    Devices look tokens up for each other, in their shares of the embedding's width: they gather the ids, and exchange
    what they find, and its gradient. An embedding with fewer rows than a device has tokens is gathered, in the master
    dtype, and so are learned positions.
    """
    m, n = config.model, sizes(config, layout)
    once = config.train.accumulation * ring(layout.fsdp)
    learned = m.context * m.width if m.position == "learned" else 0
    exchanged = exchanges_embedding(config, layout)
    whole = learned + (0 if exchanged else n.embedding)
    ends = n.embedding if m.tied or layout.pipeline > 1 else 2 * n.embedding
    vectors = n.total - n.matrices - ends - learned  # every device has them
    found = {
        "weights": once * ((2 * n.matrices + n.embedding) * compute + whole * master),
        "gradients": once * ((n.matrices + n.embedding) * summed + (whole + 2 * vectors) * master),
    }
    if exchanged:
        times = 2 if config.adapter.kind == "none" else 1  # a frozen one has no gradient
        number = master if learned else compute  # positions are added before the cast
        found["embedding"] = once * device_tokens(config, layout) * (times * m.width * number + layout.fsdp * ID)
    return found


def _passed_on(layout: Layout, stack: StackName, micro: int) -> float:
    """Activations and their gradients that a stage sends, in those of the update's tokens."""
    stages = layout.pipeline
    if stages == 1:
        return 0.0
    if stack == "jax":  # all stages pass on in every tick, also those that have nothing to do
        return 2 * (micro + stages - 1) / micro
    return 2.0 if stages > 2 else 1.0  # the first sends activations, the last gradients, those between both
