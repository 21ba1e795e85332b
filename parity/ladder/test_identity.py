"""Float64 on the CPU: logits, loss, every gradient, norm, clip, one update, 200 updates and their moments.

The stacks are held against each other, and each against formulas in numpy (parity/oracles), which neither shares.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import jaxtrain.optimizer
import torchtrain.layers
import torchtrain.model
import torchtrain.optimizer
from coretrain.contract.health import HealthMonitor
from coretrain.contract.parameters import parameter_table, to_jax_tree
from coretrain.contract.randomness import normal_rows
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.data.batch import Batch
from parity.compiling import quick_jit
from parity.errors import (
    displacement,
    largest_error,
    nrel,
    worst_tensor,
)
from parity.gates import (
    ALONE,
    ALONE_32,
    CLIP,
    DECAY_32,
    GRADIENTS,
    HEALTH,
    KEY_BIAS,
    LOGITS,
    LOSS,
    NORM,
    ROWS,
    TRAJECTORY,
    UPDATE,
)
from parity.marks import whole_but
from parity.oracles.gpt import exact, losses
from parity.oracles.updates import updated
from parity.outcomes import hold
from parity.pair import (
    BASIC,
    LONG,
    VARIANTS,
    WEIGHTS,
    batches,
    make_config,
    make_pair,
    shared,
)
from parity.probes import PROBES, unmutated
from parity.probes.contract import clipped_by_torch
from parity.probes.sides import JAX, TORCH, make

FAR = 100_003
"""An update far into a run, whose dropout is that of no other: the masks go by the whole of the number."""


@pytest.fixture(scope="module", params=whole_but(BASIC.__contains__, VARIANTS))
def pair(request):
    """Both stacks in every variant of the model, compiled once; each test resets them to its weights."""
    return shared(make_config(VARIANTS[request.param]))


@pytest.mark.parametrize("state", WEIGHTS)
def test_one_update(pair, state):
    pair.reset(WEIGHTS[state](pair.config))
    batch = batches(pair.config, 1)[0]
    logits = pair.logits(batch.tokens, FAR)
    hold(LOGITS, nrel(*logits), f"{state} weights")
    (ours, our_norm), (theirs, their_norm) = pair.gradients(batch, FAR)
    hold(LOSS, abs(ours - theirs), f"{state} weights")
    hold(NORM, abs(our_norm - their_norm) / their_norm, f"{state} weights")
    limit = pair.config.optimizer.clip
    for stack, norm, gradients in zip(pair.stacks, (our_norm, their_norm), pair.gradient_tensors(), strict=True):
        clipped = clipped_by_torch(gradients, limit)
        hold(CLIP, abs(clip_factor(norm, limit) * norm - clipped) / clipped, f"{stack.name}, {state} weights")
    error, name = worst_tensor(*pair.gradient_tensors(), pair.excluded)
    hold(GRADIENTS, error, f"{name}, {state} weights")
    seen = zip(pair.stacks, logits, ((ours, our_norm), (theirs, their_norm)), pair.gradient_tensors(), strict=True)
    known = exact(pair.config.model, pair.start, batch, pair.config.train.seed, FAR)
    for stack, own_logits, (loss, norm), gradients in seen:
        where = f"{stack.name} against the formulas, {state} weights"
        hold(LOGITS, nrel(own_logits, known.logits), where)
        hold(LOSS, abs(loss - known.loss), where)
        hold(NORM, abs(norm - known.norm) / known.norm, where)
        error, name = worst_tensor(gradients, known.gradients, pair.excluded)
        hold(GRADIENTS, error, f"{name}, {where}")
    assert our_norm > pair.config.optimizer.clip, "the clip must be at work in this test"
    pair.apply(0, (our_norm, their_norm))
    error, name = largest_error(pair.states(), pair.start, pair.excluded)
    hold(UPDATE, error, f"{name}, {state} weights")


@pytest.mark.parametrize("side", [TORCH, JAX], ids=["torch", "jax"])
def test_evaluation_of_a_last_piece_with_fewer_rows(side):
    """Without dropout, by pieces of 2, 2 and 1 rows, ignored labels among them: the sum of losses and each logprob.

    A chunk is a single token, fewer than rows.
    """
    config = make_config(VARIANTS["gpt2-like"], execution__loss_chunk=1)
    stack = make(side, config, WEIGHTS["perturbed"](config), frozenset())
    if side is JAX:
        evaluate = quick_jit(stack.programs.evaluate.__wrapped__)
        logprobs = quick_jit(stack.programs.logprobs.__wrapped__, static_argnums=3)
        stack.programs = dataclasses.replace(stack.programs, evaluate=evaluate, logprobs=logprobs)
    batch = batches(config.changed(train__batch_size=5), 1)[0]
    assert len(batch) % config.micro_batch == 1
    known = exact(config.model, WEIGHTS["perturbed"](config), batch)
    each = -losses(known.logits, batch.labels)[0]
    hold(LOSS, abs(stack.evaluate(batch) + each.sum()) / batch.targets, f"evaluation, {side.name}")
    hold(LOGITS, nrel(stack.token_logprobs(batch), each), f"log-probabilities, {side.name}")


@pytest.mark.parametrize("applied", [0, 1, 5_000, 200_000])
@pytest.mark.parametrize("pair", whole_but(BASIC.__contains__, LONG), indirect=True)
def test_an_update_after_many(pair, applied):
    """Taken from any count of updates, with moments as they are by then: each stack against the formulas.

    The loss scale of this one is 1024, which must be gone from loss, norm and update.
    """
    start = WEIGHTS["perturbed"](pair.config)
    o, batch = pair.config.optimizer, batches(pair.config, 2)[1]
    known = exact(pair.config.model, start, batch, pair.config.train.seed, applied)
    factor = clip_factor(known.norm, o.clip)
    clipped = {name: gradient * factor for name, gradient in known.gradients.items()}
    for stack in pair.stacks:
        state = moments_of_many_updates(stack, start) if applied else zeroed(stack, start)
        stack.adopt(state, applied)
        loss, norm = stack.gradients(batch, applied, 1024.0)
        where = f"{stack.name}, after {applied} updates"
        hold(LOSS, abs(loss - known.loss), where)
        hold(NORM, abs(norm - known.norm) / known.norm, where)
        stack.apply(o.lr, factor / 1024, applied)
        found = {group: dict(tensors) for group, tensors in stack.export().items()}
        error, name = largest_error((found, updated(o, state, clipped, o.lr, applied)), start, pair.excluded)
        hold(UPDATE, error, f"{name}, {where}")


def zeroed(stack, start):
    """A state before the first update, at these parameters."""
    groups = {group: {n: np.zeros(t.shape) for n, t in tensors.items()} for group, tensors in stack.export().items()}
    return groups | {"parameters": dict(start)}


def moments_of_many_updates(stack, start):
    """Moments of any size, second ones above 0; those of the stacks are the same."""
    groups = zeroed(stack, start)
    for group in groups.keys() - {"parameters"}:
        for name, value in groups[group].items():
            drawn = normal_rows(7, f"{group}/{name}", (*value.shape, 1), 1e-2)[..., 0].astype(np.float64)
            groups[group][name] = drawn**2 if group == "second_moment" else drawn
    return groups


BAD_NUMBERS, SWAP, BAD_DATA, UPDATES = 70, 100, 170, 200


# recomputing and unrolling end with the gradients, which every variant compares above
@pytest.mark.whole
@pytest.mark.parametrize("pair", LONG, indirect=True)
def test_two_hundred_updates(pair):
    """With the health policy on: a spike and a norm that is no number are skipped; halfway the stacks swap states.

    From update SWAP on each goes on from what the other had, as a run does that is resumed in the other stack.
    """
    pair.reset(WEIGHTS["perturbed"](pair.config))
    # unseen data is 39 sigma or more above the window by then, what has been seen at most 6
    policy = pair.config.health.model_copy(update={"spike": "skip", "window": 32, "spike_sigma": 12.0})
    monitors = HealthMonitor(policy), HealthMonitor(policy)
    *plain, strange = batches(pair.config, 5)
    losses, norms, applied = [], [], 0
    for update in range(UPDATES):
        batch = strange if update == BAD_DATA else plain[update % 4]
        scale = float("inf") if update == BAD_NUMBERS else 1.0
        seen = [stack.gradients(batch, update, scale) for stack in pair.stacks]
        verdicts = [m.decide(update, *values).action for m, values in zip(monitors, seen, strict=True)]
        expected = "skip" if update in (BAD_DATA, BAD_NUMBERS) else "apply"
        hold(HEALTH, sum(verdict != expected for verdict in verdicts), f"update {update}")
        if verdicts[0] == "apply":
            (ours, our_norm), (theirs, their_norm) = seen
            hold(LOSS, abs(ours - theirs), f"update {update}")
            # the norm follows the weights, which have drifted apart by then
            hold(TRAJECTORY, abs(our_norm - their_norm) / their_norm, f"gradient norm of update {update}")
            losses.append(ours)
            norms.append(our_norm)
            rate = learning_rate(pair.config, update)
            for stack, norm in zip(pair.stacks, (our_norm, their_norm), strict=True):
                stack.apply(rate, clip_factor(norm, pair.config.optimizer.clip), applied)
            applied += 1
        if update + 1 == SWAP:
            hold(TRAJECTORY, *largest_error(pair.states(), pair.start, pair.excluded))
            for stack, state in zip(pair.stacks, reversed(pair.states()), strict=True):
                stack.adopt(state, applied)
    window = list(monitors[0].losses), list(monitors[0].norms)
    usual = slice(-32 - policy.lag, len(losses) - policy.lag)  # none was skipped so late
    hold(
        HEALTH, int(window != (losses[usual], norms[usual])), "torch's window: the last applied updates but the newest"
    )
    assert losses[-1] < losses[0] - 0.5, "it must have learned something, or equality proves nothing"
    hold(TRAJECTORY, *largest_error(pair.states(), pair.start, pair.excluded))


@pytest.mark.parametrize("variant", BASIC)
def test_rows_without_a_target(variant):
    """A row whose labels are all ignored, one with a single target, and ids at both ends of the vocabulary."""
    pair = shared(make_config(VARIANTS[variant]))
    pair.reset(WEIGHTS["perturbed"](pair.config))
    batch = batches(pair.config, 1)[0]
    tokens, labels = batch.tokens.copy(), batch.labels.copy()
    tokens[1, :4] = 0, 0, pair.config.model.vocabulary - 1, pair.config.model.vocabulary - 1
    labels[0] = -100
    labels[1, 1:], labels[1, 0] = -100, pair.config.model.vocabulary - 1
    (ours, _), (theirs, _) = pair.gradients(Batch(tokens, labels), 3)
    hold(LOSS, abs(ours - theirs), f"rows without a target, {variant}")
    first, second = pair.gradient_tensors()
    assert all(np.isfinite(g).all() for g in (*first.values(), *second.values()))
    error, name = worst_tensor(first, second, pair.excluded)
    hold(GRADIENTS, error, f"{name}, rows without a target, {variant}")


def test_a_batch_without_a_target():
    """By the contract its loss and all its gradients are zero, in both: a division by no targets made NaN of them."""
    pair = make_pair(make_config(VARIANTS["llama-like"], model__context=1, model__layers=1), quick=True)
    batch = batches(pair.config, 1)[0]
    assert batch.targets, "the judge's own batches have targets, also at a context of 1"
    batch.labels[:, -1] = -100
    for seen, gradients in zip(pair.gradients(batch, 0), pair.gradient_tensors(), strict=True):
        hold(LOSS, abs(seen[0]), "no target")
        hold(NORM, seen[1], "no target")
        assert all((gradient == 0).all() for gradient in gradients.values())


@pytest.mark.parametrize("pair", ["gpt2-like"], indirect=True)
def test_a_key_bias_has_no_gradient_but_rounding(pair):
    """With learned positions; it is left out of the other gates, and this is what is left to say of it."""
    pair.reset(WEIGHTS["perturbed"](pair.config))
    pair.gradients(batches(pair.config, 1)[0], 0)
    assert len(pair.excluded) == 2
    for gradients in pair.gradient_tensors():
        for key in pair.excluded:
            query = gradients[key.replace(".k.", ".q.")]
            hold(KEY_BIAS, float(np.linalg.norm(gradients[key]) / np.linalg.norm(query)), key)


@pytest.mark.parametrize(
    ("dtype", "gate"), whole_but(lambda dtype, gate: dtype == "float64", [("float64", ALONE), ("float32", ALONE_32)])
)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_alone(name, dtype, gate):
    """The same gradients into both, 200 times: ordinary ones, ones as small as epsilon, noise of 1e-17, and norms a
    hair below, at and above the clip, each stack with the factor of its own norm.
    """
    pair = _fed(name, dtype, decay=0.1 if dtype == "float64" else 0.0)
    ours, theirs = pair.states()
    error, where = displacement(ours["parameters"], theirs["parameters"], pair.start)
    hold(gate, error, f"{name}, {where}")


@pytest.mark.whole
def test_decay_in_float32():
    """What of the decay of a matrix is lost: the error along the matrix itself, where other roundings average out."""
    name = "blocks.0.attention.q.weight"
    start = _fed("adamw", "float64", 0.1).start[name].astype(np.float64)
    exact = _fed("adamw", "float64", 0.1).states()[1]["parameters"][name]
    for stack, state in zip(("torch", "jax"), _fed("adamw", "float32", 0.1).states(), strict=True):
        lost = np.vdot(state["parameters"][name] - exact, start) / np.vdot(start, start)
        hold(DECAY_32, float(abs(lost)) / (200 * 1e-3 * 0.1), f"{stack}, {name}")


CLIPS = (0.75, 1 + 1e-12, 1.0, 1 - 1e-12, 1 + 1e-6, 2.0)
"""The clip's limit over the norm: well below it, a hair around it, at the clip's own epsilon, far above it."""


@functools.cache
def _fed(name, dtype, decay):
    config = make_config(
        VARIANTS["gpt2-like"],
        model__layers=1,
        optimizer__name=name,
        precision__compute=dtype,
        optimizer__weight_decay=decay,
    )
    pair = make_pair(config)
    rows = parameter_table(config.model)
    exponents = (-1, -3, -5, -8, -9, -17)  # -8: Adam's epsilon; -17: what is left of an exact zero
    sizes = {row.name: 10.0 ** exponents[number % 6] for number, row in enumerate(rows)}
    kinds = [
        {row.name: normal_rows(k, f"gradient/{row.name}", (*row.shape, 1), sizes[row.name])[..., 0] for row in rows}
        for k in range(7)
    ]
    trees = [
        _like(pair.jax.params, to_jax_tree(config.model, d, config.execution.vocab_multiple), dtype) for d in kinds
    ]
    jax_norm = quick_jit(jaxtrain.optimizer.global_norm)
    jax_norms = [float(jax_norm(jax.tree.leaves(tree))) for tree in trees]
    for update in range(200):
        pair.jax.last_gradients = trees[update % 7]
        for row_name, parameter in pair.torch.model.named_parameters():
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad[: len(kinds[update % 7][row_name])] = torch.from_numpy(kinds[update % 7][row_name])
        norms = [
            torchtrain.optimizer.global_norm(p.grad for p in pair.torch.model.parameters()).item(),
            jax_norms[update % 7],
        ]
        limit = norms[0] * CLIPS[update % len(CLIPS)]
        for stack, norm in zip(pair.stacks, norms, strict=True):
            stack.apply(1e-3, clip_factor(norm, limit), update)
    return pair


def _like(params, tree, dtype):
    flat = dict(nnx.to_flat_state(params))
    leaves = {path: leaf.replace(jax.numpy.asarray(tree[".".join(path)], dtype)) for path, leaf in flat.items()}
    return nnx.from_flat_state(leaves)


def test_a_run_with_faults_whose_host_is_an_update_behind():
    """Both stacks ahead of the loop: the same verdicts, batches, figures and states, through a resume and to a stop."""
    seen = [unmutated(stack, "health", "gpt2-like", "perturbed") for stack in ("torch", "jax")]
    errors = PROBES["health"].judge(*seen, "gpt2-like", "perturbed")
    for gate in (HEALTH, ROWS, TRAJECTORY):
        hold(gate, errors[gate], "through a resume, to a stop")
