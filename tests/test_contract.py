"""The contract without a framework: config, table, randomness, schedule, health, budget, command line."""

import hashlib
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from coretrain.budget import batch_sentence, flops_per_token, parameter_count
from coretrain.command import parse
from coretrain.config import RunConfig, load_config, presets
from coretrain.errors import UserError
from coretrain.health import HealthMonitor
from coretrain.parameters import from_jax_tree, initial_parameters, parameter_table, to_jax_tree
from coretrain.randomness import dropout_key, dropout_mask, normal_rows, raw_words
from coretrain.sampling import Sampling, choose_tokens
from coretrain.schedule import clip_factor, learning_rate

GOLDEN_MASK, GOLDEN_WORDS = "b7255887d2167941", "289deb85789c679b"
"""Changed only on purpose: every run's dropout and weights would change with them."""

PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
    "course-124m": 124_439_808,
    "llama-1b": 1_235_814_400,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-70b": 70_553_706_496,
    "llama-405b": 405_853_388_800,
    "smollm2-135m": 134_515_008,
}


def config(*pairs: str) -> RunConfig:
    return load_config(None, [tuple(pair.split("=")) for pair in pairs])


@pytest.mark.parametrize("name", presets())
def test_presets_load_and_have_the_published_number_of_parameters(name):
    loaded = load_config(name)
    sized = loaded.with_vocab(4096 if name == "tiny" else loaded.model.vocab or 50257)
    if name == "tiny":
        assert 2e6 < parameter_count(sized.model) < 4e6
    else:
        assert parameter_count(sized.model) == PUBLISHED[name]
    assert RunConfig.from_json(sized.to_json()) == sized


@pytest.mark.parametrize("name", presets())
def test_every_field_of_a_preset_is_commented(name):
    from coretrain.config import PRESETS

    for line in (PRESETS / f"{name}.toml").read_text().splitlines():
        assert "=" not in line.partition("#")[0] or "#" in line, line


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        ("model.hedas=4", "model.heads"),
        ("lr=1", "optimizer.lr"),
        ("model.heads=5", "model.heads"),
        ("model.kv_heads=4", "model.kv_heads"),
        ("train.updates=x", "train.updates"),
        ("train.accumulation=3", "train.accumulation"),
        ("schedule.warmup_updates=100000", "schedule.warmup_updates"),
        ("schedule.min_lr=1", "schedule.min_lr"),
        ("version=2", "version"),
        ("precision.compute=int8", "precision.compute"),
    ],
)
def test_a_wrong_config_names_its_field(pair, named):
    with pytest.raises(UserError, match=named) as caught:
        config(pair)
    assert "\n" not in str(caught.value)


def test_command_lines():
    command = parse(["tiny", "--train.updates", "70", "--optimizer.lr=3e-4", "--output", "x"], "p", "s")
    assert (command.config.train.updates, command.config.optimizer.lr, command.output.name) == (70, 3e-4, "x")
    for argv, named in (
        (["tiny", "tiny"], "two configs"),
        (["--train.updates"], "train.updates"),
        (["--resume", "no/such"], "no/such"),
        (["--rseume", "x"], "rseume"),
    ):
        with pytest.raises(UserError, match=named):
            parse(argv, "p", "s")


def test_a_resumed_run_can_be_longer_but_not_another(tmp_path):
    (tmp_path / "config.json").write_text(config("train.updates=90").with_vocab(300).to_json())
    resumed = parse(["--resume", str(tmp_path), "--train.updates", "200"], "p", "s").config
    assert (resumed.train.updates, resumed.model.vocab) == (200, 300)
    for field in ("--model.layers", "--data.source"):
        with pytest.raises(UserError, match=field[2:]):
            parse(["--resume", str(tmp_path), field, "2"], "p", "s")


@pytest.mark.parametrize(
    "more", [(), ("model.tied=false", "model.norm=rmsnorm", "model.mlp=swiglu", "model.bias=false")]
)
def test_the_table_maps_to_jax_and_back(more):
    model = config(*more).with_vocab(301).model
    tensors = initial_parameters(model, 3)
    back = from_jax_tree(model, to_jax_tree(model, tensors, 64))
    assert back.keys() == tensors.keys() == {row.name for row in parameter_table(model)}
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_weights_are_a_pure_function_of_seed_name_and_row():
    whole = normal_rows(1, "a", (1000, 7), 0.5)
    assert np.array_equal(normal_rows(1, "a", (1000, 7), 0.5, 300, 777), whole[300:777])
    assert not np.array_equal(normal_rows(2, "a", (1000, 7), 0.5), whole)
    assert not np.array_equal(normal_rows(1, "b", (1000, 7), 0.5), whole)
    big = normal_rows(1, "c", (4000, 50), 1.0).astype(np.float64)
    # 200,000 draws: the mean's own error is 2e-3, the variance's 3e-3, the kurtosis' 1e-2; five times those
    assert abs(big.mean()) < 0.012
    assert abs(big.var() - 1) < 0.016
    assert abs((big**4).mean() - 3) < 0.06
    assert abs(np.corrcoef(big[:, 0], big[:, 1])[0, 1]) < 0.08


def test_the_streams_are_philox_and_stay_what_they_are():
    words = raw_words(1, "x", 0, 4)
    assert np.array_equal(words, raw_words(1, "x", 0, 8)[:4])
    assert not np.array_equal(words, raw_words(1, "x", 1, 4))
    mask = dropout_mask(dropout_key(1, 2, 3), np.arange(4), 16, 32, 0.1)
    assert hashlib.sha256(mask.tobytes()).hexdigest().startswith(GOLDEN_MASK)
    assert hashlib.sha256(raw_words(0, "golden", 5, 64).tobytes()).hexdigest().startswith(GOLDEN_WORDS)


def test_dropout_masks_depend_on_the_row_not_the_micro_batch():
    key = dropout_key(1, 2, 3)
    whole = dropout_mask(key, np.arange(8), 64, 96, 0.3)
    assert np.array_equal(dropout_mask(key, np.array([6, 2]), 64, 96, 0.3), whole[[6, 2]])
    # 49,152 draws: the share's own error is 2e-3
    assert abs(whole.mean() - 0.7) < 0.01
    others = [
        dropout_mask(dropout_key(*where), np.arange(8), 64, 96, 0.3) for where in ((2, 2, 3), (1, 3, 3), (1, 2, 4))
    ]
    for other in others:
        assert abs(np.corrcoef(whole.ravel(), other.ravel())[0, 1]) < 0.025


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_schedules(kind):
    c = config(f"schedule.kind={kind}", "schedule.warmup_updates=10", "train.updates=100", "optimizer.lr=1e-3")
    rates = [learning_rate(c, n) for n in range(120)]
    assert rates[0] == pytest.approx(1e-3 / 11)
    assert max(rates) == rates[10] == 1e-3
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == rates[119] == (1e-3 if kind == "constant" else c.schedule.min_lr)
    if kind == "wsd":
        assert rates[80] == 1e-3 > rates[81]
    assert learning_rate(config("schedule.warmup_updates=5", "train.updates=5"), 4) > 0


def test_clip_factor():
    assert clip_factor(0.5, 1.0) == 1.0
    assert clip_factor(2.0, 1.0) == 1 / (2 + 1e-6)
    assert clip_factor(1.0, 1.0) < 1.0  # torch's rule, not optax'
    assert clip_factor(50.0, 0.0) == 1.0


def monitor(**fields: object) -> HealthMonitor:
    return HealthMonitor(config(*(f"health.{key}={value}" for key, value in fields.items())).health)


def test_health_decides_by_policy():
    assert monitor().decide(0, math.nan, 1.0).action == "skip"
    assert monitor(nonfinite="stop").decide(0, 1.0, math.inf).action == "stop"
    spiky = monitor(spike="skip", window=8, spike_sigma=4)
    assert all(spiky.decide(n, 5 + 0.1 * (n % 3), 1.0).action == "apply" for n in range(8))
    assert spiky.decide(8, 9.0, 1.0).action == "skip"
    again = monitor(spike="skip", window=8, spike_sigma=4)
    again.load(spiky.state())
    assert again.decide(9, 5.1, 3.0).action == "skip"
    assert again.decide(10, 5.1, 1.0).action == "apply"
    assert again.counts["spike"] == 2
    stubborn = monitor(max_consecutive=3)
    assert [stubborn.decide(n, math.nan, 1.0).action for n in range(3)] == ["skip", "skip", "stop"]
    back = monitor(nonfinite="rollback")
    assert [back.decide(5, math.nan, 1.0).action for _ in range(2)] == ["rollback", "stop"]


def test_budget():
    c = load_config("gpt2-124m").with_vocab(50257)
    assert flops_per_token(c.model) == 6 * (124_439_808 - 1024 * 768 - 121_344) + 12 * 12 * 768 * 1024
    assert "524,288 tokens an update" in batch_sentence(c)


def test_sampling_follows_its_uniform_numbers():
    logits = np.log(np.tile([0.5, 0.3, 0.15, 0.05], (20000, 1)))
    shares = np.bincount(choose_tokens(logits, Sampling(1.0, 0, 1.0, 1), 0), minlength=4) / 20000
    assert np.abs(shares - [0.5, 0.3, 0.15, 0.05]).max() < 0.02  # five standard errors
    assert set(choose_tokens(logits, Sampling(1.0, 2, 1.0, 1), 0)) == {0, 1}
    assert set(choose_tokens(logits, Sampling(1.0, 0, 0.75, 1), 0)) == {0, 1}
    assert set(choose_tokens(logits, Sampling(0.0, 0, 1.0, 1), 0)) == {0}
    for wrong in ({"temperature": -1}, {"top_k": -1}, {"top_p": 0}):
        with pytest.raises(UserError):
            Sampling(**wrong)


def test_the_contract_needs_no_framework():
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "torch", "flax", "optax", "orbax"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import coretrain.runner, coretrain.report, coretrain.convert, coretrain.huggingface
from coretrain.config import load_config
from coretrain.parameters import initial_parameters
print(len(initial_parameters(load_config().with_vocab(300).model, 0)))
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
