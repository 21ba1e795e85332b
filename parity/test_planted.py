"""Bugs planted in one stack, each of which a gate must kill: a suite that can't fail proves nothing."""

import pytest
import torch
import torch.nn.functional as F

import torchtrain.model
import torchtrain.optimizer
import torchtrain.trainer
from parity.compare import GRADIENTS, LOGITS, LOSS, UPDATE, displacement, nrel, worst_tensor
from parity.pair import VARIANTS, batches, make_config, make_pair


def wrong_gelu(x, approximate):
    """The tanh form with its constant cut to ten digits."""
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def planted_scale(patch):
    """Attention scale off in the sixth digit."""
    original = torchtrain.model.attention
    patch.setattr(torchtrain.model, "attention", lambda kernel, q, k, v: original(kernel, q * (1 + 1e-6), k, v))


def planted_gelu(patch):
    """A constant wrong in its 11th digit."""
    patch.setattr(F, "gelu", wrong_gelu)


def planted_epsilon(patch):
    """Another epsilon in every norm."""
    original = F.layer_norm
    patch.setattr(F, "layer_norm", lambda x, shape, w, b, eps: original(x, shape, w, b, eps * (1 + 1e-4)))


def planted_bias(patch):
    """The biases of linear layers dropped."""
    patch.setattr(torchtrain.model.Linear, "forward", lambda self, x: x @ self.weight.T)


def planted_stream(patch):
    """Every dropout site reuses one stream."""
    original = torchtrain.model.drop
    patch.setattr(torchtrain.model, "drop", lambda x, rate, dropout, site: original(x, rate, dropout, 0))


def planted_noise_free(patch):
    """No dropout at all."""
    patch.setattr(torchtrain.model, "drop", lambda x, rate, dropout, site: x)


def planted_shift(patch):
    """Labels rolled by one."""
    original = torchtrain.trainer.cross_entropy
    patch.setattr(torchtrain.trainer, "cross_entropy", lambda h, w, y, v, c, s: original(h, w, y.roll(1, 1), v, c, s))


def planted_sum(patch):
    """A mean over rows in place of the global mean."""
    original = torchtrain.trainer.count_targets
    patch.setattr(torchtrain.trainer, "count_targets", lambda labels: original(labels) + 1)


def planted_rate(patch):
    """Learning rate off in the sixth digit."""
    original = torchtrain.optimizer.Optimizer.step
    patch.setattr(torchtrain.optimizer.Optimizer, "step", lambda self, lr, f: original(self, lr * (1 + 1e-6), f))


def planted_clip(patch):
    """Clip without its epsilon."""
    original = torchtrain.optimizer.Optimizer.step
    patch.setattr(
        torchtrain.optimizer.Optimizer, "step", lambda self, lr, f: original(self, lr, 1 / (1 / f - 1e-6 / 0.5))
    )


def planted_decay(patch):
    """Decay on biases and gains too."""
    original = torchtrain.optimizer.Optimizer.step

    def step(self, lr, factor):
        for group in self.adam.param_groups:
            group["weight_decay"] = 0.1
        original(self, lr, factor)

    patch.setattr(torchtrain.optimizer.Optimizer, "step", step)


def planted_nothing_done(patch):
    """No update at all."""
    patch.setattr(torchtrain.optimizer.Optimizer, "step", lambda self, lr, factor: None)


def planted_sign(patch):
    """The update's sign flipped."""
    original = torchtrain.optimizer.Optimizer.step
    patch.setattr(torchtrain.optimizer.Optimizer, "step", lambda self, lr, factor: original(self, lr, -factor))


BUGS = {name.removeprefix("planted_"): bug for name, bug in list(globals().items()) if name.startswith("planted_")}


def killed_by(pair) -> set[str]:
    """The gates that the pair fails in one update."""
    batch = batches(pair.config, 1)[0]
    failed = set()
    if nrel(*pair.logits(batch[:, :-1], 0)) > LOGITS.cap:
        failed.add(LOGITS.name)
    (ours, our_norm), (theirs, their_norm) = pair.gradients(batch, 0)
    if abs(ours - theirs) > LOSS.cap:
        failed.add(LOSS.name)
    if worst_tensor(*pair.gradient_tensors())[0] > GRADIENTS.cap:
        failed.add(GRADIENTS.name)
    pair.apply(0, (our_norm, their_norm))
    ours, theirs = (state["parameters"] for state in pair.states())
    if displacement(ours, theirs, pair.start)[0] > UPDATE.cap:
        failed.add(UPDATE.name)
    return failed


@pytest.fixture(scope="module")
def jax_side():
    """The unharmed pair, of which JAX's half serves every bug."""
    return make_pair(make_config(VARIANTS["gpt2-like"]))


@pytest.mark.parametrize("bug", ["identity", *BUGS])
def test_every_planted_bug_is_killed(bug, monkeypatch, jax_side):
    jax_side.torch.adopt({"parameters": jax_side.start}, 0)
    jax_side.torch.optimizer = torchtrain.optimizer.Optimizer(jax_side.config, jax_side.torch.model)
    jax_side.jax.adopt({"parameters": jax_side.start}, 0)
    jax_side.jax.moments = jax_side.jax.optimizer.init(jax_side.jax.params)
    if bug != "identity":
        BUGS[bug](monkeypatch)
    failed = killed_by(jax_side)
    assert bool(failed) == (bug != "identity"), (
        f"{bug} is not killed" if not failed else f"{failed} kill a correct pair"
    )
    if bug in ("rate", "clip", "decay", "nothing_done", "sign"):
        assert failed == {UPDATE.name}, "an optimizer's bug must show in the update alone"
