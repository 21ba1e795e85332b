"""Optimizers and whole training steps of other people's pairs: the first step that differs, and what differs in it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from parity.pairs.optimizers import compare_optimizers
from parity.pairs.training import compare_steps
from tests.support.refusal import refused

RATE = 1e-2


@pytest.mark.parametrize(
    ("ours", "theirs", "first", "said"),
    [
        (lambda p: torch.optim.Adam(p, lr=RATE), optax.adam(RATE), None, ""),
        (
            lambda p: torch.optim.AdamW(p, lr=RATE),
            optax.adamw(RATE),
            1,
            "torch with weight_decay=0.0001 in place of 0.01 takes optax's steps",
        ),
        (
            lambda p: torch.optim.RMSprop(p, lr=RATE, alpha=0.9),
            optax.rmsprop(RATE),
            1,
            "torch's step is gradient / (sqrt(square_avg) + 1e-08); optax's is gradient / sqrt(0.nu + 1e-08)",
        ),
        (
            lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9, dampening=0.5),
            optax.sgd(RATE, momentum=0.9),
            2,
            "torch with dampening=0.0 in place of 0.5 takes optax's steps",
        ),
    ],
)
def test_the_first_step_and_the_term(ours, theirs, first, said):
    report = compare_optimizers(ours, theirs, 8)
    assert report.verdict.kind == ("same" if first is None else "algorithm")
    assert report.verdict.tap == ("" if first is None else f"step {first}")
    assert said in "\n".join(report.notes)


def test_what_is_no_transformation_is_refused():
    with refused("parity/jax-optimizer-unknown", "function"):
        compare_optimizers(lambda p: torch.optim.SGD(p, lr=RATE), optax.adam, 3)


def torch_step(state, batch):
    """SGD with momentum on a small regression."""
    w = state["w"].clone().requires_grad_()
    loss = (torch.tanh(batch["x"] @ w) - batch["y"]).square().mean()
    loss.backward()
    moment = 0.9 * state["moment"] + w.grad
    return {"moment": moment, "w": state["w"] - 0.1 * moment}, {"loss": loss.detach(), "gradients": {"w": w.grad}}


def jax_step(state, batch, beta=0.9, scale=1.0, narrow=False):
    """The same, with a mistake or not."""

    @jax.jit
    def loss_of(w):
        x = batch["x"].astype(jnp.float32) if narrow else batch["x"]
        return jnp.mean((jnp.tanh(x @ w.astype(x.dtype)).astype(w.dtype) - batch["y"]) ** 2)

    loss, gradient = jax.value_and_grad(loss_of)(state["w"])
    moment = beta * state["moment"] + gradient * scale
    return {"moment": moment, "w": state["w"] - 0.1 * moment}, {"loss": loss, "gradients": {"w": gradient * scale}}


@pytest.mark.parametrize(
    ("mistake", "kind", "tap"),
    [
        ({}, "same", ""),
        ({"narrow": True}, "same", ""),
        ({"beta": 0.99}, "algorithm", "step of moment"),
        ({"scale": 2.0}, "algorithm", "gradients.w"),
    ],
)
def test_whole_training_steps(mistake, kind, tap):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 3))
    batch = {"x": rng.standard_normal((8, 4)), "y": rng.standard_normal((8, 3))}
    report = compare_steps(torch_step, lambda *a: jax_step(*a, **mistake), {"w": w, "moment": 0 * w}, batch)
    assert (report.verdict.kind, report.verdict.tap) == (kind, tap), report.verdict.sentence
    assert any("float32" in note for note in report.notes) == ("narrow" in mistake)
    if mistake.get("beta"):
        assert "of step 2 is the first" in report.verdict.sentence
