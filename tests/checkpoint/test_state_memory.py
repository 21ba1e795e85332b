"""A state is held once: on its way to disk and back, and while training goes on beside a save."""

from __future__ import annotations

import importlib
import math
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bench import state
from coretrain.contract.update import Limits, Orders, Standing
from tests.support.batches import COUNTING
from tests.support.configs import small_config

needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux' /proc")
STACKS = ("torch", "jax")
LIMIT = 1.3


@pytest.mark.whole
@needs_proc
@pytest.mark.parametrize("stack", STACKS)
def test_a_state_goes_to_disk_and_back_in_its_own_memory(stack, tmp_path):
    # Floor: 1.07 in torch, 1.23 in JAX (Orbax's buffers, an array being placed). It catches a second copy of the
    # parameters (+0.33), of the moments (+0.67), a shard held as a whole (+0.33 or more).
    peaks = state.measure(stack, 8, 256, tmp_path, apart=False)
    assert max(peaks.values()) <= LIMIT, peaks


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_a_state_of_a_billion_parameters_goes_to_disk_and_back_in_its_own_memory(stack, tmp_path):
    peaks = state.measure(stack, 16, 2048, tmp_path)
    assert max(peaks.values()) <= LIMIT, peaks


@pytest.fixture(scope="module", params=[*STACKS, "jax, one program"])
def trainer(request, tmp_path_factory):
    """A trainer of each stack after an update; each test makes gradients of its own and trains it on.

    Where an update is one program it is the whole of it that `apply` stands for.
    """
    config = small_config(tmp_path_factory.mktemp("cache"))
    made = importlib.import_module(f"{request.param.split(',')[0]}train.trainer").Trainer(config)
    if request.param.endswith("program"):

        def apply(lr, factor, applied):
            orders = Orders(lr, Limits(math.inf, math.inf), 1.0, Standing(applied, 0, False), alone=True)
            assert made.update(COUNTING, applied, orders, lambda: None)().applied

        made.gradients, made.apply = lambda *given: None, apply
    made.gradients(COUNTING, 0, 1.0)
    made.apply(1e-2, 1.0, 0)
    return made


def copied(trainer):
    return {group: dict(tensors) for group, tensors in trainer.export().items()}


def addresses(trainer):
    """Where parameters and moments lie."""
    if trainer.name == "torch":
        return {part.values.ctypes.data for part in trainer.optimizer.fragments()}
    import jax

    return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((trainer.params, trainer.moments))}


def equal(one, other):
    return all(np.array_equal(one[group][name], other[group][name]) for group in one for name in one[group])


def test_an_update_waits_for_the_save(trainer):
    trainer.gradients(COUNTING, 1, 1.0)
    before = copied(trainer)
    trainer.saving = Future()
    with ThreadPoolExecutor(1) as pool:
        update = pool.submit(trainer.apply, 1e-2, 1.0, 1)
        with pytest.raises(TimeoutError):
            update.result(0.5)
        assert equal(before, copied(trainer))
        trainer.saving.set_exception(OSError(28, "No space left on device"))
        update.result(60)
    with pytest.raises(OSError, match="No space left"):
        trainer.saving.result()
    assert not equal(before, copied(trainer))


def test_an_update_after_a_save_is_not_in_it_and_takes_no_second_state(trainer, tmp_path):
    """In JAX, whoever still looks at an array keeps the step from taking its memory."""
    trainer.gradients(COUNTING, 1, 1.0)
    trainer.apply(1e-2, 1.0, 1)
    places = addresses(trainer)
    for name in ("calm", "beside an update"):
        (tmp_path / name).mkdir()
        trainer.save(tmp_path / name)
        if name == "calm":
            trainer.saving.result()
            trainer.gradients(COUNTING, 2, 1.0)
    trainer.apply(1e-2, 1.0, 2)
    assert addresses(trainer) == places
    trainer.saving.result()
    found = []
    for name in ("calm", "beside an update"):
        trainer.load(tmp_path / name, 2)
        found.append(copied(trainer))
    assert equal(*found)


def test_what_was_exported_stays_as_it_was(trainer):
    before, lent = copied(trainer), trainer.export()
    trainer.gradients(COUNTING, 2, 1.0)
    trainer.apply(1e-2, 1.0, 2)
    assert equal(before, lent)
    assert not equal(before, trainer.export())
