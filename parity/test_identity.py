"""Float64 on the CPU: logits, loss, every gradient, the norm, one clipped update, 50 updates and their moments."""

import numpy as np
import pytest

from parity.compare import GRADIENTS, LOGITS, LOSS, NORM, TRAJECTORY, UPDATE, displacement, hold, nrel, worst_tensor
from parity.pair import VARIANTS, batches, make_config, make_pair


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
    """Both stacks with scrambled weights, in every variant of the model."""
    return make_pair(make_config(VARIANTS[request.param]))


def test_one_update(pair):
    batch = batches(pair.config, 1)[0]
    hold(LOGITS, nrel(*pair.logits(batch[:, :-1], 3)), "scrambled weights")
    (ours, our_norm), (theirs, their_norm) = pair.gradients(batch, 3)
    hold(LOSS, abs(ours - theirs), "scrambled weights")
    hold(NORM, abs(our_norm - their_norm) / their_norm, "scrambled weights")
    hold(GRADIENTS, *worst_tensor(*pair.gradient_tensors()))
    assert our_norm > pair.config.optimizer.clip, "the clip must be at work in this test"
    pair.apply(0, (our_norm, their_norm))
    ours, theirs = pair.states()
    hold(UPDATE, *displacement(ours["parameters"], theirs["parameters"], pair.start))
    for group in ours:
        hold(UPDATE, *worst_tensor(ours[group], theirs[group]))


@pytest.mark.parametrize("variant", ["gpt2-like", "llama-like"])
def test_fifty_updates(variant):
    pair = make_pair(make_config(VARIANTS[variant]))
    first = last = 0.0
    for update, batch in enumerate(batches(pair.config, 2) * 25):
        (ours, our_norm), (theirs, their_norm) = pair.gradients(batch, update)
        hold(LOSS, abs(ours - theirs), f"update {update}")
        pair.apply(update, (our_norm, their_norm))
        first, last = first or ours, ours
    assert last < first - 0.5, "it must have learned something, or equality proves nothing"
    ours, theirs = pair.states()
    hold(TRAJECTORY, *displacement(ours["parameters"], theirs["parameters"], pair.start))
    trained = make_pair(pair.config, ours["parameters"])
    batch = batches(pair.config, 1)[0]
    hold(LOGITS, nrel(*trained.logits(batch[:, :-1], 0)), "trained weights")
    trained.gradients(batch, 0)
    hold(GRADIENTS, *worst_tensor(*trained.gradient_tensors()))


def test_a_key_bias_has_no_gradient_but_rounding():
    pair = make_pair(make_config(VARIANTS["gpt2-like"]))
    pair.gradients(batches(pair.config, 1)[0], 0)
    for gradients in pair.gradient_tensors():
        keys = np.linalg.norm(gradients["blocks.0.attention.k.bias"])
        assert keys < 1e-14 * np.linalg.norm(gradients["blocks.0.attention.q.bias"]) * 100
