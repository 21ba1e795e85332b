"""Learning rates against optax, torch, transformers and by hand, at every step; the clip factor against torch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import optax
import pytest
import torch
import transformers.optimization as theirs

from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.contract.schedule import clip_factor, learning_rate

UPDATES = 157


def made(kind: str, warmup: int = 13, **more: object) -> RunConfig:
    given = {
        "schedule.kind": kind,
        "schedule.warmup_updates": warmup,
        "schedule.min_lr": 7e-5,
        "optimizer.lr": 9e-4,
        "train.updates": UPDATES,
    } | {key.replace("__", "."): value for key, value in more.items()}
    return load_config(None, [(key, str(value)) for key, value in given.items()])


def rates(config: RunConfig, count: int = UPDATES + 20) -> np.ndarray:
    return np.array([learning_rate(config, n) for n in range(count)])


@pytest.mark.parametrize("warmup", [1, 13, 100])
def test_cosine_is_optax(warmup):
    c = made("cosine", warmup)
    theirs = optax.warmup_cosine_decay_schedule(9e-4 / (warmup + 1), 9e-4, warmup, UPDATES, 7e-5)
    # float64 on both sides; a cosine that ended one update later would be 1e-4 off
    with_optax = [float(theirs(np.float64(n))) for n in range(UPDATES + 20)]
    np.testing.assert_allclose(rates(c), with_optax, rtol=1e-13)


@pytest.mark.parametrize(("kind", "warmup"), [("cosine", 0), ("linear", 0), ("constant", 13)])
def test_torch_has_the_same(kind, warmup):
    c = made(kind, warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=9e-4)
    schedulers = torch.optim.lr_scheduler
    theirs = {
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, UPDATES, 7e-5),
        "linear": lambda: schedulers.LinearLR(optimizer, 1.0, 7e-5 / 9e-4, UPDATES),
        "constant": lambda: schedulers.LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup),
    }[kind]()
    found = []
    for _ in range(UPDATES + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    # torch multiplies step by step: its rounding grows to about 1e-13
    np.testing.assert_allclose(rates(c, UPDATES + 1), found, rtol=1e-11)


@pytest.mark.parametrize("updates", [UPDATES, 5157])
@pytest.mark.parametrize(
    ("kind", "make", "more", "lowest"),
    [
        ("cosine", theirs.get_cosine_with_min_lr_schedule_with_warmup, {"min_lr_rate": 0.25}, 0.25),
        ("linear", theirs.get_linear_schedule_with_warmup, {}, 0.0),
        ("constant", theirs.get_constant_schedule_with_warmup, {}, 0.0),
        ("wsd", theirs.get_wsd_schedule, {"decay_type": "linear"}, 0.0),
    ],
)
def test_transformers_has_the_same(kind, make, more, lowest, updates):
    """Its warm-up starts at 0: update n is its step n + 1, of one step of warm-up and one of training more. Its
    wsd warms up from the lowest rate, and so it has 0 here."""
    c = made(kind, 13, schedule__min_lr=9e-4 * lowest, train__updates=updates)
    steps = {} if kind == "constant" else {"num_training_steps": updates + 1}
    if kind == "wsd":
        more = more | {"num_decay_steps": {157: 31, 5157: 1031}[updates]}  # a fifth: 31.4 and 1031.4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=9e-4)
    factor = make(optimizer, num_warmup_steps=14, **steps, **more).lr_lambdas[0]
    found = [9e-4 * factor(n + 1) for n in range(updates + 1)]
    # float64 on both sides, a few roundings of numbers near 1; one step more or less would be 1e-4 off
    np.testing.assert_allclose(rates(c, updates + 1), found, rtol=1e-12, atol=1e-16)


BY_HAND = {
    # 0.8 x 1/4, 2/4, 3/4; from update 3 to 11 the eighths 0, 1/8, ... of the way from 0.8 down to 0.2
    "linear": {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 5: 0.65, 7: 0.5, 9: 0.35, 10: 0.275, 11: 0.2, 19: 0.2},
    # at a quarter 0.2 + 0.6 x (1 + sqrt(1/2)) / 2, at a half 0.5, at three quarters 0.2 + 0.6 x (1 - sqrt(1/2)) / 2
    "cosine": {0: 0.2, 2: 0.6, 3: 0.8, 5: 0.7121320343559643, 7: 0.5, 9: 0.2878679656440357, 11: 0.2, 19: 0.2},
    "constant": {0: 0.2, 2: 0.6, 3: 0.8, 11: 0.8, 19: 0.8},
    # 0.3 x 11 = 3.3 updates of decay, rounded to 3
    "wsd": {0: 0.2, 2: 0.6, 3: 0.8, 8: 0.8, 9: 0.6, 10: 0.4, 11: 0.2, 19: 0.2},
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_rates_by_hand(kind):
    """Warm-up of 3 updates to 0.8, a horizon of 11 that ends at 0.2, and 20 updates: the horizon is what counts."""
    more = {"schedule__horizon": 11, "train__updates": 20, "schedule__min_lr": 0.2, "optimizer__lr": 0.8}
    c = made(kind, 3, schedule__decay_fraction=0.3, **more)
    assert {n: learning_rate(c, n) for n in BY_HAND[kind]} == pytest.approx(BY_HAND[kind], rel=1e-15)


@pytest.mark.parametrize(
    ("fraction", "found"),
    [
        (0.15, [0.8, 0.8, 0.5, 0.2]),  # 1.65 updates of decay are 2
        (0.01, [0.8, 0.8, 0.8, 0.2]),  # none are 1
        (1.0, [0.425, 0.35, 0.275, 0.2]),  # the whole horizon, but not the warm-up: as linear
    ],
)
def test_the_last_rates_of_wsd_by_hand(fraction, found):
    more = {"schedule__horizon": 11, "schedule__min_lr": 0.2, "optimizer__lr": 0.8}
    c = made("wsd", 3, schedule__decay_fraction=fraction, **more)
    assert [learning_rate(c, n) for n in (8, 9, 10, 11)] == pytest.approx(found, rel=1e-15)


def test_a_warm_up_of_thousands_of_updates():
    """As a large run has. By hand: 1501 and 2999 of 3001 parts of 9e-4, and half of the cosine."""
    long = made("cosine", 3000, train__updates=9000)
    assert learning_rate(long, 1500) == pytest.approx(9e-4 * 1501 / 3001, rel=1e-15)
    assert learning_rate(long, 2998) == pytest.approx(9e-4 * 2999 / 3001, rel=1e-15)
    assert learning_rate(long, 6000) == pytest.approx(7e-5 + 8.3e-4 / 2, rel=1e-14)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_warm_up_peak_and_end(kind):
    c = made(kind)
    found = rates(c)
    np.testing.assert_allclose(found[:14], 9e-4 * np.arange(1, 15) / 14, rtol=1e-15)
    assert found[13] == found.max() == 9e-4
    assert all(b <= a for a, b in itertools.pairwise(found[13:]))
    end = 9e-4 if kind == "constant" else 7e-5
    assert set(found[UPDATES:]) == {end}
    assert kind == "constant" or found[UPDATES - 1] > end


def test_linear_and_wsd_fall_by_equal_steps():
    steps = np.diff(rates(made("linear"), UPDATES + 1)[13:])
    np.testing.assert_allclose(steps, (7e-5 - 9e-4) / (UPDATES - 13), rtol=1e-9)
    stable = UPDATES - round(0.2 * UPDATES)
    found = rates(made("wsd"), UPDATES + 1)
    assert set(found[13 : stable + 1]) == {9e-4}
    np.testing.assert_allclose(np.diff(found[stable:]), (7e-5 - 9e-4) / (UPDATES - stable), rtol=1e-9)


def test_a_wsd_decay_never_starts_inside_the_warm_up():
    found = rates(made("wsd", 100, schedule__decay_fraction=1.0), UPDATES + 1)
    assert found.argmax() == 100
    assert found[99] == pytest.approx(9e-4 * 100 / 101)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, UPDATES - 1, UPDATES])
def test_the_edges_divide_by_nothing(kind, warmup):
    found = rates(made(kind, warmup))
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert learning_rate(made(kind, 0, train__updates=1), 0) == 9e-4


def test_the_horizon_is_its_own():
    longer = made("cosine", schedule__horizon=400)
    assert learning_rate(longer, UPDATES) > 7e-5 * 2
    assert learning_rate(longer, 400) == 7e-5
    # a run that goes on for longer keeps the rates of the updates it has had, if its horizon is written down
    assert np.array_equal(rates(longer), rates(made("cosine", schedule__horizon=400, train__updates=300)))


@pytest.mark.parametrize("norm", [1e-9, 0.3, 1 - 1e-7, 1.0, 1 + 1e-7, 7.5, 1e12])
@pytest.mark.parametrize("limit", [0.1, 1.0])
def test_clip_is_torchs(norm, limit):
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    parameter.grad = torch.tensor([norm], dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([parameter], limit)
    # one rounding of the product; an epsilon left out would be 1e-6 off near the limit
    assert float(parameter.grad) == pytest.approx(norm * clip_factor(norm, limit), rel=1e-14)


def test_clip_factor_at_its_edges():
    # by hand: 0.5 / (2 + 1e-6), and below the limit by more and by less than the 1e-6
    assert clip_factor(2.0, 0.5) == 0.24999987500006248
    assert clip_factor(0.5 - 2e-6, 0.5) == 1.0
    assert clip_factor(0.5 - 5e-7, 0.5) == pytest.approx(1 - 1e-6, abs=1e-11)
    assert clip_factor(2.0, 1e-4) == pytest.approx(5e-5, rel=1e-6)
    assert clip_factor(1e9, 0.0) == 1.0
    assert clip_factor(math.inf, 1.0) == 0.0
    assert clip_factor(0.0, 1.0) == 1.0
