"""The fields of alignment: what they are where they aren't set, and what has no meaning beside each other."""

from __future__ import annotations

import pytest

from coretrain.config.align import AlignConfig
from coretrain.config.load import load_config
from coretrain.config.objectives import FORMATS, PAIRS, POLICY, SCORED, USED
from tests.support.refusal import refused

OBJECTIVES = tuple(FORMATS)
BY_THEMSELVES = (
    "top_k", "top_p", "correction_level", "correction_cap", "correction_floor", "kl_target", "kl_horizon",
    "overlong_penalty",
)  # fmt: skip
"""Fields that other fields of the section have to give a meaning, whatever the objective."""


def fields(objective: str, **more: object) -> list[tuple[str, str]]:
    """A run of an objective that is fine, and `section__field=value` on top."""
    base: dict[str, object] = {
        "train__objective": objective,
        "data__format": FORMATS[objective][0],
        "model__score_head": str(objective in SCORED).lower(),
        "model__context": 200,
    }
    if objective in POLICY:
        base["align__reward"] = "my.rewards:exact"
    return [(name.replace("__", "."), str(value)) for name, value in (base | more).items()]


def made(objective: str, **more: object):
    return load_config(None, fields(objective, **more))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_not_set_follows_the_objective(objective):
    a = made(objective).aligned
    known = {
        "dpo": {"beta": 0.1, "lengths": "sum"},
        "ipo": {"beta": 0.1, "lengths": "mean"},
        "simpo": {"beta": 2.0, "simpo_gamma": 0.5},
        "kto": {"beta": 0.1},
        "grpo": {
            "kl": "k3",
            "kl_place": "loss",
            "kl_coefficient": 0.0,
            "advantage": "group_std",
            "whiten": False,
            "group": 8,
        },
        "ppo": {
            "kl": "k1",
            "kl_place": "reward",
            "kl_coefficient": 0.05,
            "advantage": "gae",
            "whiten": True,
            "group": 1,
        },
    }
    for name, value in known.get(objective, {}).items():
        assert getattr(a, name) == value, name


def test_what_is_set_stays():
    a = made(
        "grpo", align__kl_coefficient=0.2, align__kl_place="reward", align__group=4, align__advantage="rloo"
    ).aligned
    assert (a.kl, a.kl_place, a.kl_coefficient, a.group, a.advantage) == ("k1", "reward", 0.2, 4, "rloo")
    assert made("dpo", align__lengths="mean", align__beta=5).aligned.beta == 5
    assert made("ppo", align__correction="mask").aligned.correction_cap == 5
    assert made("ppo", align__correction="truncate").aligned.correction_cap == 2
    assert made("ppo", align__correction="truncate", align__correction_cap=3).aligned.correction_cap == 3


@pytest.mark.parametrize("name", [name for name in AlignConfig.model_fields if name not in BY_THEMSELVES])
def test_a_field_that_does_not_count_is_refused(name):
    """Each with each objective: taken where it counts, and refused by name where it doesn't."""
    other = {
        "reference": "runs/a", "beta": 0.7, "label_smoothing": 0.1, "lengths": "mean", "kl": "k2", "kl_place": "loss",
        "kl_controller": "adaptive", "kl_ratio": True, "dual_clip": 3.0, "ratio": "sequence", "advantage": "rloo",
        "aggregate": "sequence", "whiten": True, "whiten_rewards": True, "flat_groups": "drop", "reward": "sort",
        "reward_failure": "skip", "reward_clip": 2.0, "mask_truncated": True, "correction": "mask", "replay": True,
        "group": 4, "kl_coefficient": 0.3,
    }  # fmt: skip
    field = AlignConfig.model_fields[name]
    value = other.get(name, 0.75 if isinstance(field.default, float) else 3)
    for objective in OBJECTIVES:
        if objective not in USED.get(name, POLICY):
            with refused("config/field-of-another-objective", f"align.{name}", objective):
                made(objective, **{f"align__{name}": value})


TOGETHER = {
    "k1 in the loss": ("grpo", {"kl": "k1", "kl_coefficient": 0.1}, "k1-in-the-loss", "align.kl = k1"),
    "k1 in PPO's loss": ("ppo", {"kl": "k1", "kl_place": "loss"}, "k1-in-the-loss", "align.kl = k1"),
    "top-k": ("grpo", {"top_k": 50}, "cut-sampler-with-ratios", "align.top_k = 50"),
    "top-p": ("ppo", {"top_p": 0.9}, "cut-sampler-with-ratios", "align.top_p = 0.9"),
    "a ratio on a KL in the reward": ("ppo", {"kl_ratio": "true"}, "kl-ratio-in-the-reward", "align.kl_ratio"),
    "adaptive in the loss": (
        "grpo",
        {"kl_controller": "adaptive", "kl_coefficient": 0.1},
        "adaptive-kl-in-the-loss",
        "align.kl_controller",
    ),
    "a KL that counts nothing": ("grpo", {"kl": "k3"}, "kl-without-coefficient", "align.kl_coefficient"),
    "a KL to nothing": ("ppo", {"reference": "off"}, "kl-without-reference", "align.reference = off"),
    "no reference for DPO": ("dpo", {"reference": "off"}, "objective-without-reference", "align.reference = off"),
    "one ratio, many advantages": ("ppo", {"ratio": "sequence"}, "sequence-ratio-with-gae", "align.ratio = sequence"),
    "GAE without values": ("grpo", {"advantage": "gae"}, "advantage-of-another-objective", "align.advantage = gae"),
    "groups with values": ("ppo", {"advantage": "rloo"}, "advantage-of-another-objective", "align.advantage = rloo"),
    "a group of one": ("grpo", {"group": 1}, "group-of-one", "align.group = 1"),
    "parts of groups": ("grpo", {"group": 5}, "group-doesnt-divide-rollout", "align.group = 5"),
    "no room for a prompt": ("grpo", {"tokens": 200}, "answers-fill-the-context", "align.tokens = 200"),
    "a cap on nothing": ("ppo", {"correction_cap": 3}, "field-without-its-owner", "align.correction_cap"),
    "a floor without a mask": (
        "ppo",
        {"correction": "truncate", "correction_floor": 0.1},
        "field-without-its-owner",
        "align.correction_floor",
    ),
    "a target without a controller": ("ppo", {"kl_target": 3}, "field-without-its-owner", "align.kl_target"),
    "a penalty without a buffer": ("ppo", {"overlong_penalty": 2}, "field-without-its-owner", "align.overlong_penalty"),
    "a buffer longer than an answer": ("ppo", {"overlong_buffer": 65}, "overlong-buffer-too-long", "align.tokens = 64"),
    "a penalty of what is left out": (
        "grpo",
        {"mask_truncated": "true", "missing_end": 1},
        "penalty-of-answers-left-out",
        "align.missing_end = 1",
    ),
    "no weight at all": (
        "kto",
        {"desirable_weight": 0, "undesirable_weight": 0},
        "no-answer-weighs",
        "align.undesirable_weight",
    ),
    "a correction of a replay": (
        "ppo",
        {"replay": "true", "correction": "mask"},
        "replay-with-correction",
        "align.replay",
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_what_has_no_meaning_is_refused(name):
    objective, settings, code, word = TOGETHER[name]
    with refused(f"config/{code}", word):
        made(objective, **{f"align__{field}": value for field, value in settings.items()})


def test_neighbours_of_what_is_refused_are_taken():
    """One step on the other side of each rule."""
    made("grpo", align__kl="k1", align__kl_coefficient=0.1, align__kl_ratio="true")
    made("grpo", align__kl="k1", align__kl_coefficient=0.1, align__kl_place="reward", align__kl_controller="adaptive")
    made("ppo", align__reference="off", align__kl_coefficient=0)
    made("grpo", align__ratio="sequence", align__tokens=199, align__group=8)
    made("grpo", align__group=16, align__minibatches=2)
    made("ppo", align__overlong_buffer=64, align__overlong_penalty=2, align__replay="true")
    made("ppo", align__mask_truncated="true", align__overlong_buffer=8)
    made("kto", align__desirable_weight=0)
    made("dpo", model__residual_dropout=0.1, adapter__kind="lora", adapter__dropout=0.1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_rest_of_a_run_must_fit(objective):
    others = {form for forms in FORMATS.values() for form in forms} - set(FORMATS[objective])
    for form in others:
        with refused("config/objective-of-another-format", f"data.format = {form}", objective):
            made(objective, data__format=form)
    with refused("config/score-head-and-objective", "model.score_head", objective):
        made(objective, model__score_head=str(objective not in SCORED).lower())
    if objective != "cross_entropy":
        with refused("config/objective-in-stages", "parallel.pipeline = 1", objective):
            made(objective, parallel__pipeline=2)
    with refused("config/two-starts", "train.start", "adapter.base"):
        made(objective, train__start="runs/a", adapter__base="runs/b", adapter__kind="lora")


@pytest.mark.parametrize("objective", POLICY)
def test_a_policy_needs_a_reward_and_no_dropout(objective):
    with refused("config/no-reward", "align.reward", objective):
        made(objective, align__reward="none")
    made(objective, align__reward="none", data__source="task:sort")
    for field in ("model__residual_dropout", "model__embedding_dropout", "adapter__dropout"):
        with refused("config/dropout-with-ratios", field.replace("__", "."), objective):
            made(objective, **{field: 0.1}, adapter__kind="lora")


def test_pairs_are_the_objectives_of_pairs():
    assert {objective for objective, forms in FORMATS.items() if forms == ("pairs",)} == set(PAIRS)
