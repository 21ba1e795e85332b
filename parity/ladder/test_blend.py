"""Replay, stages and named validation sets in float64: the same rows and the same figures in both stacks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coretrain.data.batch import batch_hash
from coretrain.data.batches import global_batch, updates_of
from parity.gates import ROWS
from parity.outcomes import hold
from parity.probes import PROBES, unmutated
from parity.probes.blend import STARTS, SWITCH, blend

LLAMA = "llama-like"


@pytest.mark.parametrize("side", ["torch", "jax"])
def test_rows_of_every_update_from_the_middle_of_either_stage(side):
    config, data = blend(LLAMA)
    expected = [batch_hash(global_batch(data, config, update)) for update in range(config.train.updates)]
    for start, found in unmutated(side, "blend rows", LLAMA, "perturbed").items():
        different = sum(a != b for a, b in zip(found, expected[start:], strict=True))
        hold(ROWS, different, f"{side}, stages, from update {start}")


@pytest.mark.parametrize("variant", ["gpt2-like", LLAMA])
def test_figures_of_each_set(variant):
    seen = [unmutated(side, "sets", variant, "perturbed") for side in ("torch", "jax")]
    for gate, error in PROBES["sets"].judge(*seen, variant, "perturbed").items():
        hold(gate, error, f"named sets, {variant}")
    names = {name.partition("/")[2] for name in seen[0]}
    assert names == {"", "old", "plain", "exam"}, "the part that is a named set stands under that name"
    assert all(math.isfinite(value) and value > 0 for value in seen[0].values())


def test_what_the_probes_look_at():
    """Parts that go through their windows more than once, on both sides of a switch; sets with an odd last batch."""
    config, data = blend(LLAMA)
    assert STARTS[1] < SWITCH < STARTS[2]
    rows = np.concatenate([updates_of(data, config).rows(update)[:, 0] for update in range(config.train.updates)])
    windows = [part.train.windows(config.model.context) for part in data.parts]
    assert all(count > size for count, size in zip(np.bincount(rows).tolist(), windows, strict=True))
    assert any(one.split.windows(config.model.context) % config.train.batch_size for one in data.sets)
