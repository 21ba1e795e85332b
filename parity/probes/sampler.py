"""Answers with their log-probabilities, and what the trainer's whole forward passes make of the finished rows."""

from __future__ import annotations

import numpy as np
import pytest

import jaxtrain.decode
from coretrain.alignment.rollout import layout
from coretrain.contract.sampling import Sampling
from parity.errors import mismatches
from parity.gates import SAMPLED, SAMPLES, Gate
from parity.pair import VARIANTS, make_config
from parity.probes.decode import traced_afresh
from parity.probes.sides import Seen, Side, logits_of, weights_of

PROMPTS = [[5, 9, 2, 300, 0, 7], [11], [3, 3, 8], [40, 2], [0, 40, 2], [11], [5, 9, 2, 300, 0, 7], [40, 2], [11]]
"""Some of them twice, whose keys and values are shared; one begins with what another is padded with."""
NEW, TEMPERATURE = 12, 0.7
DRAWN = Sampling(TEMPERATURE, 0, 1.0, 3)


def run_sampled(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Answers of unequal prompts, of which two end early and leave the batch; ids, and log-probabilities twice."""
    config = make_config(VARIANTS[variant])
    stack = s.trainer.Trainer(config, weights_of(config, state))
    with traced_afresh(shared), pytest.MonkeyPatch.context() as patch:
        patch.setitem(jaxtrain.decode.WORTH, "cpu", 1)
        free = stack.sample(PROMPTS, NEW, DRAWN, ())
        rows = stack.sample(PROMPTS, NEW, DRAWN, (free[0].ids[2], free[1].ids[6]))
    batch = layout(PROMPTS, rows, config.model.context)
    logits = np.asarray(logits_of(s, stack, batch.tokens, None), np.float64) / TEMPERATURE
    logits -= np.logaddexp.reduce(logits, -1, keepdims=True)
    sampled, trained, ids = (np.full((len(rows), NEW), fill) for fill in (0.0, 0.0, -1))
    for row, (prompt, answer) in enumerate(zip(PROMPTS, rows, strict=True)):
        count = len(answer.ids)
        ids[row, :count] = answer.ids
        sampled[row, : len(answer.logprobs)] = answer.logprobs
        trained[row, :count] = logits[row, np.arange(len(prompt) - 1, len(prompt) - 1 + count), answer.ids]
    return {"ids": ids, "sampled": sampled, "trained": trained}


def judge_sampled(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {
        SAMPLES: mismatches(ours["ids"], theirs["ids"]),
        SAMPLED: float(np.max([np.abs(ours["sampled"] - other["trained"]) for other in (ours, theirs)])),
    }
