"""What each field of the config changes, in both stacks: that, and nothing else.

A field that nobody reads, one that is read as its default, and one that reaches too far all look like equal stacks.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxtrain.layers
import jaxtrain.programs
import jaxtrain.step
from coretrain.base.threads import in_background
from coretrain.checkpoint.manifest import Progress
from coretrain.config.run import RunConfig
from coretrain.contract.optimizer import bias_corrections
from coretrain.contract.parameters import parameter_table
from coretrain.contract.randomness import normal_rows
from coretrain.data.batch import batch_hash, windows
from coretrain.data.batches import validation_batches
from coretrain.data.open import open_data
from coretrain.journal.journal import SilentJournal
from coretrain.training.loop import Loop
from coretrain.training.stack import InStep
from parity.pair import LLAMA, VARIANTS, batches, make_config
from parity.probes.parts import give
from parity.probes.sides import SIDES, TORCH, gradients_of

SCALING = '{"type": "linear", "factor": 2.0}'
BASE = LLAMA | {
    "model.layers": 1, "model.width": 8, "model.heads": 2, "model.kv_heads": 1, "model.mlp_width": 6,
    "model.context": 6, "model.vocab": 17, "model.residual_dropout": 0.2, "model.embedding_dropout": 0.1,
    "train.batch_size": 4, "train.updates": 30, "optimizer.name": "muon", "schedule.warmup_updates": 4,
    "schedule.horizon": 25, "train.eval_interval": 7, "checkpoint.interval": 1000, "health.spike": "skip",
    "health.window": 8, "health.max_consecutive": 3, "journal.tensorboard": "false",
}  # fmt: skip
"""Where every field has something to change."""
MODEL, VALUES = {"weights", "loss", "gradients"}, {"loss", "gradients"}
LEARNED, ADAM = {"model.position": "learned"}, {"optimizer.name": "adamw"}
WSD, HALF = {"schedule.kind": "wsd"}, {"precision.compute": "float16"}
REWARM = {"schedule.kind": "rewarm", "schedule.start_lr": 1e-5}
INFINITE = {"schedule.kind": "infinite", "schedule.cooldown_updates": 6}
# field: another value, what it changes, and what else it takes to have an effect
TABLE = {
    "model.layers": (2, MODEL, {}),
    "model.width": (16, MODEL, {}),
    "model.heads": (4, MODEL, {}),
    "model.kv_heads": (2, MODEL, {}),
    "model.head_width": (6, MODEL, {}),
    "model.mlp_width": (9, MODEL, {}),
    "model.context": (7, MODEL | {"data", "evaluation"}, LEARNED),
    "model.vocab": (19, MODEL, {}),
    "model.norm": ("layernorm", VALUES, {}),
    "model.norm_eps": (1e-3, VALUES, {}),
    "model.position": ("learned", MODEL, {}),
    "model.rope_theta": (50.0, VALUES, {}),
    "model.rope_scaling": (SCALING, VALUES, {}),
    "model.mlp": ("gelu", MODEL, {}),
    "model.bias": ("true", MODEL, {}),
    "model.tied": ("true", MODEL, {}),
    "model.init_std": (0.03, {"weights"}, {}),
    "model.residual_dropout": (0.3, VALUES, {}),
    "model.embedding_dropout": (0.3, VALUES, {}),
    "optimizer.name": ("adam", {"update", "moments"}, {}),
    "optimizer.lr": (2e-3, {"rates"}, {}),
    "optimizer.beta1": (0.8, {"update", "moments"}, ADAM),
    "optimizer.beta2": (0.9, {"update", "moments"}, ADAM),
    "optimizer.eps": (1e-3, {"update"}, ADAM),
    "optimizer.weight_decay": (0.3, {"update"}, {}),
    "optimizer.clip": (0.7, {"factors"}, {}),
    "optimizer.muon_momentum": (0.9, {"update", "moments"}, {}),
    "schedule.kind": ("linear", {"rates"}, {}),
    "schedule.warmup_updates": (5, {"rates"}, {}),
    "schedule.horizon": (28, {"rates"}, {}),
    "schedule.min_lr": (2e-4, {"rates"}, {}),
    "schedule.decay_fraction": (0.5, {"rates"}, WSD),
    "schedule.decay_shape": ("1-sqrt", {"rates"}, WSD),
    "schedule.start_lr": (3e-5, {"rates"}, REWARM),
    "schedule.cooldown_updates": (9, {"rates"}, INFINITE),
    "schedule.constant_lr": (3e-4, {"rates"}, INFINITE),
    "train.updates": (31, {"verdicts", "rates", "factors", "scales", "evaluations", "data"}, {}),
    "train.batch_size": (6, VALUES | {"data", "evaluation", "micro-batches"}, {}),
    "train.accumulation": (2, {"micro-batches"}, {}),
    "train.seed": (5, {"weights", "data"} | VALUES, {}),
    "train.eval_interval": (9, {"evaluations"}, {}),
    "train.eval_batches": (3, {"evaluation"}, {}),
    "precision.compute": ("float32", VALUES | {"weights", "update", "moments", "dtypes"}, {}),
    "precision.loss_scale": (512.0, {"scales", "factors"}, HALF),
    "precision.fast_matmul": ("true", {"dtypes"}, {"precision.compute": "float32"}),
    "health.nonfinite": ("stop", {"verdicts", "rates", "factors", "scales", "evaluations"}, {}),
    "health.spike": ("ignore", {"verdicts", "rates", "factors"}, {}),
    "health.spike_sigma": (30.0, {"verdicts", "rates", "factors"}, {}),
    "health.window": (20, {"verdicts", "rates", "factors"}, {}),
    "health.lag": (6, {"verdicts", "rates", "factors"}, {}),
    "health.max_consecutive": (2, {"verdicts", "rates", "factors", "scales", "evaluations"}, {}),
}
SECTIONS = ("model", "optimizer", "schedule", "train", "precision", "health")
ELSEWHERE = {
    "model.score_head": "as train.objective asks: other objectives (parity/ladder/test_alignment.py, test_sampler.py)",
    "train.objective": "other losses than this one (parity/ladder/test_alignment.py)",
    "train.start": "where the weights come from (tests/alignment)",
    "train.start_moments": "where the moments come from (tests/training/test_begin_from.py)",
    "train.log_interval": "lines of the terminal (tests/journal)",
    "train.sample_prompt": "text at a run's end (tests/training)",
    "train.sample_tokens": "text at a run's end (tests/training)",
}
"""Fields of these sections that change no number here."""


SPARED = {
    ("torch", "model"): {"update", "moments"},  # given other shapes, an update is another
    ("jax", "model"): {"update", "moments"},
    ("torch", "train.accumulation"): {"loss", "gradients"},  # by their rounding
    ("jax", "train.accumulation"): {"loss", "gradients"},
    ("jax", "precision.fast_matmul"): {"loss", "gradients", "update", "moments"},  # each product says how it is made
    ("jax", "optimizer.eps"): {"moments"},  # one program gives both
    ("jax", "optimizer.weight_decay"): {"moments"},
}
"""What is not asked, by stack and section or field."""


def fields():
    """Every field of the sections."""
    return [f"{s}.{name}" for s in SECTIONS for name in RunConfig.model_fields[s].annotation.model_fields]


def test_every_field_is_in_the_table():
    """One that is added is judged, or its excuse stands here."""
    assert sorted(fields()) == sorted([*TABLE, *ELSEWHERE])


def test_no_number_is_at_its_default_in_every_variant():
    """The numbers of the ladder's own variants: a default read in a field's place would change nothing there."""
    made = [make_config(variant) for variant in VARIANTS.values()]
    spared = {"train.eval_interval", "train.eval_batches", "precision.fast_matmul"} | ELSEWHERE.keys()
    # of kinds that no variant has: stacks are handed the rate, which test_exact.py holds against others' of every kind
    spared |= {f"schedule.{name}" for name in ("start_lr", "cooldown_updates", "constant_lr")}
    left = set()
    for name in set(fields()) - spared:
        section, field = name.split(".")
        default = RunConfig.model_fields[section].annotation.model_fields[field].get_default()
        if section not in ("health",) and name != "precision.loss_scale":
            left |= {name} if all(getattr(getattr(c, section), field) == default for c in made) else set()
    assert not left


@pytest.mark.parametrize("side", SIDES)
def test_each_field_changes_what_it_should(side, text):
    """JAX's without compiling: what is judged here is which numbers are read."""
    wrong = {}
    for name, (value, expected, more) in TABLE.items():
        section = "loop" if name.startswith("train.eval") else name.partition(".")[0]
        given = (json.dumps(fields, sort_keys=True) for fields in (more, more | {name: value}))
        before, after = (seen(side, changes, text, section) for changes in given)
        assert before.keys() == after.keys()
        changed = {outcome for outcome in before if before[outcome] != after[outcome]}
        changed -= SPARED.get((side, name.partition(".")[0]), set()) | SPARED.get((side, name), set())
        if changed != expected:
            wrong[name] = {"missing": sorted(expected - changed), "too much": sorted(changed - expected)}
    assert not wrong


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Prepared bytes of a few texts: what of a config is the data's own, the data, and what was read of it."""
    folder = tmp_path_factory.mktemp("fields")
    for n in range(30):
        (folder / f"{n}.txt").write_text(f"text {n}: a few words, " * 3)
    places = {"data.source": folder, "data.cache": folder / "cache", "data.tokenizer": "bytes"}
    more = {"data.validation_fraction": 0.2, "data.prepare_processes": 1, "model.vocab": 300}
    config = make_config(BASE | places | more)
    return config.data, open_data(config, lambda _: None), {}


@functools.cache
def _seen(side, changes):
    """What a stack makes of a config by outcome, data apart: numbers in torch; JAX's, compiled, would take minutes."""
    config = make_config(BASE | json.loads(changes))
    stack, table = SIDES[side].trainer.Trainer(config), parameter_table(config.model)
    found = {
        "weights": numbers(stack.export()["parameters"]),
        "dtypes": dict(stack.describe())["dtypes"],
        "micro-batches": config.micro_batch,
    }
    if config.precision.compute == "float16":
        return found
    if side == "jax":
        return found
    batch = batches(config, 1)[0]
    moved, given = (
        {row.name: normal_rows(seed, row.name, (*row.shape, 1), std)[..., 0].astype(np.float64) for row in table}
        for seed, std in ((1, 0.4), (2, 1e-3))
    )
    stack.adopt({"parameters": moved}, 0)
    found |= {"loss": stack.gradients(batch, 3, 1.0), "gradients": numbers(gradients_of(TORCH, stack))}
    for applied in (0, 1):
        give(TORCH, stack, given)
        stack.apply(1e-3, 0.5, applied)
    state = stack.export()
    return found | {"update": numbers(state.pop("parameters")), "moments": {g: numbers(t) for g, t in state.items()}}


@functools.cache
def traced(changes, part):
    """JAX's program of the loss or of the update, its constants and what it is called with; nothing is compiled."""
    config = make_config(BASE | json.loads(changes))
    made = jaxtrain.programs.programs(config, "plain", jax.devices("cpu")[0])
    wide = jaxtrain.layers.master_dtype(config).type
    if part == "update":
        step = jax.make_jaxpr(made.step)(made.params, made.moments, made.params, wide(1), wide(1), (wide(1), wide(1)))
        program = text_of(step)
        return {"update": (program, bias_corrections(config.optimizer, 1)), "moments": program}
    batch = batches(config, 1)[0]
    masks = jaxtrain.step.dropout_masks(config, 3, len(batch))
    loss = jax.make_jaxpr(made.evaluate)(made.params, None, batch, wide(1), masks)
    values = (text_of(loss), batch_hash(batch), numbers({str(i): a for i, a in enumerate(jax.tree.leaves(masks))}))
    return {"loss": values, "gradients": values}


def text_of(jaxpr):
    """A traced program and its constants, without what differs from one trace to the next."""
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr)), list(constants(jaxpr))


def constants(jaxpr):
    """The bytes of its constants and of those within."""
    yield from (np.asarray(value).tobytes() for value in getattr(jaxpr, "consts", ()))
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "eqns"):
                yield from constants(value)


PARTS = {"model": ("loss",), "train": ("loss",), "optimizer": ("update",), "precision": ("loss", "update")}
"""What of JAX's programs a section can change."""


def seen(side, changes, text, section):
    """All outcomes that fields of a section could change."""
    found = driven(changes)
    if section in ("model", "train", "loop"):
        if (side, changes) not in text[2]:
            text[2][side, changes] = read(side, changes, *text[:2])
        found = found | text[2][side, changes]
    if section in PARTS:
        found = found | _seen(side, changes)
        if side == "jax" and "float16" not in changes:
            for part in PARTS[section]:
                found = found | traced(changes, part)
    return found


def numbers(tensors):
    """Shapes, dtypes and bytes."""
    return {name: (t.shape, str(t.dtype), np.ascontiguousarray(t).tobytes()) for name, t in tensors.items()}


def read(side, changes, fields, data):
    """The batches that a stack's loader brings, and the rows of an evaluation."""
    config = make_config(BASE | json.loads(changes)).changed(data=fields)
    loaded = SIDES[side].data.train_batches(data, config, 0)
    return {
        "data": [batch_hash(batch) for batch in loaded],
        "evaluation": [batch_hash(batch) for batch in validation_batches(data, config)],
    }


class Scripted(InStep):
    """A stack that says what it is told: losses that fall, a number that is none, spikes, and a norm above the clip."""

    name, device_name, writes_in_place = "torch", "cpu", False

    def __init__(self, config):
        self.config = config
        self.rates, self.factors, self.scales, self.applied, self.evaluations = [], [], [], [], []

    def batches(self, data, start, stop):
        """As many as the loop wants."""
        yield from (windows(np.full((2, 3), index, np.int32)) for index in range(start, stop))

    def gradients(self, batch, update, loss_scale):
        """A script by update."""
        self.scales.append(loss_scale)
        loss, norm = 5 - update / 100 + 0.02 * (update % 3), 1.1 + 0.01 * (update % 5)
        return {11: (9.0, norm), 14: (loss + 0.35, norm), 16: (np.nan, norm), 17: (np.nan, norm)}.get(
            update, (loss, norm)
        )

    def apply(self, lr, factor, applied):
        """What the optimizer would be told."""
        self.rates.append(lr)
        self.factors.append(factor)
        self.applied.append((len(self.scales), applied))

    def save(self, folder):
        """Nothing to keep."""
        return in_background(lambda: (folder / "state").write_text(""))


@functools.cache
def driven(changes):
    """What the real loop makes of a config: rates, factors, verdicts, loss scales, and when it evaluates."""
    config = make_config(BASE | json.loads(changes))
    stack = Scripted(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "save", lambda self, *_, **__: None)
        patch.setattr(Loop, "evaluate", lambda self: stack.evaluations.append(self.progress.update) or 5.0)
        loop = Loop(config, stack, SimpleNamespace(), Path("nowhere"), SilentJournal(), Progress())
        ended = loop.train()
    return {
        "rates": stack.rates, "factors": stack.factors, "scales": stack.scales,
        "verdicts": (ended, stack.applied), "evaluations": stack.evaluations,
    }  # fmt: skip
