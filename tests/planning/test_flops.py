"""The budget against figures worked out by hand, from papers, and against arrays that are really made."""

from __future__ import annotations

import pytest

from coretrain.config.load import load_config, presets
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import initial_parameters, parameter_table
from coretrain.planning.accelerators import accelerators
from coretrain.planning.flops import (
    batch_sentence,
    flops_per_token,
    forward_flops_per_token,
    hours,
    matmul_parameters,
    money,
    parameter_count,
    rate_sentence,
    run_flops,
    stated_peak,
    summary,
    update_flops_per_token,
)
from coretrain.planning.memory import footprint


def made(name: str = "gpt2-124m", **more: object) -> RunConfig:
    given = {"model.vocab": 50257} if name.startswith(("gpt2", "course", "tiny", "sort", "continue-tiny")) else {}
    given |= {key.replace("__", "."): value for key, value in more.items()}
    return load_config(name, [(key, str(value)) for key, value in given.items()])


def parameter_kinds(model: ModelConfig) -> dict[str, int]:
    """Parameters by kind; their sum is `parameter_count`. A tied head has none of its own."""
    kinds = {"token embedding": 0, "position embedding": 0, "attention": 0, "mlp": 0, "norms": 0, "head": 0, "score": 0}
    for row in parameter_table(model):
        part = row.name.split(".")[2 if row.layer is not None else 0]
        kind = "norms" if part.startswith("norm") else part
        kinds[f"{row.name.split('.')[1]} embedding" if part == "embed" else kind] += row.size
    return kinds


def test_kinds_of_gpt2_by_hand():
    d, layers = 768, 12
    assert parameter_kinds(made().model) == {
        "token embedding": 50257 * d,
        "position embedding": 1024 * d,
        "attention": layers * (4 * d * d + 4 * d),
        "mlp": layers * (8 * d * d + 5 * d),
        "norms": (2 * layers + 1) * 2 * d,
        "head": 0,
        "score": 0,
    }
    assert parameter_kinds(made(model__tied="false").model)["head"] == 50257 * d


@pytest.mark.parametrize("name", presets())
def test_kinds_add_up(name):
    model = made(name).model
    kinds = parameter_kinds(model)
    assert sum(kinds.values()) == parameter_count(model)
    assert (kinds["head"] == 0) == model.tied
    assert (kinds["position embedding"] == 0) == (model.position == "rope")


def test_matmul_parameters_count_the_head_once_tied_or_not():
    tied, untied = made().model, made(model__tied="false").model
    assert matmul_parameters(tied) == matmul_parameters(untied) == 12 * 12 * 768 * 768 + 50257 * 768
    grouped = made("llama-1b").model
    d, f, kv = 2048, 8192, 512
    assert matmul_parameters(grouped) == 16 * (2 * d * d + 2 * d * kv + 3 * d * f) + 128256 * d


def test_flops_by_hand():
    model = made().model
    n, attention = 12 * 12 * 768 * 768 + 50257 * 768, 12 * 12 * 768 * 1024
    assert flops_per_token(model) == 6 * n + attention
    assert flops_per_token(model, halve_causal=True) == 6 * n + attention / 2
    assert flops_per_token(model, 512) == 6 * n + attention / 2
    assert forward_flops_per_token(model) * 3 == flops_per_token(model)
    wide = made(model__head_width=128).model  # heads x head width is then not the width
    assert flops_per_token(wide) - 6 * matmul_parameters(wide) == 12 * 12 * (12 * 128) * 1024


def test_flops_follow_the_matmuls_that_a_forward_pass_makes():
    # counted independently, matmul by matmul: 2 x m x k x n each
    m, t = made("llama-1b").model, 2048
    heads, kv = m.heads * m.head, m.kv * m.head
    block = 2 * t * m.width * (heads + 2 * kv) + 2 * t * heads * m.width + 3 * 2 * t * m.width * m.hidden
    scores = m.heads * (2 * t * m.head * t) * 2
    assert forward_flops_per_token(m, t) * t == m.layers * (block + scores) + 2 * t * m.width * m.vocabulary


def test_the_largest_model_costs_what_its_makers_say():
    # "3.8 x 10^25 FLOPs" over 15.6T tokens (Llama 3 report); here 15.0T tokens and attention counted too
    assert run_flops(made("llama-405b")) == pytest.approx(3.8e25, rel=0.05)


def test_frozen_matrices_have_no_gradients_to_compute():
    """An adapter's run: forward and the gradients of activations; its own six FLOPs a number."""
    c = made(adapter__kind="lora", adapter__rank="4", adapter__targets="blocks.*.attention.q.weight")
    n, own = matmul_parameters(c.model), 12 * 4 * (768 + 768)
    attention = flops_per_token(c.model) - 6 * n
    assert update_flops_per_token(c) == 4 * n + 6 * own + attention
    assert "4N + 6 x the adapter's" in dict(summary(c))["FLOPs"]


def test_hours_and_money():
    c = made(train__updates=1000)
    assert run_flops(c) == flops_per_token(c.model) * 1000 * 512 * 1024
    assert hours(c, 1e15) == run_flops(c) / 3.6e18
    assert money(c, 1e15, 2.5) == 2.5 * hours(c, 1e15)
    longer = made(train__updates=2000)
    assert hours(longer, 1e15) == 2 * hours(c, 1e15)
    split = made(train__updates=1000, train__accumulation=64)
    assert run_flops(split) == run_flops(c)


def test_state_memory_is_that_of_the_arrays():
    c = made("tiny", model__vocab=320)  # no row of padding
    size = sum(value.nbytes for value in initial_parameters(c.model, 0).values())
    memory = footprint(c).kinds
    assert (memory["weights"], memory["moments"]) == (size, 2 * size)
    double = footprint(made("tiny", model__vocab=320, precision__compute="float64")).kinds
    assert (double["weights"], double["moments"]) == (2 * size, 4 * size)
    split = footprint(made("tiny", model__vocab=320, train__accumulation=4)).kinds
    assert split["gradients"] == size + 320 * 192 * 4  # those summed so far, and the head's of this micro-batch


def test_activations_follow_policy_and_micro_batch():
    none, matmuls, full = (
        footprint(made(execution__checkpoint_activations=policy)).kinds["activations"]
        for policy in ("none", "matmuls", "full")
    )
    assert none > 1.5 * matmuls > 3 * full
    half = footprint(made(train__accumulation=16))
    assert half.kinds["activations"] == none / 2
    # blocks kept whole under `full`: one width of each block
    one, two = (
        footprint(made(execution__checkpoint_activations="full", model__layers=n)).kinds["activations"]
        for n in (12, 13)
    )
    assert two - one == 64 * 1024 * 768 * 2


def test_logits_are_a_chunk_at_a_time():
    # many micro-batches, recomputed: the loss is where the peak is
    few = {"execution__checkpoint_activations": "full", "train__accumulation": 64}
    small, large = (footprint(made(execution__loss_chunk=n, **few)).kinds["logits"] for n in (1024, 2048))
    # bfloat16: the buffer, its float32 form, and what is left of the chunk before
    assert large == 2 * small == 2048 * 50304 * (2 + 4 + 4 + 2)
    single = footprint(made(execution__loss_chunk=8192, precision__compute="float32", **few))
    assert single.kinds["logits"] == 8192 * 50304 * 4


def test_the_batch_in_words():
    c = made("tiny")
    assert batch_sentence(c) == (
        "8 rows x 128 tokens = 1,024 tokens an update (1 micro-batch of 8 rows); 800 updates = 819,200 tokens"
    )
    more = made("tiny", train__accumulation=8)
    assert "(8 micro-batches of 1 row);" in batch_sentence(more)
    assert batch_sentence(c, 1_638_400).endswith("819,200 tokens, 0.50 epochs of 1,638,400")


def test_a_policys_batch_in_words():
    """100 rollouts of 128 answers, 8 to a prompt: 1,600 prompts are asked."""
    c = made("tiny", train__batch_size=32).changed(train__objective="grpo", align__minibatches=4, align__epochs=2)
    assert batch_sentence(c, prompts=3200).endswith("; 100 rollouts of 128 answers to 16 prompts, 0.50 epochs of 3,200")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "0.0015 after 100 updates of warm-up, cosine to 5e-05 at update 800"),
        ({"train__updates": 10}, "0.0015 after 1 update of warm-up, cosine to 5e-05 at update 10"),
        ({"schedule__kind": "constant"}, "0.0015 after 100 updates of warm-up"),
        (
            {"schedule__kind": "wsd", "schedule__horizon": 2000},
            "0.0015 after 100 updates of warm-up, wsd to 5e-05 at update 2,000 over the last 20%",
        ),
    ],
)
def test_the_learning_rate_in_words(fields, words):
    assert rate_sentence(made("tiny", **fields)) == words


def test_the_summary_shows_what_is_computed():
    rows = dict(summary(made()))
    assert rows["parameters"].startswith("124,439,808 in 196 tensors")
    assert rows["parameters"].endswith(f"{124_439_808 - (50257 + 1024) * 768:,} outside the embeddings")
    decayed = 124_439_808 - 12 * 13 * 768 - 2 * 768  # all but biases and gains
    assert f"{decayed:,}" in rows["weight decay"]
    assert f"{flops_per_token(made().model):.3g} a token" in rows["FLOPs"]


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("Tesla T4", None),
        ("NVIDIA T400", None),
        ("prototype XL4", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA RTX A1000", None),
        ("cpu", None),
        ("mps", None),
        ("", None),
    ],
)
def test_stated_peaks(device, tflops):
    peak, source = stated_peak(device, made(precision__compute="bfloat16"))
    assert peak == (tflops and tflops * 1e12)
    assert ("bfloat16 peak of" in source) == (tflops is not None)
    assert tflops or "execution.peak_tflops" in source


def test_a_peak_is_of_its_dtype_or_given():
    assert stated_peak("Tesla T4", made(precision__compute="float16")) == (65e12, "dense float16 peak of T4")
    assert stated_peak("NVIDIA H100", made(precision__compute="float32"))[0] is None
    given = made(precision__compute="float32", execution__peak_tflops=0.2)
    assert stated_peak("cpu", given) == (2e11, "execution.peak_tflops")
    assert all(20 < found.tflops < 5000 for found in accelerators().values())
