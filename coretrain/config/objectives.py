"""What `train.objective` asks of a run's other sections; what has no meaning beside it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from coretrain.config.adapter import AdapterConfig
from coretrain.config.align import AlignConfig
from coretrain.config.data import DataConfig
from coretrain.config.execution import ParallelConfig
from coretrain.config.fields import conflict
from coretrain.config.model import ModelConfig
from coretrain.config.training import TrainConfig

PAIRS: Final = ("reward", "dpo", "ipo", "simpo", "orpo")
"""The objectives of pairs: an answer that was chosen, and one that was rejected."""
POLICY: Final = ("ppo", "grpo")
"""The objectives of answers that the model itself samples."""
REFERRED: Final = ("dpo", "ipo", "kto")
"""The objectives whose loss has a reference's log-probabilities, whatever the settings."""
SCORED: Final = ("reward", "ppo")
"""The objectives of a score head."""

FORMATS: Mapping[str, tuple[str, ...]] = {
    "cross_entropy": ("text", "chat"),
    **dict.fromkeys(PAIRS, ("pairs",)),
    "kto": ("labels",),
    **dict.fromkeys(POLICY, ("prompts",)),
}
"""The forms of data that an objective learns from."""

USED: Mapping[str, tuple[str, ...]] = {
    "reference": (*REFERRED, *POLICY),
    "beta": ("dpo", "ipo", "simpo", "kto"),
    "label_smoothing": ("dpo", "simpo"),
    "lengths": ("dpo", "ipo"),
    "simpo_gamma": ("simpo",),
    "orpo_lambda": ("orpo",),
    "nll": ("dpo", "ipo", "simpo"),
    "center": ("reward",),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), ("kto",)),
    **dict.fromkeys(("whiten_rewards", "gamma", "lam", "value_clip", "value_coefficient"), ("ppo",)),
    "flat_groups": ("grpo",),
}
"""The objectives in which a field of `[align]` counts; of a field that isn't named here, `POLICY`."""


def check_objective(
    train: TrainConfig,
    align: AlignConfig,
    model: ModelConfig,
    data: DataConfig,
    parallel: ParallelConfig,
    adapter: AdapterConfig,
) -> None:
    """Raises what `conflict` makes where the sections don't go together."""
    objective = train.objective
    for name, field in AlignConfig.model_fields.items():
        if objective not in USED.get(name, POLICY) and getattr(align, name) != field.default:
            raise conflict(
                "config/field-of-another-objective",
                f"align.{name} = {getattr(align, name)} counts with {_either(USED.get(name, POLICY))}, and "
                f"train.objective = {objective}: leave align.{name} out",
            )
    if data.format not in FORMATS[objective]:
        raise conflict(
            "config/objective-of-another-format",
            f"train.objective = {objective} learns from data.format = {_either(FORMATS[objective])}, and data.format = "
            f"{data.format}: change one of them",
        )
    if model.score_head != (objective in SCORED):
        needs = "needs a score head" if objective in SCORED else "has no use for a score head"
        raise conflict(
            "config/score-head-and-objective",
            f"train.objective = {objective} {needs}: set model.score_head = {str(objective in SCORED).lower()}",
        )
    if train.start and adapter.base:
        raise conflict(
            "config/two-starts",
            "train.start and adapter.base are both set: an adapter's run begins from adapter.base; leave train.start "
            "out",
        )
    if objective == "cross_entropy":
        return
    if parallel.pipeline > 1:
        raise conflict(
            "config/objective-in-stages",
            f"train.objective = {objective} isn't computed where layers lie in stages: set parallel.pipeline = 1 "
            "(parallel.data, fsdp, tensor and zero share a run too)",
        )
    if objective in REFERRED and align.reference == "off":
        raise conflict(
            "config/objective-without-reference",
            f"train.objective = {objective} holds the policy against a reference, and align.reference = off: leave "
            "align.reference out (the run's own start), or name a run",
        )
    if objective in POLICY:
        _check_policy(train, align, model, data, adapter)


def _check_policy(
    train: TrainConfig, align: AlignConfig, model: ModelConfig, data: DataConfig, adapter: AdapterConfig
) -> None:
    objective, settled = train.objective, align.settled(train.objective)
    dropout = {
        "model.residual_dropout": model.residual_dropout,
        "model.embedding_dropout": model.embedding_dropout,
        "adapter.dropout": adapter.dropout if adapter.kind != "none" else 0,
    }
    if field := next((name for name, value in dropout.items() if value), None):
        raise conflict(
            "config/dropout-with-ratios",
            f"{field} = {dropout[field]:g}: with dropout the new probabilities aren't those that answers were sampled "
            f"with, so every ratio of {objective} is wrong: set it to 0",
        )
    if (settled.advantage == "gae") != (objective == "ppo"):
        right: Literal["gae", "group, group_std or rloo"]
        right = "gae" if objective == "ppo" else "group, group_std or rloo"
        raise conflict(
            "config/advantage-of-another-objective",
            f"align.advantage = {settled.advantage} isn't one of train.objective = {objective}: set it to {right}",
        )
    group = settled.group or 1
    if objective == "grpo" and group == 1:
        raise conflict(
            "config/group-of-one",
            "align.group = 1: an answer alone has nothing to be compared with, and every advantage is 0: sample 2 or "
            "more, or set train.objective = ppo",
        )
    if (train.batch_size * align.minibatches) % group:
        raise conflict(
            "config/group-doesnt-divide-rollout",
            f"align.group = {group} does not divide the rollout of train.batch_size x align.minibatches = "
            f"{train.batch_size * align.minibatches} answers: change one of them",
        )
    if align.tokens >= model.context:
        raise conflict(
            "config/answers-fill-the-context",
            f"align.tokens = {align.tokens} leaves no room for a prompt in model.context = {model.context}: lower it",
        )
    # what only a KL, and one in that place, gives a meaning
    if settled.kl_place == "loss" and settled.kl == "k1" and not align.kl_ratio:
        raise conflict(
            "config/k1-in-the-loss",
            f"align.kl = k1 with {objective}'s KL in the loss holds nothing back, since its expected gradient is 0: "
            "set align.kl = k3 or k2, or align.kl_place = reward",
        )
    if settled.kl_place == "loss" and align.kl_controller == "adaptive":
        raise conflict(
            "config/adaptive-kl-in-the-loss",
            f"align.kl_controller = adaptive steers a KL in the reward, and {objective}'s is in the loss: set "
            "align.kl_place = reward, or align.kl_controller = fixed",
        )
    if settled.kl_place == "reward" and align.kl_ratio:
        raise conflict(
            "config/kl-ratio-in-the-reward",
            f"align.kl_ratio is for a KL in the loss, and {objective}'s is in the reward: leave align.kl_ratio out",
        )
    if not settled.kl_coefficient and (align.kl or align.kl_place or align.kl_ratio or align.kl_controller != "fixed"):
        raise conflict(
            "config/kl-without-coefficient",
            f"the kind of a KL is given in [align], and {objective}'s align.kl_coefficient is 0: set "
            "align.kl_coefficient, or leave the KL out",
        )
    if settled.kl_coefficient and align.reference == "off":
        raise conflict(
            "config/kl-without-reference",
            f"align.kl_coefficient = {settled.kl_coefficient:g} needs a reference, and align.reference = off: set "
            "align.kl_coefficient = 0, or leave align.reference out",
        )
    if settled.ratio == "sequence" and settled.advantage == "gae":
        raise conflict(
            "config/sequence-ratio-with-gae",
            f"align.ratio = sequence gives an answer one ratio, and {objective}'s advantages are each token's own: set "
            "align.ratio = token, or train.objective = grpo",
        )
    if align.reward is None and not data.source.startswith("task:"):
        raise conflict(
            "config/no-reward",
            f"train.objective = {objective} needs a reward: set align.reward to a task's name, module:function or a "
            "reward run's folder",
        )


def _either(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
