"""Rewards of single tokens, and how well a value function foretold what came of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.alignment.sums import Floats, Mask, kept, variance
from coretrain.config.align import AlignConfig


def settled_scores(align: AlignConfig, scores: Any, ended: Mask, lengths: NDArray[np.integer[Any]]) -> Floats:
    """Scores of whole answers [N] as they count: within +-align.reward_clip, less what length and ending cost.

    An answer without an end token loses align.missing_end. Of its last align.overlong_buffer tokens, counted back from
    align.tokens, each that it fills takes off its part of align.overlong_penalty (Yu 2025, DAPO).
    """
    settled = np.array(scores, np.float64)
    if align.reward_clip is not None:
        settled = np.clip(settled, -align.reward_clip, align.reward_clip)
    if align.overlong_buffer:
        filled = lengths - (align.tokens - align.overlong_buffer)
        settled -= align.overlong_penalty * np.clip(filled / align.overlong_buffer, 0, 1)
    return settled - np.where(ended, 0.0, align.missing_end)


def token_rewards(scores: Any, mask: Mask, kl: Any = None, coefficient: float = 0.0) -> Floats:
    """The reward of each masked token [B, T], 0 elsewhere (Stiennon 2020): -coefficient x its KL divergence from the
    reference, and at an answer's last token its score [B] as well.

    A row without a token has no place for a score.
    """
    rewards = np.zeros(mask.shape) if kl is None else -coefficient * kept(kl, mask)
    rows = np.flatnonzero(mask.any(1))
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)
    rewards[rows, last] += np.asarray(scores)[rows]
    return rewards


def explained_variance(values: Any, returns: Any, mask: Mask) -> float:
    """1 - variance(returns - values) / variance(returns) over masked tokens: 1 for a perfect value function, 0 for one
    that knows the mean alone; 0 where the returns don't vary."""
    wanted = kept(returns, mask)[mask]
    spread = variance(wanted)
    return 1 - variance(wanted - kept(values, mask)[mask]) / spread if spread > 0 else 0.0
