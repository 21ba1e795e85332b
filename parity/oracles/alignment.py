"""The objectives of alignment once more, from whole logits, answer by answer and token by token, as papers write them.

Nothing is masked here: what doesn't count is never looked at. torch's own autograd differentiates it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch

Told = tuple[Tensor, list[float]]
"""A loss, and the figures."""


def plain_loss(config: RunConfig, batch: Batch, logits: Tensor, scores: Tensor | None) -> Told:
    """Loss and figures of a host's batch, of logits [B, T, V] and of the score head's numbers [B, T]."""
    objective = config.train.objective
    if objective in ("ppo", "grpo"):
        return _policy(config, batch, logits / config.align.temperature, scores)
    return (_labelled if objective == "kto" else _pairs)(config, batch, logits, scores)


def _answer(batch: Batch, logits: Tensor, row: int, sequence: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of an answer's tokens, and the reference's."""
    places = np.flatnonzero((batch.segments[row] == sequence) & (batch.labels[row] != IGNORED))
    picked = [logits[row, t] for t in places]
    each = torch.stack([x[int(batch.labels[row, t])] - x.logsumexp(0) for x, t in zip(picked, places, strict=True)])
    reference = batch.planes.get("reference")
    return each, torch.as_tensor(np.zeros(len(places)) if reference is None else reference[row, places])


def _log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-x))


def _pairs(config: RunConfig, batch: Batch, logits: Tensor, scores: Tensor | None) -> Told:
    a, objective = config.aligned, config.train.objective
    share = batch.planes["pair_share"]
    loss, figures = logits.new_zeros(()), np.zeros(4 if objective == "reward" else 7)
    for row, pair in zip(*np.nonzero(share), strict=True):
        margin = float(batch.planes["margin"][row, pair]) if "margin" in batch.planes else 0.0
        weight = float(share[row, pair])
        if objective == "reward":
            assert scores is not None
            c, r = (scores[row, np.flatnonzero(batch.segments[row] == 2 * pair + side)[-1]] for side in (0, 1))
            loss = loss + weight * (-_log_sigmoid(c - r - margin) + a.center * (c + r) ** 2)
            figures += weight * np.array([float(c > r), *(x.item() for x in (c - r, c, r))])
            continue
        (c, c_ref), (r, r_ref) = (_answer(batch, logits, row, 2 * pair + side) for side in (0, 1))
        beta, nll = a.beta or math.nan, -c.mean()
        sides = [(c - c_ref).sum(), (r - r_ref).sum()]
        shown = [c.sum(), r.sum()]
        if objective == "simpo":
            sides, shown = [c.mean(), r.mean()], [c.mean(), r.mean()]
        elif objective == "orpo":
            beta, shown = a.orpo_lambda, [c.mean(), r.mean()]
            sides = shown
        elif a.lengths == "mean":
            sides, shown = [(c - c_ref).mean(), (r - r_ref).mean()], [c.mean(), r.mean()]
        gap = sides[0] - sides[1]
        if objective == "dpo":
            x = beta * gap - margin
            term = -(1 - a.label_smoothing) * _log_sigmoid(x) - a.label_smoothing * _log_sigmoid(-x)
        elif objective == "ipo":
            term = (gap - 1 / (2 * beta)) ** 2
        elif objective == "simpo":
            x = beta * gap - a.simpo_gamma
            term = -(1 - a.label_smoothing) * _log_sigmoid(x) - a.label_smoothing * _log_sigmoid(-x)
        else:
            odds = [torch.exp(side) / (1 - torch.exp(side)) for side in shown]
            term = nll - a.orpo_lambda * _log_sigmoid(torch.log(odds[0] / odds[1]))
        loss = loss + weight * (term + a.nll * nll)
        told = [beta * gap, beta * sides[0], beta * sides[1], *shown, nll]
        figures += weight * np.array([float(gap > 0), *(x.item() for x in told)])
    return loss, figures.tolist()


def _labelled(config: RunConfig, batch: Batch, logits: Tensor, scores: Tensor | None) -> Told:
    beta, share = config.aligned.beta or math.nan, batch.planes["sequence_share"]
    loss, figures = logits.new_zeros(()), np.zeros(6)
    for row, number in zip(*np.nonzero(share), strict=True):
        weight, right = float(share[row, number]), bool(batch.planes["desirable"][row, number])
        each, reference = _answer(batch, logits, row, number)
        h, baseline = (each - reference).sum(), float(batch.planes["kl_baseline"][row, number])
        away = beta * (h - baseline) if right else beta * (baseline - h)
        loss = loss + weight * (1 - torch.sigmoid(away))
        at = 0 if right else 1
        figures[at] += weight * beta * h.item()
        figures[2 + at] += weight * each.sum().item()
        figures[4] += weight * right
        figures[5] += weight * baseline
    return loss, figures.tolist()


def _tokens(batch: Batch) -> Iterator[tuple[int, list[int]]]:
    """Rows that count, and their answers' places."""
    for row in range(len(batch)):
        if places := [int(t) for t in np.flatnonzero(batch.planes["share"][row])]:
            yield row, places


def _policy(config: RunConfig, batch: Batch, logits: Tensor, scores: Tensor | None) -> Told:
    a, planes = config.aligned, batch.planes
    parts: dict[str, Any] = dict.fromkeys(("policy", "kl_loss", "value"), logits.new_zeros(()))
    figures = dict.fromkeys(("kl", "entropy", "ratio", "clipped", "moved", "value_clipped"), 0.0)
    for row, places in _tokens(batch):
        each = {t: logits[row, t].log_softmax(0) for t in places}
        new = {t: each[t][int(batch.labels[row, t])] for t in places}
        old = {t: float(planes["old"][row, t]) if "old" in planes else new[t].item() for t in places}
        whole = torch.exp(torch.stack([new[t] - old[t] for t in places]).mean())
        for t in places:
            weight, advantage = float(planes["share"][row, t]), float(planes["advantages"][row, t])
            of_token = torch.exp(new[t] - old[t])
            ratio = whole if a.ratio == "sequence" else of_token
            gain, clipped = _clipped(a, ratio, advantage)
            correction = float(planes["correction"][row, t]) if "correction" in planes else 1.0
            parts["policy"] = parts["policy"] - weight * correction * gain
            if "reference" in planes:
                d = new[t] - float(planes["reference"][row, t])
                kinds: dict[str | None, Callable[[Tensor], Tensor]] = {
                    "k1": lambda d: d,
                    "k2": lambda d: d * d / 2,
                    "k3": lambda d: torch.exp(-d) - 1 + d,
                }
                if a.kl_place == "loss" and a.kl_coefficient:
                    penalty = kinds[a.kl](d) * (of_token if a.kl_ratio else 1)
                    parts["kl_loss"] = parts["kl_loss"] + weight * a.kl_coefficient * penalty
                figures["kl"] += weight * kinds["k3"](d).item()
            p = each[t].exp()
            figures["entropy"] -= weight * (p * each[t]).sum().item()
            figures["ratio"] += weight * ratio.item()
            figures["clipped"] += weight * clipped
            figures["moved"] += weight * (of_token.item() - 1 - math.log(of_token.item()))
            if config.train.objective == "ppo":
                assert scores is not None
                v, v0, wanted = scores[row, t], float(planes["values"][row, t]), float(planes["returns"][row, t])
                error = (v - wanted) ** 2
                if a.value_clip:
                    near = torch.clamp(v, v0 - a.value_clip, v0 + a.value_clip)
                    other = (near - wanted) ** 2
                    figures["value_clipped"] += weight * float(other > error)
                    error = torch.maximum(error, other)
                parts["value"] = parts["value"] + weight * error / 2
    loss = parts["policy"] + parts["kl_loss"]
    told = [parts["policy"].item(), *(figures[name] for name in ("kl", "entropy", "ratio", "clipped", "moved"))]
    if config.train.objective == "grpo":
        return loss, told
    return loss + a.value_coefficient * parts["value"], [*told, parts["value"].item(), figures["value_clipped"]]


def _clipped(a: Any, ratio: Tensor, advantage: float) -> tuple[Tensor, bool]:
    """What the policy gains of a token, and whether a clip holds it."""
    bounded = torch.clamp(ratio, 1 - a.clip_low, 1 + a.clip_high)
    gain = torch.minimum(ratio * advantage, bounded * advantage)
    held = bool(bounded * advantage < ratio * advantage)
    if a.dual_clip is not None and advantage < 0 and gain < a.dual_clip * advantage:
        return torch.as_tensor(a.dual_clip * advantage, dtype=ratio.dtype), True
    return gain, held
