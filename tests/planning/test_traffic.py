"""What is sent between devices, against figures worked out by hand."""

from __future__ import annotations

import pytest

from coretrain.planning.memory import footprint
from coretrain.planning.traffic import traffic
from coretrain.processes.layout import Layout
from tests.support.plans import made


def test_bytes_sent_by_hand():
    c = made("gpt2-124m", train__accumulation=4)
    n = footprint(c).kinds["weights"] / 4

    def sent(zero: int):
        return sum(traffic(c.changed(parallel__zero=zero), Layout(data=8)).values()) / (n * 4 * 7 / 8)

    assert (sent(0), sent(1), sent(2), sent(3)) == pytest.approx((2, 3, 9, 12))
    assert traffic(c, Layout()) == {}


def test_tensor_parallel_sends_four_all_reduces_a_block_and_two_at_the_ends():
    """In bfloat16, but for the embedding's: the learned position is added to it before it is cast."""
    c = made("gpt2-124m", execution__checkpoint_activations="none")
    tokens, d = 512 * 1024, 768
    assert traffic(c, Layout(tensor=4)) == {"tensor": ((12 * 4 + 1) * 2 + 4) * (2 * 3 / 4) * tokens * d}


def test_stages_pass_on_activations_and_sum_a_tied_head():
    c = made("gpt2-124m", train__accumulation=8)
    head, tokens = 50304 * 768 * 4, 512 * 1024 * 768 * 2
    assert traffic(c, Layout(pipeline=2)) == {"gradients": head, "pipeline": tokens}
    assert traffic(c, Layout(pipeline=4)) == {"gradients": head, "pipeline": 2 * tokens}, "between, both ways"
    assert traffic(c, Layout(pipeline=4), "jax")["pipeline"] == 2 * tokens * (8 + 3) / 8, "in every tick"


def test_an_embedding_is_looked_up_by_exchange_where_it_has_more_rows_than_a_device_has_tokens():
    """llama-7b on 256 devices: what the TPU's compiler makes of it sends these all-gathers and all-to-alls to the byte
    (`pytest -m tpu_compiler`)."""
    few = {"train__accumulation": 1, "model__context": 2048}
    c, layout = made("llama-7b", train__batch_size=256, **few), Layout(fsdp=256)
    found = traffic(c, layout, "jax")
    assert found["weights"] == 26_063_953_920
    assert found["embedding"] == 33_423_360 + 255 * 2048 * 4, "both ways, and the ids of all tokens before"
    assert found["gradients"] == 255 / 256 * 4 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096 + 2 * 65 * 4096)
    many = traffic(made("llama-7b", train__batch_size=256 * 16, **few), layout, "jax")
    table = 255 / 256 * 32000 * 4096 * 4
    assert many == {"weights": found["weights"] + table, "gradients": found["gradients"] + table}


def test_an_embedding_cut_by_tensor_has_fewer_rows_to_look_in():
    """100 rows of 1,024 over 4 devices are 25,600 tokens: half of 51,200 rows, more than a quarter of them."""
    c = made("gpt2-124m", execution__vocab_multiple=1024, train__batch_size=100, train__accumulation=1)
    assert "embedding" in traffic(c, Layout(fsdp=4, tensor=2), "jax")
    assert "embedding" not in traffic(c, Layout(fsdp=4, tensor=4), "jax")


def test_devices_that_share_tokens_sum_their_gradients():
    c = made("gpt2-124m")
    shared = traffic(c, Layout(context=4), "jax")
    assert shared["gradients"] == traffic(c, Layout(data=4), "jax")["gradients"]
    assert shared["context"] > 0
