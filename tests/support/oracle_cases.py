"""Which losses and numbers of other projects are held against ours, with which settings, and how near they must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coretrain.alignment.advantages import gae, group_advantages, whitened
from coretrain.alignment.corrections import corrections
from coretrain.alignment.kl import Controller, kl_values
from coretrain.alignment.returns import token_rewards
from tests.support.oracle_numbers import LIMIT

TRL = ("trl 1.12", "trl 1.16")
# Some hundred sums and products of float64: measured at most 2e-15, gradients by 2,000 parameters too. A wrong sign,
# a divisor off by a token, a clip that never holds: all are above 1e-3.
CLOSE = 1e-12
# Where they compute in float32, whose step is 1e-7: measured at most 6e-7
SINGLE = 3e-6
# Where they add 1e-8 to an answer's tokens, which may be one: measured 6e-9; or to all tokens, some 40: measured 2e-10
PER_TOKEN, PER_ALL = 2e-8, 1e-9


@dataclass(frozen=True)
class Loss:
    """A loss of theirs, and the objective of ours that it should be."""

    theirs: str
    settings: dict[str, Any]
    ours: str
    align: dict[str, Any] = field(default_factory=dict)
    limit: float = CLOSE
    margin: bool = False
    corrected: bool = False
    without: int = 0
    """A figure of ours that isn't in their loss."""


def _grpo(loss: str, *, limit: float = CLOSE, align: dict[str, Any] | None = None, **settings: Any) -> Loss:
    aggregate = {"grpo": "sequence", "dr_grpo": "constant"}.get(loss, "token")
    tokens = {"tokens": LIMIT} if loss == "dr_grpo" else {}
    given = {"aggregate": aggregate, **(align or {})}
    return Loss("trl_grpo", {"loss": loss, **tokens, **settings}, "grpo", given, limit, False, "corrected" in settings)


def _verl(align: dict[str, Any], limit: float = CLOSE, **settings: Any) -> Loss:
    aggregate = {"token": "token-mean", "sequence": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}
    form = align.get("aggregate", "token")
    scale = {"scale": LIMIT} if form == "constant" else {}
    given = {"loss": "vanilla", "low": 0.2, "high": 0.2, "aggregate": aggregate[form], **scale} | settings
    return Loss("verl_policy", given, "grpo", align, limit, False, "corrected" in settings)


def _tunix(loss: str, align: dict[str, Any], limit: float = SINGLE, **settings: Any) -> Loss:
    return Loss("tunix_policy", {"loss": loss, **settings}, "grpo", align, limit)


SEQUENCE = {"ratio": "sequence", "clip_low": 0.02, "clip_high": 0.03}
LOSSES: dict[str, tuple[tuple[str, ...], Loss]] = {
    "dpo": (TRL, Loss("trl_dpo", {"loss": "sigmoid", "beta": 0.3}, "dpo", {"beta": 0.3})),
    "dpo by means": (
        TRL,
        Loss("trl_dpo", {"loss": "sigmoid_norm", "beta": 5.0}, "dpo", {"beta": 5.0, "lengths": "mean"}),
    ),
    "ipo": (TRL, Loss("trl_dpo", {"loss": "ipo", "beta": 0.3}, "ipo", {"beta": 0.3})),
    "kto": (
        TRL,
        Loss(
            "trl_kto",
            {"beta": 0.4, "desirable": 1.5, "undesirable": 0.7},
            "kto",
            {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.7},
        ),
    ),
    "simpo": (
        TRL,
        Loss("trl_simpo", {"beta": 2.0, "gamma": 0.7, "smoothing": 0.0}, "simpo", {"beta": 2.0, "simpo_gamma": 0.7}),
    ),
    "simpo, smoothed": (
        TRL,
        Loss(
            "trl_simpo",
            {"beta": 2.0, "gamma": 0.7, "smoothing": 0.1},
            "simpo",
            {"beta": 2.0, "simpo_gamma": 0.7, "label_smoothing": 0.1},
        ),
    ),
    "orpo's odds": (TRL, Loss("trl_orpo", {"weight": 0.6}, "orpo", {"orpo_lambda": 0.6}, SINGLE, without=7)),
    "reward": (TRL, Loss("trl_reward", {"center": 0.0, "margin": False}, "reward")),
    "reward, centred": (
        TRL,
        Loss("trl_reward", {"center": 0.02, "margin": True}, "reward", {"center": 0.02}, margin=True),
    ),
    "grpo": (TRL, _grpo("grpo")),
    "dapo": (TRL, _grpo("dapo", high=0.28, align={"clip_high": 0.28})),
    "bnpo": (TRL, _grpo("bnpo")),
    "dr. grpo": (TRL, _grpo("dr_grpo")),
    "gspo": (TRL, _grpo("grpo", low=0.02, high=0.03, level="sequence", align=SEQUENCE)),
    "grpo, dual clip": (TRL, _grpo("dapo", delta=1.8, align={"dual_clip": 1.8})),
    "grpo with k3": (TRL, _grpo("dapo", beta=0.3, align={"kl_coefficient": 0.3})),
    "grpo with k3 and ratio": (
        TRL,
        _grpo("dapo", beta=0.3, kl_ratio=True, align={"kl_coefficient": 0.3, "kl_ratio": True}),
    ),
    "grpo, corrected": (TRL, _grpo("dapo", beta=0.3, corrected=True, align={"kl_coefficient": 0.3})),
    "openrlhf dpo": (
        ("openrlhf",),
        Loss(
            "openrlhf_dpo",
            {"beta": 0.3, "smoothing": 0.15, "ipo": False},
            "dpo",
            {"beta": 0.3, "label_smoothing": 0.15},
        ),
    ),
    "openrlhf ipo by sums": (
        ("openrlhf",),
        Loss("openrlhf_dpo", {"beta": 0.3, "smoothing": 0.0, "ipo": True}, "ipo", {"beta": 0.3, "lengths": "sum"}),
    ),
    "openrlhf reward": (("openrlhf",), Loss("openrlhf_reward", {"margin": False}, "reward")),
    "openrlhf reward with margins": (("openrlhf",), Loss("openrlhf_reward", {"margin": True}, "reward", margin=True)),
    "openrlhf policy": (("openrlhf",), Loss("openrlhf_policy", {}, "grpo")),
    "openrlhf policy, dual clip": (
        ("openrlhf",),
        Loss(
            "openrlhf_policy",
            {"dual_clip": 1.8, "clip_eps_high": 0.28},
            "grpo",
            {"dual_clip": 1.8, "clip_high": 0.28},
        ),
    ),
    "openrlhf policy by answers": (
        ("openrlhf",),
        Loss("openrlhf_policy", {"token_level_loss": False}, "grpo", {"aggregate": "sequence"}, PER_TOKEN),
    ),
    "openrlhf gspo": (
        ("openrlhf",),
        Loss(
            "openrlhf_policy",
            {"policy_loss_type": "gspo", "clip_eps_low": 0.02, "clip_eps_high": 0.03},
            "grpo",
            {"aggregate": "sequence", **SEQUENCE},
            PER_TOKEN,
        ),
    ),
    "openrlhf value": (
        ("openrlhf",),
        Loss("openrlhf_value", {"clip": 0.2}, "ppo", {"value_clip": 0.2, "value_coefficient": 1.0}),
    ),
    "openrlhf value, free": (
        ("openrlhf",),
        Loss("openrlhf_value", {"clip": None}, "ppo", {"value_clip": 0, "value_coefficient": 1.0}),
    ),
    "verl policy": (("verl",), _verl({})),
    "verl policy, dual clip": (
        ("verl",),
        _verl({"dual_clip": 1.8, "clip_high": 0.28}, dual=1.8, high=0.28),
    ),
    "verl policy by answers": (("verl",), _verl({"aggregate": "sequence"}, PER_TOKEN)),
    "verl policy by a constant": (("verl",), _verl({"aggregate": "constant"})),
    "verl policy, corrected": (("verl",), _verl({}, corrected=True)),
    "verl gspo": (
        ("verl",),
        _verl({"aggregate": "sequence", **SEQUENCE}, PER_TOKEN, loss="gspo", low=0.02, high=0.03, even=True),
    ),
    "verl value": (
        ("verl",),
        Loss(
            "verl_value",
            {"clip": 0.3, "aggregate": "token-mean"},
            "ppo",
            {"value_clip": 0.3, "value_coefficient": 1.0},
        ),
    ),
    "tunix ppo": (("tunix",), _tunix("ppo_policy", {}, PER_ALL, epsilon_low=0.2, epsilon_high=0.2)),
    "tunix ppo, dual clip": (
        ("tunix",),
        _tunix(
            "ppo_policy",
            {"dual_clip": 1.8, "clip_high": 0.28},
            PER_ALL,
            epsilon_low=0.2,
            epsilon_high=0.28,
            epsilon_c=1.8,
        ),
    ),
    "tunix grpo with k3": (
        ("tunix",),
        _tunix("grpo", {"kl_coefficient": 0.3}, epsilon=0.2, epsilon_high=0.2, beta=0.3),
    ),
    "tunix grpo by answers": (
        ("tunix",),
        _tunix(
            "grpo", {"aggregate": "sequence"}, epsilon=0.2, epsilon_high=0.2, loss_agg_mode="sequence-mean-token-mean"
        ),
    ),
    "tunix gspo": (
        ("tunix",),
        _tunix("grpo", SEQUENCE, epsilon=0.02, epsilon_high=0.03, loss_algo="gspo-token", even=True),
    ),
    "tunix value": (
        ("tunix",),
        Loss("tunix_value", {"clip": 0.3}, "ppo", {"value_clip": 0.3, "value_coefficient": 1.0}, PER_ALL),
    ),
    "tunix dpo, smoothed": (
        ("tunix",),
        Loss("tunix_dpo", {"beta": 0.3, "smoothing": 0.15}, "dpo", {"beta": 0.3, "label_smoothing": 0.15}),
    ),
}

Given = dict[str, np.ndarray]
NUMBERS: dict[str, tuple[str, str, dict[str, Any], Callable[[Given, np.ndarray], Any], float]] = {
    # whose, function, settings, ours of the same numbers and the mask, limit
    "verl returns": (
        "verl",
        "verl_gae",
        {"gamma": 0.97, "lam": 0.9, "returns": True},
        lambda d, m: np.where(m, gae(d["rewards"], d["old_values"], m, 0.97, 0.9) + d["old_values"], 0),
        CLOSE,
    ),
    "verl advantages": (
        "verl",
        "verl_gae",
        {"gamma": 0.97, "lam": 0.9, "returns": False},
        lambda d, m: whitened(gae(d["rewards"], d["old_values"], m, 0.97, 0.9), m),
        PER_ALL,
    ),
    "tunix returns": (
        "tunix",
        "tunix_gae",
        {"gamma": 0.97, "lam": 0.9, "returns": True},
        lambda d, m: np.where(m, gae(d["rewards"], d["old_values"], m, 0.97, 0.9) + d["old_values"], 0),
        CLOSE,
    ),
    "tunix advantages": (
        "tunix",
        "tunix_gae",
        {"gamma": 0.97, "lam": 0.9, "returns": False},
        lambda d, m: whitened(gae(d["rewards"], d["old_values"], m, 0.97, 0.9), m),
        PER_ALL,
    ),
    **{
        f"{whose} {kind}": (
            whose,
            f"{whose}_group",
            {"kind": kind, "eps": 1e-6},
            lambda d, m, kind=kind: m * group_advantages(kind, d["answer_scores"], d["groups"], eps=1e-6)[:, None],
            CLOSE,
        )
        for whose in ("verl", "tunix")
        for kind in ("group", "group_std", "rloo")
    },
    **{
        f"{whose} whitened, shift {shift}": (
            whose,
            f"{whose[:3] if whose != 'verl' else 'verl'}_whitened",
            {"shift": shift},
            lambda d, m, shift=shift: whitened(d["advantages"], m, shift),
            limit,
        )
        for whose, limit in (("trl 1.12", CLOSE), ("verl", PER_ALL))
        for shift in (True, False)
    },
    **{
        f"verl {kind}": (
            "verl",
            "verl_kl",
            {"estimator": kind},
            lambda d, m, kind=kind: kl_values(kind, d["old"], d["reference"], m),
            CLOSE,
        )
        for kind in ("k1", "k2", "k3")
    },
    **{
        f"openrlhf {kind}": (
            "openrlhf",
            "openrlhf_kl",
            {"estimator": kind},
            lambda d, m, kind=kind: kl_values(kind, d["old"], d["reference"], m),
            SINGLE,
        )
        for kind in ("k1", "k2", "k3")
    },
    "openrlhf rewards": (
        "openrlhf",
        "openrlhf_rewards",
        {"coefficient": 0.3, "clip": 0.8},
        lambda d, m: token_rewards(np.clip(d["answer_scores"], -0.8, 0.8), m, d["old"] - d["reference"], 0.3),
        CLOSE,
    ),
    **{
        f"verl corrections, {kind}, {level}": (
            "verl",
            "verl_corrections",
            {"level": level, "threshold": threshold},
            lambda d, m, kind=kind, level=level: m * corrections(kind, level, d["old"], d["sampled"], m, 1.5, 0.7),
            CLOSE,
        )
        for kind, threshold in (("truncate", 1.5), ("mask", "0.7_1.5"))
        for level in ("token", "sequence")
    },
    "verl controller": (
        "verl",
        "verl_controller",
        {"target": 6.0, "horizon": 1000, "answers": 64},
        lambda d, m: _followed(d["divergences"]),
        CLOSE,
    ),
}


def _followed(divergences: np.ndarray) -> list[float]:
    controller, found, coefficient = Controller(True, 6.0, 1000), [], 0.2
    for kl in divergences.tolist():
        coefficient = controller.after(coefficient, kl, 64)
        found.append(coefficient)
    return found
