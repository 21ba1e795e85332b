"""Objectives of alignment in float64: both stacks, and formulas over whole logits; and what must change nothing."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from coretrain.alignment.figures import FIGURES as NAMES
from coretrain.contract.update import Limits, Orders, Standing
from parity.errors import nrel
from parity.forms import GPT2_FORM, LLAMA_FORM
from parity.gates import FIGURES, GRADIENTS, OBJECTIVES, SPLIT
from parity.outcomes import hold
from parity.pair import WEIGHTS, make_pair
from parity.probes import PROBES, unmutated
from parity.probes.alignment import alignment_batch, near, shuffled, spread, wider
from parity.probes.objectives import (
    CASES,
    batch_of,
    config_of,
    judge_objective,
    objective_config,
    plain,
    told_and_gradients,
)
from parity.probes.sides import JAX, TORCH, gradients_of, make

SIDES = pytest.mark.parametrize("side", [TORCH, JAX], ids=["torch", "jax"])
WHOLE = ["reward", "dpo, smoothed, nll", "ipo", "simpo", "orpo", "kto", "grpo, k3", "ppo"]
"""A case of each objective, for whole models."""


def seen(told, gradients):
    return {"loss": told[:1], "figures": told[1:], "gradients": gradients}


@pytest.mark.parametrize("case", CASES)
def test_every_formula(case):
    """Torch against JAX, in two micro-batches and with a scale, and each against the plain formula. In the batch's
    planes there is no number where nothing counts."""
    batch = batch_of(case)
    assert len(batch.planes) == 1 or any(np.isnan(plane).any() for plane in batch.planes.values())
    ours, theirs = (unmutated(name, "objectives", case, "") for name in ("torch", "jax"))
    wanted = seen(*plain(config_of(case), batch))
    for first, second, what in ((ours, theirs, "torch, jax"), (ours, wanted, "torch"), (theirs, wanted, "jax")):
        for gate, error in PROBES["objectives"].judge(first, second, case, "").items():
            hold(gate, error, f"{case}: {what}")
    assert len(ours["figures"]) == len(NAMES[config_of(case).train.objective])


def test_what_the_cases_look_at():
    """Clips that hold some tokens and not others, on both sides; pairs on both sides; values that leave theirs."""
    for case in CASES:
        objective = CASES[case][0]
        figures = dict(zip(NAMES[objective], unmutated("torch", "objectives", case, "")["figures"], strict=True))
        if "accuracy" in figures:
            assert 0.2 < figures["accuracy"] < 0.9, case
        if "clip_fraction" in figures:
            assert (0.1 < figures["clip_fraction"] < 0.6) != ("no clip" in case), case
        if objective == "ppo" and "free" not in case:
            assert 0.1 < figures["value_clip_fraction"] < 0.7, case
    for case in ("grpo", "grpo, clip-higher", "grpo, dual clip"):
        counts = batch_of(case).planes["share"] > 0
        advantages = batch_of(case).planes["advantages"][counts]
        assert (advantages > 0.1).any()
        assert (advantages < -0.1).any()


@functools.cache
def whole(case, form, accumulation=1):
    """Both trainers of a case with `form`'s model, and its batch."""
    objective, settings = CASES[case]
    config = objective_config(objective, settings, **form_fields(form), train__accumulation=accumulation)
    pair = make_pair(config, WEIGHTS["perturbed"](config), quick=True)
    batch = alignment_batch(config)
    if objective in ("ppo", "grpo"):
        values = pair.torch.values(batch) if objective == "ppo" else np.zeros(batch.labels.shape)
        batch = near(batch, pair.torch.token_logprobs(batch, config.align.temperature), values)
    return config, pair, batch


def form_fields(form):
    fields = {"gpt2": GPT2_FORM, "llama": LLAMA_FORM | {"model.kv_heads": 2}}[form]
    return {name.replace(".", "__"): value for name, value in fields.items()} | {"model__context": 40}


def of(stack, batch):
    """Loss, figures and gradients of a trainer."""
    loss, norm = stack.gradients(batch, 0, 1.0)
    side = TORCH if stack.name == "torch" else JAX
    return seen(np.array([loss, *stack.more]), gradients_of(side, stack) | {"norm": np.array([norm])})


def apart(ours, theirs, excluded=()):
    kept = [{n: v for n, v in one["gradients"].items() if n not in excluded} for one in (ours, theirs)]
    return judge_objective(ours | {"gradients": kept[0]}, theirs | {"gradients": kept[1]}, "", "")


@pytest.mark.parametrize(("case", "form"), [(case, ("gpt2", "llama")[n % 2]) for n, case in enumerate(WHOLE)])
def test_whole_models_agree(case, form):
    _, pair, batch = whole(case, form)
    errors = apart(of(pair.torch, batch), of(pair.jax, batch), pair.excluded)
    hold(GRADIENTS, errors[OBJECTIVES], f"{case}, {form}")
    hold(FIGURES, errors[FIGURES], f"{case}, {form}")


def test_micro_batches_change_nothing():
    """Of which the last counts nothing but padding, or no answer at all; figures too."""
    for case in WHOLE:
        _, pair, batch = whole(case, "gpt2")
        ones = of(pair.torch, batch)
        for accumulation in (2, 4):
            config = config_like(pair.config, accumulation)
            errors = apart(of(make(TORCH, config, pair.start, frozenset()), batch), ones, pair.excluded)
            hold(SPLIT, max(errors.values()), f"{case}, torch, {accumulation} micro-batches")


@pytest.mark.parametrize("case", ["dpo, smoothed, nll", "ppo"])
def test_micro_batches_change_nothing_in_jax(case):
    _, pair, batch = whole(case, "llama" if case == "ppo" else "gpt2")
    found = of(make(JAX, config_like(pair.config, 4), pair.start, frozenset()), batch)
    hold(SPLIT, max(apart(found, of(pair.torch, batch), pair.excluded).values()), f"{case}, jax, 4 micro-batches")


def config_like(config, accumulation):
    return config.changed(train__accumulation=accumulation)


def otherwise(batch):
    """The same batch in other rows, by what is said of them."""
    ways = {
        "another order of rows": shuffled(batch),
        "padding behind": wider(batch, 5),
        "padding before": wider(batch, 5, left=True),
    }
    if batch.segments is not None:
        ways |= {"one pair or answer to a row": spread(batch)}
    return ways


@pytest.mark.parametrize("case", WHOLE)
def test_rows_otherwise_laid_out_change_nothing(case):
    """In a whole model: attention, positions, and the sums over sequences."""
    _, pair, batch = whole(case, "gpt2")
    wanted = of(pair.torch, batch)
    for way, other in otherwise(batch).items():
        rows = len(other)
        config = pair.config.changed(train__batch_size=rows, train__accumulation=1)
        found = of(make(TORCH, config, pair.start, frozenset()), other)
        hold(SPLIT, max(apart(found, wanted, pair.excluded).values()), f"{case}, {way}")


@pytest.mark.parametrize("case", ["reward", "dpo, means", "orpo", "kto", "gspo", "ppo"])
def test_rows_otherwise_laid_out_change_nothing_in_jax(case):
    """In the objectives alone; positions and attention are the model's, which is judged with packed rows."""
    config, batch = config_of(case), batch_of(case)
    wanted = unmutated("jax", "objectives", case, "")
    for way, other in list(otherwise(batch).items())[1:]:
        hold(
            SPLIT,
            max(judge_objective(seen(*told_and_gradients(JAX, config, other)), wanted, case, "").values()),
            f"{case}, jax, {way}",
        )


@SIDES
def test_without_old_log_probabilities_every_ratio_is_1(side):
    """Exactly: nothing is clipped, nothing has moved; the gradient is that of advantages times log-probabilities."""
    for case in ("grpo, k3", "gspo"):
        batch = batch_of(case)
        bare = replace(batch, planes={name: plane for name, plane in batch.planes.items() if name != "old"})
        told, gradients = told_and_gradients(side, config_of(case), bare)
        figures = dict(zip(NAMES["grpo"], told[1:], strict=True))
        assert (figures["clip_fraction"], figures["approx_kl"]) == (0, 0)
        # a sum in another order: floor 1.1e-16; a mean over all tokens, or a share that is missing, is above 0.1
        assert figures["ratio"] == pytest.approx(np.asarray(batch.planes["share"]).sum(), rel=1e-14)
        wanted = plain(config_of(case), bare)
        hold(OBJECTIVES, max(nrel(gradients[name], value) for name, value in wanted[1].items()), f"{case} without old")


@SIDES
def test_old_log_probabilities_of_the_same_model_are_ratio_1(side):
    """As the trainer's own scoring gives them: floor 4e-16, of rows in other chunks; a temperature that is forgotten on
    one side is above 0.1."""
    config, pair, batch = whole("grpo, k3", "gpt2")
    warm = config.changed(align__temperature=0.7)
    stack = make(side, warm, pair.start, frozenset())
    old = stack.token_logprobs(batch, 0.7)
    same = replace(batch, planes=batch.planes | {"old": old})
    stack.gradients(same, 0, 1.0)
    figures = dict(zip(NAMES["grpo"], stack.more, strict=True))
    assert figures["clip_fraction"] == 0
    assert abs(figures["ratio"] - batch.planes["share"].sum()) < 1e-14
    assert abs(figures["approx_kl"]) < 1e-14


@SIDES
@pytest.mark.parametrize(
    "case", ["reward", "dpo, smoothed, nll", "ipo", "orpo", "kto", "gspo, dual clip, k3 times ratio", "ppo"]
)
def test_a_batch_in_which_nothing_counts(side, case):
    """Loss, figures and gradients are 0, and numbers, though the planes hold none."""
    batch = batch_of(case)
    shares = {name: np.zeros_like(plane) for name, plane in batch.planes.items() if name.endswith("share")}
    others = {name: np.full_like(plane, np.nan) for name, plane in batch.planes.items() if name not in shares}
    told, gradients = told_and_gradients(side, config_of(case), replace(batch, planes=shares | others))
    assert not told.any()
    assert not any(gradient.any() for gradient in gradients.values())


@SIDES
def test_an_update_tells_what_its_gradients_told(side):
    """The path that a run takes: loss and figures of an update are those of the gradients."""
    _, pair, batch = whole("ppo", "llama")
    stack = pair.torch if side is TORCH else pair.jax
    wanted = of(stack, batch)
    orders = Orders(1e-3, Limits(np.inf, np.inf), 1.0, Standing(0, 0, False), alone=True)
    figures = stack.update(batch, 0, orders, lambda: None)()
    stack.adopt({"parameters": pair.start}, 0)
    assert figures.applied
    error = judge_objective(
        {"loss": np.array([figures.loss]), "figures": np.array(figures.more), "gradients": {}},
        wanted | {"gradients": {}},
        "",
        "",
    )
    hold(FIGURES, max(error.values()), f"an update of PPO, {side.name}")
    told = stack.measure(batch)
    assert len(told) == 1 + len(NAMES["ppo"])
    assert (
        np.abs(np.array(told) - np.array([figures.loss, *figures.more])).max() < 1e-12
    )  # the same floor; dropout is off
