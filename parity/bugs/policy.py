"""Bugs in the objectives of a policy, as people made them: reinforcement learning learns in spite of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from parity.gates import FIGURES, OBJECTIVES
from parity.mutants import Patch, mutant, wrap
from parity.probes.sides import Side

Change = Callable[..., Any]


def room(s: Side, name: str) -> Any:
    """A module of a stack's objectives."""
    return importlib.import_module(f"{s.name}train.objectives.{name}")


def _answers(patch: Patch, s: Side, change: Change) -> None:
    """`change(answers)` of what the policy's objectives have of a batch."""
    wrap(patch, room(s, "policy"), "answers_of", lambda f: lambda *given: change(f(*given)))


def _settings(patch: Patch, s: Side, function: str, **fields: Any) -> None:
    """Other settings for a function of the policy's that takes them."""

    def wrapped(f: Change) -> Change:
        return lambda a, *rest: f(a.model_copy(update=fields), *rest)

    wrap(patch, room(s, "policy"), function, wrapped)


def _logprobs(patch: Patch, s: Side, change: Change) -> None:
    """`change(f, hidden, head, labels, vocab, chunk, *rest)` in place of a policy's log-probabilities and entropy."""
    name = "token_logprobs_and_entropy"
    wrap(patch, room(s, "policy"), name, lambda f: lambda *given: change(f, *given))


def _evenly(s: Side, answers: Any) -> Any:
    """Shares over all places of the rows."""
    return answers._replace(share=0 * answers.share + 1 / (4 * answers.share.shape[1]))


@mutant("objectives", OBJECTIVES, "grpo, k3", probe="objectives")
def padding_in_the_mean(patch: Patch, s: Side) -> None:
    """Terms are averaged over all places of a batch, padding and prompts among them (open-instruct's KL)."""
    _answers(patch, s, lambda answers: _evenly(s, answers))


@mutant("objectives", OBJECTIVES, "grpo", probe="objectives")
def mean_of_each_micro_batch(patch: Patch, s: Side) -> None:
    """A token mean per micro-batch, and the mean of these: the result depends on their size (nanochat)."""

    def change(answers: Any) -> Any:
        total = answers.share.sum()
        return answers._replace(share=answers.share / s.xp.where(total > 0, total, 1) / 2)

    _answers(patch, s, change)


@mutant("objectives", OBJECTIVES, "grpo, k3", probe="objectives")
def k1_in_the_loss(patch: Patch, s: Side) -> None:
    """The difference of log-probabilities as a loss: its expected gradient is 0 (tunix's default)."""
    wrap(patch, room(s, "policy"), "estimated_kl", lambda f: lambda kind, away: f("k1", away))


@mutant("objectives", OBJECTIVES, "grpo, k3", probe="objectives")
def kl_of_the_reference_to_the_policy(patch: Patch, s: Side) -> None:
    """k3 of the difference with the other sign."""
    wrap(patch, room(s, "policy"), "estimated_kl", lambda f: lambda kind, away: f(kind, -away))


@mutant("objectives", OBJECTIVES, "grpo, k2", probe="objectives")
def kl_made_larger(patch: Patch, s: Side) -> None:
    """The KL with a minus before it (verl once)."""
    wrap(patch, room(s, "policy"), "estimated_kl", lambda f: lambda kind, away: -f(kind, away))


@mutant("objectives", OBJECTIVES, "grpo, k1 times ratio", probe="objectives")
def kl_without_its_ratio(patch: Patch, s: Side) -> None:
    """The KL of the loss isn't multiplied by the ratio, though that is asked for: k1 holds nothing back."""

    def wrapped(f: Change) -> Change:
        return lambda config, *rest: f(config.changed(align__kl_ratio=False), *rest)

    wrap(patch, room(s, "policy"), "_policy", wrapped)


@mutant("objectives", OBJECTIVES, "grpo", probe="objectives")
def label_of_the_place_before(patch: Patch, s: Side) -> None:
    """Log-probabilities of labels that are shifted once more."""
    _logprobs(patch, s, lambda f, h, w, labels, *rest: f(h, w, s.xp.roll(labels, 1, -1), *rest))


@mutant("objectives", OBJECTIVES, "grpo, temperature", probe="objectives")
def temperature_forgotten_in_the_trainer(patch: Patch, s: Side) -> None:
    """Answers are sampled at a temperature, and the trainer's log-probabilities are at 1 (TRL 4159)."""
    _logprobs(patch, s, lambda f, *given: f(*given[:-1], 1.0))


@mutant("objectives", FIGURES, "grpo, temperature", probe="objectives")
def entropy_at_temperature_1(patch: Patch, s: Side) -> None:
    """The journal's entropy is of another distribution than the one that is sampled."""
    _logprobs(patch, s, lambda f, *given: (f(*given)[0], f(*given[:-1], 1.0)[1]))


@mutant("objectives", OBJECTIVES, "grpo", probe="objectives")
def padding_of_the_vocabulary_is_likely(patch: Patch, s: Side) -> None:
    """The head's rows of padding take part in the softmax."""
    _logprobs(patch, s, lambda f, h, w, labels, vocab, *rest: f(h, w, labels, len(w), *rest))


@mutant("objectives", OBJECTIVES, "grpo, clip-higher", probe="objectives")
def clip_never_active(patch: Patch, s: Side) -> None:
    """The mean is of the unclipped term: what is journalled of the clip looks right (rllm 81)."""
    _settings(patch, s, "clipped_policy", clip_low=1 - 1e-9, clip_high=1e9)


@mutant("objectives", OBJECTIVES, "grpo, clip-higher", probe="objectives")
def clip_high_is_clip_low(patch: Patch, s: Side) -> None:
    """Both sides are clipped by the lower one."""
    _settings(patch, s, "clipped_policy", clip_high=0.1)


@mutant("objectives", OBJECTIVES, "grpo, dual clip", probe="objectives")
def dual_clip_dropped(patch: Patch, s: Side) -> None:
    """A large ratio with a negative advantage pulls without a limit."""
    _settings(patch, s, "clipped_policy", dual_clip=None)


@mutant("objectives", OBJECTIVES, "grpo", probe="objectives")
def the_smaller_of_two_losses(patch: Patch, s: Side) -> None:
    """min for max: what is clipped is learnt from, and what isn't is not."""

    def plant(f: Change) -> Change:
        def clipped_policy(a: Any, batch: Any, answers: Any) -> Any:
            ratio, _, clipped = f(a, batch, answers)
            advantages = s.xp.where(answers.counts, batch.planes["advantages"], 0)
            free, held = -advantages * ratio, -advantages * ratio.clip(1 - a.clip_low, 1 + a.clip_high)
            correction = s.xp.where(answers.counts, batch.planes["correction"], 0)
            return ratio, (answers.share * correction * s.xp.where(held < free, held, free)).sum(), clipped

        return clipped_policy

    wrap(patch, room(s, "policy"), "clipped_policy", plant)


@mutant("objectives", OBJECTIVES, "grpo, no clip in reach", probe="objectives")
def sign_of_the_advantage(patch: Patch, s: Side) -> None:
    """Good answers are made less likely."""
    _planes(patch, s, "clipped_policy", lambda planes: planes | {"advantages": -planes["advantages"]})


def _planes(patch: Patch, s: Side, function: str, change: Change) -> None:
    """Other planes for a function of the policy's that takes a batch after its settings."""

    def wrapped(f: Change) -> Change:
        return lambda a, batch, *rest: f(a, replace(batch, planes=change(dict(batch.planes))), *rest)

    wrap(patch, room(s, "policy"), function, wrapped)


@mutant("objectives", OBJECTIVES, "grpo", probe="objectives")
def correction_dropped(patch: Patch, s: Side) -> None:
    """The weights against the sampler are computed, and not used."""

    def without(planes: dict[str, Any]) -> dict[str, Any]:
        del planes["correction"]
        return planes

    _planes(patch, s, "clipped_policy", without)


@mutant("objectives", OBJECTIVES, "grpo, k3", probe="objectives")
def ratio_without_a_gradient(patch: Patch, s: Side) -> None:
    """Old for new: the ratio is a constant, and the loss has no gradient but the KL's."""
    _answers(patch, s, lambda answers: answers._replace(log_ratio=s.stop(answers.log_ratio)))


@mutant("objectives", OBJECTIVES, "grpo, no clip in reach", probe="objectives")
def ratio_is_always_1(patch: Patch, s: Side) -> None:
    """Old log-probabilities are the present ones in every epoch: nothing is ever clipped."""
    _answers(patch, s, lambda answers: answers._replace(log_ratio=answers.logprobs - s.stop(answers.logprobs)))


@mutant("objectives", OBJECTIVES, "gspo", probe="objectives")
def sum_in_a_sequence_ratio(patch: Patch, s: Side) -> None:
    """The ratio of whole answers' probabilities: long ones leave every clip."""

    def change(answers: Any) -> Any:
        return answers._replace(log_ratio=answers.log_ratio * answers.counts.sum(1)[:, None])

    _answers(patch, s, change)


@mutant("objectives", OBJECTIVES, "gspo", probe="objectives")
def sequence_ratio_over_padding(patch: Patch, s: Side) -> None:
    """The mean over a row's length, not over the answer's."""

    def change(answers: Any) -> Any:
        part = answers.counts.sum(1)[:, None] / answers.counts.shape[1]
        return answers._replace(log_ratio=answers.log_ratio * part)

    _answers(patch, s, change)


@mutant("objectives", OBJECTIVES, "ppo", probe="objectives")
def value_clip_around_the_new_value(patch: Patch, s: Side) -> None:
    """The value is clipped around itself: never."""

    def wrapped(f: Change) -> Change:
        def clipped_value(a: Any, batch: Any, values: Any, answers: Any) -> Any:
            return f(a, replace(batch, planes=dict(batch.planes) | {"values": s.stop(values)}), values, answers)

        return clipped_value

    wrap(patch, room(s, "policy"), "clipped_value", wrapped)


@mutant("objectives", OBJECTIVES, "ppo", probe="objectives")
def value_of_the_token_itself(patch: Patch, s: Side) -> None:
    """The value is read where the token is known, one place late."""

    def wrapped(f: Change) -> Change:
        return lambda a, batch, values, answers: f(a, batch, s.xp.roll(values, -1, -1), answers)

    wrap(patch, room(s, "policy"), "clipped_value", wrapped)


@mutant("objectives", OBJECTIVES, "ppo, values free", probe="objectives")
def value_loss_over_padding(patch: Patch, s: Side) -> None:
    """The value's mean is over all places."""
    wrap(
        patch,
        room(s, "policy"),
        "clipped_value",
        lambda f: lambda a, batch, values, answers: f(a, batch, values, _evenly(s, answers)),
    )


@mutant("objectives", OBJECTIVES, "ppo", probe="objectives")
def value_loss_twice_as_large(patch: Patch, s: Side) -> None:
    """Without the half of the squared error."""

    def wrapped(f: Change) -> Change:
        def clipped_value(*given: Any) -> Any:
            loss, clipped = f(*given)
            return 2 * loss, clipped

        return clipped_value

    wrap(patch, room(s, "policy"), "clipped_value", wrapped)
