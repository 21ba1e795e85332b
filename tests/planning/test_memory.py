"""What a run takes of a device's memory and of its host's, against figures worked out by hand and a real update's."""

from __future__ import annotations

import pytest

import bench.memory as bench_memory
from coretrain.adapters.targets import adapter_parameters
from coretrain.planning.accelerators import machine
from coretrain.planning.memory import blockwise, footprint, kv_cache
from coretrain.planning.planner import estimate
from coretrain.processes.layout import Layout
from tests.support.plans import made, refused


@pytest.mark.parametrize("policy", ["none", "matmuls", "full"])
@pytest.mark.parametrize(("stack", "axes"), [("torch", {"data": 2}), ("jax", {"fsdp": 2, "tensor": 3})])
def test_short_rows_of_a_long_context_take_what_a_short_context_takes(stack, axes, policy):
    """Memory, traffic and time: rotary positions have no table, so nothing is left that depends on the context."""
    common = {"execution__checkpoint_activations": policy, "adapter__kind": "lora"} | (
        {"data__format": "chat", "train__batch_size": 8, "train__accumulation": 1}
    )
    long = made("smollm2-lora", **common, model__context=8192, data__row_tokens=128)
    short = made("smollm2-lora", **common, model__context=128)
    whole = made("smollm2-lora", **common, model__context=8192)
    layout, on = Layout(**axes), machine("h100x8")
    for scores in (True, False):
        assert footprint(long, layout, stack, scores) == footprint(short, layout, stack, scores)
    found, wanted = (estimate(config, layout, on, stack) for config in (long, short))
    assert (found.memory, found.traffic, found.seconds) == (wanted.memory, wanted.traffic, wanted.seconds)
    assert footprint(long, layout, stack).total < 0.5 * footprint(whole, layout, stack).total


@pytest.mark.whole
@pytest.mark.parametrize("stack", ["torch", "jax"])
def test_memory_is_what_a_real_update_takes(stack):
    # Floor: torch +0.8 to +2.8% on this case in three runs, JAX +5.0%; at most 8.9% over the cases of docs/planning.md.
    # It catches a second copy of the weights (+12%), a block that isn't recomputed (+150%), a whole set of logits kept.
    found = bench_memory.measure(stack, "Llama form, full")
    assert abs(found.error) < 0.10, found


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["torch", "jax"])
@pytest.mark.parametrize("case", bench_memory.CASES)
def test_memory_of_every_case(stack, case):
    if stack == "jax" and "bfloat16" in case:
        pytest.skip("XLA's CPU compiler computes bfloat16 in float32")
    assert abs(bench_memory.measure(stack, case).error) < 0.10


def test_zero_shards_by_stage_and_offload_empties_the_device():
    c = made()
    whole = footprint(c).kinds

    def stage(zero: int, offload: str = "none"):
        return footprint(c.changed(parallel__zero=zero, parallel__offload=offload), Layout(data=8))

    n = whole["weights"]
    assert stage(0).kinds["weights"] == n
    assert stage(1).kinds["moments"] == stage(2).kinds["moments"] == whole["moments"] / 8
    assert stage(2).kinds["weights"] == n + n / 8  # DeepSpeed's clone of its partition
    assert stage(3).kinds["weights"] == n / 4
    assert stage(1).kinds["gradients"] > stage(2).kinds["gradients"]
    assert stage(3, "optimizer").kinds["moments"] == 0
    assert stage(3, "all").kinds["weights"] == 0
    assert stage(3, "all").host > stage(3, "optimizer").host > stage(3).host


def test_the_host_has_room_for_what_is_offloaded_or_for_a_saves_copy():
    c = made("llama-7b", train__accumulation=8)
    n = footprint(c).kinds["weights"]
    assert footprint(c, Layout(data=8)).host == 3 * n / 8, "copies of the model take turns"
    assert footprint(c, Layout(fsdp=8), "jax").host == 3 * n / 8
    assert footprint(c, Layout(data=2, fsdp=4), "jax").host == 3 * n / 4
    assert "61 GiB of 58 on its host" in refused("llama-13b", "--on", "4090x4")


def test_axes_divide_what_they_share():
    c = made("llama-7b", train__accumulation=8)
    one = footprint(c, stack="jax")
    eight = footprint(c, Layout(fsdp=8), "jax")
    assert eight.kinds["moments"] == one.kinds["moments"] / 8
    four = footprint(c, Layout(fsdp=4), "jax")
    assert eight.kinds["activations"] == pytest.approx(four.kinds["activations"] / 2)
    assert eight.kinds["activations"] < one.kinds["activations"] / 8, "one matrix' gradient after the other"
    halves = footprint(c, Layout(tensor=2), "jax")
    assert halves.kinds["moments"] == pytest.approx(one.kinds["moments"] / 2, rel=1e-3)  # norms aren't split
    # but the block at work has the keys and values of whole rows: two kinds of 32 heads x 128 numbers of 2 bytes
    gathered = c.micro_batch * 2048 * 2 * 32 * 128 * 2
    assert footprint(c, Layout(context=2), "jax").kinds["activations"] == one.kinds["activations"] / 2 + gathered


def test_where_all_scores_are_made_they_are_counted():
    """The footprint's rule for a TPU is the kernel table's."""
    from jaxtrain.attention import KERNELS

    tpu = type("Device", (), {"platform": "tpu"})()
    for head, context, parts in ((64, 256, 1), (128, 256, 2), (256, 128, 1), (64, 128, 2), (96, 256, 1), (64, 200, 1)):
        shape = {"model__head_width": head, "model__context": context, "parallel__context": parts}
        c, layout = made("tiny", model__vocab=320, **shape), Layout(context=parts)
        for kernel in ("plain", "xla"):
            assert not blockwise(made("tiny", model__vocab=320, execution__attention=kernel, **shape), layout)
        assert blockwise(c, layout) is (KERNELS["splash"].obstacle(c, tpu) is None), shape
        plain, kept = (footprint(c, layout, "jax", scores=all_).kinds["activations"] for all_ in (False, True))
        assert footprint(c, layout, "jax").kinds["activations"] == (plain if blockwise(c, layout) else kept)
        form = c.micro_batch * c.model.heads * context // parts * context * 4
        assert head % 128 or kept - plain >= 2 * form * c.model.layers


def test_a_frozen_heads_gradient_is_not_there():
    """It is the largest tensor there is, of a small model with a large vocabulary."""
    fields = {"model__vocab": 32000, "train__accumulation": 8, "execution__checkpoint_activations": "full"}
    lora = {"adapter__kind": "lora", "model__tied": "false"}
    head = 32000 * made("tiny", **fields).model.width * 4
    blocks = footprint(made("tiny", **fields, **lora)).kinds["gradients"]
    both = made("tiny", **fields, **lora, adapter__targets='["blocks.*", "head.weight"]')
    assert blocks < 0.1 * head < head < footprint(both).kinds["gradients"]


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_an_adapters_base_is_cut_but_its_bytes_are_not(quantize):
    """A base's matrices are shared over fsdp and tensor; an adapter, and a base in few bits, are whole everywhere."""
    c = made("llama-7b", adapter__kind="lora", adapter__quantize=quantize)
    whole = footprint(c, stack="jax").kinds["weights"]
    adapter = 4 * sum(row.size for row in adapter_parameters(c))
    embeddings = 4 * 2 * 32000 * 4096
    for layout in (Layout(tensor=2), Layout(fsdp=4), Layout(tensor=4), Layout(data=2, fsdp=2, tensor=2)):
        kinds, parts = footprint(c, layout, "jax").kinds, layout.fsdp * layout.tensor
        assert min(kinds.values()) >= 0
        cut = embeddings if quantize == "nf4" else whole - adapter
        assert kinds["weights"] == pytest.approx(whole - cut + cut / parts, rel=1e-3)
        assert kinds["gradients"] < 2.1 * adapter


def test_a_pipelines_first_stage_holds_a_micro_batch_for_each_stage():
    c = made("gpt2-124m", train__accumulation=8)
    one, four = footprint(c), footprint(c, Layout(pipeline=4))
    assert four.kinds["activations"] == pytest.approx(one.kinds["activations"], rel=0.1)
    assert four.kinds["moments"] < 0.6 * one.kinds["moments"]


def test_kv_cache_by_hand():
    m = made("llama-1b")
    assert kv_cache(m, 3, 100) == 2 * 16 * 3 * 100 * 8 * 64 * 2
