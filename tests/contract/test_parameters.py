"""The parameter table: published counts, names, decay, starts, its two layouts; the contract without a framework."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest

from coretrain.config.load import load_config, presets
from coretrain.config.model import ModelConfig
from coretrain.contract.parameters import (
    check_rows,
    from_jax_tree,
    initial_parameters,
    initial_value,
    padded_vocab,
    parameter_table,
    to_jax_tree,
)
from coretrain.planning.flops import parameter_count
from tests.support.refusal import refused

PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
    "course-124m": 124_439_808,
    "llama-1b": 1_235_814_400,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-70b": 70_553_706_496,
    "llama-405b": 405_853_388_800,
    "smollm2-135m": 134_515_008,
    "continue": 134_515_008,
    "smollm2-lora": 134_515_008,
    "smollm2-dpo": 134_515_008,
    "smollm2-grpo": 134_515_008,
}
GPT2 = ModelConfig(layers=3, width=48, heads=4, context=16, vocab=101)
LLAMA = ModelConfig(
    layers=3, width=48, heads=4, kv_heads=2, head_width=10, mlp_width=80, context=16, vocab=101,
    norm="rmsnorm", position="rope", mlp="swiglu", bias=False, tied=False,
)  # fmt: skip
UNBIASED = GPT2.model_copy(update={"bias": False, "tied": False})
MODELS = pytest.mark.parametrize("model", [GPT2, LLAMA, UNBIASED], ids=["gpt2", "llama", "unbiased"])
GOLDEN = {"gpt2": "c84bbe1221edf701", "llama": "7692893e1fe73127"}
"""Changed only on purpose: every run would start from other weights."""


def test_every_preset_has_its_published_number_of_parameters():
    counts = {}
    for name in presets():
        config = load_config(name)
        counts[name] = parameter_count((config if config.model.vocab else config.with_vocab(50257)).model)
    for name in [
        "tiny",
        "continue-tiny",
        *(name for name in counts if name.startswith("sort-")),
    ]:  # of this project's own
        assert counts.pop(name) < 30_000_000
    assert counts == PUBLISHED


def test_the_formula_of_a_gpt2_block():
    # 12 D^2 + 13 D: four D x D with biases, two D x 4D with biases, two norms
    d = GPT2.width
    assert sum(row.size for row in parameter_table(GPT2) if row.layer == 1) == 12 * d * d + 13 * d


@MODELS
def test_rows_are_consistent(model):
    table = parameter_table(model)
    names = [row.name for row in table]
    assert len(set(names)) == len(names)
    assert len({(row.jax_path, row.layer) for row in table}) == len(table)
    for row in table:
        assert len(row.axes) == len(row.shape)
        assert row.decay == (len(row.shape) == 2), row.name  # matrices and embeddings; never biases or gains
        assert row.transposed == (len(row.shape) == 2 and row.layer is not None), row.name
        assert (row.std > 0) == (row.init == "normal"), row.name
        assert (row.layer is not None) == row.name.startswith("blocks."), row.name
        assert row.name.startswith(f"blocks.{row.layer}.") or row.layer is None
        sizes = {"vocab": 101, "position": 16, "width": 48, "hidden": model.hidden,
                 "heads": model.heads * model.head, "kv_heads": model.kv * model.head}  # fmt: skip
        assert row.shape == tuple(sizes[axis] for axis in row.axes), row.name


def test_the_switches_decide_what_is_there():
    def kinds(model: ModelConfig) -> set[str]:
        return {row.name.replace("blocks.0.", "") for row in parameter_table(model) if row.layer in (None, 0)}

    matrices = {f"attention.{part}.weight" for part in ("q", "k", "v", "out")} | {"mlp.up.weight", "mlp.down.weight"}
    norms = {"norm1.weight", "norm2.weight", "norm.weight"}
    biases = {name.replace("weight", "bias") for name in matrices | norms}
    assert kinds(GPT2) == matrices | norms | biases | {"embed.token", "embed.position"}
    assert kinds(UNBIASED) == matrices | norms | {"embed.token", "embed.position", "head.weight"}
    assert kinds(LLAMA) == matrices | norms | {"embed.token", "head.weight", "mlp.gate.weight"}
    biased = kinds(LLAMA.model_copy(update={"bias": True}))  # RMSNorm has no bias
    assert biased - kinds(LLAMA) == {n.replace("weight", "bias") for n in matrices} | {"mlp.gate.bias"}


@MODELS
def test_residual_outputs_start_smaller(model):
    for row in parameter_table(model):
        residual = row.name.endswith(("attention.out.weight", "mlp.down.weight"))
        if row.init == "normal":
            assert row.std == (0.02 / math.sqrt(2 * 3) if residual else 0.02), row.name
    value = initial_parameters(model, 1)["blocks.1.mlp.down.weight"]
    # one standard error of a std over n draws is std / sqrt(2n); five of them
    assert abs(value.std() / (0.02 / math.sqrt(6)) - 1) < 5 / math.sqrt(2 * value.size)


@MODELS
def test_starts_are_float32_whole_and_of_the_seed(model):
    first, again, other = (initial_parameters(model, seed) for seed in (4, 4, 5))
    check_rows(parameter_table(model), first, "the start")
    for row in parameter_table(model):
        value = first[row.name]
        assert value.dtype == np.float32
        assert np.array_equal(value, again[row.name])
        assert np.array_equal(value, initial_value(row, 4))
        assert np.array_equal(value, other[row.name]) == (row.init != "normal")
        if row.init != "normal":
            assert set(np.unique(value)) == {float(row.init == "ones")}
    weights = [first[row.name].ravel()[:64].tobytes() for row in parameter_table(model) if row.init == "normal"]
    assert len(set(weights)) == len(weights)  # no two parameters, of no two layers, start alike


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_no_start_has_changed(name):
    digest = hashlib.sha256()
    for key, value in initial_parameters({"gpt2": GPT2, "llama": LLAMA}[name], 1337).items():
        digest.update(key.encode() + value.tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[name]


@MODELS
@pytest.mark.parametrize("multiple", [1, 64])
def test_the_jax_layout_and_back(model, multiple):
    tensors = initial_parameters(model, 3)
    tree = to_jax_tree(model, tensors, multiple)
    table = {row.name: row for row in parameter_table(model)}
    kernel, weight = tree["blocks.attention.k.kernel"], tensors["blocks.2.attention.k.weight"]
    assert kernel.shape == (3, 48, model.kv * model.head)
    assert np.array_equal(kernel[2], weight.T)
    rows = padded_vocab(model, multiple)
    assert rows == (101 if multiple == 1 else 128)
    assert tree["embed.token"].shape == (rows, 48)
    assert not tree["embed.token"][101:].any()
    assert set(tree) == {row.jax_path for row in table.values()}
    back = from_jax_tree(parameter_table(model), tree)
    assert list(back) == list(table)
    for name, value in tensors.items():
        assert np.array_equal(back[name], value), name
        assert back[name].flags.c_contiguous
    del tree["embed.token"]
    assert set(table) - set(from_jax_tree(parameter_table(model), tree)) == {"embed.token"}


def test_how_large_one_parameter_may_be():
    """2^22 rows of 2^22 numbers are 2^44; one row more is too many."""
    model = ModelConfig(layers=1, heads=1, head_width=2, width=2**22, mlp_width=1, vocab=2**22, context=1)
    assert max(row.size for row in parameter_table(model)) == 2**44
    with refused("contract/model-too-large", "embed.token"):
        parameter_table(model.model_copy(update={"vocab": 2**22 + 1}))


def test_wrong_tensors_are_named():
    tensors = initial_parameters(GPT2, 0)
    with refused("contract/tensor-missing", "FILE", "norm.weight"):
        check_rows(parameter_table(GPT2), {k: v for k, v in tensors.items() if k != "norm.weight"}, "FILE")
    with refused("contract/tensor-missing", "embed.token"):
        check_rows(parameter_table(GPT2), {}, "FILE")
    with refused("contract/tensor-unexpected", "FILE", "head.weight"):
        check_rows(parameter_table(GPT2), tensors | {"head.weight": tensors["embed.token"]}, "FILE")
    with refused("contract/tensor-shape-wrong", "norm.weight", "47", "48"):
        check_rows(parameter_table(GPT2), tensors | {"norm.weight": np.ones(47)}, "FILE")


def test_the_contract_works_where_jax_and_torch_are_missing():
    code = """
import importlib, pkgutil, sys
BLOCKED = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "jaxtrain", "torchtrain", "parity"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
import coretrain
names = [module.name for module in pkgutil.walk_packages(coretrain.__path__, "coretrain.")]
for name in names:
    importlib.import_module(name)
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
from coretrain.config.load import load_config
from coretrain.contract.parameters import initial_parameters
from coretrain.contract.schedule import learning_rate
config = load_config().with_vocab(300)
print(len(names), len(initial_parameters(config.model, 0)), learning_rate(config, 0) > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules, tensors, positive = done.stdout.split()
    assert int(modules) > 15
    assert (int(tensors), positive) == (4 * 9 + 2, "True")
