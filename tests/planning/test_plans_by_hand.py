"""Plans figure by figure: bytes of a block, seconds of an update by cause, the fitted law's own optimum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.optimize import brentq

from coretrain.config.load import load_config
from coretrain.planning.accelerators import GIB, Accelerator, Machine
from coretrain.planning.memory import block_bytes, footprint, kv_cache, sizes
from coretrain.planning.planner import Assumptions, estimate, recommend
from coretrain.planning.scaling_laws import RULE, advice, loss, optimal_tokens
from coretrain.planning.traffic import traffic
from coretrain.processes.layout import Layout, rows_of
from tests.support.plans import made

FIGURES = {
    "tflops": 100, "tflops32": 10, "memory": 80, "bandwidth": 1000, "link": 200, "network": 20, "host_link": 50,
    "host_memory": 100, "node": 8, "price": 2,
}  # fmt: skip


def machine(devices: int = 1, **more: float) -> Machine:
    return Machine(Accelerator(name="made", words=("made",), **FIGURES | more), devices)


def test_the_law_by_hand():
    """Besiroglu et al. 2024: 1.8172 + 482.01 / N^0.3478 + 2085.43 / D^0.3658, here of Chinchilla itself by logarithms:
    482.01 e^(-0.3478 x 24.9718) = 0.08149, 2085.43 e^(-0.3658 x 27.9675) = 0.07519."""
    assert loss(70e9, 1.4e12) == pytest.approx(1.8172 + 0.08149 + 0.07519, abs=2e-5)
    by_parts = (
        math.exp(math.log(482.01) - 0.3478 * math.log(1e9)),
        math.exp(math.log(2085.43) - 0.3658 * math.log(3e10)),
    )
    assert loss(1e9, 3e10) == pytest.approx(1.8172 + sum(by_parts), rel=1e-12)
    assert RULE == 20


@pytest.mark.parametrize("parameters", [1e7, 1e9, 7e10])
def test_the_optimum_in_closed_form(parameters):
    """Where alpha A / N^alpha = beta B / D^beta: neither term's relative gain is the larger."""
    closed = (0.3658 * 2085.43 / (0.3478 * 482.01) * parameters**0.3478) ** (1 / 0.3658)
    assert optimal_tokens(parameters) == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize("served", [0.0, 1e11, 1e13])
def test_the_optimum_costs_least_of_all_that_are_as_good(served):
    """6 N D to train and 2 N a token to serve: models a little larger or smaller that reach the same loss cost more,
    and about as much more on both sides."""
    n = 1e9
    d = optimal_tokens(n, served)

    def cost(parameters: float) -> float:
        tokens = brentq(lambda t: loss(parameters, t) - loss(n, d), d / 100, d * 100, xtol=1, rtol=1e-14)
        return 6 * parameters * tokens + 2 * parameters * served

    here, below, above = cost(n), cost(n / 1.001), cost(n * 1.001)
    assert min(below, above) > here
    assert abs(below - above) < 0.05 * (below + above - 2 * here), "a minimum is flat"


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.79, "too few"), (0.81, "about what is"), (1.24, "about what is"), (1.26, "more than is cheapest")],
)
def test_what_is_said_of_a_token_count(share, words):
    tokens = share * optimal_tokens(10**9)
    assert words in dict(advice(10**9, tokens, 0))["this run"]


@pytest.mark.parametrize(
    ("name", "stack", "compute", "tensor", "found"),
    [
        # D 768, 12 heads of 64, F 3072, 2 bytes. Two norms of input (2) and its float32 form (4): 2 x 6 x 768; q, k, v
        # and what attention gives: 4 x 768 x 2; two forms of the hidden: 2 x 3072 x 2
        ("gpt2-124m", "torch", "bfloat16", 1, (9216 + 6144 + 12288, 2 * (3 * 768 + 3072 + 2 * 768), 1536)),
        # 4 bytes: a norm's input twice, 2 x 8 x 768; 12288; 24576
        ("gpt2-124m", "torch", "float32", 1, (12288 + 12288 + 24576, 4 * (3 * 768 + 3072 + 2 * 768), 3072)),
        ("gpt2-124m", "torch", "bfloat16", 4, (9216 + 1536 + 3072, 2 * (3 * 192 + 768 + 2 * 768), 1536)),
        # D 2048, 32 heads and 8 of keys of 64, F 8192; an RMS norm keeps what it divided in float32 too: 2 x 10 x 2048;
        # (2 x 2048 + 2 x 512) x 2; four forms of the hidden: 4 x 8192 x 2
        ("llama-1b", "torch", "bfloat16", 1, (40960 + 10240 + 65536, 2 * (2048 + 1024 + 2 * 8192 + 2 * 2048), 4096)),
        # six float32 widths of the norms, and in 2 bytes three widths, q, k, v and attention's, six forms of the hidden
        (
            "gpt2-124m", "jax", "bfloat16", 1,
            (6 * 768 * 4 + 2 * (7 * 768 + 6 * 3072), 2 * (3 * 768 + 3072 + 2 * 768), 1536),
        ),
    ],
)  # fmt: skip
def test_bytes_of_a_block_by_hand(name, stack, compute, tensor, found):
    c = made(name, precision__compute=compute)
    assert block_bytes(c, tensor, stack) == dict(zip(("everything", "matmuls", "input"), found, strict=True))


def test_buffers_of_zero_by_hand():
    """Buckets of 2^25 numbers in float32, two of them; in stage 3 one, and two of the largest that is gathered."""
    c = made("llama-7b", train__accumulation=8)
    n = sizes(c, Layout(data=8))
    found = [footprint(c.changed(parallel__zero=zero), Layout(data=8)).kinds["buffers"] for zero in range(4)]
    assert found == [0, 2 * 2**25 * 4, 2 * 2**25 * 4, 2**25 * 4 + 2 * 4 * max(n.layer, n.embedding)]
    small = made("tiny", model__vocab=320)
    size = sizes(small, Layout()).total
    assert footprint(small.changed(parallel__zero=1), Layout(data=2)).kinds["buffers"] == 2 * 4 * size < 2**27


def test_gradients_in_jax_are_sent_in_the_dtype_of_their_sum():
    """On 8 devices 7/8 of all matrices a micro-batch: 4 bytes each, or in the compute dtype 2; so much is whole too.

    A vector's is summed everywhere. With as many tokens the embedding is gathered, in float32, and the head once."""
    c = made("llama-7b", train__accumulation=4)
    rounded, layout, n = c.changed(parallel__gradient_sum="compute"), Layout(fsdp=8), sizes(c, Layout(fsdp=8))
    blocks, head, vectors = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 32000 * 4096, 65 * 4096
    assert n.total == blocks + 2 * head + vectors
    for config, size in ((c, 4), (rounded, 2)):
        found = traffic(config, layout, "jax")
        assert found["gradients"] == 4 * 7 / 8 * ((blocks + head) * size + (head + 2 * vectors) * 4)
        assert found["weights"] == 4 * 7 / 8 * ((2 * blocks + head) * 2 + head * 4)
        assert "embedding" not in found
    one, other = (footprint(config, layout, "jax").kinds["gradients"] for config in (c, rounded))
    assert one - other == 4096 * 11008 * 2, "of the largest matrix"


def test_gradients_that_torch_copies_to_sum_them_by_hand():
    """In the update, at most 2^24 numbers of them at once; one device alone copies none."""
    more = {"execution__checkpoint_activations": "full", "train__batch_size": 64, "train__accumulation": 32}
    c = made("gpt2-124m", **more, model__context=64).changed(model__vocab=64 * 100)
    n = sizes(c, Layout())
    assert n.embedding < 2**24 < n.total
    two = footprint(c, Layout(data=2))
    assert (two.moment, two.kinds["gradients"]) == ("in the update", 4 * (n.total + 2**24))
    assert footprint(c).total < two.total


@pytest.mark.parametrize(("head", "lanes"), [(64, 64), (96, 32), (200, 56), (256, 0)])
def test_what_a_tpu_adds_to_narrow_heads_by_hand(head, lanes):
    """Its tiles are 128 wide: queries, keys, values and results lie in them, of 12 layers and 12 heads in 2 bytes."""

    def less(width: int) -> float:
        c = made("gpt2-124m").changed(model__head_width=width)
        scores, tiles = (footprint(c, stack="jax", scores=all_).kinds["activations"] for all_ in (True, False))
        return scores - tiles

    tokens = made("gpt2-124m").micro_batch * 1024
    assert less(128) - less(head) == tokens * 12 * 2 * (12 + 12) * lanes * 2


@pytest.mark.parametrize(("policy", "passes", "sums"), [("none", 2, 4), ("matmuls", 2, 5), ("full", 3, 5)])
def test_what_is_sent_in_each_pass_by_hand(policy, passes, sums):
    """Recomputed blocks send once more. Tensor: two all-reduces of a block's activations a pass and two at the ends, of
    twice 3/4 of [tokens, 2048] in 2 bytes; but torch does the second anew only for dropout's sake. Context: the keys
    and values of 8 heads of 64, gathered by 4 devices."""
    c = made("llama-1b", execution__checkpoint_activations=policy)
    tokens = c.tokens_per_update
    one = 2 * 3 / 4 * tokens * 2048 * 2
    assert traffic(c, Layout(tensor=4)) == {"tensor": (sums * 16 + 2) * one}
    dropped = c.changed(model=c.model.model_copy(update={"residual_dropout": 0.1}))
    assert traffic(dropped, Layout(tensor=4)) == {"tensor": ((4 if sums == 4 else 6) * 16 + 2) * one}
    assert traffic(c, Layout(tensor=4), "jax") == {"tensor": (2 * passes * 16 + 2) * one}
    assert traffic(c, Layout(context=4), "jax")["context"] == passes * 16 * 3 / 4 * 2 * 8 * 64 * tokens * 2


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_what_zero_sends_by_hand(zero):
    """Of 8 devices each 7/8 of all numbers, so often: an all-reduce is two; stage 1 and 2 gather the weights; stage 2
    reduces, and 3 gathers twice and reduces once, for each of 4 micro-batches."""
    c = made("gpt2-124m", train__accumulation=4, parallel__zero=zero)
    whole = 7 / 8 * sizes(c, Layout(data=8)).total * 4
    gradients, weights = {0: (2, 0), 1: (2, 1), 2: (8, 1), 3: (4, 8)}[zero]
    found = {"gradients": gradients * whole, "weights": weights * whole}
    assert traffic(c, Layout(data=8)) == {kind: size for kind, size in found.items() if size}


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_what_fsdp2_sends_and_holds_by_hand(zero):
    """Gradients are reduced to their owners, once an update or once a micro-batch; stage 3 gathers a micro-batch's
    weights once, and 11 blocks' of 12 once more. No clone; two blocks are whole, and in stage 3 the ends."""
    c = made("gpt2-124m", train__accumulation=4, parallel__zero=zero, parallel__zero_engine="fsdp2")
    n = sizes(c, Layout(data=8))
    gathered = {1: n.total, 2: n.total, 3: 4 * (n.total + 11 * n.layer)}[zero]
    found = {"gradients": 7 / 8 * n.total * 4 * (1 if zero == 1 else 4), "weights": 7 / 8 * gathered * 4}
    assert traffic(c, Layout(data=8)) == pytest.approx(found)
    kinds, ends = footprint(c, Layout(data=8)).kinds, n.total - 12 * n.layer
    assert kinds["weights"] == 4 * n.total * (1 / 8 if zero == 3 else 9 / 8)
    assert kinds["buffers"] == 4 * (2 * n.layer + (ends if zero == 3 else 0))


@pytest.mark.parametrize(("compute", "size"), [("float32", 4), ("bfloat16", 2), ("float64", 8)])
def test_keys_and_values_by_hand(compute, size):
    """Two kinds, 16 layers, 3 rows of 100 tokens, 8 heads of 64, over 4 devices."""
    c = made("llama-1b").changed(precision__compute=compute)
    assert kv_cache(c, 3, 100, 4) == 2 * 16 * 3 * 100 * 8 * 64 * size / 4


def test_seconds_of_an_update_by_hand():
    """The roofline of a machine of round figures: 60% of 100 TFLOP/s, 80% of 1 TB/s, 70% of links."""
    assert (Assumptions().compute, Assumptions().bandwidth, Assumptions().link) == (0.6, 0.8, 0.7)
    assert Assumptions().host_update == 5e8
    c = made("gpt2-124m", train__batch_size=8, train__accumulation=2)
    n, total, tokens = 12 * 12 * 768 * 768 + 50257 * 768, sizes(c, Layout()).total, 8 * 1024
    flops = 6 * n + 12 * 12 * 768 * 1024
    for policy, again in (
        ("none", 0),
        ("full", 2 * (n - 50257 * 768) + 4 * 12 * 768 * 1024),  # all but the head, once more
        ("matmuls", 4 * 12 * 768 * 1024),  # the scores alone
    ):
        split = c.changed(execution__checkpoint_activations=policy)
        found = estimate(split, Layout(), machine(), "torch").seconds
        assert found["compute"] == pytest.approx((flops + again) * tokens / (100e12 * 0.6), rel=1e-12)
        # moments, weights and gradients: 28 bytes a parameter
        assert found["update"] == pytest.approx(28 * total / (1e12 * 0.8), rel=1e-12)
        assert found["exposed communication"] == found["pipeline bubble"] == 0
        slow = estimate(split, Layout(), machine(bandwidth=10), "torch").seconds
        passes = {"none": 3.0, "matmuls": 3.5, "full": 4.0}[policy]
        moved = 27648 * 12 * passes * tokens + 3 * 2 * total * 4
        assert slow["compute"] == pytest.approx(moved / (10e9 * 0.8), rel=1e-12)
    staged = estimate(c, Layout(pipeline=2), machine(2), "torch").seconds
    # the stages' halves, but both wait for the head; one of two micro-batches' time is the bubble's
    assert staged["compute"] == pytest.approx((flops + 6 * 50257 * 768) * tokens / 2 / 60e12, rel=1e-12)
    assert staged["pipeline bubble"] == pytest.approx(staged["compute"] / 2, rel=1e-12)
    shared = estimate(c, Layout(data=16), machine(16, network=1), "torch")
    sent = shared.traffic["gradients"] / (1e9 * 0.7)
    assert shared.seconds["exposed communication"] == pytest.approx(sent - shared.seconds["compute"], rel=1e-12)
    wide = estimate(c, Layout(tensor=2), machine(2), "torch")
    assert wide.seconds["exposed communication"] == pytest.approx(wide.traffic["tensor"] / (200e9 * 0.7), rel=1e-12)


def test_what_goes_to_the_host_by_hand():
    """5e8 parameters a second there; gradients down, and weights up: once, or for every micro-batch twice."""
    c = made("gpt2-124m", train__batch_size=8, train__accumulation=2)
    total = sizes(c, Layout()).total
    for offload, zero, weights in (("optimizer", 1, 1), ("all", 3, 2 * 2)):
        moved = c.changed(parallel__offload=offload, parallel__zero=zero)
        found = estimate(moved, Layout(), machine(), "torch").seconds
        assert found["update"] == pytest.approx(total / 5e8, rel=1e-12)
        assert found["host"] == pytest.approx(4 * total * (1 + weights) / (50e9 * 0.7), rel=1e-12)


def test_a_tenth_of_a_device_and_of_its_host_is_left():
    c = made("gpt2-124m", train__batch_size=8)
    whole = footprint(c)
    for field, size in (("memory", whole.total), ("host_memory", whole.host)):
        for room, fits in ((1 + 1e-6, True), (1 - 1e-6, False)):
            made_so = machine(**{field: room * size / 0.9 / GIB})
            assert estimate(c, Layout(), made_so, "torch").fits is fits, field


def test_what_is_within_two_hundredths_is_as_fast():
    """Then the one of fewer parts and less memory is taken; beyond, the faster one."""
    c = made("gpt2-124m", train__batch_size=8)
    fast = estimate(c, Layout(data=2), machine(2), "torch")
    plain = estimate(c, Layout(), machine(), "torch")

    def slower(share: float):
        return replace(plain, seconds={"compute": fast.update * share})

    assert recommend([fast, slower(1.019)], machine(2)).layout == Layout()
    assert recommend([fast, slower(1.021)], machine(2)).layout == Layout(data=2)


def test_the_rows_of_each_device_by_hand():
    """12 rows in two micro-batches over 3: of each six rows, two and two."""
    c = load_config().changed(train__batch_size=12, train__accumulation=2)
    rows = [[list(range(12))[part] for part in rows_of(c, Layout(data=3), place)] for place in range(3)]
    assert rows == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]
    assert [list(range(12))[part] for part in rows_of(c, Layout(data=2, fsdp=3), 5)] == [[5], [11]]
