"""The fields of alignment: what the objectives other than cross-entropy are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from coretrain.config.fields import Count, Positive, Section, conflict

UNSET: Mapping[str, Mapping[str, Any]] = {
    "beta": {"simpo": 2.0, "dpo": 0.1, "ipo": 0.1, "kto": 0.1},
    "lengths": {"dpo": "sum", "ipo": "mean"},
    "kl_place": {"ppo": "reward", "grpo": "loss"},
    "kl_coefficient": {"ppo": 0.05, "grpo": 0.0},
    "advantage": {"ppo": "gae", "grpo": "group_std"},
    "whiten": {"ppo": True, "grpo": False},
    "group": {"ppo": 1, "grpo": 8},
}
"""What a field that isn't set is, by objective; `kl` and `correction_cap` follow other fields."""


class AlignConfig(Section):
    """Alignment: preferences (reward model, DPO and its kin) and reinforcement learning (PPO, GRPO)."""

    reference: str | None = Field(
        None,
        description="The model that the policy is held against: a run's folder, or `off` where no KL is wanted. "
        "Unset: this run's own start, with an adapter the adapter's start.",
    )

    beta: float | None = Field(
        None,
        gt=0,
        description="dpo, ipo, simpo, kto: how firmly the policy is held; IPO's tau. Unset: 0.1, for simpo 2.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="dpo, simpo: share of pairs taken to be labelled the wrong way round."
    )
    lengths: Literal["sum", "mean"] | None = Field(
        None,
        description="dpo, ipo: log-probability of an answer, summed over its tokens or their mean. Unset: dpo sum, "
        "ipo mean.",
    )
    simpo_gamma: float = Field(
        0.5, ge=0, description="simpo: target margin gamma, taken off beta times the difference (not gamma / beta)."
    )
    orpo_lambda: float = Field(0.1, ge=0, description="orpo: weight of the odds ratio beside the chosen answer's loss.")
    nll: float = Field(
        0.0, ge=0, description="dpo, ipo, simpo: weight of the chosen answer's mean cross-entropy beside the loss."
    )
    center: float = Field(
        0.0, ge=0, description="reward: weight of the squared sum of a pair's scores, which keeps them around 0."
    )
    desirable_weight: float = Field(1.0, ge=0, description="kto: weight of the answers that are right.")
    undesirable_weight: float = Field(1.0, ge=0, description="kto: weight of the answers that are wrong.")

    kl: Literal["k1", "k2", "k3"] | None = Field(
        None,
        description="ppo, grpo: estimator of the KL to the reference (Schulman 2020). Unset: k1 in the reward, k3 in "
        "the loss.",
    )
    kl_place: Literal["reward", "loss"] | None = Field(
        None, description="ppo, grpo: where the KL is counted, in one place only. Unset: ppo reward, grpo loss."
    )
    kl_coefficient: float | None = Field(
        None, ge=0, description="ppo, grpo: weight of the KL; its first value where it adapts. Unset: ppo 0.05, grpo 0."
    )
    kl_controller: Literal["fixed", "adaptive"] = Field(
        "fixed", description="ppo, grpo: the weight stays, or is steered to kl_target (Ziegler 2019); in the reward."
    )
    kl_target: float = Field(6.0, gt=0, description="adaptive: KL of an answer that is aimed at, in nats.")
    kl_horizon: Positive = Field(10_000, description="adaptive: answers in which the weight can change by a fifth.")
    kl_ratio: bool = Field(
        False,
        description="The KL of the loss is multiplied by the ratio, so that its gradient is right after the first of "
        "several updates too.",
    )

    clip_low: float = Field(0.2, gt=0, lt=1, description="ppo, grpo: the ratio counts down to 1 - clip_low.")
    clip_high: float = Field(0.2, gt=0, description="ppo, grpo: the ratio counts up to 1 + clip_high (DAPO: 0.28).")
    dual_clip: float | None = Field(
        None,
        gt=1,
        description="ppo, grpo: with a negative advantage a term is at most this times it (usually 3). Unset: none.",
    )
    ratio: Literal["token", "sequence"] = Field(
        "token",
        description="ppo, grpo: new against old probability of a token, or of the whole answer (GSPO; its clips are "
        "3e-4 and 4e-4).",
    )
    advantage: Literal["gae", "group", "group_std", "rloo"] | None = Field(
        None,
        description="gae: from values (ppo); reward less the group's mean (group: Dr. GRPO), over its spread too "
        "(group_std: GRPO), or less the others' mean (rloo). Unset: ppo gae, grpo group_std.",
    )
    aggregate: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="ppo, grpo: all tokens of an update count alike (DAPO), all answers alike (GRPO's paper), or each "
        "token 1 / (answers x align.tokens) (Dr. GRPO).",
    )
    whiten: bool | None = Field(
        None,
        description="ppo, grpo: a rollout's advantages are shifted to mean 0 and scaled to variance 1. Unset: ppo yes, "
        "grpo no.",
    )
    whiten_rewards: bool = Field(False, description="ppo: a rollout's rewards are scaled to variance 1.")
    gamma: float = Field(1.0, gt=0, le=1, description="ppo: discount of later rewards, a token.")
    lam: float = Field(0.95, ge=0, le=1, description="ppo: lambda of GAE (Schulman 2015).")
    value_clip: float = Field(
        0.2, ge=0, description="ppo: a value moves at most so far from the old one in the loss (0: no limit)."
    )
    value_coefficient: float = Field(0.1, ge=0, description="ppo: weight of the value's loss beside the policy's.")
    epochs: Positive = Field(1, description="ppo, grpo: how often a rollout is gone through.")
    minibatches: Positive = Field(
        1, description="ppo, grpo: updates in one pass through a rollout, of train.batch_size answers each."
    )

    group: Positive | None = Field(
        None, description="ppo, grpo: answers that are sampled for a prompt. Unset: grpo 8, ppo 1."
    )
    flat_groups: Literal["keep", "drop"] = Field(
        "keep",
        description="grpo: groups whose rewards are all equal count in the divisor, or are left out of it (DAPO's "
        "dynamic sampling, without sampling again).",
    )
    tokens: Positive = Field(64, description="ppo, grpo: tokens of an answer at most, its end included.")
    temperature: float = Field(
        1.0, gt=0, description="ppo, grpo: logits are divided by it, in sampler, trainer and reference alike."
    )
    top_k: Count = Field(0, description="Always 0: what is cut off a sampler's distribution makes ratios wrong.")
    top_p: float = Field(1.0, gt=0, le=1, description="Always 1, as top_k is 0.")
    reward: str | None = Field(
        None,
        description="ppo, grpo: what scores an answer: a task's name, `module:function` of yours, the folder of a "
        "reward run, or several joined by +, each times its WEIGHT* (or 1). Unset: the task of data.source.",
    )
    reward_timeout: float = Field(
        10.0, gt=0, le=86_400, description="Seconds that a reward function may take for a rollout's answers."
    )
    reward_failure: Literal["stop", "skip"] = Field(
        "stop", description="When a reward raises, hangs or is no number: stop the run, or skip the rollout's updates."
    )
    reward_clip: float | None = Field(
        None, gt=0, description="ppo, grpo: a reward counts at most this, up and down. Unset: no limit."
    )
    missing_end: float = Field(
        0.0, ge=0, description="ppo, grpo: what is taken off the reward of an answer that didn't end by itself."
    )
    overlong_buffer: Count = Field(
        0, description="ppo, grpo: of an answer's last so many tokens each takes off its share (DAPO; 0: none)."
    )
    overlong_penalty: float = Field(1.0, ge=0, description="What an answer loses that fills the whole buffer.")
    mask_truncated: bool = Field(
        False, description="ppo, grpo: an answer that didn't end by itself isn't learnt from (DAPO's filter)."
    )
    correction: Literal["none", "truncate", "mask"] = Field(
        "none",
        description="ppo, grpo: what is done about a sampler that isn't the trainer in its last bits: weights trainer "
        "/ sampler, truncated at the cap (Yao 2025), or 0 outside [floor, cap].",
    )
    correction_level: Literal["token", "sequence"] = Field(
        "token", description="A weight for each token, or one for the whole answer, their product."
    )
    correction_cap: float | None = Field(
        None, gt=1, description="Largest weight of a correction. Unset: truncate 2, mask 5."
    )
    correction_floor: float = Field(0.5, ge=0, lt=1, description="mask: smallest weight.")
    replay: bool = Field(
        False,
        description="ppo, grpo: old log-probabilities are the sampler's own, computed once more by its own steps, bit "
        "for bit.",
    )

    @model_validator(mode="after")
    def _meaning(self) -> Self:
        if self.top_k or self.top_p < 1:
            field = f"top_k = {self.top_k}" if self.top_k else f"top_p = {self.top_p:g}"
            raise conflict(
                "config/cut-sampler-with-ratios",
                f"align.{field}: a sampler that leaves tokens out has other probabilities than the trainer, so every "
                "ratio is wrong: leave it out; align.temperature makes sampling sharper",
            )
        if self.correction == "none":
            self._only_with("correction", "truncate or mask", "correction_level", "correction_cap")
        if self.correction != "mask":
            self._only_with("correction", "mask", "correction_floor")
        if self.kl_controller == "fixed":
            self._only_with("kl_controller", "adaptive", "kl_target", "kl_horizon")
        if not self.overlong_buffer:
            self._only_with("overlong_buffer", "a number of tokens", "overlong_penalty")
        if self.overlong_buffer > self.tokens:
            raise conflict(
                "config/overlong-buffer-too-long",
                f"align.overlong_buffer = {self.overlong_buffer} is more than align.tokens = {self.tokens}: lower it",
            )
        if self.mask_truncated and self.missing_end:
            raise conflict(
                "config/penalty-of-answers-left-out",
                f"align.missing_end = {self.missing_end:g} is taken off answers that align.mask_truncated leaves out: "
                "leave one of them out",
            )
        if not self.desirable_weight + self.undesirable_weight:
            raise conflict(
                "config/no-answer-weighs",
                "align.desirable_weight and align.undesirable_weight are both 0, so that nothing would be learnt: "
                "raise one",
            )
        if self.replay and self.correction != "none":
            raise conflict(
                "config/replay-with-correction",
                f"align.replay makes old log-probabilities the sampler's own, so align.correction = {self.correction} "
                "has nothing to correct: leave one of them out",
            )
        return self

    def _only_with(self, owner: str, value: str, *fields: str) -> None:
        """Refuse fields that aren't as they are by default, where the field that gives them a meaning isn't set."""
        for name in fields:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise conflict(
                    "config/field-without-its-owner",
                    f"align.{name} = {getattr(self, name)} counts only where align.{owner} is {value}: "
                    f"set align.{owner}, or leave align.{name} out",
                )

    def settled(self, objective: str) -> AlignConfig:
        """With values in the fields whose default depends on the objective, or on another field."""
        given = {name: by[objective] for name, by in UNSET.items() if getattr(self, name) is None and objective in by}
        place = given.get("kl_place", self.kl_place)
        if self.kl is None:
            given["kl"] = "k1" if place == "reward" else "k3"
        if self.correction_cap is None:
            given["correction_cap"] = 5.0 if self.correction == "mask" else 2.0
        return self.model_copy(update=given)
