"""The same numbers however they are computed: micro-batches, chunks, padding, kernels, compilation, x64 on or off."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxtrain.attention
import torchtrain.attention
from coretrain.base.arrays import Tensors
from coretrain.config.run import RunConfig
from jaxtrain.step import dropout_masks
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.compiling import quick_flags
from parity.errors import mismatches, nrel, worst_tensor
from parity.gates import COMPILED, SPLIT, X64
from parity.machine import limits
from parity.outcomes import hold
from parity.pair import (
    GPT2,
    LLAMA,
    VARIANTS,
    batches,
    jax_gradients,
    make_config,
    make_pair,
    noise_only,
    perturbed,
    torch_gradients,
)
from parity.probes import sides
from torchtrain.trainer import Trainer as TorchTrainer

STACKS: dict[str, tuple[Callable[[RunConfig, Tensors], Any], Callable[[Any], Tensors]]] = {
    "torch": (TorchTrainer, torch_gradients),
    "jax": (JaxTrainer, jax_gradients),
}


def gradients_of(stack: str, config: RunConfig, quick: bool = False):
    """(loss, norm, gradients) of the first batch, with perturbed weights; `quick`: JAX's compiled by `quick_jit`."""
    make, tensors = STACKS[stack]
    trainer = (
        sides.make(sides.SIDES[stack], config, perturbed(config), frozenset())
        if quick
        else make(config, perturbed(config))
    )
    loss, norm = trainer.gradients(batches(config, 1)[0], 5, 1.0)
    return loss, norm, tensors(trainer)


@pytest.mark.parametrize("stack", STACKS)
def test_micro_batches_chunks_and_padding_change_nothing(stack):
    """Dropout is on, and the micro-batches have unequal numbers of targets: a mean of means would show."""
    base = GPT2 | {"train.accumulation": 1}
    loss, norm, expected = gradients_of(stack, make_config(base), quick=True)
    others = {
        "4 micro-batches, chunks of 7, 384 rows": {
            "train.accumulation": 4,
            "execution.loss_chunk": 7,
            "execution.vocab_multiple": 128,
        },
        "one chunk, no padding": {"execution.loss_chunk": 10_000, "execution.vocab_multiple": 1},
    }
    for name, more in others.items():
        config = make_config(base | more)
        other_loss, other_norm, found = gradients_of(stack, config, quick=True)
        hold(SPLIT, abs(other_loss - loss) / loss, f"loss, {stack}, {name}")
        hold(SPLIT, abs(other_norm - norm) / norm, f"norm, {stack}, {name}")
        error, where = worst_tensor(found, expected, noise_only(config))
        hold(SPLIT, error, f"{where}, {stack}, {name}")


WAYS = {
    "unrolled": {"execution.scan_layers": "false"},
    "recomputed in full": {"execution.checkpoint_activations": "full"},
    "all but matmuls recomputed": {"execution.checkpoint_activations": "matmuls"},
}
"""Ways to go through the layers, beside SMALL's: scanned in JAX, and all activations kept."""


@pytest.mark.whole
@pytest.mark.parametrize(
    ("stack", "way"), [("torch", way) for way in WAYS if "unrolled" not in way] + [("jax", way) for way in WAYS]
)
def test_scanning_and_recomputing_change_nothing(stack, way):
    """Each stack against itself, dropout on: its masks go by the layer, whoever counts the layers, and are made again.

    Floors: 0 in torch, 2e-16 in JAX.
    """
    loss, norm, expected = plain_way(stack)
    config = make_config(GPT2 | WAYS[way])
    other_loss, other_norm, found = gradients_of(stack, config, quick=True)
    hold(SPLIT, abs(other_loss - loss) / loss, f"loss, {stack}, {way}")
    hold(SPLIT, abs(other_norm - norm) / norm, f"norm, {stack}, {way}")
    error, where = worst_tensor(found, expected, noise_only(config))
    hold(SPLIT, error, f"{where}, {stack}, {way}")


@functools.cache
def plain_way(stack: str):
    """What `WAYS` are held against."""
    return gradients_of(stack, make_config(GPT2), quick=True)


def program(config: RunConfig) -> tuple[str, str]:
    """What JAX and what torch make of a config, as far as it can be told without running it."""
    trainer, batch = JaxTrainer(config), batches(config, 1)[0]
    one = np.float64(1)
    made = trainer.programs
    gradients = (trainer.params, trainer.frozen, batch, one, dropout_masks(config, 3, len(batch)))
    step = (trainer.params, made.moments, trainer.params, one, one, (one, one))
    traced = [jax.make_jaxpr(f)(*given) for f, given in ((made.gradients, gradients), (made.step, step))]
    ours = TorchTrainer(config)
    in_torch = (ours.config.model, ours.config.optimizer, ours.config.micro_batch, ours.kernel.name, ours.model.policy)
    return re.sub(r"0x[0-9a-f]+", "", "\n".join(map(str, traced))), str(in_torch)


def test_no_two_variants_are_the_same_program():
    """A switch that comes to nothing on this device would be judged in name only."""
    programs = {name: program(make_config(fields)) for name, fields in VARIANTS.items()}
    for one, other in itertools.combinations(programs, 2):
        assert programs[one] != programs[other], f"{one} and {other} are one program in both stacks"
    for name in ("gpt2-like, full recompute", "llama-like, matmuls kept"):
        plain = program(make_config(GPT2 if name.startswith("gpt2") else LLAMA))
        assert all(a != b for a, b in zip(programs[name], plain, strict=True)), f"{name}: one stack doesn't recompute"


WITHOUT_X64 = """
import sys
import jax
import numpy as np
from coretrain.config.load import config_from_json
from coretrain.data.batch import Batch
from jaxtrain.model import canonical_tensors
from jaxtrain.trainer import Trainer

config = config_from_json(open(sys.argv[1]).read())
weights = dict(np.load(sys.argv[2]))
batch = Batch(weights.pop("tokens"), weights.pop("labels"))
trainer = Trainer(config, weights)
loss, norm = trainer.gradients(batch, 3, 1.0)
assert not jax.config.jax_enable_x64 and jax.numpy.zeros(1).dtype == "float32"
found = {"loss": loss, "norm": norm, **canonical_tensors(config, trainer.last_gradients)}
trainer.apply(1e-3, 0.3, 0)
for group, tensors in trainer.export().items():
    found |= {f"{group}/{name}": value for name, value in tensors.items()}
np.savez(sys.argv[3], **found)
"""


@pytest.mark.whole
def test_float32_is_the_same_with_x64_off(tmp_path):
    """Runs have x64 off and these tests have it on: the bits must be the same, or the tests prove another program.

    What x64 changes is the program, not how it is compiled: `quick_jit` and its flags, on both sides.
    """
    config = make_config(VARIANTS["gpt2-like"], precision__compute="float32", execution__attention="auto")
    pair = make_pair(config, quick=True)
    pair.reset(perturbed(config))
    loss, norm = pair.jax.gradients(batches(config, 1)[0], 3, 1.0)
    expected = {"loss": np.array(loss), "norm": np.array(norm), **jax_gradients(pair.jax)}
    pair.jax.apply(1e-3, 0.3, 0)
    for group, tensors in pair.jax.export().items():
        expected |= {f"{group}/{name}": value for name, value in tensors.items()}
    (tmp_path / "config.json").write_text(config.to_json())
    batch = batches(config, 1)[0]
    np.savez(tmp_path / "given.npz", **pair.start, tokens=batch.tokens, labels=batch.labels)
    files = [str(tmp_path / name) for name in ("config.json", "given.npz", "found.npz")]
    command = [sys.executable, "-c", WITHOUT_X64, *files]
    root = str(Path(__file__).resolve().parents[2])
    quiet = {"JAX_ENABLE_X64": "0", "JAX_ENABLE_COMPILATION_CACHE": "0", "PYTHONPATH": root, "XLA_FLAGS": quick_flags()}
    subprocess.run(command, check=True, env=os.environ | quiet, timeout=300)
    with np.load(tmp_path / "found.npz") as found:
        assert set(found) == set(expected)
        for name, value in expected.items():
            hold(X64, mismatches(found[name], value), name)


@pytest.mark.whole
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("form", [{}, LLAMA], ids=["gpt2", "llama"])
def test_compiled_torch(form, tmp_path, monkeypatch):
    if limits():  # what inductor has kept from a session with other instructions gives NaN in this one
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = make_config(
        form | {"model.layers": 1},
        precision__compute="float32",
        execution__attention="sdpa",
        model__width=32,
        model__vocab=101,
        execution__loss_chunk=1000,
    )
    loss, _, expected = gradients_of("torch", config)
    compiled = config.changed(execution__compile="on")
    other_loss, _, found = gradients_of("torch", compiled)
    assert abs(loss - other_loss) < 1e-5  # a few float32 roundings of a number near 6: 5e-7 each
    hold(COMPILED, *worst_tensor(found, expected, noise_only(config)))


def test_a_query_that_sees_nothing_gets_zeros_and_no_gradient():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 3, 2, 4)) * 1e4 for _ in range(3))  # scores far below -1e4 among them
    mask = np.tril(np.ones((1, 3, 3), bool))
    mask[0, 1] = False
    ours = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    out = torchtrain.attention.masked_attention(*ours, torch.from_numpy(mask))
    out.sum().backward()
    compute = jax.jit(lambda *x: jaxtrain.attention.masked_attention(*x, jnp.asarray(mask)))
    theirs, back = jax.vjp(compute, q, k, v)
    for output, gradients in (
        (out.detach().numpy(), [x.grad.numpy() for x in ours]),
        (np.asarray(theirs), back(jnp.ones_like(theirs))),
    ):
        assert np.all(output[0, 1] == 0)
        assert np.all(np.asarray(gradients[0])[0, 1] == 0)
        assert all(np.isfinite(x).all() for x in gradients)
    hold(SPLIT, nrel(out.detach().numpy(), np.asarray(theirs)), "a query that sees nothing")


def test_the_twins_share_choice():
    """`Choice` is written in each stack: they must stay alike."""
    ours, theirs = (dataclasses.fields(s.attention.Choice) for s in (torchtrain, jaxtrain))
    assert [f.name for f in ours] == [f.name for f in theirs]
