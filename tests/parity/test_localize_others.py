"""The localizer on other people's pairs, and its command."""

from __future__ import annotations

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from coretrain.base.errors import exits_cleanly
from coretrain.contract.taps import tap
from parity.localize import command as localizer
from parity.localize.command import shrunk
from parity.localize.pairs import compare, localize
from parity.localize.recorders import JaxRecorder
from parity.pair import batches, perturbed
from tests.support.batches import arrays_of
from tests.support.localizing import alone, torch_gelu_of_ten_digits
from tests.support.refusal import refused

small_and_alone = pytest.fixture(scope="module", autouse=True)(alone)


# --- other people's pairs ---------------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.parametrize("planted", [True, False])
def test_the_example(planted, tmp_path):
    """Hugging Face's block against one in JAX: the mistake is named, and without it nothing is."""
    pytest.importorskip("transformers")
    from parity.localize.example import example

    report = example(planted)
    assert (report.verdict.kind, report.verdict.tap) == (("algorithm", "mlp.act") if planted else ("same", ""))
    if planted:
        assert report.verdict.predecessor == "mlp.c_fc"
        assert "tanh against erf" in report.verdict.traps
    report.save(tmp_path)
    assert (tmp_path / "localize.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "localize.npz", allow_pickle=False) as file:
        assert ("torch/mlp.act" in file) == planted
        assert file["input/hidden_states"].shape == (2, 16, 32)


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
    masked = {"scores": np.array([1.0, -np.inf, 2.0])}
    assert compare(masked, masked).verdict.kind == "same"
    assert compare(masked, {"scores": np.array([1.0, 3.0, 2.0])}).verdict.kind == "algorithm"
    assert compare(masked, {"scores": np.array([1.0, -np.inf, 2.1])}).verdict.kind == "algorithm"
    with refused("parity/nothing-to-compare"):
        compare({}, {})


def test_a_tap_that_cannot_be_read_is_refused_in_one_sentence():
    def scanned(x):
        return jax.lax.scan(lambda c, _: (tap("inside", c * 2), None), x, length=3)[0].sum()

    def inner(x):
        return tap("inside", x * 2)

    for outer in (jax.jit, jax.checkpoint, jax.vmap):
        for _ in range(2):  # a function that was traced before calls no tap again
            with refused("parity/model-call-failed", "jax.jit"):
                JaxRecorder(lambda x, outer=outer: outer(inner)(x).sum(), forget=True)(jnp.ones(3))
    with refused("parity/model-call-failed", "unrolled"):
        JaxRecorder(scanned)(jnp.ones(3))
    with refused("parity/jax-without-taps"):
        localize(lambda x: tap("a", x * 2) * 3, lambda x: x * 6, {"x": np.ones(3)})
    with refused("parity/tap-met-twice"):
        JaxRecorder(lambda x: tap("x", tap("x", x)).sum())(jnp.ones(3))


# --- the command ------------------------------------------------------------------------------------------------------


def command(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["localize", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        exits_cleanly(localizer.main)()
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


@pytest.mark.whole
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


@pytest.mark.parametrize(
    ("kind", "hint"),
    [("torn", "can't be read"), ("npy", "single array"), ("float", "token ids"), ("long", "token ids"), ("ids", "ids")],
)
def test_inputs_that_are_none(kind, hint, monkeypatch, capsys, tmp_path):
    config, _ = shrunk("tiny", [], 1, 32)
    path = tmp_path / ("x.npy" if kind == "npy" else "x.npz")
    weights = {f"weights/{name}": value for name, value in perturbed(config).items()}
    batch = batches(config, 1)[0]
    changes = {"float": lambda ids: ids + 0.5, "long": lambda ids: np.tile(ids, (1, 9)), "ids": lambda ids: ids + 400}
    if kind in changes:
        batch = batch.map(changes[kind])
    np.save(path, batch.tokens) if kind == "npy" else np.savez(path, **arrays_of(batch), **weights)
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    words = "tiny", "--layers", "1", "--width", "32", "--inputs", path, "--output", tmp_path / "out"
    code, _, err = command(monkeypatch, capsys, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert hint in err


def test_a_place_that_is_a_file_is_refused_before_any_work(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(localizer, "localize_config", lambda *_, **__: pytest.fail("it has begun to work"))
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = command(monkeypatch, capsys, "tiny", "--output", place)
        assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["smollm2-135m", "gpt2-124m"])
def test_what_is_shrunk_keeps_the_kind_of_model(name):
    config, under = shrunk(name, [], None, None)
    own = shrunk.__globals__["load_config"](name)
    kept = ("norm", "position", "mlp", "bias", "tied", "residual_dropout")
    assert all(getattr(config.model, field) == getattr(own.model, field) for field in kept)
    assert config.model.heads // config.model.kv == own.model.heads // own.model.kv
    assert (config.precision.compute, under.precision.compute) == ("float64", own.precision.compute)
