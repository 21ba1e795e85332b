"""The numbers that other projects' losses are asked about: those of a small model in float64, and ours for the same.

A loss of theirs is a function of log-probabilities, values or scores. Its gradient by these goes on, through the model
as torch differentiates it, to all parameters, where it is compared with that of our objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coretrain.alignment.corrections import corrections
from coretrain.alignment.shares import shares
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import parameter_table
from coretrain.data.batch import IGNORED, Batch
from torchtrain.model import GPT, build_model
from torchtrain.objective import OBJECTIVES

PAIRS, ROWS, TOKENS, GROUP, LIMIT = 6, 8, 20, 4, 7
"""Pairs, two in a row; answers of a policy, tokens of a row, answers to one prompt, and tokens of an answer at most."""
MODEL = {"layers": 1, "width": 16, "heads": 2, "context": TOKENS, "vocab": 31, "score_head": True, "position": "rope"}
FORMATS = {"kto": "labels", "grpo": "prompts", "ppo": "prompts"}


def run_config(objective: str, **align: Any) -> RunConfig:
    """A run with this objective."""
    if objective in ("grpo", "ppo"):
        align = {"reward": "sort", "tokens": LIMIT, "kl_coefficient": 0.0} | align
    return RunConfig.model_validate(
        {
            "train": {"objective": objective, "batch_size": ROWS},
            "data": {"format": FORMATS.get(objective, "pairs")},
            "model": MODEL | {"score_head": objective in ("reward", "ppo")},
            "precision": {"compute": "float64"},
            "execution": {"device": "cpu", "attention": "plain", "compile": "off"},
            "align": align,
        }
    )


class Numbers:
    """A model, a batch of pairs and one of answers, and the arrays that are asked about."""

    def __init__(self) -> None:
        draw = self.draw = np.random.default_rng(16)
        config = run_config("ppo")
        tensors = {row.name: draw.normal(0, 0.5, row.shape) for row in parameter_table(config.model)}
        self.model: GPT = build_model(config, "plain", tensors, torch.device("cpu"))
        self._make_pairs()
        self._make_answers()

    def _make_pairs(self) -> None:
        draw, shape = self.draw, (PAIRS // 2, TOKENS)
        tokens, labels, positions = np.zeros((3, *shape), np.int32)
        labels[:], segments = IGNORED, np.full(shape, -1, np.int32)
        self.places: list[tuple[int, np.ndarray, int]] = []
        for row in range(len(tokens)):
            at = 0
            for number in range(4):
                prompt, answer = 2, int(draw.integers(1, 4))
                stop = at + prompt + answer
                tokens[row, at:stop] = draw.integers(0, 31, stop - at)
                positions[row, at:stop] = np.arange(stop - at)
                segments[row, at:stop] = number
                learnt = np.arange(at + prompt - 1, stop - 1)
                labels[row, learnt] = tokens[row, learnt + 1]
                self.places.append((row, learnt, stop - 1))
                at = stop
        self.places = self.places[0::2] + self.places[1::2]  # as others have it: all that are chosen come first
        self.pairs = Batch(tokens, labels, positions, segments=segments)
        self.reference = np.where(labels != IGNORED, -draw.exponential(2, shape), 0)
        self.margins = draw.exponential(1, PAIRS)
        self.desirable = np.resize([1.0, 0.0, 0.0, 1.0, 1.0], 2 * PAIRS)

    def _make_answers(self) -> None:
        draw, shape = self.draw, (ROWS, TOKENS)
        tokens = draw.integers(0, 31, shape).astype(np.int32)
        start, length = draw.integers(1, 9, ROWS)[:, None], draw.integers(1, LIMIT + 1, ROWS)[:, None]
        places = np.arange(TOKENS)
        self.mask = (places >= start) & (places < start + length)
        labels = np.where(self.mask, np.roll(tokens, -1, 1), IGNORED).astype(np.int32)
        self.answers = Batch(tokens, labels)
        with torch.no_grad():
            now, values = (one.numpy() for one in self.of_answers())

        def near(centre: Any, spread: float) -> np.ndarray:
            return np.where(self.mask, centre + draw.normal(0, spread, shape), 0)

        # ratios from about .4 to 2.5, so that every clip holds somewhere
        old = np.minimum(near(now, 0.4), -1e-3) * self.mask
        sampled = np.minimum(near(old, 0.6), -1e-3) * self.mask
        self.policy = {
            "old": old,
            "sampled": sampled,
            "reference": np.minimum(near(now, 0.7), -1e-3) * self.mask,
            "advantages": near(0, 1.0),
            "even": np.where(self.mask, draw.normal(0, 1, (ROWS, 1)), 0),
            "correction": corrections("truncate", "token", old, sampled, self.mask, 1.5),
            "old_values": near(values, 0.3),
            "returns": near(values, 0.8),
            "rewards": near(0, 1.0),
            "answer_scores": draw.normal(0, 1, ROWS),
            "groups": np.repeat(np.arange(ROWS // GROUP), GROUP).astype(np.float64),
            "divergences": np.array([0.02, 9.0, 5.5, 6.3, 40.0]),
        }

    def _hidden(self, batch: Batch) -> Tensor:
        positions = None if batch.positions is None else torch.from_numpy(batch.positions)
        hidden: Tensor = self.model(torch.from_numpy(batch.tokens), None, positions)
        return hidden

    def _logprobs(self, batch: Batch, hidden: Tensor) -> Tensor:
        labels = torch.from_numpy(batch.labels).long()
        each = F.log_softmax(hidden @ self.model.head_weight[:31].T, -1).gather(2, labels.clamp_min(0)[..., None])
        return each.squeeze(2).where(labels != IGNORED, 0)

    def of_answers(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the answers' tokens, by the whole softmax; and values."""
        hidden = self._hidden(self.answers)
        return self._logprobs(self.answers, hidden), self.model.scores(hidden).where(torch.from_numpy(self.mask), 0)

    def of_pairs(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities [2N, L] of the pairs' answers, the chosen first; and scores [2N] at their last tokens."""
        hidden = self._hidden(self.pairs)
        each, scores = self._logprobs(self.pairs, hidden), self.model.scores(hidden)
        width = max(len(learnt) for _, learnt, _ in self.places)
        rows = [F.pad(each[row, learnt], (0, width - len(learnt))) for row, learnt, _ in self.places]
        return torch.stack(rows), torch.stack([scores[row, last] for row, _, last in self.places])

    def _by_sequence(self, plane: np.ndarray) -> np.ndarray:
        found = np.zeros((2 * PAIRS, max(len(learnt) for _, learnt, _ in self.places)))
        for number, (row, learnt, _) in enumerate(self.places):
            found[number, : len(learnt)] = plane[row, learnt]
        return found

    def asked(self) -> dict[str, np.ndarray]:
        """What the others get."""
        with torch.no_grad():
            logps, values = self.of_answers()
            pair_logps, scores = self.of_pairs()
        leaves = {"logps": logps, "values": values, "pair_logps": pair_logps, "scores": scores}
        return {
            **{name: one.numpy() for name, one in leaves.items()},
            "mask": self.mask.astype(np.float64),
            "mask_pairs": self._by_sequence(np.ones(self.pairs.tokens.shape)),
            "pair_reference": self._by_sequence(self.reference),
            "margin": self.margins,
            "desirable": self.desirable,
            "kl": np.array([0.3, 0.9, -0.1]),
            **self.policy,
        }

    def _paired(self, each: np.ndarray) -> np.ndarray:
        return each.reshape(PAIRS // 2, 2)

    def batch(self, objective: str, config: RunConfig, with_margin: bool, corrected: bool, even: bool) -> Batch:
        """The same numbers, as our objectives read them."""
        planes: dict[str, Any]
        if objective in ("grpo", "ppo"):
            policy = self.policy
            share = shares(config.align.aggregate, self.mask, config.align.tokens)
            planes = {"share": share, "old": policy["old"], "advantages": policy["even" if even else "advantages"]}
            if config.aligned.kl_coefficient:
                planes["reference"] = policy["reference"]
            if corrected:
                planes["correction"] = policy["correction"]
            if objective == "ppo":  # the loss of values alone
                planes |= {"values": policy["old_values"], "returns": policy["returns"]}
                planes["advantages"] = np.zeros_like(share)
            return self.answers.with_planes(True, **planes)
        if objective == "kto":
            order = np.argsort([*range(0, 2 * PAIRS, 2), *range(1, 2 * PAIRS, 2)])
            right = self.desirable[order].reshape(PAIRS // 2, 4)
            weight = np.where(right > 0, config.align.desirable_weight, config.align.undesirable_weight)
            kl = np.full(right.shape, np.mean([0.3, 0.9, -0.1]))
            planes = {"sequence_share": weight / right.size, "desirable": right, "kl_baseline": kl}
        else:
            planes = {"pair_share": self._paired(np.full(PAIRS, 1 / PAIRS))}
        if objective in ("dpo", "ipo", "kto"):
            planes["reference"] = self.reference
        if with_margin:
            planes["margin"] = self._paired(self.margins)
        return self.pairs.with_planes(True, **planes)

    def gradient(self, value: Tensor) -> np.ndarray:
        """By all parameters, one after the other."""
        parameters = list(self.model.parameters())
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        pairs = zip(found, parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g.to_dense()).flatten() for g, p in pairs]).numpy()

    def chosen_nll(self) -> Tensor:
        """Mean cross-entropy of the chosen answers, each by its own length."""
        mask = torch.from_numpy(self._by_sequence(np.ones(self.pairs.tokens.shape)))
        return -((self.of_pairs()[0] * mask).sum(1) / mask.sum(1))[:PAIRS].mean()

    def ours(
        self, objective: str, align: Mapping[str, Any], with_margin: bool, corrected: bool, even: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """What our objective tells (its loss first), and the gradient of its loss."""
        config = run_config(objective, **align)
        batch = self.batch(objective, config, with_margin, corrected, even).map(torch.from_numpy)
        told = OBJECTIVES[objective](self.model, config, batch, torch.ones((), dtype=torch.float64), None)
        return told.detach().numpy(), self.gradient(told[0])

    def theirs(self, found: Mapping[str, np.ndarray], name: str) -> tuple[float, np.ndarray]:
        """Their loss, and its gradient, which goes on from where they left it."""
        (logps, values), (pair_logps, scores) = self.of_answers(), self.of_pairs()
        leaves = {"logps": logps, "values": values, "pair_logps": pair_logps, "scores": scores}
        onward = [
            (one * torch.from_numpy(found[f"{name}.{key}"])).sum()
            for key, one in leaves.items()
            if f"{name}.{key}" in found
        ]
        return float(found[f"{name}.loss"]), self.gradient(torch.stack(onward).sum())
