"""Each stack's model by itself: shapes, dtypes, dropout's scale, what is refused."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxtrain.choices
import jaxtrain.layers
import jaxtrain.step
import torchtrain.layers
from coretrain.contract.parameters import initial_parameters, padded_vocab
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.batches import COUNTING
from tests.support.refusal import refused
from torchtrain.trainer import Trainer as TorchTrainer

LLAMA = {
    "model__norm": "rmsnorm",
    "model__position": "rope",
    "model__mlp": "swiglu",
    "model__kv_heads": 2,
    "model__bias": False,
    "model__tied": False,
}
BOTH = pytest.mark.parametrize("more", [{}, LLAMA], ids=["gpt2-like", "llama-like"])
TOKENS = np.arange(3 * 20, dtype=np.int32).reshape(3, 20)


@BOTH
@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16", "float64"])
def test_shapes_and_dtypes(small_config, more, compute):
    """Hidden states in the compute dtype; weights, gradients, logits and loss in at least float32."""
    config = small_config(precision__compute=compute, **more)
    wide = "float64" if compute == "float64" else "float32"
    ours, theirs = TorchTrainer(config), JaxTrainer(config)

    hidden = ours.model(torch.from_numpy(TOKENS))
    assert (hidden.shape, hidden.dtype) == ((3, 20, 32), getattr(torch, compute))
    logits = ours.model.logits(hidden)
    assert (logits.shape, logits.dtype) == ((3, 20, 101), getattr(torch, wide))
    ours.gradients(COUNTING, 0, 1.0)
    assert {p.dtype for p in ours.model.parameters()} == {getattr(torch, wide)}
    assert {p.grad.dtype for p in ours.model.parameters()} == {getattr(torch, wide)}

    model = theirs.whole_model()
    hidden = jax.eval_shape(model, TOKENS)
    chex.assert_shape(hidden, (3, 20, 32))
    chex.assert_type(hidden, jnp.dtype(compute))
    logits = jax.eval_shape(model.logits, hidden)
    chex.assert_shape(logits, (3, 20, 101))
    chex.assert_type(logits, jnp.dtype(wide))
    loss, norm, gradients = jax.eval_shape(
        theirs.programs.gradients, theirs.params, None, COUNTING, np.dtype(wide).type(1), None
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, theirs.params)
    chex.assert_type([loss, norm, *jax.tree.leaves(theirs.params)], jnp.dtype(wide))


def values_of(jaxpr):
    """Every abstract value of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from values_of(inner)


@BOTH
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_nothing_in_jax_turns_into_float64(small_config, more, compute):
    """float64 is on in this process: an array promoted by a stray numpy float would show here."""
    config = small_config(precision__compute=compute, model__residual_dropout=0.1, train__accumulation=2, **more)
    trainer = JaxTrainer(config)
    jaxpr = jax.make_jaxpr(trainer.programs.gradients)(
        trainer.params, None, COUNTING, np.float32(1), jaxtrain.step.dropout_masks(config, 0, 4)
    )
    found = [aval for aval in values_of(jaxpr.jaxpr) if getattr(aval, "dtype", None) == "float64" and aval.shape]
    assert len(list(values_of(jaxpr.jaxpr))) > 100
    assert found == []


@BOTH
def test_padding_of_the_vocabulary_is_there_and_is_not_seen(small_config, more):
    config = small_config(**more)
    assert padded_vocab(config.model, 64) == 128
    ours, theirs = TorchTrainer(config), JaxTrainer(config)
    heads = [trainer.whole_model().head_weight for trainer in (ours, theirs)]
    assert [tuple(head.shape) for head in heads] == [(128, 32), (128, 32)]
    for trainer in (ours, theirs):
        assert trainer.export()["parameters"]["embed.token"].shape == (101, 32)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean(rate):
    x = np.ones((16, 32, 64), np.float32)
    keys, rows = np.array([123], np.uint32), np.arange(16)
    ours = torchtrain.layers.Dropout(torch.from_numpy(keys.view(np.int32)), torch.from_numpy(rows.astype(np.int32)))
    theirs = jaxtrain.layers.Dropout(jnp.asarray(keys), jnp.asarray(rows))
    found = torchtrain.layers.drop(torch.from_numpy(x), rate, ours, 0).numpy()
    np.testing.assert_array_equal(found, np.asarray(jaxtrain.layers.drop(jnp.asarray(x), rate, theirs, 0)))
    # 5 standard deviations of the mean of 32,768 draws; without the division by 1 - rate the mean is 1 - rate
    assert abs(found.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / x.size)
    np.testing.assert_array_equal(torchtrain.layers.drop(torch.from_numpy(x), rate, None, 0).numpy(), x)


def test_parameters_of_another_model_are_refused(small_config):
    config = small_config()
    tensors = initial_parameters(config.model, 0)
    for make in (TorchTrainer, JaxTrainer):
        with refused("contract/tensor-missing", "the parameters", "embed.token"):
            make(config, {name: t for name, t in tensors.items() if name != "embed.token"})
        with refused("contract/tensor-shape-wrong"):
            make(config, tensors | {"norm.weight": np.zeros(5, np.float32)})
        with refused("contract/tensor-unexpected"):
            make(config, tensors | {"extra": np.zeros(5, np.float32)})


@BOTH
def test_later_tokens_change_nothing_earlier(small_config, more):
    config = small_config(**more)
    other = TOKENS.copy()
    other[:, 12:] = 100
    ours, model = (make(config).whole_model() for make in (TorchTrainer, JaxTrainer))
    for forward in (lambda t: ours(torch.from_numpy(t)).detach().numpy(), lambda t: np.asarray(model(t))):
        first, second = forward(TOKENS), forward(other)
        np.testing.assert_array_equal(first[:, :12], second[:, :12])
        assert np.abs(first[:, 12:] - second[:, 12:]).min(-1).max() > 0


@pytest.mark.parametrize(
    ("layers", "asked", "found"), [(12, None, "unrolled"), (13, None, "scanned"), (2, True, "scanned")]
)
def test_layers_are_unrolled_on_a_cpu_unless_there_are_many(small_config, layers, asked, found):
    more = {} if asked is None else {"execution__scan_layers": str(asked).lower()}
    config = small_config(model__layers=layers, **more)
    assert jaxtrain.choices.choose_compile(config, jax.devices("cpu")[0]).reason.endswith(found)


def test_recomputation_scans(small_config):
    """Unrolled on a CPU it would recompute nothing and save nothing."""
    config = small_config(execution__checkpoint_activations="full")
    assert jaxtrain.choices.choose_compile(config, jax.devices("cpu")[0]).reason.endswith("scanned")


def test_a_kernels_gradient_sums_over_one_axis_of_tokens():
    """On a mesh tokens keep theirs; with two on one device XLA's CPU turns a factor, in a third of an MLP's time."""

    class Mesh:
        """Of which the layer asks its kernel, and whether its gradient has sums of its own."""

        def sums(self, path: str) -> None:
            return None

        def in_use_after(self, path: str, before: Any, kernel: Any) -> Any:
            return before, kernel

    def contracted(sharding: object) -> set[int]:
        graph, state = nnx.split(jaxtrain.layers.Linear(4, 6, True, (), jnp.float32, sharding))
        x = jnp.ones((2, 3, 4), jnp.float32)
        traced = jax.make_jaxpr(jax.grad(lambda state: nnx.merge(graph, state)(x).sum()))(state)
        products = [eqn for eqn in traced.eqns if eqn.primitive.name == "dot_general"]
        found = [eqn for eqn in products if eqn.outvars[0].aval.shape == (4, 6)]
        assert found
        return {len(eqn.params["dimension_numbers"][0][0]) for eqn in found}

    assert contracted(None) == {1}
    assert contracted(Mesh()) == {2}
