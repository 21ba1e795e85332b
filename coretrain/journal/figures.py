"""The figures of an update and of an evaluation that an objective adds: how each is named, told and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coretrain.config.run import RunConfig
from coretrain.journal.metrics import number

REWARDED = ("ppo", "grpo")
"""Objectives that are judged by a reward: a higher one is better, and their `val_loss` is its negative."""
OF_TEXT = frozenset(
    ("update", "loss", "grad_norm", "lr", "tokens", "batch_hash", "smoothed_loss", "seconds", "learned")
)
"""Fields of an update's row that every run has."""
TOLD: Mapping[str, Sequence[str]] = {
    "reward": ("accuracy", "margin"),
    "dpo": ("accuracy", "margin", "chosen_logprob"),
    "ipo": ("accuracy", "margin", "chosen_logprob"),
    "simpo": ("accuracy", "margin", "chosen_logprob"),
    "orpo": ("accuracy", "margin", "chosen_logprob"),
    "kto": ("margin",),
    "grpo": ("reward", "answer_kl", "entropy", "length"),
    "ppo": ("reward", "answer_kl", "entropy", "length"),
}
"""What the terminal's line says of an update beside its loss, by objective."""


JUDGED: Mapping[str, str] = {
    "val_reward": "as it samples",
    "val_reward_likeliest": "its likeliest answers",
    "val_truth": "as the task itself has it",
}
"""Of an evaluation, what answers to held-out prompts were found worth."""


TASK = "task/"
"""How a figure of a task begins, before its name and metric."""


@dataclass(frozen=True)
class Chart:
    """One chart of the report: its title, its unit, and which fields of a row it draws, each with its name."""

    title: str
    unit: str
    fields: Mapping[str, str]
    validation: str = ""
    """A field of the evaluations that is drawn as points."""


CHARTS = (
    Chart("Reward", "mean of the rollout", {"reward": "mean", "reward_spread": "spread"}, "val_reward"),
    Chart("KL to the reference", "nats an answer", {"answer_kl": "k1", "answer_kl_k3": "k3"}),
    Chart("KL to the reference", "nats a token, k3, in the update", {"kl": "KL"}),
    Chart("Entropy", "nats a token", {"entropy": "entropy"}),
    Chart("Answers", "tokens", {"length": "mean length"}, "val_length"),
    Chart("Answers that ended", "share", {"ended": "ended"}),
    Chart("Clip fraction", "share of tokens", {"clip_fraction": "clipped"}),
    Chart("Ratio", "new to old policy, mean", {"ratio": "ratio"}),
    Chart("Old to new policy", "KL, nats a token", {"approx_kl": "KL"}),
    Chart("Answers of groups without a spread", "share", {"without_spread": "answers"}),
    Chart("Answers left out", "share", {"left_out": "left out"}),
    Chart("Advantage", "mean size, a token", {"advantage": "size"}),
    Chart("Rewards", "range in a rollout", {"reward_most": "most", "reward_least": "least"}),
    Chart("Penalties", "taken off a reward, mean", {"penalty": "penalty"}),
    Chart("Sampler to trainer", "difference of log-probability", {"gap_mean": "mean", "gap_max": "largest"}),
    Chart("Sampler to trainer", "KL, nats a token (k3)", {"gap_k3": "KL"}),
    Chart("Sampler to trainer", "share of ratios outside 0.5 to 2", {"gap_outside": "outside"}),
    Chart("Policy loss", "the value's and the KL's aside", {"policy_loss": "loss"}),
    Chart("Weight of the KL", "coefficient", {"kl_coefficient": "coefficient"}),
    Chart("Value function", "loss", {"value_loss": "loss"}),
    Chart("Value function", "explained variance", {"explained_variance": "explained"}),
    Chart("Values", "mean", {"value": "value"}),
    Chart("Accuracy", "share of pairs", {"accuracy": "training"}, "val_accuracy"),
    Chart("Margin", "chosen over rejected", {"margin": "training"}, "val_margin"),
    Chart(
        "Log-probability of the answers",
        "nats an answer",
        {"chosen_logprob": "chosen", "rejected_logprob": "rejected"},
        "val_chosen_logprob",
    ),
    Chart("Cross-entropy of the chosen answer", "nats a token", {"nll": "training"}, "val_nll"),
    Chart("Implicit rewards", "", {"chosen_reward": "chosen", "rejected_reward": "rejected"}),
    Chart("Scores", "", {"chosen_score": "chosen", "rejected_score": "rejected"}),
)
"""Of the fields that an objective adds; one that isn't here is drawn alone, under its own name."""

WHEN_THE_LOSS_IS_0 = (
    "The loss of an objective with advantages says little. In a group the advantages have mean 0, and at the first "
    "update of a rollout the ratio is 1: the loss is then near 0, and its gradient isn't. Look at the reward first. If "
    "it stands still, look at the groups with a spread: where all answers of a prompt get the same reward, there is "
    "nothing to learn (too easy, too hard, or a reward that always says the same). If the gradient norm is 0 too, all "
    "groups were so. If the reward rises and the answers get worse, read the samples: the reward is being gamed, and "
    "the KL tells how far the policy has gone for it. Entropy near 0: the policy samples one answer only, raise "
    "align.temperature or the KL's weight. A clip fraction above 0.3 or a ratio far from 1: too large a step, lower "
    "optimizer.lr or align.epochs. A gap between sampler and trainer above 0.01 a token in float32 is a fault; in "
    "bfloat16 it is usual, and align.correction corrects it."
)


def validation_key(name: str) -> str:
    """The field of an evaluation's row for a figure of the source."""
    alone = name.partition("/")[0] == "bits_per_byte" or name.startswith(TASK)
    return name if alone else f"val_{name}"


def best_words(config: RunConfig, val_loss: float | None) -> str:
    """What the best evaluation came to, in words."""
    if config.train.objective in REWARDED:
        return f"validation reward {number(None if val_loss is None else -val_loss)}"
    return f"validation loss {number(val_loss)}"


def evaluated_words(config: RunConfig, row: Mapping[str, Any]) -> list[str]:
    """An evaluation's row in words: what counts first."""
    words, first = [best_words(config, row["val_loss"])], ["val_loss"]
    if config.train.objective in REWARDED:
        first.append("val_reward")
    judged = [key for key in JUDGED if key in row]
    for key in [*judged, *(key for key in row if key not in judged)]:
        value = row[key]
        if key.startswith(TASK):
            words.append(f"{key.removeprefix(TASK).replace('/', ' ')} {number(value)}")
        elif "/" in key:
            continue  # a named set's, which has its own line
        elif key == "bits_per_byte":
            words.append(f"{number(value)} bits per byte")
        elif key.startswith("val_") and key not in first:
            words.append(f"{key.removeprefix('val_').replace('_', ' ')} {number(value)}")
    return words


def told(config: RunConfig, row: Mapping[str, Any]) -> str:
    """What the terminal's line says of an update beside its loss; nothing of text."""
    names = [name for name in TOLD.get(config.train.objective, ()) if isinstance(row.get(name), int | float)]
    return "".join(f"  {name.replace('_logprob', ' logprob')} {row[name]:.3g}" for name in names)


def charts_of(fields: Sequence[str]) -> list[Chart]:
    """The charts of the fields that a run's rows have beside those of text, known ones first."""
    known = {field for chart in CHARTS for field in chart.fields}
    drawn = [chart for chart in CHARTS if any(field in fields for field in chart.fields)]
    odd = [field for field in fields if field not in known and field not in OF_TEXT]
    return drawn + [Chart(field.replace("_", " "), "", {field: field.replace("_", " ")}) for field in odd]
