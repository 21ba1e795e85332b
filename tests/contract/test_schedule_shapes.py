"""The schedules of continued training at every update, each held to its paper's formula written here once more."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coretrain.config.load import load_config
from coretrain.contract.schedule import learning_rate
from coretrain.planning.flops import rate_sentence
from tests.support.refusal import refused

PEAK, LOW, WARMUP, UPDATES = 9e-4, 7e-5, 13, 157
BEYOND = UPDATES + 20


def made(kind: str, **more: object):
    given = {
        "schedule.kind": kind,
        "schedule.warmup_updates": WARMUP,
        "schedule.min_lr": LOW,
        "optimizer.lr": PEAK,
        "train.updates": UPDATES,
    } | {key.replace("__", "."): value for key, value in more.items()}
    return load_config(None, [(key, str(value)) for key, value in given.items()])


def rates(config, count: int = BEYOND) -> list[float]:
    return [learning_rate(config, n) for n in range(count)]


def infinite(**more: object):
    return made("infinite", **{"schedule__cooldown_updates": 40, **more})


# Ibrahim et al. 2024 and Singh et al. 2025; t = n + 1 in the warm-up, which starts above 0. The same numbers with other
# operations: 1.2e-15 is what was seen (a power against exp of a log). A phase one update late would be 1e-3 off.
EXACT = {"rtol": 3e-15, "atol": 0}


def rewarmed(n: int, start: float) -> float:
    if n < WARMUP:
        t = (n + 1) / (WARMUP + 1)
        return (1 - t) * start + t * PEAK
    if n >= UPDATES:
        return LOW
    return LOW + (PEAK - LOW) / 2 * (math.cos(math.pi * (n - WARMUP) / (UPDATES - WARMUP)) + 1)


@pytest.mark.parametrize("start", [0.0, 5e-5, PEAK])
def test_rewarm_is_a_line_from_the_start_rate_then_a_cosine(start):
    c = made("rewarm", schedule__start_lr=start)
    np.testing.assert_allclose(rates(c), [rewarmed(n, start) for n in range(BEYOND)], **EXACT)
    assert learning_rate(c, 0) > start or start == PEAK


def by_phase(n: int, cooled: int, held: float, decay: int) -> float:
    if n < WARMUP:
        return PEAK * (n + 1) / (WARMUP + 1)
    if n < WARMUP + cooled:
        return held + (PEAK - held) / 2 * (1 + math.cos(math.pi * (n - WARMUP) / cooled))
    if n < UPDATES - decay:
        return held
    if n >= UPDATES:
        return LOW
    return math.exp(math.log(held) + math.log(LOW / held) * (n - (UPDATES - decay)) / decay)


@pytest.mark.parametrize("cooled", [0, 1, 40])
@pytest.mark.parametrize(("fraction", "decay"), [(0.1, 16), (0.001, 1)])
@pytest.mark.parametrize("held", [None, 2e-4, LOW, PEAK])
def test_infinite_has_four_phases(cooled, fraction, decay, held):
    more = {} if held is None else {"schedule__constant_lr": held}
    c = infinite(schedule__cooldown_updates=cooled, schedule__decay_fraction=fraction, **more)
    level = (PEAK + LOW) / 2 if held is None else held
    np.testing.assert_allclose(rates(c), [by_phase(n, cooled, level, decay) for n in range(BEYOND)], **EXACT)


def test_a_longer_infinite_run_has_the_rates_that_it_has_had():
    """Up to where the shorter one decays: a run that is resumed with more updates goes on at the constant rate."""
    short, longer = infinite(), infinite(train__updates=400)
    decays = UPDATES - round(0.2 * UPDATES)
    assert rates(short, decays + 1) == rates(longer, decays + 1)
    assert learning_rate(short, decays + 1) < learning_rate(longer, decays + 1) == (PEAK + LOW) / 2


SHAPES = {
    "linear": lambda t: 1 - t,
    "1-sqrt": lambda t: 1 - t**0.5,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "exponential": lambda t: ((LOW / PEAK) ** t * PEAK - LOW) / (PEAK - LOW),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_decay_of_wsd(shape):
    c = made("wsd", schedule__decay_shape=shape)
    decay = round(0.2 * UPDATES)
    expected = [LOW + (PEAK - LOW) * SHAPES[shape](t / decay) for t in range(decay + 1)]
    found = rates(c)
    np.testing.assert_allclose(found[UPDATES - decay : UPDATES + 1], expected, **EXACT)
    assert set(found[WARMUP : UPDATES - decay + 1]) == {PEAK}
    assert set(found[UPDATES:]) == {LOW}
    if shape == "linear":
        assert found == rates(made("wsd"))


def test_the_final_decay_of_infinite_has_wsds_shapes():
    found = rates(infinite(schedule__decay_shape="1-sqrt"))
    held, decay = (PEAK + LOW) / 2, round(0.2 * UPDATES)
    expected = [LOW + (held - LOW) * SHAPES["1-sqrt"](t / decay) for t in range(decay)]
    np.testing.assert_allclose(found[UPDATES - decay : UPDATES], expected, **EXACT)


@pytest.mark.parametrize("kind", ["rewarm", "infinite"])
def test_the_shortest_runs(kind):
    more = {"schedule__start_lr": LOW} if kind == "rewarm" else {"schedule__cooldown_updates": 0}
    one = made(kind, schedule__warmup_updates=0, train__updates=1, **more)
    assert learning_rate(one, 0) == (PEAK if kind == "rewarm" else (PEAK + LOW) / 2)
    assert learning_rate(one, 1) == LOW
    if kind == "rewarm":  # nothing but warm-up
        line = made(kind, schedule__warmup_updates=2, train__updates=2, **more)
        assert rates(line, 3) == pytest.approx([LOW + (PEAK - LOW) / 3, LOW + (PEAK - LOW) * 2 / 3, LOW], rel=1e-14)


def test_fields_that_have_no_meaning_together_are_refused():
    with refused("config/field-of-another-schedule", "schedule.start_lr", "cosine"):
        made("cosine", schedule__start_lr=1e-5)
    with refused("config/field-of-another-schedule", "schedule.decay_shape", "wsd or infinite"):
        made("rewarm", schedule__start_lr=1e-5, schedule__decay_shape="linear")
    with refused("config/rewarm-from-nothing", "--from"):
        made("rewarm")
    with refused("config/start-lr-above-lr", "0.001", "0.0009"):
        made("rewarm", schedule__start_lr=1e-3)
    with refused("config/infinite-without-cooldown", "cooldown_updates"):
        made("infinite")
    with refused("config/infinite-longer-than-horizon", "31 of 157"):
        infinite(schedule__cooldown_updates=UPDATES - WARMUP - 30)
    infinite(schedule__cooldown_updates=UPDATES - WARMUP - 31)
    with refused("config/constant-lr-out-of-range", "1e-05"):
        infinite(schedule__constant_lr=1e-5)
    with refused("config/exponential-to-zero", "min_lr = 0"):
        infinite(schedule__min_lr=0)
    infinite(schedule__min_lr=0, schedule__decay_shape="linear")


def test_the_rates_in_words():
    assert rate_sentence(made("rewarm", schedule__start_lr=5e-5)) == (
        "0.0009 after 13 updates of warm-up from 5e-05, cosine to 7e-05 at update 157"
    )
    assert rate_sentence(made("rewarm", train__start="runs/x")) == (
        "0.0009 after 13 updates of warm-up from the last rate of train.start, cosine to 7e-05 at update 157"
    )
    assert rate_sentence(infinite(schedule__constant_lr=3e-4, schedule__decay_fraction=0.1)) == (
        "0.0009 after 13 updates of warm-up, cosine to 0.0003 over 40, constant, exponential to 7e-05 over the last "
        "10% of 157"
    )
    assert "wsd (1-sqrt) to 7e-05" in rate_sentence(made("wsd", schedule__decay_shape="1-sqrt"))
