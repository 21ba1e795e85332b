"""Other people's pairs: modules by path through transformations, islands, masks, numbers that are none."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from coretrain.contract.taps import tap
from parity.pairs import localize, localize_models, localize_module
from parity.pairs.jax_side import model_of
from parity.pairs.propose import proposed
from tests.support import own_pairs
from tests.support.commands import ROOT, environment
from tests.support.refusal import refused

UNWANTED = (
    *("pydantic", "tiktoken", "tokenizers", "flax", "optax", "rich", "matplotlib", "torchtrain", "jaxtrain"),
    *("coretrain.config", "coretrain.training", "torch._dynamo", "transformers"),
)


def pair(jax_model):
    """(torch's net, JAX's model, the map of the pair's own converter)."""
    torch.manual_seed(0)
    module, model = own_pairs.Net(), model_of(jax_model, None, own_pairs.inputs())
    return module, model, proposed(module, model, own_pairs.converted)


@pytest.mark.whole
def test_importing_it_needs_numpy_torch_and_jax_alone():
    code = f"import sys, parity.pairs, parity.pairs.command; print([n for n in {UNWANTED} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment()
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.whole
def test_a_window_that_is_off_by_one_behind_scan_remat_a_fused_matrix_and_a_compiler():
    """A float32 island lies before it, as in the model this is taken from: it must not lead."""
    module, model, made = pair(own_pairs.LinenNet(window=own_pairs.WINDOW + 1, narrow=True))
    module = torch.compile(module)
    module.layers[0].up = torch.compile(module.layers[0].up)
    report = localize_models(module, model, made, own_pairs.inputs())
    assert (report.verdict.kind, report.verdict.tap) == ("algorithm", "layers.0.attn")
    assert report.verdict.predecessor == "layers.0.norm"
    told = "\n".join(report.notes)
    assert "own_pairs.py" in told
    assert "LinenBlock.__call__" in told
    rows = {row.name: row for row in report.rows if row.stage == "forward"}
    assert rows["layers.0.norm"].error > 1e-9
    assert not rows["layers.1.norm"].parts
    assert {"layers.1.attn", "layers.1.up", "head"} <= rows.keys()
    assert rows["head"].error < 1e-14


def test_a_clean_pair_with_an_island_is_the_same_and_the_island_is_named():
    module, model, made = pair(own_pairs.LinenNet(narrow=True))
    report = localize_models(module, model, made, own_pairs.inputs())
    assert report.verdict.kind == "same", report.verdict.sentence
    assert any("JAX computes in float32 at" in note and "own_pairs.py" in note for note in report.notes)
    rows = {row.name: row for row in report.rows if row.stage == "forward"}
    assert rows["layers.0.norm"].cap > 1e-8
    assert rows["layers.0.up"].cap == rows["head"].cap == 1e-13


@pytest.mark.whole
def test_nnx_convolutions_and_statistics():
    torch.manual_seed(0)
    module, model = own_pairs.TorchConvs(), model_of(own_pairs.nnx_convs())
    module.bn.running_mean += 0.3
    made = proposed(module, model)
    assert made.parameters["back.kernel"].steps == (("transpose 2 3 0 1", "flip 0 1"),)
    assert made.parameters["square.kernel"].note.startswith("square")
    given = {"x": np.random.default_rng(0).standard_normal((2, 6, 6, 3))}
    made.taps["bn"] = type(made.taps["bn"])(("bn",), (("transpose 0 2 3 1",),))
    made.taps["conv"] = type(made.taps["conv"])(("conv",), (("transpose 0 2 3 1",),))
    made.taps["back"] = type(made.taps["back"])(("back",), (("transpose 0 2 3 1",),))
    report = localize_models(module, model, made, given, float32=False)
    assert report.verdict.kind == "same", report.verdict.sentence
    assert {"conv", "bn", "back", "square"} <= {row.name for row in report.rows}
    assert max(row.error for row in report.rows) < 1e-13


def through(x, w, outer=lambda f: f, inner=1.0):
    """Taps inside transformations: jit, vmap, scan, checkpoint."""

    def body(c, w):
        return tap("layer", jnp.tanh((c * inner) @ w)), None

    return outer(lambda row: jax.lax.scan(jax.checkpoint(body), row, w)[0])(x)


def layers(x, w):
    for i in range(2):
        x = tap(f"layer[{i}]", torch.tanh(x @ w[i]))
    return x


def arrays():
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((2, 3, 4)), "w": rng.standard_normal((2, 4, 4))}


def test_plain_functions_through_jit_vmap_scan_and_checkpoint():
    outer = lambda f: jax.jit(jax.vmap(f))  # noqa: E731  # one of several ways
    report = localize(layers, lambda x, w: through(x, w, outer), arrays(), float32=False)
    assert report.verdict.kind == "same"
    assert [row.name for row in report.rows if row.stage == "forward"][:2] == ["layer[0]", "layer[1]"]
    report = localize(layers, lambda x, w: through(x, w, outer, 1 + 3e-11), arrays(), float32=False)
    assert (report.verdict.kind, report.verdict.tap) == ("algorithm", "layer[0]")


def test_a_constant_of_float32_is_told_from_an_algorithm():
    third = float(np.float32(1 / 3))
    report = localize(lambda x, w: layers(x, w) / 3, lambda x, w: through(x, w) * third, arrays())
    assert (report.verdict.kind, report.verdict.tap) == ("dtype policy", "output")


def test_taps_inside_a_derivative_of_its_own_are_said_not_to_be_compared():
    @jax.custom_vjp
    def twice(x):
        return tap("inside", x) * 2

    twice.defvjp(lambda x: (x * 2, None), lambda _, g: (g * 2,))
    report = localize(lambda x: tap("first", x) * 2, lambda x: twice(tap("first", x)), {"x": np.ones(3)}, float32=False)
    assert report.verdict.kind == "same"
    assert any("inside, it lies inside custom_vjp" in note for note in report.notes)


def test_only_real_tokens_count():
    """The two differ at padding alone, in values and in what goes back from it."""
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    given = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)), "mask": mask}

    def ours(x, mask):
        return tap("b", tap("a", x * 2) + 1)

    def theirs(x, mask):
        return tap("b", tap("a", x * 2 + (mask == 0)[..., None] * x) + 1)

    assert localize(ours, theirs, given, mask="mask", float32=False).verdict.kind == "same"
    assert localize(ours, theirs, given, float32=False).verdict.tap == "a"
    with refused("parity/mask-wrong"):
        localize(ours, theirs, given | {"mask": mask * 0}, mask="mask", float32=False)


def test_a_nan_on_one_side_is_said_by_itself():
    x = np.random.default_rng(0).standard_normal((2, 4))
    report = localize(
        lambda x: tap("b", tap("a", torch.where(x > 10.0, x, x * 2)) + 1),
        lambda x: tap("b", tap("a", jnp.where(jnp.arange(4) == 1, jnp.nan, x * 2)) + 1),
        {"x": x},
    )
    assert (report.verdict.kind, report.verdict.tap) == ("not a number", "a")
    assert "NaN in JAX alone: 2 of 8 elements, in float32 too" in report.verdict.sentence
    report = localize(
        lambda x: tap("a", torch.log(x - 1e-30 + 1e-30)),
        lambda x: tap("a", jnp.log(jnp.where(x.dtype == jnp.float64, -1.0, 1.0) * x)),
        {"x": np.array([1.5, 2.5])},
    )
    assert "in float32 neither side has one" in report.verdict.sentence
    zero = {"x": np.zeros(3)}  # torch's gradient there is 0
    report = localize(lambda x: torch.linalg.norm(x), lambda x: jnp.linalg.norm(x), zero, float32=False)
    assert (report.verdict.kind, report.verdict.tap) == ("not a number", "gradient of x")


def test_a_module_and_a_function_of_its_parameters():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(torch.relu(self.a(x)))

    def theirs(x, **w):
        def a(x, name):
            return tap(name, x @ w["a.weight"].T + w["a.bias"])

        return a(jax.nn.relu(a(x, "a")), "a@1")

    report = localize_module(Shared(), theirs, {"x": np.random.default_rng(0).standard_normal((3, 4))}, ["a"])
    assert report.verdict.kind == "same"
    assert [row.name for row in report.rows][:2] == ["a", "a@1"]
    assert report.text().startswith("Shared, torch and JAX\ntap")
