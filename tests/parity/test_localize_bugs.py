"""The localizer must name the tap where a planted bug is, on either side."""

from __future__ import annotations

import math
import types

import jax
import pytest
import torch
import torch.nn.functional as F

import jaxtrain.attention
import jaxtrain.layers
import jaxtrain.model
import jaxtrain.trainer
import torchtrain.attention
import torchtrain.layers
import torchtrain.model
import torchtrain.objective
import torchtrain.trainer
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.contract.taps import tap
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.localize.search import localize_config, localized_tap
from parity.pair import batches
from tests.support.localizing import (
    GPT,
    LLAMA,
    alone,
    found,
    sides,
    torch_gelu_erf_in_the_second_block,
    torch_gelu_of_ten_digits,
)
from torchtrain.trainer import Trainer as TorchTrainer

small_and_alone = pytest.fixture(scope="module", autouse=True)(alone)


def torch_scale(patch):
    patch.setattr(torchtrain.attention, "math", types.SimpleNamespace(sqrt=lambda x: math.sqrt(x) * (1 + 1e-6)))


def torch_epsilon_of_one_norm(patch):
    original = torchtrain.layers.Block.__init__

    def init(self, m, layer, *more):
        original(self, m, layer, *more)
        if layer == 1:
            self.norm2.eps = 1.1e-5

    patch.setattr(torchtrain.layers.Block, "__init__", init)


def torch_value_bias_dropped(patch):
    original = torchtrain.layers.Linear.forward

    def forward(self, x, masks=None):
        return original(self, x, masks) if self.out else F.linear(x, self.weight)

    init = torchtrain.layers.Attention.__init__

    def mark(self, *args):
        init(self, *args)
        for linear in (self.q, self.k, self.out):
            linear.out = True
        self.v.out = False

    patch.setattr(torchtrain.layers.Linear, "out", True, raising=False)
    patch.setattr(torchtrain.layers.Linear, "forward", forward)
    patch.setattr(torchtrain.layers.Attention, "__init__", mark)


def torch_rope_interleaved(patch):
    def rotate(x, cos, sin):
        first, second = x[..., ::2], x[..., 1::2]
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)

    patch.setattr(torchtrain.layers, "rotate", rotate)


def torch_key_heads_tiled(patch):
    plain = torchtrain.attention.KERNELS["plain"].compute

    def compute(kernel, q, k, v, positions=None):
        copies = q.shape[2] // k.shape[2]
        return plain(q, k.repeat(1, 1, copies, 1), v.repeat(1, 1, copies, 1))

    patch.setattr(torchtrain.layers, "attention", compute)


def torch_mask_leaks(patch):
    original = torchtrain.attention.masked_attention
    patch.setattr(
        torchtrain.attention, "masked_attention", lambda q, k, v, m: original(q, k, v, torch.ones_like(m).tril(1))
    )


def torch_dropout_not_scaled(patch):
    original = torchtrain.layers.drop
    for module in (torchtrain.layers, torchtrain.model):
        patch.setattr(module, "drop", lambda x, rate, *rest: original(x, rate, *rest) * (1 - rate))


def torch_gate_and_up_exchanged(patch):
    def forward(self, x, masks=None):
        hidden = tap("blocks.#.gate", self.gate(x)) * F.silu(tap("blocks.#.up", self.up(x)))
        return tap("blocks.#.down", self.down(tap("blocks.#.activation", hidden)))

    patch.setattr(torchtrain.layers.MLP, "forward", forward)


def torch_positions_from_one(patch):
    original = torchtrain.model.GPT.forward

    def forward(self, *given):
        with torch.no_grad():
            self.embed.position.copy_(self.embed.position.roll(-1, 0))
        hidden = original(self, *given)
        with torch.no_grad():
            self.embed.position.copy_(self.embed.position.roll(1, 0))
        return hidden

    patch.setattr(torchtrain.model.GPT, "forward", forward)


def torch_labels_shifted(patch):
    original, of = torchtrain.objective.cross_entropy, torchtrain.objective
    patch.setattr(of, "cross_entropy", lambda h, w, labels, *r: original(h, w, labels.roll(1, -1), *r))


def torch_residual_halved(patch):
    original = torchtrain.layers.drop

    def drop(x, rate, dropout, site):
        return original(x, rate, dropout, site) * (0.5 if site == 2 else 1)

    patch.setattr(torchtrain.layers, "drop", drop)


def torch_logits_scaled(patch):
    original = F.linear

    def linear(x, weight, bias=None):
        return original(x, weight, bias) * (1 + 1e-9 * (weight.shape[0] > 300))  # the head, padded

    patch.setattr(F, "linear", linear)


class _LyingGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.no_grad():
            return _gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(_gelu(x), x, upstream)  # the erf form's
        return gradient


_gelu = F.gelu


def torch_backward_of_gelu(patch):
    patch.setattr(F, "gelu", lambda x, approximate: _LyingGelu.apply(x))


def torch_peak_not_detached_from_keys(patch):
    """Gradient of the keys lost in half of the heads."""
    original = torchtrain.layers.attention

    def attend(kernel, q, k, *more):
        return original(kernel, q, torch.cat([k[:, :, :1].detach(), k[:, :, 1:]], 2), *more)

    patch.setattr(torchtrain.layers, "attention", attend)


def torch_gradient_of_one_bias(patch):
    original = torchtrain.layers.Block.__init__

    def init(self, m, layer, *more):
        original(self, m, layer, *more)
        if layer == 1:
            self.mlp.down.bias.requires_grad_(False)

    patch.setattr(torchtrain.layers.Block, "__init__", init)
    build = torchtrain.model.build_model

    def built(*args):
        model = build(*args)
        parameter = model.blocks[1].mlp.down.bias
        parameter.requires_grad_(True)
        parameter.register_hook(lambda g: g * 0.5)
        return model

    patch.setattr(torchtrain.trainer, "build_model", built)


def torch_mean_of_micro_batches(patch):
    original = torchtrain.objective.cross_entropy

    def change(h, w, labels, v, c, s, *more):
        if len(h) == 4:
            return original(h, w, labels, v, c, s, *more)
        return original(h, w, labels, v, c, 1 / ((labels != -100).sum() * 2).to(s.dtype), *more)

    patch.setattr(torchtrain.objective, "cross_entropy", change)


def torch_gradients_summed(patch):
    gradients = TorchTrainer.gradients

    def doubled(self, batch, update, scale):
        loss, norm = gradients(self, batch, update, scale)
        for parameter in self.model.parameters():
            parameter.grad.mul_(2)
        return loss, norm

    patch.setattr(TorchTrainer, "gradients", doubled)


def _groups(patch, change):
    original = torchtrain.trainer.Optimizer.__init__

    def init(self, *args):
        original(self, *args)
        change(self.adam.param_groups)

    patch.setattr(torchtrain.trainer.Optimizer, "__init__", init)


def torch_beta2(patch):
    _groups(patch, lambda groups: [group.update(betas=(0.9, 0.951)) for group in groups])


def torch_beta1(patch):
    _groups(patch, lambda groups: [group.update(betas=(0.9001, 0.95)) for group in groups])


def torch_decay_on_biases(patch):
    _groups(patch, lambda groups: groups[1].update(weight_decay=0.1))


def torch_adam_epsilon(patch):
    _groups(patch, lambda groups: [group.update(eps=1.1e-8) for group in groups])


TORCH = [
    (torch_scale, GPT, "blocks.0.attention"),
    (torch_gelu_of_ten_digits, GPT, "blocks.0.activation"),
    (torch_gelu_erf_in_the_second_block, GPT, "blocks.1.activation"),
    (torch_epsilon_of_one_norm, GPT, "blocks.1.norm2"),
    (torch_value_bias_dropped, GPT, "blocks.0.v"),
    (torch_rope_interleaved, LLAMA, "blocks.0.q_rotated"),
    (torch_key_heads_tiled, LLAMA, "blocks.0.attention"),
    (torch_mask_leaks, GPT, "blocks.0.attention"),
    (torch_dropout_not_scaled, GPT, "embed"),
    (torch_gate_and_up_exchanged, LLAMA, "blocks.0.activation"),
    (torch_positions_from_one, GPT, "embed"),
    (torch_labels_shifted, GPT, "loss"),
    (torch_residual_halved, GPT, "blocks.0.residual2"),
    (torch_logits_scaled, LLAMA, "logits"),
    (torch_backward_of_gelu, GPT, "cotangent of blocks.1.up"),
    (torch_peak_not_detached_from_keys, LLAMA, "cotangent of blocks.1.k_rotated"),
    (torch_gradient_of_one_bias, GPT, "gradient of blocks.1.mlp.down.bias"),
    (torch_mean_of_micro_batches, GPT, "training loss"),
    (torch_gradients_summed, GPT, "accumulated gradient of embed.token"),
    (torch_beta1, GPT, "first moment of embed.token"),
    (torch_beta2, GPT, "second moment of embed.token"),
    (torch_decay_on_biases, GPT, "step of blocks.0.norm1.weight"),
    (torch_adam_epsilon, LLAMA, "step of embed.token"),
]


@pytest.mark.whole
@pytest.mark.parametrize(("bug", "variant", "expected"), TORCH, ids=[bug[0].__name__ for bug in TORCH])
def test_a_bug_in_torch_is_found(bug, variant, expected, monkeypatch):
    sides(variant)
    bug(monkeypatch)
    assert found(variant) == expected


def jax_norm_over_n_minus_one(patch):
    original = jaxtrain.layers.Norm.__call__

    def call(self, x):
        n = x.shape[-1]
        return original(self, x * math.sqrt((n - 1) / n)) if self.kind == "layernorm" else original(self, x)

    patch.setattr(jaxtrain.layers.Norm, "__call__", call)


def jax_up_without_its_bias(patch):
    original = jaxtrain.layers.MLP.__call__

    def call(self, x, masks=None):
        self.up.bias = None
        return original(self, x, masks)

    patch.setattr(jaxtrain.layers.MLP, "__call__", call)


def jax_gelu_backward(patch):
    original = jax.nn.gelu

    @jax.custom_jvp
    def gelu(x):
        return original(x, approximate=True)

    gelu.defjvp(lambda p, t: (gelu(*p), jax.jvp(lambda x: original(x, approximate=False), p, t)[1]))
    patch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x))


JAX = [
    (jax_norm_over_n_minus_one, "blocks.0.norm1"),
    (jax_up_without_its_bias, "blocks.0.up"),
    (jax_gelu_backward, "cotangent of blocks.1.up"),
]


@pytest.mark.whole
@pytest.mark.parametrize(("bug", "expected"), JAX, ids=[bug[0].__name__ for bug in JAX])
def test_a_bug_in_jax_is_found(bug, expected, monkeypatch):
    config, weights, _, _ = sides(GPT)
    bug(monkeypatch)
    assert localized_tap(config, weights, TorchTrainer(config, weights), JaxTrainer(config, weights)) == expected


@pytest.mark.whole
def test_bugs_of_schedule_clip_and_data_are_found():
    config, _, _, _ = sides(GPT)

    def later(config, update):
        return learning_rate(config, max(update - 1, 0))

    assert found(GPT, rates=(later, learning_rate)) == "learning rate"
    assert found(GPT, clips=(clip_factor, lambda norm, limit: min(1.0, limit / norm))) == "clip factor"
    made = batches(config, 3)
    other = [made[0], made[1].rows(slice(None, None, -1)), made[2]]
    assert found(GPT, feeds=(made, other)) == "batch 1"


def test_seated_shows_one_tap_where_free_shows_all_that_follow(monkeypatch):
    config, weights, stack, recorder = sides(GPT)
    torch_gelu_erf_in_the_second_block(monkeypatch)
    report = localize_config(config, weights, make_torch=TorchTrainer, make_jax=lambda *_: stack, recorder=recorder)
    forward = [row for row in report.rows if row.stage == "forward"]
    assert [row.name for row in forward if row.parts] == ["blocks.1.activation"]
    assert sum(row.free > row.cap for row in forward) == 6  # and down, residual2, norm, logits, loss
    verdict = report.verdict
    assert (verdict.kind, verdict.predecessor) == ("algorithm", "blocks.1.up")
    assert verdict.predecessor_error < 1e-15 < 1e-6 < verdict.error
    assert "tanh against erf" in verdict.traps
