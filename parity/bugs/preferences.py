"""Bugs in the objectives of preferences, as people made them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from parity.bugs.policy import Change, room
from parity.gates import FIGURES, OBJECTIVES
from parity.mutants import Patch, mutant, wrap
from parity.probes.sides import Side


def _sums(patch: Patch, s: Side, method: str, change: Change) -> None:
    """`change(f, sequences, *given)` in place of a method of `Sequences`, which is `f`."""
    wrap(patch, room(s, "sequences").Sequences, method, lambda f: lambda *given: change(f, *given))


@mutant("objectives", OBJECTIVES, "dpo", probe="objectives")
def second_pair_of_a_row_the_wrong_way_round(patch: Patch, s: Side) -> None:
    """In a packed row chosen and rejected are told apart by the number of the first pair alone."""

    def wrapped(f: Change) -> Change:
        def pairs_of(each: Any, share: Any) -> Any:
            pairs = f(each, share)
            first = s.array(np.arange(share.shape[1]) == 0)
            return type(pairs)(
                s.xp.where(first, pairs.chosen, pairs.rejected), s.xp.where(first, pairs.rejected, pairs.chosen)
            )

        return pairs_of

    wrap(patch, room(s, "preferences"), "pairs_of", wrapped)


@mutant("objectives", OBJECTIVES, "dpo, means", probe="objectives")
def segments_of_a_row_as_one(patch: Patch, s: Side) -> None:
    """The sequences of a packed row are summed as one."""

    def wrapped(f: Change) -> Change:
        return lambda batch, count: f(replace(batch, segments=0 * batch.segments), count)

    wrap(patch, room(s, "preferences"), "sequences_of", wrapped)


@mutant("objectives", OBJECTIVES, "ipo", probe="objectives")
def lengths_count_one_token_more(patch: Patch, s: Side) -> None:
    """The divisor counts a token that has no log-probability (TRL 6879)."""
    _sums(patch, s, "lengths", lambda f, *given: f(*given) + 1)


@mutant("objectives", OBJECTIVES, "orpo", probe="objectives")
def lengths_count_the_prompt(patch: Patch, s: Side) -> None:
    """The mean of an answer is over the whole sequence."""
    _sums(patch, s, "lengths", lambda f, sequences, dtype: sequences.members.sum(1).clip(1))


@mutant("objectives", OBJECTIVES, "simpo", probe="objectives")
def sums_for_means(patch: Patch, s: Side) -> None:
    """Length normalisation left out (open-instruct 483)."""
    _sums(patch, s, "means", lambda f, sequences, each: sequences.sums(each))


@mutant("objectives", OBJECTIVES, "dpo", probe="objectives", sides=("torch",))  # XLA makes a choice of such a product
def masked_by_a_product(patch: Patch, s: Side) -> None:
    """0 times what is no number is no number (OpenRLHF 1240)."""

    def sums(f: Change, sequences: Any, each: Any) -> Any:
        return ((each * sequences.targets)[:, :, None] * sequences.members).sum(1)

    _sums(patch, s, "sums", sums)


@mutant("objectives", OBJECTIVES, "dpo", probe="objectives")
def reference_left_out(patch: Patch, s: Side) -> None:
    """The rewards are the policy's log-probabilities alone."""

    def wrapped(f: Change) -> Change:
        return lambda *given, **more: f(*given, **more | {"against": False})

    wrap(patch, room(s, "preferences"), "_answers", wrapped)


@mutant("objectives", OBJECTIVES, "dpo, smoothed, nll", probe="objectives")
def smoothing_the_wrong_way_round(patch: Patch, s: Side) -> None:
    """Most of the pairs are taken to be labelled wrongly."""
    wrap(patch, room(s, "preferences"), "_smoothed", lambda f: lambda gap, smoothing: f(gap, 1 - smoothing))


@mutant("objectives", OBJECTIVES, "dpo", probe="objectives")
def margin_added(patch: Patch, s: Side) -> None:
    """Pairs that should differ much are let off lightly."""
    wrap(patch, room(s, "preferences"), "_margin", lambda f: lambda batch: -f(batch))


@mutant("objectives", OBJECTIVES, "orpo", probe="objectives")
def probability_for_odds(patch: Patch, s: Side) -> None:
    """The ratio of probabilities, not of odds."""
    wrap(patch, room(s, "preferences"), "_log_odds", lambda f: lambda logprob, share: logprob)


@mutant("objectives", OBJECTIVES, "kto", probe="objectives")
def every_answer_is_right(patch: Patch, s: Side) -> None:
    """Wrong answers are made more likely too."""
    _loss_planes(patch, s, "kto", lambda planes: planes | {"desirable": 0 * planes["desirable"] + 1})


@mutant("objectives", OBJECTIVES, "kto", probe="objectives")
def baseline_not_times_beta(patch: Patch, s: Side) -> None:
    """sigmoid(beta h - z0), which has z0 in other units than h."""
    _loss_planes(patch, s, "kto", lambda planes: planes | {"kl_baseline": planes["kl_baseline"] / 0.1})


def _loss_planes(patch: Patch, s: Side, objective: str, change: Change) -> None:
    """Other planes for an objective."""

    def wrapped(f: Change) -> Change:
        return lambda model, config, batch, *rest: f(
            model, config, replace(batch, planes=change(dict(batch.planes))), *rest
        )

    patch.setitem(s.objective.OBJECTIVES, objective, wrapped(s.objective.OBJECTIVES[objective]))


@mutant("objectives", OBJECTIVES, "reward", probe="objectives")
def score_before_the_end(patch: Patch, s: Side) -> None:
    """The score of an answer is read one token early: it doesn't know whether the answer ends (gpt-neox 1285)."""
    _sums(patch, s, "ends", lambda f, sequences, each: f(sequences, s.xp.roll(each, 1, -1)))


@mutant("objectives", OBJECTIVES, "reward", probe="objectives")
def score_of_the_last_place(patch: Patch, s: Side) -> None:
    """The score is read in the row's last place: of a padded row at the padding (trl 937)."""
    _sums(patch, s, "ends", lambda f, sequences, each: f(sequences, 0 * each + each[:, -1:]))


@mutant("objectives", OBJECTIVES, "dpo", probe="objectives")
def pairs_weighed_by_their_rows(patch: Patch, s: Side) -> None:
    """Each row counts alike, so that a pair counts less where it is packed with others (ms-swift 10144)."""

    def by_row(planes: dict[str, Any]) -> dict[str, Any]:
        there = planes["pair_share"] > 0
        return planes | {"pair_share": there / there.sum(1)[:, None].clip(1) / 4}

    _loss_planes(patch, s, "dpo", by_row)


@mutant("objectives", OBJECTIVES, "ipo", probe="objectives")
def loss_without_its_scale(patch: Patch, s: Side) -> None:
    """float16's gradients underflow: the loss scale isn't in them."""
    for name in ("preferences", "policy"):
        wrap(patch, room(s, name), "told", lambda f: lambda scale, *rest: f(0 * scale + 1, *rest))


@mutant("objectives", FIGURES, "ppo", probe="objectives")
def figures_with_the_scale(patch: Patch, s: Side) -> None:
    """What is journalled is multiplied by the loss scale."""

    def wrapped(f: Change) -> Change:
        return lambda scale, loss, *figures: f(scale, loss, *(scale * figure for figure in figures))

    for name in ("preferences", "policy"):
        wrap(patch, room(s, name), "told", wrapped)
