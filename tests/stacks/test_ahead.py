"""Updates that the host doesn't wait for: the same numbers as of a stack in step with it, and a fault changes none."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import jax
import numpy as np
import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import jaxtrain.parallel.trainer
import jaxtrain.trainer
import torchtrain.trainer
from coretrain.contract.health import HealthMonitor
from coretrain.contract.update import Figures, Limits, Orders, Standing
from coretrain.data.batch import windows
from tests.support import configs

FREE = Limits(math.inf, math.inf)
FAULTS = (1, 3, 4)
"""Updates that aren't applied: one by a limit, one by a loss that is no number, one by a norm's limit."""


class Ahead(torchtrain.trainer.Trainer):
    """torch as on CUDA."""

    in_step = False


def batches(count: int = 7):
    rng = np.random.default_rng(0)
    made = [windows(rng.integers(0, 60, (4, 25)).astype(np.int32)) for _ in range(7)]
    made = [replace(batch, weights=np.ones(batch.labels.shape, np.float32)) for batch in made]
    made[3].weights[0, 0] = np.nan
    return made[:count]


def train(stack, lag: int, scale: float = 1.0) -> list[Figures]:
    """Updates of which up to `lag` are begun before the one before them is read."""
    limits = {1: Limits(0.0, math.inf), 4: Limits(math.inf, 0.0)}
    begun, seen = deque(), []
    for update, batch in enumerate(batches()):
        while len(begun) > lag:
            seen.append(begun.popleft()())
        known = Standing(sum(figures.applied for figures in seen), 0, False)
        orders = Orders(1e-2, limits.get(update, FREE), scale, known, alone=not begun)
        begun.append(stack.update(batch, update, orders, lambda: None))
    return [*seen, *(read() for read in begun)]


def told(seen: list[Figures]) -> np.ndarray:
    """Loss, norm and whether it was applied, of each update; cross-entropy tells no more."""
    assert not any(figures.more for figures in seen)
    return np.array([figures[:3] for figures in seen])


def state(stack):
    return {(group, name): np.array(t) for group, tensors in stack.export().items() for name, t in tensors.items()}


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)


@pytest.mark.parametrize(
    ("rule", "dtype"), [("adamw", "float32"), ("muon", "bfloat16"), ("adamw", "float16"), ("muon", "float64")]
)
def test_torch_ahead_has_the_bits_of_torch_in_step(small_config, rule, dtype):
    scale = 1024.0 if dtype == "float16" else 1.0
    config = small_config(precision__compute=dtype, optimizer__name=rule, health__lag=2, model__residual_dropout=0.1)
    found = []
    for kind, lag in ((torchtrain.trainer.Trainer, 0), (Ahead, 2), (Ahead, 0)):
        stack = kind(config)
        seen = train(stack, lag, scale)
        assert [update for update, figures in enumerate(seen) if not figures.applied] == list(FAULTS)
        counts = {float(own["step"]) for own in stack.optimizer.adam.state.values()}
        found.append((told(seen), state(stack), counts))
    for seen, reached, counts in found:
        assert np.array_equal(seen, found[0][0], equal_nan=True)
        assert same(reached, found[0][1])
        assert counts == {4.0}


class Read(TorchDispatchMode):
    """Counts what the host reads of tensors: `item`, `bool`, shapes that depend on values."""

    WORDS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += [word for word in self.WORDS if word in str(function)]
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_torch_reads_nothing_back_before_an_update_is_begun(small_config, rule):
    """But for one number that only the CPU's head looks at, in each micro-batch; in step it reads the norm too, and the
    loss with its figures, of which it makes a list, which isn't seen here."""
    counts = []
    for kind in (Ahead, torchtrain.trainer.Trainer):
        stack = kind(small_config(train__accumulation=2, optimizer__name=rule, model__residual_dropout=0.1))
        with Read() as mode:
            for update, batch in enumerate(batches(2)):
                orders = Orders(1e-2, FREE, 1.0, Standing(update, 0, False), alone=True)
                stack.update(batch, update, orders, lambda: None)
        counts.append(mode.seen)
    assert counts == [["_local_scalar_dense"] * 4, ["_local_scalar_dense"] * 6]


@pytest.fixture(scope="module", params=["one device", "mesh"])
def jax_stack(request, tmp_path_factory):
    fields = {"health__lag": 2, "model__residual_dropout": 0.1, "train__accumulation": 2,
              "model__layers": 1, "model__width": 16}  # fmt: skip
    made = {"one device": jaxtrain.trainer.Trainer, "mesh": jaxtrain.parallel.trainer.ParallelTrainer}
    return made[request.param](configs.small_config(tmp_path_factory.mktemp("cache"), **fields))


def test_jax_ahead_is_jax_in_step(jax_stack):
    """One program, compiled once, whether its standing comes from the host or from the update before."""
    start, moments = (jax.tree.map(np.array, tree) for tree in (jax_stack.params, jax_stack._moments_now()))

    def begin():
        places = jax_stack.programs.params, jax_stack.programs.moments
        jax_stack.params, jax_stack.moments = (
            jax.tree.map(lambda a, place: jax.device_put(a, place.sharding), tree, form)
            for tree, form in zip((start, moments), places, strict=True)
        )

    found = []
    for lag in (2, 0):
        begin()
        found.append((told(train(jax_stack, lag)), state(jax_stack)))
    assert jax_stack.programs.update._cache_size() == 1
    assert np.array_equal(found[0][0], found[1][0], equal_nan=True)
    assert same(found[0][1], found[1][1])
    assert [update for update, (_, _, applied) in enumerate(found[0][0]) if not applied] == list(FAULTS)


@pytest.mark.parametrize("fault", [{"limits": Limits(0.0, math.inf)}, {"halted": True}, {"batch": 3}])
def test_a_fault_leaves_every_bit_as_it_is(jax_stack, small_config, fault):
    """In both stacks; a limit, a halt, a loss that is no number."""
    torch = Ahead(small_config())
    for stack in (torch, jax_stack):
        stack.update(batches()[0], 0, Orders(1e-2, FREE, 1.0, Standing(0, 0, False), alone=True), lambda: None)()
        before = state(stack)
        standing = Standing(1, 0, fault.get("halted", False))
        orders = Orders(1e-2, fault.get("limits", FREE), 1.0, standing, alone=True)
        figures = stack.update(batches()[fault.get("batch", 1)], 1, orders, lambda: None)()
        assert not figures.applied
        assert math.isfinite(figures.loss) is ("batch" not in fault)
        assert same(state(stack), before)
        assert (int(stack.standing.applied), int(stack.standing.skipped)) == (1, 1)


def test_limits_of_float32_are_compared_as_they_are(jax_stack, small_config):
    """A loss on its own limit is none beyond it, one a unit of rounding above is: on the device as in the monitor."""
    for stack in (Ahead(small_config()), jax_stack):
        batch, standing = batches()[2], Standing(0, 0, True)
        loss, norm, *_ = stack.update(batch, 0, Orders(1e-2, FREE, 1.0, standing, alone=True), lambda: None)()
        below = float(np.nextafter(np.float32(loss), np.float32(0)))
        for limit, applied in ((loss, True), (below, False)):
            orders = Orders(0.0, Limits(limit, math.inf), 1.0, standing._replace(halted=False), alone=True)
            assert stack.update(batch, 0, orders, lambda: None)().applied is applied
        monitor = HealthMonitor(stack.config.health.model_copy(update={"spike": "skip"}), wide=False)
        for limit, action in ((loss, "apply"), (below, "skip")):
            monitor.limits = lambda limit=limit: Limits(limit, math.inf)
            monitor._usual = lambda window: (1.0, 1.0)
            assert monitor.decide(0, loss, norm).action == action
