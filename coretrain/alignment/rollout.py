"""From prompts, what was sampled after them, and its rewards to the batches of a rollout's updates.

A rollout is kept as named float64 arrays, its ids too: a safetensors file holds them bit for bit, and a resumed run
cuts the same batches out of them. Nothing here looks at which id pads or ends: what is an answer's is known by its
length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.alignment.advantages import check_finite, gae, group_advantages, whitened, without_spread
from coretrain.alignment.corrections import corrections
from coretrain.alignment.kl import kl_values, sequence_kl
from coretrain.alignment.returns import explained_variance, settled_scores, token_rewards
from coretrain.alignment.shares import shares
from coretrain.alignment.sums import Floats, Mask, kept, mean, row_totals, variance
from coretrain.base.errors import UserError
from coretrain.config.align import AlignConfig
from coretrain.config.run import RunConfig
from coretrain.contract.decoding import Sampled
from coretrain.data.batch import IGNORED, Batch
from coretrain.data.order import permute

BY_ROW = ("rewards", "scores", "groups", "ended", "counted")
"""Arrays [N], a number for each answer: what it was given, what of that counts after clips and penalties, the number of
its prompt, and whether (1 or 0) it ended by itself and is learnt from."""
BY_TOKEN = ("tokens", "labels", "sampled", "advantages")
"""Arrays [N, T] of every rollout: ids, the id that follows where it is an answer's, its log-probability to the sampler,
and its advantage."""
OPTIONAL = ("old", "reference", "values", "returns", "correction")
"""Arrays [N, T] of some rollouts: log-probabilities to the trainer and to the reference, values and what they should
have been, weights against a sampler that isn't the trainer."""


def layout(prompts: Sequence[Sequence[int]], sampled: Sequence[Sampled], width: int) -> Batch:
    """Rows [N, width] of prompt and answer, zeros behind them; labels at the places that predict an answer's tokens.

    The answer's last token stands in its row too, without a label: a state behind it can be valued.
    """
    tokens = np.zeros((len(prompts), width), np.int32)
    labels = np.full_like(tokens, IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, sampled, strict=True)):
        ids = [*prompt, *answer.ids]
        if not prompt or len(ids) > width:
            raise ValueError(f"a prompt of {len(prompt)} and an answer of {len(answer.ids)} tokens in a row of {width}")
        tokens[row, : len(ids)] = ids
        labels[row, len(prompt) - 1 : len(ids) - 1] = answer.ids
    return Batch(tokens, labels)


def rollout_arrays(
    config: RunConfig,
    rows: Batch,
    sampled: Sequence[Sampled],
    rewards: Any,
    groups: Any,
    old: Any = None,
    reference: Any = None,
    values: Any = None,
    counted: Any = None,
    kl_coefficient: float = 0.0,
) -> dict[str, Floats]:
    """All that a rollout's updates need, by name (`BY_ROW`, `BY_TOKEN`, `OPTIONAL`).

    `rows` comes from `layout`; `rewards` [N] are those of whole answers, `groups` [N] the numbers of their prompts;
    `old`, `reference` and `values` [N, T] are the trainer's; without `old` the policy of an update is its own old one,
    which is right for a rollout of one update. An answer that isn't `counted` [N] is in no mean and in no divisor; nor
    are cut answers (align.mask_truncated) and those of groups without spread (align.flat_groups).
    `kl_coefficient` is that of a KL in the reward. Raises `UserError` naming an answer whose reward isn't finite.
    """
    align = config.aligned
    mask, numbers = rows.labels != IGNORED, np.asarray(groups, np.int64)
    ended = np.array([one.ended for one in sampled], bool)
    counts = np.ones(len(mask), bool) if counted is None else np.array(counted, bool)
    counts &= mask.any(1)
    if align.mask_truncated:
        counts &= ended
    given = kept(rewards, counts)
    check_finite(given, counts)
    scores = settled_scores(align, given, ended, mask.sum(1))
    if align.flat_groups == "drop":
        counts &= ~without_spread(scores, numbers, counts)
    arrays: dict[str, Floats] = {
        "rewards": given,
        "scores": scores,
        "groups": numbers.astype(np.float64),
        "ended": ended.astype(np.float64),
        "counted": counts.astype(np.float64),
        "tokens": rows.tokens.astype(np.float64),
        "labels": rows.labels.astype(np.float64),
        "sampled": sampled_plane(rows, sampled),
    }
    planes = {"old": old, "reference": reference, "values": values}
    arrays |= {name: kept(plane, mask) for name, plane in planes.items() if plane is not None}
    kl = None
    if align.kl_place == "reward" and kl_coefficient:
        kl = kl_values(align.kl or "k1", arrays["old"], arrays["reference"], mask)
    by_token = token_rewards(scores, mask, kl, kl_coefficient)
    arrays |= _advantages(align, by_token, arrays.get("values"), mask, numbers, counts)
    if align.correction != "none":
        how = (align.correction, align.correction_level)
        limits = (align.correction_cap or np.inf, align.correction_floor)
        arrays["correction"] = corrections(*how, arrays["old"], arrays["sampled"], mask, *limits)
    return arrays


def _advantages(
    align: AlignConfig, rewards: Floats, values: Floats | None, mask: Mask, groups: NDArray[np.int64], counted: Mask
) -> dict[str, Floats]:
    """`advantages` and, with values, `returns` [N, T]; advantages of rows that don't count are 0."""
    part, returns = mask & counted[:, None], {}
    if align.whiten_rewards:
        rewards = whitened(rewards, part, shift=False)
    if align.advantage == "gae":
        if values is None:
            raise ValueError("generalized advantages need values")
        each = gae(rewards, values, mask, align.gamma, align.lam)
        returns = {"returns": each + values}
    else:
        whole = row_totals(rewards, mask)
        each = group_advantages(align.advantage or "group_std", whole, groups, counted)[:, None]
    each = np.where(part, each, 0.0)
    return {"advantages": whitened(each, part) if align.whiten else each, **returns}


def sampled_plane(rows: Batch, sampled: Sequence[Sampled]) -> Floats:
    """The sampler's log-probabilities at the places of their labels [N, T]; 0 elsewhere."""
    plane = np.zeros(rows.labels.shape)
    plane[rows.labels != IGNORED] = np.concatenate([[], *(one.logprobs for one in sampled)])
    return plane


def minibatches(arrays: Mapping[str, Floats], config: RunConfig, rollout: int) -> list[Batch]:
    """The batches of a rollout's updates, align.epochs x align.minibatches, in order.

    In each epoch every answer comes once, in an order that (train.seed, rollout, epoch) gives. What a token counts is
    made for each update as a whole: micro-batches and processes only add up.
    """
    count, pieces = len(arrays["tokens"]), config.align.minibatches
    if count % pieces:
        raise ValueError(f"{count} answers in {pieces} updates")
    each, batches = count // pieces, []
    for epoch in range(config.align.epochs):
        order = permute(np.arange(count), count, f"{config.train.seed}/rollout {rollout}/epoch {epoch}")
        for start in range(0, count, each):
            batches.append(_batch(arrays, config, np.sort(order[start : start + each])))
    return batches


def _batch(arrays: Mapping[str, Floats], config: RunConfig, rows: NDArray[np.int64]) -> Batch:
    align = config.aligned
    labels = arrays["labels"][rows].astype(np.int32)
    counted = arrays["counted"][rows] > 0
    planes = {"share": shares(align.aggregate, labels != IGNORED, align.tokens, counted)}
    names = ("old", "advantages", "values", "returns", "correction", "reference")
    planes |= {name: arrays[name][rows] for name in names if name in arrays}
    batch = Batch(arrays["tokens"][rows].astype(np.int32), labels)
    return batch.with_planes(config.precision.compute == "float64", **planes)


def rollout_figures(arrays: Mapping[str, Floats]) -> dict[str, float]:
    """What the journal tells of a rollout, by name.

    Rewards, their spread, and penalties over the answers that are learnt from; of all answers the mean length in tokens
    and the shares that ended by themselves and that are left out; nats of KL divergence of a whole answer, by k1 and by
    k3; the mean size of an advantage, a token; what part of the returns' variance the values foretold.
    """
    mask, counted = arrays["labels"] != IGNORED, arrays["counted"] > 0
    part, rewards = mask & counted[:, None], arrays["rewards"][counted]
    flat = without_spread(arrays["scores"], arrays["groups"].astype(np.int64), counted)
    figures = {
        "reward": mean(rewards),
        "reward_spread": variance(rewards) ** 0.5,
        "reward_least": float(rewards.min()) if len(rewards) else 0.0,
        "reward_most": float(rewards.max()) if len(rewards) else 0.0,
        "penalty": mean((arrays["rewards"] - arrays["scores"])[counted]),
        "length": mean(mask.sum(1).astype(np.float64)),
        "ended": mean(arrays["ended"]),
        "left_out": mean(1 - arrays["counted"]),
        "without_spread": mean(flat.astype(np.float64)),
        "advantage": mean(np.abs(arrays["advantages"][part])),
    }
    if "reference" in arrays:
        policy = arrays.get("old", arrays["sampled"])
        figures["answer_kl"] = sequence_kl("k1", policy, arrays["reference"], mask)
        figures["answer_kl_k3"] = sequence_kl("k3", policy, arrays["reference"], mask)
    if "values" in arrays:
        figures["value"] = mean(arrays["values"][part])
        figures["explained_variance"] = explained_variance(arrays["values"], arrays["returns"], part)
    return figures


def read_arrays(arrays: Mapping[str, NDArray[Any]], config: RunConfig | None = None) -> dict[str, Floats]:
    """The arrays of a rollout that a checkpoint kept. Raises `UserError` where they are no rollout's, or not one of
    this run: of another number of answers, or without what its objective needs."""
    shape = arrays["tokens"].shape if "tokens" in arrays else ()
    needed = ("values", "returns") if config and config.train.objective == "ppo" else ()
    for name in (*BY_ROW, *BY_TOKEN, *needed):
        if name not in arrays:
            raise _damaged(f"it has no {name}")
    for name, array in arrays.items():
        if name not in (*BY_ROW, *BY_TOKEN, *OPTIONAL):
            raise _damaged(f"{name} is no array of a rollout")
        if len(shape) != 2 or array.shape != (shape[:1] if name in BY_ROW else shape):
            raise _damaged(f"{name} has the shape {list(array.shape)}, beside tokens of {list(shape)}")
        if name in ("tokens", "labels", "groups") and not ((np.abs(array) < 2**31) & (array == np.rint(array))).all():
            raise _damaged(f"{name} has a number that is no id")
        if name in ("ended", "counted") and not np.isin(array, (0, 1)).all():
            raise _damaged(f"{name} has a number that is neither 0 nor 1")
    if config and shape[0] != config.train.batch_size * config.align.minibatches:
        asked = f"train.batch_size x align.minibatches = {config.train.batch_size * config.align.minibatches}"
        raise _damaged(f"it has {shape[0]} answers, and the run asks for {asked}")
    return {name: np.asarray(array, np.float64) for name, array in arrays.items()}


def _damaged(what: str) -> UserError:
    return UserError(
        "alignment/rollout-damaged",
        f"the checkpoint's rollout in progress can't be read: {what}; go on from another checkpoint",
    )
