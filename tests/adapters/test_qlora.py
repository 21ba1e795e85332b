"""A frozen base in few bits below adapters: what is refused, what is held and what is kept, and where it goes."""

from __future__ import annotations

import functools
import gc
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import coretrain.runs.base
import jaxtrain.adapters
import jaxtrain.quantized
import torchtrain.adapters
import torchtrain.quantized
from coretrain.adapters.targets import initial_adapter, trainable_parameters
from coretrain.base.errors import UserError
from coretrain.checkpoint.interchange import load_interchange, newest_interchange, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.contract.parameters import initial_parameters, parameter_table
from coretrain.contract.quantization import (
    KINDS,
    as_held,
    forms,
    held_bytes,
    quantize,
    quantized_parameters,
)
from coretrain.contract.sampling import Sampling
from coretrain.planning.memory import footprint
from coretrain.runs.adapted import (
    adapter_summary,
    merge_run,
    open_adapters,
    with_base,
)
from coretrain.training.command_line import Command
from coretrain.training.resolve import completed
from jaxtrain.objective import cross_entropy_loss
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.batches import random_text
from tests.support.refusal import refused
from torchtrain.trainer import Trainer as TorchTrainer

QLORA = {"adapter__kind": "lora", "adapter__rank": 4, "adapter__quantize": "nf4"}
GREEDY = Sampling(0.0, 0, 1.0, 0)
MAKERS = pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])


def test_what_is_refused_is_named(small_config):
    with refused("config/quantized-without-adapter", "adapter.quantize = nf4"):
        small_config(adapter__quantize="nf4")
    whole = (
        r"blocks\.0\.attention\.q\.weight has {} numbers, and {} takes whole blocks of {}: set adapter\.quantize = {}"
    )
    for width, kind, words in ((36, "nf4", ("1,296", "nf4", 64, "none")), (24, "int8", ("576", "int8", 128, "nf4, "))):
        config = small_config(**QLORA | {"adapter__quantize": kind}, model__width=width)
        for make in (quantized_parameters, TorchTrainer, JaxTrainer):
            with pytest.raises(UserError, match=whole.format(*words)):
                make(config)


def test_bytes_and_the_headers_line(small_config):
    given = np.random.default_rng(0).standard_normal((96, 256))
    for kind in KINDS:
        arrays = quantize(given, kind).arrays
        assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == forms(kind, given.size)
        assert sum(array.nbytes for array in arrays.values()) == held_bytes(kind, given.size)
    config = small_config(**QLORA | {"adapter__quantize": "int8"})
    assert dict(adapter_summary(config))["quantized"] == (
        "12 matrices of the blocks, int8: 8.25 bits a weight, 0.0253 MB in place of 0.0983; the rest whole, 0.0196 MB"
    )
    assert "quantized" not in dict(adapter_summary(small_config(adapter__kind="lora")))


def test_the_footprint_is_that_of_the_arrays(small_config):
    config = small_config(**QLORA, model__vocab=128)  # no row of padding
    model, kinds = TorchTrainer(config).model, footprint(config).kinds
    held = [*model.parameters(), *model.buffers()]
    assert kinds["weights"] == sum(x.numel() * x.element_size() for x in held)
    assert kinds["moments"] == 2 * sum(4 * row.size for row in trainable_parameters(config))


class Counted(Mapping):
    """Tensors that are read one at a time, and know how often each was, and how many of some are alive."""

    def __init__(self, tensors, watched):
        self.tensors, self.watched = tensors, watched
        self.alive, self.most, self.read = 0, 0, Counter()

    def __getitem__(self, name):
        value = np.array(self.tensors[name])
        self.read[name] += 1
        if name in self.watched:
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(value, self._gone)
        return value

    def _gone(self):
        self.alive -= 1

    def __contains__(self, name):
        return name in self.tensors

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


@pytest.fixture
def counted(monkeypatch):
    """Counts what is read of the next base that is opened: a function of what it watches."""

    def watch(config):
        bases = []

        def load(folder):
            loaded = load_interchange(folder)
            bases.append(Counted(loaded.groups["parameters"], {row.name for row in quantized_parameters(config)}))
            return replace(loaded, groups={"parameters": bases[-1]})

        monkeypatch.setattr(coretrain.runs.base, "load_interchange", load)
        return bases

    return watch


def write_run(folder, config, tensors):
    where = folder / "interchange" / "update-00000000"
    save_interchange(where, config, {"parameters": tensors}, Progress(), "import")
    (folder / "config.json").write_text(config.to_json())


@MAKERS
def test_a_base_is_taken_over_one_tensor_at_a_time(small_config, tmp_path, make, counted):
    """The last one read may live until the next takes its name; none is read twice but for the fingerprint, and none
    stays.
    """
    write_run(tmp_path / "base", small_config(), initial_parameters(small_config().model, 1))
    config = small_config(**QLORA, adapter__base=tmp_path / "base")
    bases = counted(config)
    config, tensors = with_base(config)
    base = bases.pop()
    assert not bases
    assert set(base.read.values()) == {1}
    stack = make(config, tensors)
    gc.collect()
    assert base.alive == 0
    assert set(base.read.values()) == {2}
    assert base.read.keys() == {row.name for row in parameter_table(config.model)}
    assert base.most <= 2
    held = list(stack.model.parameters()) if make is TorchTrainer else jax.tree.leaves((stack.params, stack.frozen))
    sizes = {row.size for row in quantized_parameters(config)}
    assert not [x.shape for x in held if np.prod(x.shape) / (1 if make is TorchTrainer else 2) in sizes and x.ndim > 2]
    assert set(stack.export()["parameters"]) == {row.name for row in trainable_parameters(config)}


def test_several_adapters_and_a_merge_read_their_base_once(small_config, tmp_path, counted):
    """Once for its fingerprint, and a merge once more."""
    write_run(tmp_path / "base", small_config(), initial_parameters(small_config().model, 1))
    config, _ = with_base(small_config(**QLORA, adapter__base=tmp_path / "base"))
    for name in ("one", "two"):
        write_run(tmp_path / name, config, initial_adapter(config))
    bases = counted(config)
    open_adapters([tmp_path / "one", tmp_path / "two"], tmp_path / "base", print)
    assert [set(base.read.values()) for base in bases] == [{1}]
    merge_run(tmp_path / "one", tmp_path / "merged")
    assert set(bases[1].read.values()) == {2}


WIDE = {"model__layers": 3, "model__width": 128, "model__context": 8, "model__vocab": 200, "adapter__rank": 2}


# of a vocabulary whose embedding isn't as large as a matrix


@pytest.mark.parametrize("policy", ["none", "matmuls", "full"])
def test_torch_keeps_no_dequantized_weight(small_config, policy):
    """What autograd keeps of a forward pass; of a recomputed block it keeps the input alone."""
    config = small_config(**QLORA | WIDE, execution__checkpoint_activations=policy)
    stack, batch = TorchTrainer(config), random_text(config, 2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append((x.numel(), x.dtype)) or x, lambda x: x):
        stack.gradients(batch, 0, 1.0)
    matrices = {row.size for row in quantized_parameters(config)}
    assert not [size for size, dtype in kept if dtype.is_floating_point and size in matrices]
    assert policy != "none" or [size for size, dtype in kept if dtype == torch.uint8]
    plain = TorchTrainer(small_config(adapter__kind="lora", **WIDE, precision__compute="bfloat16"))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append((x.numel(), x.dtype)) or x, lambda x: x):
        plain.gradients(batch, 0, 1.0)
    assert [size for size, dtype in kept if dtype.is_floating_point and size in matrices], "or this test shows nothing"


class KnownInTorch(torch.autograd.Function):
    """x W^T of a weight in bytes, made anew for the backward pass, and known before x."""

    @staticmethod
    def forward(ctx, x, kind, shape, *arrays):
        ctx.save_for_backward(*arrays)
        ctx.kind, ctx.shape = kind, shape
        return x @ torchtrain.quantized.dequantize(torchtrain.quantized.Packed(kind, shape, *arrays), x.dtype).T

    @staticmethod
    def backward(ctx, upstream):
        weight = torchtrain.quantized.Packed(ctx.kind, ctx.shape, *ctx.saved_tensors)
        return (upstream @ torchtrain.quantized.dequantize(weight, upstream.dtype), *(None,) * 6)


def test_compiled_torch_keeps_no_dequantized_weight():
    """The compiler's own partition of forward and backward; it keeps the weight where it can know it beforehand."""

    def kept(product) -> list[torch.dtype]:
        torch._dynamo.reset()
        found = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: found.append((x.numel(), x.dtype)) or x, lambda x: x)
        with hooks:
            y = torch.compile(lambda x: product(x).relu(), backend="aot_eager_decomp_partition", fullgraph=True)(x)
        y.sum().backward()
        return [dtype for size, dtype in found if size == 128 * 64 and dtype != torch.bool]

    held, x = torchtrain.quantized.QuantizedWeight("nf4", (128, 64)), torch.randn(3, 5, 64, requires_grad=True)
    weight = quantize(np.random.default_rng(0).standard_normal((128, 64)), "nf4")
    for name, array in weight.arrays.items():
        setattr(held, name, torch.from_numpy(array))
    held(x).relu().sum().backward()
    eager, x.grad = x.grad, None
    assert not kept(held)
    torch.testing.assert_close(x.grad, eager, rtol=0, atol=0)
    assert torch.float32 in kept(lambda x: KnownInTorch.apply(x, *vars(held.packed).values())), "or it shows nothing"


def test_torch_compiles_few_programs_for_all_layers(small_config, monkeypatch):
    """The compiler's own count: one, and one for the first layer, under which nothing trains; none in an evaluation."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = small_config(**QLORA | WIDE | {"model__layers": 4}, execution__compile="on")
    stack, batch = TorchTrainer(config), random_text(config, 2)
    stack.evaluate(batch)
    assert not torch._dynamo.utils.counters["stats"]
    stack.gradients(batch, 0, 1.0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("way", ["none", "full", "matmuls"])
def test_jax_keeps_no_dequantized_weight(small_config, way):
    """Residuals of a scan over layers: all that the backward pass is handed."""
    config = small_config(**QLORA | WIDE, execution__scan_layers="true", execution__checkpoint_activations=way)
    stack, batch = JaxTrainer(config), random_text(config, 2)

    def loss(params):
        model = nnx.merge(stack.programs.graph, jaxtrain.adapters.combine(params, stack.frozen))
        return cross_entropy_loss(model, config, batch, np.float32(1))

    residuals = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], stack.params))
    matrices = {row.size for row in quantized_parameters(config)}
    stacked = matrices | {config.model.layers * size for size in matrices}
    assert not [x.shape for x in residuals if x.size in stacked and np.issubdtype(x.dtype, np.floating)]
    assert [x.shape for x in residuals if x.dtype == np.uint8]


@jax.custom_vjp
def known_in_jax(x, weight):
    """x W^T of a weight in bytes, made anew for the backward pass, and known before x."""
    return x @ jaxtrain.quantized.dequantize(weight, x.dtype).T


known_in_jax.defvjp(
    lambda x, weight: (known_in_jax(x, weight), weight),
    lambda weight, upstream: (upstream @ jaxtrain.quantized.dequantize(weight, upstream.dtype), None),
)


def test_compiled_jax_keeps_no_dequantized_weight():
    """Unrolled, in micro-batches: a compiler that knows the weights makes them once and keeps them.

    Scratch measured: 0.28 of the matrices' bytes in float32, and 1.01 where it knows them.
    """
    rng, count = np.random.default_rng(0), 4
    weights = [jaxtrain.quantized.packed(quantize(rng.standard_normal((256, 256)), "nf4")) for _ in range(count)]
    held = jaxtrain.quantized.QuantizedWeight("nf4", (256, 256), ())

    def product(x, weight):
        module = nnx.clone(held)
        for name in held.names:
            setattr(module, name, nnx.Variable(getattr(weight, name)))
        return module(x)

    def scratch(product) -> float:
        def loss(x, weights):
            for weight in weights:
                x = jax.numpy.tanh(product(x, weight))
            return x.sum()

        def both(xs, weights):
            return jax.lax.map(lambda x: jax.grad(loss)(x, weights), xs)

        compiled = jax.jit(both).lower(np.ones((3, 2, 256), np.float32), weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (count * 256 * 256 * 4)

    assert scratch(product) < 0.6
    assert scratch(known_in_jax) > 0.95, "or this test shows nothing"


@pytest.mark.whole
def test_a_run_goes_on_in_the_other_stack_and_is_merged(small_config, tmp_path):
    """Train, go on in the other stack, generate in both, merge: the merged weights compute what the run did."""
    plain, base, lora = small_config(), tmp_path / "base", tmp_path / "lora"
    weights = initial_parameters(plain.model, 5)
    write_run(base, plain, weights)
    config = small_config(**QLORA, adapter__base=base, execution__scan_layers="true")
    config, tensors = with_base(completed(Command(config, None, None, (("adapter.base", str(base)),))).config)
    batch = random_text(config)
    stacks = [make(config, tensors) for make in (TorchTrainer, JaxTrainer)]
    for update in range(4):
        for stack in stacks:
            stack.gradients(batch, update, 1.0)
            stack.apply(0.03, 1.0, update)
        if update == 1:
            states = [stack.export() for stack in stacks]
            for stack, other in zip(stacks, reversed(states), strict=True):
                stack.adopt(other, 2)
    losses = [stack.evaluate(batch) for stack in stacks]
    # rounding in float32; the last assertion says how much further off the base alone is
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    texts = [stack.generate([[1, 2, 3], [4]], 4, GREEDY, ()) for stack in stacks]
    assert texts[0] == texts[1]
    save_interchange(lora / "interchange" / "update-00000004", config, stacks[0].export(), Progress(update=4), "torch")
    (lora / "config.json").write_text(config.to_json())
    merge_run(lora, tmp_path / "merged")
    merged = load_interchange(newest_interchange(tmp_path / "merged"))
    whole = TorchTrainer(merged.config, merged.groups["parameters"])
    assert whole.evaluate(batch) == pytest.approx(losses[0], rel=1e-5)
    bare = as_held(config, weights)
    assert [name for name in weights if not np.array_equal(bare[name], weights[name])] == [
        row.name for row in parameter_table(config.model) if row in quantized_parameters(config)
    ]
    untouched = TorchTrainer(plain, bare).evaluate(batch)
    assert abs(untouched - losses[0]) > 1e-3 * losses[0], "the adapter must have learned something"


@MAKERS
def test_adapters_are_switched_on_a_quantized_base_and_not_merged_there(small_config, make):
    """Logits are those of a stack with the adapter in it, and of the base alone, in the bits that it is held in."""
    config = small_config(**QLORA)
    module = torchtrain.adapters if make is TorchTrainer else jaxtrain.adapters
    weights, rng = initial_parameters(config.model, 1), np.random.default_rng(0)
    adapter = {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in initial_adapter(config).items()}
    tokens = random_text(config).tokens

    def logits(model):
        with torch.no_grad():
            found = model.logits(model(torch.from_numpy(tokens).long() if make is TorchTrainer else tokens))
        return np.asarray(found)

    beside, model = logits(make(config, weights | adapter).whole_model()), make(config, weights).whole_model()
    bare = logits(model)
    bank = module.Adapters(config, model)
    bank.add(config, adapter)
    for name, wanted in (("default", beside), (None, bare), ("default", beside)):
        bank.switch(name)
        # the same products of the same numbers; the adapter changes them by 1.0 of their norm
        assert np.linalg.norm(logits(model) - wanted) < 1e-6 * np.linalg.norm(wanted)
    assert np.linalg.norm(beside - bare) > 0.5 * np.linalg.norm(bare)
    with refused("adapters/merge-into-quantized", "nf4"):
        bank.merge()
    assert bank.active == "default"
    assert not bank.merged
