"""What is known of a rollout's arrays and batches, each fact by a name: a planted bug must break one of them.

Modules are imported inside the functions, since a planted bug is in a fresh copy of them.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from coretrain.base.safetensors import TensorFile, TensorWriter
from coretrain.contract.decoding import Sampled
from coretrain.data.batch import IGNORED
from tests.support.facts import Facts
from tests.support.made_rollouts import END, Made, bits, rollout, run_config, same
from tests.support.refusal import refused

FACTS = Facts()
# sums of a few numbers near 1 in float64: measured at most 4e-16; the least of the planted bugs moves one by 1e-4
CLOSE = {"rtol": 1e-13, "atol": 1e-14}


@FACTS
def an_answer_lies_behind_its_prompt():
    sampled = [Sampled([7, END], [-0.5, -0.25], True), Sampled([END], [-1.0], True), Sampled([END, 8], [-2, -3], False)]
    rows = rollout().layout([[5, 6], [END], [4]], sampled, 5)
    assert rows.tokens.tolist() == [[5, 6, 7, 0, 0], [0, 0, 0, 0, 0], [4, 0, 8, 0, 0]]
    no = IGNORED
    assert rows.labels.tolist() == [[no, 7, 0, no, no], [0, no, no, no, no], [0, 8, no, no, no]]
    plane = rollout().sampled_plane(rows, sampled)
    assert plane.tolist() == [[0, -0.5, -0.25, 0, 0], [-1, 0, 0, 0, 0], [-2, -3, 0, 0, 0]]
    assert rows.tokens.dtype == rows.labels.dtype == np.int32
    assert rollout().layout([[5, 6]], sampled[:1], 4).tokens.tolist() == [[5, 6, 7, 0]]
    for prompt, width in (([], 9), ([1, 2], 3)):
        with pytest.raises(
            ValueError, match=f"a prompt of {len(prompt)} and an answer of 2 tokens in a row of {width}"
        ):
            rollout().layout([prompt], sampled[:1], width)
    with pytest.raises(ValueError, match="shorter"):
        rollout().layout([[5], [6]], sampled[:1], 4)


@FACTS
def an_answer_without_a_token_is_compared_with_nobody():
    made = Made()
    made.sampled[0] = Sampled([], [], False)
    made.rows = rollout().layout(made.prompts, made.sampled, 9)
    made.mask = made.rows.labels != IGNORED
    found = made.arrays(run_config(advantage="group"))
    assert found["counted"].tolist() == [0] + [1] * 7
    assert_array_equal(found["advantages"][:2], 0)


@FACTS
def advantages_of_a_group_reach_every_token_of_their_answers():
    made = Made()
    arrays = made.arrays(run_config(advantage="group"))
    for row in range(8):
        other = row ^ 1
        wanted = (made.rewards[row] - made.rewards[other]) / 2
        assert_allclose(arrays["advantages"][row, made.mask[row]], wanted, **CLOSE)
        assert_array_equal(arrays["advantages"][row, ~made.mask[row]], 0)
    assert_array_equal(arrays["scores"], made.rewards)


@FACTS
def ppo_by_formula():
    made = Made(1)
    config = run_config("ppo", batch=8, gamma=0.9, lam=0.8, missing_end=1.0, kl_coefficient=0.1)
    arrays = made.arrays(config, reference=made.reference, kl_coefficient=0.3)
    raw = np.zeros_like(made.old)
    for row, here in enumerate(made.mask):
        places, later, following = np.flatnonzero(here), 0.0, 0.0
        for place in places[::-1]:
            reward = -0.3 * (made.old[row, place] - made.reference[row, place])
            if place == places[-1]:
                reward += made.rewards[row] - (0 if made.sampled[row].ended else 1)
            later = reward + 0.9 * following - made.values[row, place] + 0.9 * 0.8 * later
            raw[row, place], following = later, made.values[row, place]
    assert_allclose(arrays["returns"], np.where(made.mask, raw + np.nan_to_num(made.values), 0), **CLOSE)
    seen = raw[made.mask]
    wanted = np.where(made.mask, (raw - seen.mean()) / np.sqrt(seen.var(ddof=1) + 1e-8), 0)
    assert_allclose(arrays["advantages"], wanted, rtol=1e-12, atol=1e-13)


@FACTS
def the_kl_of_a_group_is_in_its_rewards():
    made = Made(2)
    config = run_config(advantage="group", kl_place="reward", kl_coefficient=0.5, kl="k2")
    found = made.arrays(config, reference=made.reference, kl_coefficient=0.5)
    kl = np.where(made.mask, (np.nan_to_num(made.old) - np.nan_to_num(made.reference)) ** 2 / 2, 0).sum(1)
    whole = made.rewards - 0.5 * kl
    wanted = (whole - whole[np.arange(8) ^ 1]) / 2
    assert_allclose(found["advantages"], np.where(made.mask, wanted[:, None], 0), **CLOSE)


@FACTS
def a_kl_in_the_loss_is_not_in_the_rewards():
    made = Made(2)
    config = run_config(advantage="group", kl_coefficient=0.5, batch=8)
    found = made.arrays(config, reference=made.reference, kl_coefficient=0.5)
    assert_array_equal(found["advantages"], made.arrays(run_config(advantage="group"))["advantages"])
    assert_array_equal(rollout().minibatches(found, config, 0)[0].planes["reference"], found["reference"])


@FACTS
def rewards_of_tokens_are_scaled():
    made = Made(3)
    plain = {"lam": 1.0, "kl_coefficient": 0.0, "whiten": False}
    before = made.arrays(run_config("ppo", batch=8, **plain))
    after = made.arrays(run_config("ppo", batch=8, whiten_rewards=True, **plain))
    seen = np.zeros_like(made.old)
    last = made.mask.shape[1] - 1 - made.mask[:, ::-1].argmax(1)
    seen[np.arange(8), last] = made.rewards
    scaled = np.where(made.mask, seen / np.sqrt(seen[made.mask].var(ddof=1) + 1e-8), 0)
    later = np.where(made.mask, scaled[:, ::-1].cumsum(1)[:, ::-1], 0)
    # whitened without a shift: (x - mean) / std + mean
    mean = seen[made.mask].mean()
    shift = mean - mean / np.sqrt(seen[made.mask].var(ddof=1) + 1e-8)
    left = np.where(made.mask, made.mask[:, ::-1].cumsum(1)[:, ::-1], 0)
    assert_allclose(after["returns"], later + shift * left, rtol=1e-12, atol=1e-13)
    assert np.abs(before["returns"] - after["returns"]).max() > 0.01


@FACTS
def what_of_a_score_counts():
    made = Made()
    made.rewards[:] = [3.0, -3.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    lengths = made.mask.sum(1)
    config = run_config(reward_clip=2.0, missing_end=0.25, overlong_buffer=2, overlong_penalty=0.5)
    over = 0.5 * np.clip((lengths - 2) / 2, 0, 1)  # of at most 4 tokens the last 2 are the buffer
    ended = np.array([one.ended for one in made.sampled])
    found = made.arrays(config)
    assert lengths[:3].tolist() == [4, 1, 4]
    assert_allclose(found["scores"], np.clip(made.rewards, -2, 2) - over - np.where(ended, 0, 0.25), **CLOSE)
    assert_array_equal(found["rewards"], made.rewards)
    assert found["scores"][:3].tolist() == [1.5, -2, 0.5 - 0.5 - 0.25]


@FACTS
def answers_left_out_count_nowhere():
    made = Made(4)
    counted = np.arange(8) != 5
    made.rewards[5] = np.nan
    for objective in ("grpo", "ppo"):
        config = run_config(objective, batch=8, **({"kl_coefficient": 0.0} if objective == "ppo" else {}))
        found = made.arrays(config, counted=counted.astype(int).tolist())
        for name, array in found.items():
            assert np.isfinite(array).all(), name
        assert_array_equal(found["advantages"][5], 0)
        (batch,) = rollout().minibatches(found, config, 0)
        assert_array_equal(batch.planes["share"][5], 0)
        assert math.isclose(batch.planes["share"].sum(), 1, rel_tol=1e-14)
        assert found["counted"].tolist() == counted.tolist()
        left = {"rewards": 1e9} | ({"values": 7.0, "returns": -9.0} if objective == "ppo" else {})
        rows = {name: counted.reshape(-1, *[1] * (found[name].ndim - 1)) for name in left}
        other = found | {name: np.where(rows[name], found[name], value) for name, value in left.items()}
        assert rollout().rollout_figures(other) == rollout().rollout_figures(found)
    seen = found["advantages"][made.mask & counted[:, None]]  # ppo's are whitened, without those of row 5
    assert abs(seen.mean()) < 1e-14
    assert math.isclose(seen.var(ddof=1), 1, rel_tol=1e-6)


@FACTS
def cut_answers_can_be_left_out():
    made = Made(5)
    found = made.arrays(run_config(mask_truncated=True, advantage="group"))
    assert found["counted"].tolist() == [one.ended for one in made.sampled]
    assert made.arrays(run_config())["counted"].tolist() == [1] * 8
    alone = found["counted"] != found["counted"][np.arange(8) ^ 1]
    assert_array_equal(found["advantages"][alone], 0)


@FACTS
def groups_without_spread_can_be_left_out():
    made = Made(6)
    made.rewards[:2] = 0.1
    for flat_groups, first in (("drop", 0), ("keep", 1)):
        found = made.arrays(run_config(flat_groups=flat_groups))
        assert found["counted"].tolist() == [first, first, *[1] * 6]
        assert_array_equal(found["advantages"][:2], 0)


@FACTS
def a_reward_that_is_no_number_stops():
    made = Made()
    made.rewards[3] = np.nan
    for config in (run_config(), run_config("ppo", batch=8)):
        with refused("alignment/answer-without-finite-reward", "answer 3", "nan"):
            made.arrays(config, reference=made.reference)


@FACTS
def weights_against_the_sampler():
    made = Made(7)
    sampled = rollout().sampled_plane(made.rows, made.sampled)
    ratio = np.exp(np.nan_to_num(made.old) - sampled)
    found = made.arrays(run_config(correction="truncate", correction_cap=1.1))
    assert_allclose(found["correction"], np.where(made.mask, np.minimum(ratio, 1.1), 1), **CLOSE)
    found = made.arrays(run_config(correction="mask", correction_cap=1.2, correction_floor=0.9))
    wanted = np.where((ratio >= 0.9) & (ratio <= 1.2), ratio, 0)
    assert_allclose(found["correction"], np.where(made.mask, wanted, 1), **CLOSE)
    config = run_config(correction="truncate", correction_level="sequence", batch=8)
    found = made.arrays(config)
    whole = np.exp(np.where(made.mask, np.nan_to_num(made.old) - sampled, 0).sum(1, keepdims=True))
    assert_allclose(found["correction"], np.where(made.mask, np.minimum(whole, 2), 1), **CLOSE)
    assert_array_equal(rollout().minibatches(found, config, 0)[0].planes["correction"], found["correction"])


@FACTS
def an_epoch_has_every_answer_once():
    made = Made(8)
    config = run_config(batch=2, minibatches=4, epochs=3)
    arrays = made.arrays(config)
    batches = rollout().minibatches(arrays, config, 3)
    assert [len(batch) for batch in batches] == [2] * 12
    places = {row.tobytes(): at for at, row in enumerate(arrays["old"])}
    orders = [[places[row.tobytes()] for row in batch.planes["old"]] for batch in batches]
    epochs = [[row for rows in orders[n : n + 4] for row in rows] for n in (0, 4, 8)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert bits(batches) == bits(rollout().minibatches(arrays, config, 3))
    assert bits(batches[:4]) != bits(rollout().minibatches(arrays, config, 4)[:4])
    alone = run_config(batch=1, minibatches=8)
    assert len(rollout().minibatches(arrays, alone, 0)) == 8
    with pytest.raises(ValueError, match="8 answers in 3 updates"):
        rollout().minibatches(arrays, run_config(batch=2, minibatches=3), 0)
    with pytest.raises(ValueError, match="values"):
        made.arrays(run_config("ppo", batch=8), values=None)
    other = config.changed(train__seed=6)
    assert bits(batches[:4]) != bits(rollout().minibatches(arrays, other, 3)[:4])


@FACTS
def rows_of_a_batch_stay_together():
    made = Made(9)
    config = run_config("ppo", batch=2, minibatches=4, kl_place="loss", correction="truncate")
    arrays = made.arrays(config, reference=made.reference)
    places = {row.tobytes(): at for at, row in enumerate(arrays["old"])}
    for batch in rollout().minibatches(arrays, config, 1):
        rows = [places[row.tobytes()] for row in batch.planes["old"]]
        assert_array_equal(batch.tokens, made.rows.tokens[rows])
        assert_array_equal(batch.labels, made.rows.labels[rows])
        assert sorted(batch.planes) == sorted(
            ["share", "old", "advantages", "values", "returns", "correction", "reference"]
        )
        for name, plane in batch.planes.items():
            if name != "share":
                assert_array_equal(plane, arrays[name][rows])
        assert batch.tokens.dtype == batch.labels.dtype == np.int32


@FACTS
def shares_are_those_of_the_update():
    made = Made(10)
    for aggregate in ("token", "sequence", "constant"):
        config = run_config(batch=2, minibatches=4, aggregate=aggregate)
        for batch in rollout().minibatches(made.arrays(config), config, 0):
            mask = batch.labels != IGNORED
            lengths = mask.sum(1, keepdims=True)
            wanted = {"token": 1 / lengths.sum(), "sequence": 1 / (2 * lengths), "constant": 1 / (2 * 4)}[aggregate]
            assert_allclose(batch.planes["share"], np.where(mask, wanted, 0), **CLOSE)


@FACTS
def planes_are_as_precise_as_the_run():
    made = Made()
    for compute in ("float32", "float64"):
        config = run_config(compute=compute)
        for batch in rollout().minibatches(made.arrays(config), config, 0):
            assert {plane.dtype for plane in batch.planes.values()} == {np.dtype(compute)}
    old = made.old.astype(np.float32)  # as a float32 trainer gave them: they come back to the bit
    config = run_config(compute="float32", batch=8)
    (batch,) = rollout().minibatches(made.arrays(config, old=old), config, 0)
    assert_array_equal(batch.planes["old"][made.mask], old[made.mask])


@FACTS
def arrays_come_back_from_a_file_to_the_bit():
    made = Made(11)
    made.rewards[0], made.rewards[1] = 5e-324, -0.0
    config = run_config("ppo", batch=2, minibatches=4, epochs=2, correction="mask")
    arrays = made.arrays(config, reference=made.reference)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rollout.safetensors"
        with TensorWriter(path, arrays) as file:
            for name, array in arrays.items():
                file.add(name, array)
        found = TensorFile(path)
        again = rollout().read_arrays({name: found.read(name) for name in found.names})
    same(arrays, again)
    assert bits(rollout().minibatches(again, config, 2)) == bits(rollout().minibatches(arrays, config, 2))


@FACTS
def the_width_of_rows_changes_nothing():
    # some words of a file may be longer than others' in another rollout: what is there is the same
    config = run_config("ppo", batch=8, whiten_rewards=True, correction="truncate", correction_level="sequence")
    narrow, wide = Made(12), Made(12)
    wide.rows = rollout().layout(wide.prompts, wide.sampled, 15)
    wide.mask = wide.rows.labels != IGNORED
    for name in ("old", "reference", "values"):
        plane = np.full(wide.mask.shape, np.inf)
        plane[wide.mask] = getattr(narrow, name)[narrow.mask]
        setattr(wide, name, plane)
    one = narrow.arrays(config, reference=narrow.reference, kl_coefficient=0.1)
    two = wide.arrays(config, reference=wide.reference, kl_coefficient=0.1)
    for name, array in one.items():
        if array.ndim == 2:
            assert_allclose(two[name][wide.mask], array[narrow.mask], rtol=1e-14, atol=0)
    assert_allclose(
        list(rollout().rollout_figures(two).values()), list(rollout().rollout_figures(one).values()), rtol=1e-13
    )


@FACTS
def figures_by_hand():
    made = Made()
    made.rewards[:] = [1.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
    low = rollout().rollout_figures(made.arrays(run_config(), rewards=made.rewards - 3))
    assert (low["reward_least"], low["reward_most"]) == (-3.0, -2.0)
    found = rollout().rollout_figures(made.arrays(run_config(missing_end=0.5), reference=made.reference))
    assert found["reward"] == 0.5
    assert math.isclose(found["reward_spread"], math.sqrt(1.5 / 7))
    assert (found["reward_least"], found["reward_most"]) == (0.0, 1.0)
    assert found["penalty"] == 0.5 * 2 / 8  # rows 2 and 5 didn't end
    assert (found["length"], found["ended"], found["left_out"]) == (made.mask.sum() / 8, 0.75, 0.0)
    assert found["without_spread"] == 0.25  # of the last group alone the scores are equal
    distance = np.where(made.mask, np.nan_to_num(made.old) - np.nan_to_num(made.reference), 0)
    assert math.isclose(found["answer_kl"], distance.sum() / 8, rel_tol=1e-12)
    assert math.isclose(found["answer_kl_k3"], (np.exp(-distance) - 1 + distance).sum() / 8, rel_tol=1e-12)
    arrays = made.arrays(run_config("ppo", batch=8), reference=made.reference)
    found = rollout().rollout_figures(arrays)
    returns, values = arrays["returns"][made.mask], arrays["values"][made.mask]
    assert math.isclose(found["value"], values.mean(), rel_tol=1e-12)
    assert math.isclose(found["explained_variance"], 1 - (returns - values).var() / returns.var(), rel_tol=1e-12)
    assert math.isclose(found["advantage"], np.abs(arrays["advantages"][made.mask]).mean(), rel_tol=1e-12)


@FACTS
def a_rollout_of_nothing_that_counts_is_told():
    made = Made()
    config = run_config(batch=8)
    arrays = made.arrays(config, counted=np.zeros(8, bool))
    (batch,) = rollout().minibatches(arrays, config, 0)
    assert_array_equal(batch.planes["share"], 0)
    found = rollout().rollout_figures(arrays)
    assert found["left_out"] == 1.0
    assert (found["reward_least"], found["reward_most"], found["reward_spread"]) == (0.0, 0.0, 0.0)
    assert np.isfinite(list(found.values())).all()


@FACTS
def without_old_the_policy_is_its_own():
    made = Made()
    config = run_config(batch=8)
    arrays = made.arrays(config, old=None, reference=made.reference)
    (batch,) = rollout().minibatches(arrays, config, 0)
    assert sorted(batch.planes) == ["advantages", "reference", "share"]
    same(rollout().read_arrays(arrays), arrays)
    distance = np.where(made.mask, arrays["sampled"] - np.nan_to_num(made.reference), 0)
    assert math.isclose(rollout().rollout_figures(arrays)["answer_kl"], distance.sum() / 8, rel_tol=1e-12)


@FACTS
def arrays_of_something_else_are_refused():
    made = Made()
    arrays = made.arrays(run_config())
    narrow = rollout().read_arrays({name: array.astype(np.float32) for name, array in arrays.items()})
    assert {array.dtype for array in narrow.values()} == {np.dtype(np.float64)}
    largest = rollout().read_arrays({**arrays, "tokens": np.full(made.mask.shape, 2.0**31 - 1)})
    assert largest["tokens"].max() == 2**31 - 1
    wrong: list[tuple[dict[str, Any], str]] = [
        ({name: array for name, array in arrays.items() if name != "labels"}, "no labels"),
        ({}, "no rewards"),
        ({**arrays, "weights": arrays["old"]}, "weights"),
        ({**arrays, "advantages": arrays["advantages"][:7]}, "[7, 9]"),
        ({**arrays, "ended": arrays["ended"][:, None]}, "[8, 1]"),
        ({**arrays, "tokens": arrays["tokens"][0]}, "tokens"),
        ({**arrays, "tokens": arrays["tokens"] + 0.5}, "tokens"),
        ({**arrays, "groups": arrays["groups"] * np.nan}, "groups"),
        ({**arrays, "labels": np.where(made.mask, 2.0**31, IGNORED)}, "labels"),
        ({**arrays, "counted": arrays["counted"] / 2}, "counted"),
    ]
    assert list(rollout().read_arrays(arrays, run_config(batch=8))) == list(arrays)
    with refused("alignment/rollout-damaged", "8 answers", "= 12"):
        rollout().read_arrays(arrays, run_config(batch=4, minibatches=3))
    with refused("alignment/rollout-damaged", "no values"):
        rollout().read_arrays(arrays, run_config("ppo", batch=8))
    for given, name in wrong:
        with refused("alignment/rollout-damaged", name):
            rollout().read_arrays(given)
