"""The health policy: what each fault does, when a spike is one, exact resume, and that no rollback goes on for ever."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from coretrain.config.training import HealthConfig, OptimizerConfig
from coretrain.contract.health import HealthMonitor
from coretrain.contract.update import Limits, Standing, corrections, judged


def monitor(**fields: object) -> HealthMonitor:
    return HealthMonitor(HealthConfig(**({"window": 8, "spike_sigma": 4.0, "lag": 0} | fields)))


def fill(health: HealthMonitor, start: int = 0) -> None:
    for n in range(start, start + 8):
        assert health.decide(n, 5 + 0.1 * (n % 3), 1 + 0.1 * (n % 2)).action == "apply"


@pytest.mark.parametrize("policy", ["skip", "stop", "rollback"])
@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (5.0, math.nan), (5.0, -math.inf)])
def test_non_finite_values_meet_their_policy(policy, loss, norm):
    verdict = monitor(nonfinite=policy, spike="ignore").decide(0, loss, norm)
    assert verdict.action == policy
    assert ("gradient norm" if math.isfinite(loss) else "loss") in verdict.reason


@pytest.mark.parametrize("policy", ["skip", "stop", "rollback"])
@pytest.mark.parametrize(("loss", "norm", "name"), [(9.0, 1.0, "loss"), (5.0, 3.0, "gradient norm")])
def test_spikes_of_either_value_meet_their_policy(policy, loss, norm, name):
    health = monitor(spike=policy)
    fill(health)
    verdict = health.decide(8, loss, norm)
    assert verdict.action == policy
    assert verdict.reason.startswith(name)
    assert health.counts == {"nonfinite": 0, "spike": 1}


def test_a_spike_needs_a_full_window_a_policy_and_an_upward_direction():
    health = monitor(spike="skip")
    for n in range(7):
        health.decide(n, 5 + 0.1 * (n % 3), 1.0)
    assert health.decide(7, 90.0, 1.0).action == "apply"
    ignoring = monitor(spike="ignore")
    fill(ignoring)
    assert ignoring.decide(8, 90.0, 90.0).action == "apply"
    falling = monitor(spike="skip")
    fill(falling)
    assert falling.decide(8, 0.1, 0.1).action == "apply"


def test_the_limit_is_mean_plus_sigmas_of_the_window():
    losses = [5.0, 5.2] * 4  # mean 5.1, sigma 0.1: the limit is 5.5
    for value, action in ((5.499, "apply"), (5.501, "skip")):
        health = monitor(spike="skip")
        for n, loss in enumerate(losses):
            health.decide(n, loss, 1.0)
        assert health.decide(8, value, 1.0).action == action


def test_the_window_slides_over_applied_updates_only():
    health = monitor(spike="skip", max_consecutive=100)
    fill(health)
    before = health.state()
    for n in range(8, 40):  # if they entered, they would soon be usual
        assert health.decide(n, 9.0, 1.0).action == "skip"
    assert (health.state()["losses"], health.state()["norms"]) == (before["losses"], before["norms"])
    health.decide(40, 5.0, 1.0)
    assert health.state()["losses"] == [*before["losses"][1:], 5.0]


def test_a_constant_series_does_not_call_its_rounding_a_spike():
    health = monitor(spike="skip")
    for n in range(8):
        health.decide(n, 5.0, 1.0)
    assert health.decide(8, 5.0 + 1e-9, 1.0 + 1e-9).action == "apply"
    assert health.decide(9, 5.5, 1.0).action == "skip"


def test_skips_in_a_row_end_the_run_and_an_applied_update_starts_the_count_anew():
    health = monitor(max_consecutive=3)
    pattern = [math.nan, math.nan, 5.0, math.nan, math.nan, math.nan]
    actions = [health.decide(n, loss, 1.0).action for n, loss in enumerate(pattern)]
    assert actions == ["skip", "skip", "apply", "skip", "skip", "stop"]
    assert health.counts["nonfinite"] == 5


def test_skips_in_a_row_are_counted_on_through_a_resume():
    first, second = monitor(max_consecutive=3), monitor(max_consecutive=3)
    assert [first.decide(n, math.nan, 1.0).action for n in range(2)] == ["skip", "skip"]
    second.load(json.loads(json.dumps(first.state())))
    assert second.decide(2, math.nan, 1.0).action == "stop"


@pytest.mark.parametrize("at", [0, 5, 31, 60])
def test_a_resumed_monitor_decides_as_one_never_interrupted(at):
    draw = random.Random(3)
    series = [
        (math.nan if draw.random() < 0.05 else 5 + draw.gauss(0, 0.1) + 2 * (draw.random() < 0.05), 1 + draw.random())
        for _ in range(100)
    ]
    whole = monitor(spike="skip", max_consecutive=3)
    expected = [whole.decide(n, *pair) for n, pair in enumerate(series)]
    assert {verdict.action for verdict in expected} >= {"apply", "skip"}
    first, second = (monitor(spike="skip", max_consecutive=3) for _ in range(2))
    got = [first.decide(n, *pair) for n, pair in enumerate(series[:at])]
    second.load(json.loads(json.dumps(first.state(), allow_nan=False)))
    got += [second.decide(n, *pair) for n, pair in enumerate(series[at:], at)]
    assert got == expected
    assert second.state() == whole.state()


def test_a_state_from_before_rollbacks_were_counted_still_loads():
    old = {"losses": [5.0], "norms": [1.0], "consecutive": 1, "counts": {"nonfinite": 1, "spike": 0}}
    health = monitor()
    health.load(old | {"rolled_back_at": None})
    assert health.decide(3, 5.0, 1.0).action == "apply"


def test_a_second_rollback_from_the_same_update_stops():
    health = monitor(nonfinite="rollback")
    assert health.decide(5, math.nan, 1.0).action == "rollback"
    for n in range(2, 5):
        assert health.decide(n, 5.0, 1.0).action == "apply"
    verdict = health.decide(5, math.nan, 1.0)
    assert verdict.action == "stop"
    assert "again at update 5" in verdict.reason


def test_rollbacks_that_take_turns_end():
    # 6, 5, 6, 5, ... is never the same update twice in a row
    health = monitor(nonfinite="rollback", max_consecutive=4)
    actions = []
    while len(actions) < 50 and "stop" not in actions:
        bad = 6 - len(actions) % 2
        for n in range(3, bad):
            health.decide(n, 5.0, 1.0)
        actions.append(health.decide(bad, math.nan, 1.0).action)
    assert actions == ["rollback"] * 4 + ["stop"]


def test_rollbacks_with_progress_between_them_go_on():
    health = monitor(nonfinite="rollback", max_consecutive=2)
    for bad in range(10, 100, 10):
        assert health.decide(bad, math.nan, 1.0).action == "rollback"
        for n in range(bad - 3, bad + 5):
            assert health.decide(n, 5.0, 1.0).action == "apply"


def test_a_rollback_restores_the_window_and_remembers_itself():
    health = monitor(nonfinite="rollback", spike="skip")
    fill(health)
    saved = json.loads(json.dumps(health.state()))
    for n in range(8, 12):
        health.decide(n, 5.25, 1.0)
    health.decide(12, math.nan, 1.0)
    health.roll_back_to(saved)
    assert (health.state()["losses"], health.state()["norms"]) == (saved["losses"], saved["norms"])
    assert health.decide(12, math.nan, 1.0).action == "stop"
    assert health.counts["nonfinite"] == 2
    health.roll_back_to({})  # a checkpoint without a monitor's state
    assert health.state()["losses"] == []


def test_a_steady_series_has_a_thousandth_of_its_mean_as_sigma():
    """By hand: mean 5, no deviation, sigma 0.005, 4 of them: 5.02. And so for a tenth of it, and below zero."""
    for mean, just, above in ((5.0, 5.0199, 5.0201), (0.5, 0.50199, 0.50201), (-5.0, -4.9801, -4.9799)):
        for value, action in ((just, "apply"), (above, "skip")):
            health = monitor(spike="skip")
            for n in range(8):
                health.decide(n, mean, 1.0)
            assert health.decide(8, value, 1.0).action == action, (mean, value)


def test_the_deviation_is_the_whole_windows_not_a_samples():
    """By hand: 1.0 and 1.2 by turns: mean 1.1, sigma 0.1, 4 of them end at 1.5; a sample's would end at 1.53."""
    for value, action in ((1.499, "apply"), (1.51, "skip")):
        health = monitor(spike="skip")
        for n in range(8):
            health.decide(n, 5.0, 1.0 + 0.2 * (n % 2))
        assert health.decide(8, 5.0, value).action == action


def test_a_window_is_as_long_as_it_is_said_to_be():
    """Of losses and of norms, made anew, loaded from a longer one, and rolled back to one."""
    health = monitor(window=9)
    for n in range(20):
        health.decide(n, float(n), 100.0 + n)
    expected = [float(n) for n in range(11, 20)], [100.0 + n for n in range(11, 20)]
    assert (list(health.losses), list(health.norms)) == expected
    shorter = monitor(window=8)
    shorter.load(health.state())
    assert (list(shorter.losses), list(shorter.norms)) == (expected[0][1:], expected[1][1:])
    shorter.decide(20, 1.0, 2.0)
    assert (list(shorter.losses)[-1], len(shorter.losses), len(shorter.norms)) == (1.0, 8, 8)
    shorter.roll_back_to(health.state())
    shorter.decide(20, 1.0, 2.0)
    assert (len(shorter.losses), len(shorter.norms)) == (8, 8)


def test_the_state_by_hand():
    """Every field after a skip, a rollback and what was applied between them; none is its start's."""
    health = monitor(nonfinite="rollback", spike="skip", max_consecutive=3)
    fill(health)
    assert health.decide(8, 90.0, 1.0).action == "skip"
    assert health.decide(9, math.nan, 1.0).action == "rollback"
    assert health.decide(6, math.nan, 1.0).action == "rollback"
    state = health.state()
    assert (state.pop("losses"), state.pop("norms")) == ([5 + 0.1 * (n % 3) for n in range(8)], [1.0, 1.1] * 4)
    rest = {"consecutive": 1, "counts": {"nonfinite": 2, "spike": 1}, "rolled_back_at": 6, "furthest": 9}
    assert state == rest | {"rollbacks": 2, "recent": []}
    again = monitor(nonfinite="rollback", spike="skip", max_consecutive=3)
    again.load(json.loads(json.dumps(health.state())))
    assert again.state() == health.state()
    again.roll_back_to({"losses": [1.0], "norms": [2.0], "consecutive": 7})
    assert again.state() == rest | {
        "rollbacks": 2, "recent": [], "losses": [1.0], "norms": [2.0], "consecutive": 7,
    }  # fmt: skip


def test_only_an_update_beyond_the_furthest_is_progress():
    """The one that was rolled back, applied on other data, is none; nor is one beyond a later, earlier rollback."""
    health = monitor(nonfinite="rollback", max_consecutive=1)
    assert health.decide(5, math.nan, 1.0).action == "rollback"
    assert health.decide(5, 5.0, 1.0).action == "apply"
    assert health.decide(4, math.nan, 1.0).action == "stop"
    health = monitor(nonfinite="rollback", max_consecutive=2)
    assert [health.decide(n, math.nan, 1.0).action for n in (6, 4)] == ["rollback"] * 2
    assert health.decide(5, 5.0, 1.0).action == "apply"
    assert health.decide(3, math.nan, 1.0).action == "stop"


@pytest.mark.parametrize("most", [1, 2, 5])
def test_the_last_of_so_many_skips_stops(most):
    health = monitor(max_consecutive=most)
    assert [health.decide(n, math.nan, 1.0).action for n in range(most)] == ["skip"] * (most - 1) + ["stop"]


def with_lag(lag: int, **fields: object) -> HealthMonitor:
    return monitor(**({"spike": "skip", "max_consecutive": 100, "lag": lag} | fields))


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_limits_are_made_of_updates_that_are_so_much_older(lag):
    """By hand: the window of update n ends with n - 1 - lag; 8 of them make limits, one fewer doesn't."""
    health = with_lag(lag)
    losses = [5.0 + 0.3 * (n * n % 7) for n in range(20)]
    for n, loss in enumerate(losses):
        window = losses[max(0, n - lag - 8) : max(0, n - lag)]
        if len(window) < 8:
            assert health.limits() == (math.inf, math.inf)
        else:
            mean = sum(window) / 8
            sigma = math.sqrt(sum((x - mean) ** 2 for x in window) / 8)
            assert health.limits() == (pytest.approx(mean + 4 * sigma, rel=1e-13), pytest.approx(1.004, rel=1e-13))
        assert health.decide(n, loss, 1.0).action == "apply"


@pytest.mark.parametrize("lag", [1, 2, 5])
def test_limits_do_not_depend_on_how_far_ahead_they_are_asked_for(lag):
    """Of an update with up to `lag` undecided ones before it: what they are once those are decided, skipped or not."""
    draw = random.Random(lag)
    for wide in (True, False):
        health = HealthMonitor(with_lag(lag).config, wide)
        asked: dict[int, list] = {}
        for n in range(60):
            for ahead in range(lag + 1):
                asked.setdefault(n + ahead, []).append(health.limits(ahead))
            spike = 3 * (draw.random() < 0.1)
            health.decide(n, math.nan if draw.random() < 0.1 else 5 + draw.gauss(0, 0.1) + spike, 1 + draw.random())
        assert all(len(set(found)) == 1 for found in asked.values())
        assert len({found[0] for found in asked.values()}) > 20
        if not wide:
            assert all(np.float32(x) == x for found in asked.values() for x in found[0])


@pytest.mark.parametrize("lag", [1, 4])
def test_what_is_no_number_is_seen_at_once_and_a_spike_by_limits_of_then(lag):
    health = with_lag(lag)
    fill(health)
    assert health.decide(8, math.nan, 1.0).action == "skip"
    for n in range(9, 8 + lag):
        assert health.decide(n, 5.0, 1.0).action == "apply"
    assert health.decide(8 + lag, 90.0, 1.0).action == "skip"


@pytest.mark.parametrize("at", [3, 8, 9, 30])
def test_a_resumed_monitor_with_a_lag_has_the_limits_of_one_never_interrupted(at):
    whole, first, second = with_lag(3), with_lag(3), with_lag(3)
    for n in range(60):
        figures = (math.nan if n % 7 == 5 else 5 + 0.1 * (n % 5), 1.0 + 0.1 * (n % 3))
        if n == at:
            second.load(json.loads(json.dumps(first.state(), allow_nan=False)))
        assert whole.limits() == (second if n >= at else first).limits()
        assert whole.decide(n, *figures) == (second if n >= at else first).decide(n, *figures)
    assert second.state() == whole.state()
    shorter = with_lag(1)
    shorter.load(whole.state())
    assert len(shorter.recent) == 1, "a lag that was made smaller"
    assert shorter.losses[-1] == 5 + 0.1 * (58 % 5)


def test_limits_are_float32s_where_losses_are():
    """Rounded to the nearest; one beyond float32's range is none."""
    for norm, limit in ((1.0, float(np.float32(1.004))), (3e38, math.inf)):
        health = HealthMonitor(with_lag(0, spike_sigma=4.0 if norm == 1 else 1e6).config, wide=False)
        for n in range(8):
            health.decide(n, 5.0, norm)
        assert health.limits().norm == limit


def test_only_updates_that_count_are_among_the_recent():
    """One that ends the run, or takes it back, is decided again: it isn't one of the updates before the next."""
    for policy in ("stop", "rollback"):
        health = with_lag(2, nonfinite=policy)
        fill(health)
        before = health.state()["recent"]
        assert health.decide(8, math.nan, 1.0).action == policy
        assert health.state()["recent"] == before == [[5.0, 1.0], [5.1, 1.1]]


def verdicts(figures: list[tuple[float, float]], **fields: object) -> list[tuple[str, bool]]:
    """Of each update: what the monitor decides, and whether a device that is ahead of it applies it, until it halts."""
    health = with_lag(2, **fields)
    standing, asked, found = Standing(0, 0, False), [health.limits(ahead) for ahead in range(3)], []
    for n, (loss, norm) in enumerate(figures):
        fine, standing = judged(health.config, standing, loss, norm, asked[n], math.isfinite)
        action = health.decide(n, loss, norm).action
        found.append((action, fine))
        assert bool(standing.halted) is (action in ("stop", "rollback"))
        if standing.halted:
            after = judged(health.config, standing, 5.0, 1.0, Limits(math.inf, math.inf), math.isfinite)
            assert not after[0], "nothing is applied any more"
            assert after[1].halted
            assert after[1].applied == standing.applied
            break
        assert (standing.applied, standing.skipped) == (sum(f for _, f in found), health.consecutive)
        asked.append(health.limits(2))
    return found


@pytest.mark.parametrize("spike", ["ignore", "skip", "stop", "rollback"])
@pytest.mark.parametrize("nonfinite", ["skip", "stop", "rollback"])
def test_a_device_comes_to_the_hosts_verdict(nonfinite, spike):
    draw = random.Random(7)
    figures = [(5 + draw.gauss(0, 0.1), 1 + draw.gauss(0, 0.05)) for _ in range(40)]
    for update, bad in ((4, (math.nan, 1.0)), (14, (9.0, 1.0)), (15, (5.0, 3.0)), (20, (5.0, math.inf))):
        for faults in ({update: bad}, {14: (9.0, 1.0), update: bad}):
            given = [faults.get(n, pair) for n, pair in enumerate(figures)]
            found = verdicts(given, nonfinite=nonfinite, spike=spike)
            assert all(fine == (action == "apply") for action, fine in found)
    ended = verdicts([(math.nan, 1.0)] * 9, nonfinite=nonfinite, spike=spike, max_consecutive=3)
    assert [action for action, _ in ended] == (["skip", "skip", "stop"] if nonfinite == "skip" else [nonfinite])


def test_a_devices_bias_corrections_are_of_the_counts_that_are_possible():
    optimizer = OptimizerConfig(beta1=0.5, beta2=0.75)
    assert corrections(optimizer, 0, 0) == [(0.5, 0.25)]
    assert corrections(optimizer, 1, 2) == [(0.75, 0.4375), (0.875, 1 - 0.75**3), (0.9375, 1 - 0.75**4)]
