"""One training by several torch processes: data, tensor and ZeRO axes, their checkpoints, and the bugs they invite."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from coretrain.adapters.targets import trainable_parameters
from coretrain.checkpoint.interchange import load_interchange, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.contract.schedule import clip_factor, learning_rate
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.errors import largest_error
from parity.gates import APART, SHARED, SHARED_32
from parity.outcomes import hold
from parity.probes.alignment import aligned_fields
from parity.workers.torch_processes import (
    LLAMA,
    Case,
    alone,
    batches,
    state_of,
    together,
    weights,
)
from torchtrain.checkpoint import load_native

pytestmark = [pytest.mark.scale, pytest.mark.whole]
SINGLE = {"precision.compute": "float32"}
HALF = 10
BAD = 7
"""An update in which one number of one process is none: skipped by all, and nothing is left of it."""
FSDP2 = {"parallel.zero_engine": "fsdp2"}

DOUBLE = {
    "dp": {},
    "tp": {"parallel.tensor": 2},
    "tp llama": {"parallel.tensor": 2, **LLAMA},
    "pp": {"parallel.pipeline": 2},
    "pp llama": {"parallel.pipeline": 2, **LLAMA},
    "dp dora": {"adapter.kind": "dora", "adapter.rank": 3, "adapter.dropout": 0.1},
    "fsdp2 1": {"parallel.zero": 1, **FSDP2, "execution.vocab_multiple": 1},  # 51 rows of the vocabulary, and 50
    "fsdp2 2 llama": {"parallel.zero": 2, **FSDP2, **LLAMA, "execution.checkpoint_activations": "full"},
    "fsdp2 3": {"parallel.zero": 3, **FSDP2},
    "dp kto": aligned_fields("kto"),
    "tp ppo": {"parallel.tensor": 2, **aligned_fields("ppo")},
    "tp reward llama": {"parallel.tensor": 2, **LLAMA, **aligned_fields("reward")},
    "fsdp2 3 dpo llama": {"parallel.zero": 3, **FSDP2, **LLAMA, **aligned_fields("dpo")},
    "fsdp2 1 reward llama": {"parallel.zero": 1, **FSDP2, **LLAMA, **aligned_fields("reward")},
}
ZERO = {f"zero {stage}": {**SINGLE, "parallel.zero": stage} for stage in (1, 2, 3)}
ZERO["zero 3 in host memory"] = ZERO["zero 3"] | {"parallel.offload": "all"}
ZERO |= {
    "zero 2 grpo": ZERO["zero 2"] | aligned_fields("grpo"),
    "zero 3 reward llama": ZERO["zero 3"] | LLAMA | aligned_fields("reward"),
}
HALVES = {"tp": "dp half", "pp": "dp half", "fsdp2 1": "fsdp2 3 half", "fsdp2 3": "dp half"}
PLANTED = [
    ("gradients averaged", "dp"),
    ("loss of the rank", "dp"),
    ("rows of another", "dp"),
    ("masks by local row", "dp"),
    ("no sum in the backward pass", "tp"),
    ("replicated counted twice", "tp"),
    ("bias on each", "tp"),
    ("peak of the shard", "tp"),
    ("tied weight untied", "tp"),
    ("tied weight's gradients apart", "pp"),
    ("masks by local row", "pp"),
    ("gradients averaged by DeepSpeed", "zero 2"),
    ("norm of the shard", "zero 2"),
    ("shards swapped", "zero 3"),
    ("gradients averaged by FSDP2", "fsdp2 2 llama"),
    ("norm of the shard", "fsdp2 3"),
    ("rows swapped", "fsdp2 3"),
    ("weights of the update before", "fsdp2 1"),
]


def cases(halves):
    """What a group of two trains in one start: starting takes longer than all the trainings."""
    made = [Case(name, fields, bad=BAD) for name, fields in (DOUBLE | ZERO).items()]
    made += [Case("dp half", {}, HALF, bad=BAD), Case("zero 2 half", ZERO["zero 2"], HALF, bad=BAD)]
    made.append(Case("fsdp2 3 half", DOUBLE["fsdp2 3"], HALF, bad=BAD))
    for name, source in (HALVES | {"zero 1": "zero 2 half", "zero 3": "zero 2 half"}).items():
        made.append(Case(f"{name} from {source}", (DOUBLE | ZERO)[name], start=HALF, load=str(halves / source)))
    return made + [Case(f"{bug} ({name})", (DOUBLE | ZERO)[name], 6, bug=bug) for bug, name in PLANTED]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The group of two: results by case, and the folder of their checkpoints."""
    folder = tmp_path_factory.mktemp("two")
    return together(cases(folder), 2, folder), folder


@functools.cache
def _one(folder, fields, updates, bad):
    case = Case("alone", dict(fields), updates, bad=bad)
    place = folder / f"alone{abs(hash((fields, updates, bad)))}"
    return alone(case, place), state_of(place)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A function: a case trained by this process alone, in float64 where asked; result and state."""
    folder = tmp_path_factory.mktemp("one")

    def train(case, double=False):
        fields = {k: v for k, v in case.fields.items() if not k.startswith(("parallel.", "execution."))}
        fields |= {"precision.compute": "float64"} if double else {}
        return _one(folder, tuple(sorted(fields.items())), case.updates, case.bad)

    return train


def distance(case, ours, theirs):
    """The largest relative error of losses, norms, evaluation, parameters' displacement and moments, and where."""
    (result, state), (expected, right) = ours, theirs
    seen, wanted = (np.array(list(r["seen"]), np.float64) for r in (result, expected))
    wanted = wanted[len(wanted) - len(seen) :]
    finite = np.isfinite(wanted)
    assert (np.isfinite(seen) == finite).all(), "a skip that one of them didn't make"
    errors = {"losses and norms": float((abs(seen - wanted)[finite] / abs(wanted[finite])).max())}
    if any(expected["figures"]):
        kept = finite.all(1)  # in a faulty update they are those of another row
        seen, wanted = (np.array(r["figures"], np.float64)[-len(finite) :][kept] for r in (result, expected))
        errors["figures"] = float((abs(seen - wanted) / np.maximum(abs(wanted), 0.1)).max())
    errors["evaluation"] = abs(result["value"] / expected["value"] - 1)
    keys = frozenset(name for name in right["parameters"] if name.endswith("k.bias"))  # noise: see parity.pair
    config = case.config()
    start = {row.name: weights(config)[row.name] for row in trainable_parameters(config)}
    error, name = largest_error((state, right), start, keys if "model.norm" not in case.fields else ())
    errors[name] = error
    worst = max(errors, key=lambda key: np.inf if np.isnan(errors[key]) else errors[key])
    return errors[worst], worst


def agreed(result):
    """Figures that weren't the same bits on all processes: losses and norms, evaluation, a sample."""
    return result["agree"].count(False)


@pytest.mark.parametrize("name", [*DOUBLE, *(f"{name} from {half}" for name, half in HALVES.items())])
def test_float64_is_that_of_one_process(two, one, name):
    results, folder = two
    case = next(case for case in cases(folder) if case.name == name)
    case = dataclasses.replace(case, bad=BAD)
    hold(APART, agreed(results[name]), name)
    error, where = distance(case, (results[name], state_of(folder / name)), one(case))
    hold(SHARED, error, f"{name}, {where}")
    assert results[name]["text"] == one(case)[0]["text"]


@pytest.mark.parametrize("name", [*ZERO, "zero 1 from zero 2 half", "zero 3 from zero 2 half"])
def test_zero_is_one_process_up_to_rounding(two, one, name):
    results, folder = two
    case = dataclasses.replace(next(case for case in cases(folder) if case.name == name), bad=BAD)
    hold(APART, agreed(results[name]), name)
    exact, rounded = one(case, double=True), one(case)
    floor, _ = distance(case, rounded, exact)
    error, where = distance(case, (results[name], state_of(folder / name)), exact)
    hold(SHARED_32, error / floor, f"{name}, {where}")
    assert results[name]["text"] == rounded[0]["text"]


@pytest.mark.parametrize(("bug", "name"), PLANTED)
def test_a_planted_bug_is_seen(two, one, bug, name):
    results, folder = two
    case = Case(bug, (DOUBLE | ZERO)[name], 6)
    exact = one(case, double=True)
    planted = f"{bug} ({name})"
    try:
        error, _ = distance(case, (results[planted], state_of(folder / planted)), exact)
    except AssertionError:
        error = np.inf
    cap = SHARED.cap if name in DOUBLE else SHARED_32.cap * distance(case, one(case), exact)[0]
    assert error > cap or agreed(results[planted]) or np.isnan(error), f"{planted} is within {cap:.1e}: {error:.1e}"


def test_one_process_goes_on_from_two(two, one, tmp_path):
    _, folder = two
    for name, half, gate in (
        ("dp", "dp half", SHARED),
        ("dp", "fsdp2 3 half", SHARED),
        ("zero 1", "zero 2 half", None),
    ):
        case = Case(name, (DOUBLE | ZERO)[name], start=HALF, bad=BAD, load=str(folder / half))
        result = alone(dataclasses.replace(case, bad=-1), tmp_path / half)
        ours = result, state_of(tmp_path / half)
        exact = one(case, double=True)
        error, where = distance(case, ours, exact)
        if gate:
            hold(gate, error, f"one process from {half}, {where}")
        else:
            hold(SHARED_32, error / distance(case, one(case), exact)[0], f"one process from {half}, {where}")


def test_jax_goes_on_from_two(two, one, tmp_path):
    """The interchange form is streamed from the fragments; JAX's last ten updates are those of one torch process."""
    _, folder = two
    case = Case("dp", {}, bad=BAD)
    config = case.config()
    save_interchange(tmp_path / "i", config, load_native(folder / "dp half"), Progress(), "torch")
    stack = JaxTrainer(config, weights(config))
    applied = HALF - 1
    stack.adopt(load_interchange(tmp_path / "i").groups, applied)
    seen = []
    for update in range(HALF, case.updates):
        loss, norm = stack.gradients(batches(config)[update % 4], update, 1.0)
        stack.apply(learning_rate(config, update), clip_factor(norm, config.optimizer.clip), applied)
        applied += 1
        seen.append((loss, norm))
    wanted = np.array(one(case)[0]["seen"][HALF:])
    hold(SHARED, float(abs(np.array(seen) / wanted - 1).max()), "JAX from dp half")


@pytest.mark.slow
def test_four_processes(two, one, tmp_path):
    """Both axes at once, and what two have saved."""
    _, folder = two
    made = [
        Case("dp", {}, bad=BAD),
        Case("dp x tp", {"parallel.tensor": 2}, bad=BAD),
        Case("tp", {"parallel.tensor": 4}, bad=BAD),
        Case("dp x pp", {"parallel.pipeline": 2}, bad=BAD),
        Case("tp x pp", {"parallel.tensor": 2, "parallel.pipeline": 2}, bad=BAD),
        Case("from two", {"parallel.tensor": 2}, start=HALF, load=str(folder / "dp half")),
        Case("fsdp2 3", DOUBLE["fsdp2 3"], start=HALF, load=str(folder / "fsdp2 3 half")),
        Case("fsdp2 3 x tp", {**DOUBLE["fsdp2 3"], "parallel.tensor": 2}, bad=BAD),
        Case("fsdp2 1 x tp llama", {**FSDP2, **LLAMA, "parallel.zero": 1, "parallel.tensor": 2}, bad=BAD),
        *(Case(name, fields, bad=BAD) for name, fields in ZERO.items()),
        *(Case(f"{n} from two", ZERO[n], start=HALF, load=str(folder / "zero 2 half")) for n in ("zero 1", "zero 3")),
        *(Case(f"{n} x tp", {**ZERO[n], "parallel.tensor": 2}, bad=BAD) for n in ("zero 1", "zero 2", "zero 3")),
    ]
    results = together(made, 4, tmp_path / "four")
    for case in made:
        hold(APART, agreed(results[case.name]), f"4 processes, {case.name}")
        case = dataclasses.replace(case, bad=BAD)
        exact = one(case, double=True)
        error, where = distance(case, (results[case.name], state_of(tmp_path / "four" / case.name)), exact)
        if "precision.compute" in case.fields:
            floor = distance(case, one(case), exact)[0]
            hold(SHARED_32, error / floor, f"4 processes, {case.name}, {where}")
        else:
            hold(SHARED, error, f"4 processes, {case.name}, {where}")
