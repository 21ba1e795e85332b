"""Adapters figure by figure: how each kind starts, the keys of its dropout, what it adds, how a base is known again."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from coretrain.adapters.kinds import directed, magnitudes
from coretrain.adapters.merge import FREE, added, fingerprint, merged, other_field
from coretrain.adapters.targets import (
    adapter_keys,
    adapter_targets,
    initial_adapter,
    run_keys,
    run_uses_dropout,
    trainable_parameters,
)
from coretrain.config.load import load_config
from coretrain.config.model import ModelConfig, RopeScaling
from coretrain.config.run import RunConfig
from coretrain.contract.dropout import dropout_keys
from coretrain.contract.parameters import initial_parameters
from tests.support.refusal import refused

MODEL = ModelConfig(layers=2, width=48, heads=3, context=16, vocab=300, tied=False)


def made(**more: object) -> RunConfig:
    fields = {f"adapter__{name}": value for name, value in more.items()}
    return load_config().changed(model=MODEL, **{"adapter__kind": "lora", **fields})


def deviation(value: np.ndarray, expected: float) -> None:
    """Within five standard errors of a deviation."""
    assert value.std(dtype=np.float64) == pytest.approx(expected, rel=5 / math.sqrt(2 * value.size))


def test_lora_starts_as_in_peft():
    """kaiming_uniform(a = sqrt 5) ends at 1 / sqrt(in), whose deviation is 1 / sqrt(3 in); B is zero. Of an embedding
    A is zero, and B normal with deviation 1."""
    config = made(rank=16, targets=("blocks.*.weight", "embed.token", "head.weight"))
    start = initial_adapter(config)
    for target in adapter_targets(config):
        a, b = start[target.a.name], start[target.b.name]
        if target.embedding:
            assert (a.shape, b.shape) == ((16, 300), (48, 16))
            assert not a.any()
            deviation(b, 1.0)
            assert np.abs(b).max() > 2
        else:
            into = target.row.shape[1]
            assert (a.shape, b.shape) == ((16, into), (target.row.shape[0], 16))
            assert not b.any()
            assert 0.95 / math.sqrt(into) < np.abs(a).max() <= 1 / math.sqrt(into)
            deviation(a, 1 / math.sqrt(3 * into))


def test_prefixes_and_bottlenecks_start_by_hand():
    """Keys and values as torch's Embedding, with deviation 1; down as the model's matrices, up as nothing."""
    prefix = initial_adapter(made(kind="prefix", virtual_tokens=16))
    assert {name.rsplit(".", 1)[1]: value.shape for name, value in prefix.items()} == {"k": (16, 48), "v": (16, 48)}
    for value in prefix.values():
        deviation(value, 1.0)
    with refused("adapters/too-many-virtual-tokens", "17", "16"):
        initial_adapter(made(kind="prefix", virtual_tokens=17))
    bottleneck = initial_adapter(made(kind="bottleneck", bottleneck_width=20))
    assert len(bottleneck) == 2 * 2 * 4
    for name, value in bottleneck.items():
        part = name.rsplit(".", 1)[1]
        assert value.shape == {"down": (20, 48), "down_bias": (20,), "up": (48, 20), "up_bias": (48,)}[part]
        assert value.any() == (part == "down"), name
        if part == "down":
            deviation(value, 0.02)


def test_a_rank_may_be_as_large_as_the_smaller_side():
    for rank in (1, 48):
        assert adapter_targets(made(rank=rank))[0].a.shape == (rank, 48)
    with refused("adapters/adapter-rank-too-large", "49", "48"):
        adapter_targets(made(rank=49))


def key(seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little") & 0xFFFFFFFF


def test_keys_of_an_adapters_dropout_by_hand():
    """ "SEED:dropout/UPDATE/adapter/PLACE", block by block and the head last, behind the model's own."""
    config = made(dropout=0.1)
    parts = ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.gate", "mlp.up", "mlp.down")
    places = [f"blocks.{layer}.{part}" for layer in range(2) for part in parts] + ["head"]
    expected = [key(1337, f"dropout/41/adapter/{place}") for place in places]
    assert adapter_keys(config, 41).tolist() == expected
    own = dropout_keys(MODEL, 1337, 41).tolist()
    assert run_keys(config, 41).tolist() == own + expected
    assert run_keys(made(dropout=0.0), 41).tolist() == own
    assert run_keys(made(dropout=0.1, kind="none"), 41).tolist() == own
    rates = [made(dropout=0.1), made(), made(kind="none", dropout=0.1), made(kind="none")]
    assert [run_uses_dropout(config) for config in rates] == [True, False, False, False]
    assert run_uses_dropout(made().changed(model=MODEL.model_copy(update={"embedding_dropout": 0.1})))


@pytest.mark.parametrize("place", ["attention.q", "mlp.gate", "mlp.up", "mlp.down"])
def test_a_targets_site_is_its_parts_place(place):
    llama = MODEL.model_copy(update={"mlp": "swiglu"})
    config = made(targets=(f"blocks.*.{place}.weight",)).changed(model=llama)
    assert [target.part for target in adapter_targets(config)] == [
        {"attention.q": 0, "mlp.gate": 4, "mlp.up": 5, "mlp.down": 6}[place]
    ] * 2
    assert [target.part for target in adapter_targets(made(targets=("head.weight",)))] == [-1]


def test_magnitudes_and_directions_by_hand():
    """Rows 3-4-5 and nothing; of an embedding the columns. W + delta = (0 8), of length 8, is brought to 2.5 and 0."""
    weight = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert magnitudes(weight, False).tolist() == [5.0, 0.0]
    assert magnitudes(weight, True).tolist() == [3.0, 4.0]
    delta = np.array([[-3.0, 4.0], [0.0, 7.0]])
    assert directed(weight, delta, np.array([2.5, 1.0]), False).tolist() == [[-3.0, -1.5], [0.0, 1.0]]
    # a magnitude of 0 leaves its row as it is moved, and a row that ends at nothing stays there
    assert directed(weight, delta, np.array([2.5, 0.0]), False).tolist() == [[-3.0, -1.5], [0.0, 7.0]]
    assert directed(weight, -weight, np.array([2.5, 1.0]), False).tolist() == (-weight).tolist()
    # columns (0 0) and (8 7): the second is brought to half its length
    found = directed(weight, delta, np.array([9.0, math.sqrt(113) / 2]), True)
    np.testing.assert_allclose(found, [[-3.0, 0.0], [0.0, 3.5]], atol=1e-15)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 3.0), (True, 6.0)])
def test_what_lora_adds_by_hand(rslora, scale):
    """alpha 12, rank 4: three times B A, or six times; of an embedding its transpose. In the base's dtype, once."""
    config = made(rank=4, alpha=12.0, rslora=rslora, targets=("embed.token", "blocks.1.attention.k.weight"))
    draw = np.random.default_rng(0)
    tensors = {row.name: draw.standard_normal(row.shape).astype(np.float32) for row in trainable_parameters(config)}
    found = added(config, tensors, {})
    assert set(found) == {"embed.token", "blocks.1.attention.k.weight"}
    for target in adapter_targets(config):
        product = tensors[target.b.name].astype(float) @ tensors[target.a.name].astype(float)
        delta = scale * (product.T if target.embedding else product)
        np.testing.assert_allclose(found[target.row.name], delta, rtol=1e-13)
        base = initial_parameters(MODEL, 0)
        wide = base[target.row.name].astype(np.float64) + found[target.row.name]
        assert np.array_equal(merged(config, base, tensors)[target.row.name], wide.astype(np.float32))


def test_a_fingerprint_by_hand():
    """Names, dtypes, shapes and bytes in the table's order; each of them is in it."""
    config = made().changed(model=ModelConfig(layers=1, width=4, heads=1, context=2, vocab=3, bias=False))
    tensors = initial_parameters(config.model, 5)
    digest = hashlib.blake2b(digest_size=16)
    for name, value in tensors.items():
        digest.update(f"{name} float32 {value.shape}\n".encode() + value.tobytes())
    assert fingerprint(config, tensors) == digest.hexdigest()
    flat = tensors["blocks.0.mlp.up.weight"]
    others = [
        tensors | {"norm.weight": np.array([1, 1, 1, np.nextafter(np.float32(1), np.float32(2))])},
        tensors | {"norm.weight": tensors["norm.weight"].view(np.int32)},
        tensors | {"blocks.0.mlp.up.weight": flat.reshape(flat.shape[::-1])},
    ]
    assert len({fingerprint(config, one) for one in [tensors, *others]}) == 4


CHANGED = {
    "layers": 3, "width": 96, "heads": 6, "kv_heads": 1, "head_width": 8, "mlp_width": 7, "context": 8, "vocab": 301,
    "norm": "rmsnorm", "norm_eps": 1e-6, "position": "rope", "rope_theta": 5e5,
    "rope_scaling": RopeScaling(type="linear", factor=2.0), "mlp": "swiglu", "bias": False, "tied": True,
    "score_head": True, "init_std": 0.03, "residual_dropout": 0.1, "embedding_dropout": 0.1,
}  # fmt: skip


def test_every_field_of_a_base_counts_but_dropout_context_and_a_score_head():
    assert set(CHANGED) == set(ModelConfig.model_fields)
    assert set(FREE) == {"residual_dropout", "embedding_dropout", "context", "score_head"}
    for name, value in CHANGED.items():
        found = other_field(MODEL, MODEL.model_copy(update={name: value}))
        assert found == (None if name in FREE else name)
