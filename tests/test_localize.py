"""The localizer must name the tap where a planted bug is, on either side, and nothing in a correct pair."""

import functools
import math
import random
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import jaxtrain.attention
import jaxtrain.model
import jaxtrain.trainer
import torchtrain.attention
import torchtrain.model
import torchtrain.trainer
from coretrain.errors import UserError
from coretrain.runner import run
from coretrain.schedule import clip_factor, learning_rate
from coretrain.taps import tap, tapped
from jaxtrain.trainer import Trainer as JaxTrainer
from parity import localize as localizer
from parity.localize import compare, jax_recorder, localize, localize_config, localized_tap, search, shrunk
from parity.pair import SMALL, VARIANTS, batches, jax_logits, make_config, make_pair, scrambled
from parity.recorders import JaxRecorder
from parity.runs import compare_runs
from parity.verdict import judge
from torchtrain.trainer import Trainer as TorchTrainer


@pytest.fixture(scope="module", autouse=True)
def small_and_alone(tmp_path_factory):
    """The models are so small that threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SMALL, "data.cache", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


GPT, LLAMA = "gpt2-like", "llama-like"


@functools.cache
def sides(variant):
    """(config, weights, a correct JAX trainer, its recorder): compiled once."""
    config = make_config(VARIANTS[variant])
    weights = scrambled(config)
    stack = JaxTrainer(config, weights)
    return config, weights, stack, jax_recorder(stack)


def found(variant, **options):
    """The tap that the localizer names with torch as it is now."""
    config, weights, stack, recorder = sides(variant)
    return localized_tap(config, weights, TorchTrainer(config, weights), stack, recorder=recorder, **options)


# --- taps -------------------------------------------------------------------------------------------------------------


def test_taps_change_nothing():
    """Bit for bit: without a function, and with one that gives the value back, in both stacks."""
    config = make_config(VARIANTS[GPT], execution__scan_layers="false")
    pair = make_pair(config)
    tokens = batches(config, 1)[0][:, :-1]
    plain = pair.logits(tokens, 0)
    seen = []
    with tapped(lambda name, value: seen.append(name) or value):
        ours = pair.logits(tokens, 0)[0]
        fresh = JaxTrainer(config, pair.start)  # another graph: traced within, and so with its taps
        theirs = jax_logits(fresh, tokens, 0)
    assert np.array_equal(ours, plain[0])
    assert np.array_equal(theirs, plain[1])
    assert seen[0] == "embed"
    assert tap("unchanged", 3) == 3


def test_the_function_before_comes_back_whatever_happens():
    with tapped(lambda name, value: value + 1):
        with pytest.raises(ZeroDivisionError), tapped(lambda name, value: 1 / 0):
            tap("x", 1)
        assert tap("x", 1) == 2
    assert tap("x", 1) == 1


@pytest.mark.parametrize("variant", [GPT, LLAMA])
def test_both_stacks_have_the_same_taps_in_the_same_order(variant):
    config, weights, stack, recorder = sides(variant)
    batch = batches(config, 1)[0]
    ours, _ = localizer.torch_taps(TorchTrainer(config, weights), batch, 0)
    theirs, _ = localizer.jax_taps(stack, recorder, batch, 0)
    assert list(ours.values) == list(theirs.values)
    assert ours.values.keys() - {"logits"} == ours.cotangents.keys()
    block = "norm1 q k v attention out residual1 norm2 up activation down residual2"
    if variant == LLAMA:
        block = "norm1 q k v q_rotated k_rotated attention out residual1 norm2 gate up activation down residual2"
    expected = [f"blocks.{i}.{name}" for i in range(2) for name in block.split()]
    assert list(ours.values) == ["embed", *expected, "norm", "logits", "loss"]
    assert ours.parents["blocks.0.residual2"] == ("blocks.0.residual1", "blocks.0.down")


# --- a correct pair ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [GPT, LLAMA])
def test_a_correct_pair_is_the_same(variant):
    """Floors over both variants: values 7e-16 (seated 6e-16), cotangents 5e-15, gradients 5e-15, steps 3e-14."""
    config, weights, stack, recorder = sides(variant)
    rows = [row for stage in search(config, weights, TorchTrainer(config, weights), stack, recorder) for row in stage]
    verdict = judge(rows)
    assert verdict.kind == "same", verdict.sentence
    assert {row.stage for row in rows} >= {"data", "forward", "cotangent", "gradient", "first_moment", "parameter"}
    assert {row.name for row in rows if row.stage == "scalar"} >= {"learning rate", "gradient norm", "clip factor"}
    assert all(row.seated is not None for row in rows if row.stage in ("forward", "cotangent"))


# --- planted bugs: each takes pytest's monkeypatch --------------------------------------------------------------------


def torch_scale(patch):
    patch.setattr(torchtrain.attention, "math", types.SimpleNamespace(sqrt=lambda x: math.sqrt(x) * (1 + 1e-6)))


def torch_gelu_of_ten_digits(patch):
    def gelu(x, approximate):
        return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))

    patch.setattr(F, "gelu", gelu)


def torch_gelu_erf_in_the_second_block(patch):
    original, calls = F.gelu, []

    def gelu(x, approximate):
        calls.append(0)
        return original(x, approximate="none" if len(calls) % 2 == 0 else approximate)

    patch.setattr(F, "gelu", gelu)


def torch_epsilon_of_one_norm(patch):
    original = torchtrain.model.Block.__init__

    def init(self, m, layer, *more):
        original(self, m, layer, *more)
        if layer == 1:
            self.norm2.eps = 1.1e-5

    patch.setattr(torchtrain.model.Block, "__init__", init)


def torch_value_bias_dropped(patch):
    original = torchtrain.model.Linear.forward

    def forward(self, x):
        return original(self, x) if self.out else F.linear(x, self.weight)

    init = torchtrain.model.Attention.__init__

    def mark(self, *args):
        init(self, *args)
        for linear in (self.q, self.k, self.out):
            linear.out = True
        self.v.out = False

    patch.setattr(torchtrain.model.Linear, "out", True, raising=False)
    patch.setattr(torchtrain.model.Linear, "forward", forward)
    patch.setattr(torchtrain.model.Attention, "__init__", mark)


def torch_rope_interleaved(patch):
    def rotate(x, cos, sin):
        first, second = x[..., ::2], x[..., 1::2]
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)

    patch.setattr(torchtrain.model, "rotate", rotate)


def torch_key_heads_tiled(patch):
    plain = torchtrain.attention.KERNELS["plain"].compute

    def compute(kernel, q, k, v):
        copies = q.shape[2] // k.shape[2]
        return plain(q, k.repeat(1, 1, copies, 1), v.repeat(1, 1, copies, 1))

    patch.setattr(torchtrain.model, "attention", compute)


def torch_mask_leaks(patch):
    original = torchtrain.attention.masked_attention
    patch.setattr(
        torchtrain.attention, "masked_attention", lambda q, k, v, m: original(q, k, v, torch.ones_like(m).tril(1))
    )


def torch_dropout_not_scaled(patch):
    original = torchtrain.model.drop
    patch.setattr(torchtrain.model, "drop", lambda x, rate, *rest: original(x, rate, *rest) * (1 - rate))


def torch_gate_and_up_exchanged(patch):
    def forward(self, x):
        hidden = tap("blocks.#.gate", self.gate(x)) * F.silu(tap("blocks.#.up", self.up(x)))
        return tap("blocks.#.down", self.down(tap("blocks.#.activation", hidden)))

    patch.setattr(torchtrain.model.MLP, "forward", forward)


def torch_positions_from_one(patch):
    original = torchtrain.model.GPT._embed
    patch.setattr(torchtrain.model.GPT, "_embed", lambda self, t, p: original(self, t, p.roll(-1, 0)))


def torch_labels_shifted(patch):
    original = torchtrain.trainer.cross_entropy
    patch.setattr(torchtrain.trainer, "cross_entropy", lambda h, w, labels, *r: original(h, w, labels.roll(1, -1), *r))


def torch_residual_halved(patch):
    original = torchtrain.model.drop

    def drop(x, rate, dropout, site):
        return original(x, rate, dropout, site) * (0.5 if site == 2 else 1)

    patch.setattr(torchtrain.model, "drop", drop)


def torch_logits_scaled(patch):
    original = F.linear

    def linear(x, weight, bias=None):
        return original(x, weight, bias) * (1 + 1e-9 * (weight.shape[0] == 301))

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
    original = torchtrain.model.attention

    def attend(kernel, q, k, v):
        return original(kernel, q, torch.cat([k[:, :, :1].detach(), k[:, :, 1:]], 2), v)

    patch.setattr(torchtrain.model, "attention", attend)


def torch_gradient_of_one_bias(patch):
    original = torchtrain.model.Block.__init__

    def init(self, m, layer, *more):
        original(self, m, layer, *more)
        if layer == 1:
            self.mlp.down.bias.requires_grad_(False)

    patch.setattr(torchtrain.model.Block, "__init__", init)
    build = torchtrain.model.build_model

    def built(*args):
        model = build(*args)
        parameter = model.blocks[1].mlp.down.bias
        parameter.requires_grad_(True)
        parameter.register_hook(lambda g: g * 0.5)
        return model

    patch.setattr(torchtrain.trainer, "build_model", built)


def torch_mean_of_micro_batches(patch):
    original = torchtrain.trainer.cross_entropy

    def change(h, w, labels, v, c, s):
        if len(h) == 4:
            return original(h, w, labels, v, c, s)
        return original(h, w, labels, v, c, 1 / ((labels != -100).sum() * 2).to(s.dtype))

    patch.setattr(torchtrain.trainer, "cross_entropy", change)


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


@pytest.mark.parametrize(("bug", "variant", "expected"), TORCH, ids=[bug[0].__name__ for bug in TORCH])
def test_a_bug_in_torch_is_found(bug, variant, expected, monkeypatch):
    sides(variant)
    bug(monkeypatch)
    assert found(variant) == expected


def jax_norm_over_n_minus_one(patch):
    original = jaxtrain.model.Norm.__call__

    def call(self, x):
        n = x.shape[-1]
        return original(self, x * math.sqrt((n - 1) / n)) if self.kind == "layernorm" else original(self, x)

    patch.setattr(jaxtrain.model.Norm, "__call__", call)


def jax_up_without_its_bias(patch):
    original = jaxtrain.model.MLP.__call__

    def call(self, x):
        self.up.bias = None
        return original(self, x)

    patch.setattr(jaxtrain.model.MLP, "__call__", call)


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


@pytest.mark.parametrize(("bug", "expected"), JAX, ids=[bug[0].__name__ for bug in JAX])
def test_a_bug_in_jax_is_found(bug, expected, monkeypatch):
    config, weights, _, _ = sides(GPT)
    bug(monkeypatch)
    assert localized_tap(config, weights, TorchTrainer(config, weights), JaxTrainer(config, weights)) == expected


def test_bugs_of_schedule_clip_and_data_are_found():
    config, _, _, _ = sides(GPT)

    def later(config, update):
        return learning_rate(config, max(update - 1, 0))

    assert found(GPT, rates=(later, learning_rate)) == "learning rate"
    assert found(GPT, clips=(clip_factor, lambda norm, limit: min(1.0, limit / norm))) == "clip factor"
    made = batches(config, 3)
    other = [made[0], made[1][::-1].copy(), made[2]]
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


# --- below float64 ----------------------------------------------------------------------------------------------------


def below(**more):
    """The gpt2-like config in another precision."""
    return make_config(VARIANTS[GPT], **more)


def lower(config_below):
    """The verdict with float64 as it should be and torch as it is now below it."""
    config, weights, stack, recorder = sides(GPT)
    made = iter([stack])
    return localize_config(
        config,
        weights,
        below=config_below,
        make_jax=lambda c, w: next(made, None) or JaxTrainer(c, w),
        recorder=recorder,
    ).verdict


def test_rounding_of_a_correct_pair_is_no_fault():
    verdict = lower(below(precision__compute="float32"))
    assert verdict.kind == "same", verdict.sentence
    assert "float32" in verdict.sentence


def test_a_kernel_that_rounds_too_much_is_found(monkeypatch):
    """An attention that rounds to TF32's ten bits, as a reduced-precision matmul does; float64 is left alone."""
    original = torchtrain.model.attention

    def attend(kernel, q, k, v):
        return original(kernel, *((x.half().float() if x.dtype == torch.float32 else x) for x in (q, k, v)))

    monkeypatch.setattr(torchtrain.model, "attention", attend)
    verdict = lower(below(precision__compute="float32"))
    assert (verdict.kind, verdict.tap) == ("rounding or kernel", "blocks.0.attention")
    assert "of torch" in verdict.sentence


def test_another_dtype_is_found(monkeypatch):
    original = torchtrain.model.Attention.forward

    def forward(self, x, rotary):
        return original(self, x.float() if x.dtype == torch.bfloat16 else x, rotary)

    monkeypatch.setattr(torchtrain.model.Attention, "forward", forward)
    verdict = lower(below(precision__compute="bfloat16"))
    assert (verdict.kind, verdict.tap) == ("dtype policy", "blocks.0.q")


# --- other people's pairs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [True, False])
def test_the_example(planted, tmp_path):
    """Hugging Face's block against one in JAX: the mistake is named, and without it nothing is."""
    pytest.importorskip("transformers")
    from parity.example import example

    report = example(planted)
    assert (report.verdict.kind, report.verdict.tap) == (("algorithm", "mlp.act") if planted else ("same", ""))
    if planted:
        assert report.verdict.predecessor == "mlp.c_fc"
        assert "tanh against erf" in report.verdict.traps
    report.save(tmp_path)
    assert (tmp_path / "localize.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "localize.npz", allow_pickle=False) as file:
        assert ("torch/mlp.act" in file) == planted
        assert file["input/x"].shape == (2, 16, 32)


def test_localize_names_a_missing_tap_a_shape_and_a_gradient():
    def ours(x, w):
        return tap("b", tap("a", x * 2) @ w)

    def theirs(x, w):
        return tap("b", x * 2 @ w)

    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal((3, 4)), "w": rng.standard_normal((4, 5))}
    verdict = localize(ours, theirs, inputs).verdict
    assert (verdict.tap, verdict.error) == ("a", math.inf)
    assert localize(ours, lambda x, w: tap("b", tap("a", x * 2).T.T @ w), inputs).verdict.kind == "same"
    verdict = localize(ours, lambda x, w: tap("b", tap("a", (x * 2)[None]) @ w), inputs).verdict
    assert verdict.tap == "a"
    verdict = localize(ours, lambda x, w: tap("b", tap("a", x * 2) @ jax.lax.stop_gradient(w)), inputs).verdict
    assert verdict.tap == "gradient of w"


def test_compare_takes_tensors_recorded_elsewhere():
    x = {"first": np.ones(3), "second": np.arange(3.0)}
    assert compare(x, x).verdict.kind == "same"
    verdict = compare(x, {"first": np.ones(3), "second": np.arange(3.0) * (1 + 1e-9)}).verdict
    assert (verdict.tap, verdict.predecessor) == ("second", "first")
    assert compare(x, {"first": np.full(3, np.nan), "second": x["second"]}).verdict.tap == "first"


def test_a_tap_that_cannot_be_read_is_refused_in_one_sentence():
    def scanned(x):
        return jax.lax.scan(lambda c, _: (tap("inside", c * 2), None), x, length=3)[0].sum()

    with pytest.raises(UserError, match="unrolled"):
        JaxRecorder(scanned)(jnp.ones(3))
    with pytest.raises(UserError, match="met twice"):
        JaxRecorder(lambda x: tap("x", tap("x", x)).sum())(jnp.ones(3))


# --- two runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A maker of small runs, each kept; and the first of them."""
    root = tmp_path_factory.mktemp("runs")
    rng = random.Random(0)
    corpus = root / "corpus"
    corpus.mkdir()
    for n in range(60):
        (corpus / f"{n}.txt").write_text(" ".join(rng.choices(["def", "return", "self", "index", "None"], k=80)))
    small = {
        "model.layers": 1, "model.width": 32, "model.heads": 4, "model.context": 32, "data.source": corpus,
        "data.tokenizer": "bytes", "data.validation_fraction": 0.1, "data.cache": root / "cache",
        "data.prepare_processes": 1, "train.updates": 12, "train.batch_size": 4, "train.eval_interval": 12,
        "train.eval_batches": 1, "train.sample_tokens": 0, "schedule.warmup_updates": 3,
        "journal.tensorboard": "false", "execution.device": "cpu", "execution.compile": "off",
    }  # fmt: skip

    @functools.cache
    def make(name, stack="torch", *more):
        trainer = {"torch": TorchTrainer, "jax": JaxTrainer}[stack]
        fields = [f"--{key}={value}" for key, value in small.items()]
        assert run([*fields, f"--output={root / name}", *more], stack, trainer) == 0
        return root / name

    return make


def test_two_equal_runs(runs):
    verdict = compare_runs(runs("a"), runs("again")).verdict
    assert verdict.kind == "same"
    assert "bit for bit" in verdict.sentence


def test_runs_of_both_stacks_part_by_rounding_only(runs):
    verdict = compare_runs(runs("a"), runs("jax", "jax")).verdict
    assert verdict.kind == "rounding or kernel", verdict.sentence
    assert verdict.error < 1e-5


def test_runs_whose_data_or_schedule_differ(runs):
    verdict = compare_runs(runs("a"), runs("seed", "torch", "--train.seed=7")).verdict
    assert (verdict.kind, verdict.tap) == ("data", "batch of update 0")
    assert "train.seed" in verdict.sentence
    verdict = compare_runs(runs("a"), runs("longer", "torch", "--schedule.warmup_updates=4")).verdict
    assert (verdict.kind, verdict.tap) == ("schedule", "learning rate of update 0")
    verdict = compare_runs(runs("a"), runs("end", "torch", "--schedule.min_lr=1e-5")).verdict
    assert verdict.kind == "schedule"
    assert verdict.tap == "learning rate of update 4"


def test_runs_that_part_at_a_known_update(runs, monkeypatch):
    """A step that goes wrong from the sixth on: the loss of the seventh, update 6, shows it."""
    correct = runs("a")
    original, count = torchtrain.trainer.Optimizer.step, []

    def step(self, lr, factor):
        count.append(0)
        original(self, 3 * lr if len(count) > 5 else lr, factor)

    monkeypatch.setattr(torchtrain.trainer.Optimizer, "step", step)
    report = compare_runs(correct, runs("wrong"))
    assert (report.verdict.kind, report.verdict.tap) == ("algorithm", "loss of update 6")
    assert "the configs agree" in report.verdict.sentence
    assert any(row.stage == "first_moment" and row.error > 0 for row in report.rows)


def test_runs_of_another_model_or_none(runs, tmp_path):
    verdict = compare_runs(runs("a"), runs("norm", "torch", "--model.norm=layernorm")).verdict
    assert (verdict.kind, verdict.tap) == ("algorithm", "loss of update 0")
    assert "model.norm" in verdict.sentence
    with pytest.raises(UserError, match=r"no config\.json"):
        compare_runs(runs("a"), tmp_path)


# --- the command ------------------------------------------------------------------------------------------------------


def command(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["localize", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        localizer.main()
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_the_command_and_its_reproduction(monkeypatch, capsys, tmp_path):
    torch_gelu_of_ten_digits(monkeypatch)
    words = ["gpt2-124m", "--layers", "1", "--width", "32", "--model.context=16"]
    code, out, _ = command(monkeypatch, capsys, *words, "--output", tmp_path / "one")
    assert code == 1
    assert "algorithm: blocks.0.activation parts" in out
    assert f"--inputs {tmp_path / 'one' / 'localize.npz'}" in out
    code, again, _ = command(
        monkeypatch, capsys, *words, "--inputs", tmp_path / "one" / "localize.npz", "--output", tmp_path / "two"
    )
    assert code == 1
    verdict = next(line for line in out.splitlines() if line.startswith("algorithm"))
    assert verdict in again.splitlines()
    with np.load(tmp_path / "one" / "localize.npz", allow_pickle=False) as file:
        up, ours = file["from/blocks.0.up"], file["torch/blocks.0.activation"]
    assert np.array_equal(F.gelu(torch.from_numpy(up), approximate="tanh").numpy(), ours)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["nothing"], "no config named"),
        (["tiny", "--layers", "two"], "whole number"),
        (["tiny", "--layers"], "no value"),
        (["tiny", "--width", "50"], "multiple"),
        (["tiny", "--inputs", "absent.npz"], "localize.npz"),
        (["tiny", "--model.widht=3"], "model.width"),
        (["a", "b", "c"], "two runs"),
        (["absent-a", "absent-b"], "no config.json"),
    ],
)
def test_mistakes_of_users_are_one_sentence(words, hint, monkeypatch, capsys):
    code, _, err = command(monkeypatch, capsys, *words)
    assert code == 2
    assert hint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["smollm2-135m", "gpt2-124m"])
def test_what_is_shrunk_keeps_the_kind_of_model(name):
    config, under = shrunk(name, [], None, None)
    own = shrunk.__globals__["load_config"](name)
    kept = ("norm", "position", "mlp", "bias", "tied", "residual_dropout")
    assert all(getattr(config.model, field) == getattr(own.model, field) for field in kept)
    assert config.model.heads // config.model.kv == own.model.heads // own.model.kv
    assert (config.precision.compute, under.precision.compute) == ("float64", own.precision.compute)
