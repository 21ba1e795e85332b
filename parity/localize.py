"""Where do a torch and a JAX computation part, and why: `python -m parity.localize CONFIG`, or two runs' folders.

    python -m parity.localize                           # both stacks on the preset `tiny`, shrunk
    python -m parity.localize gpt2-124m --layers 3 --width 96 --optimizer.beta2 0.999
    python -m parity.localize runs/torch runs/jax       # where two runs part: data, schedule, rounding or algorithm
    python -m parity.localize tiny --inputs FOLDER/localize.npz      # again, with the inputs that were saved

A table and a verdict on the terminal; the picture, the text and the inputs in `--output` (default runs/localize-TIME).

For a pair that isn't ours, `localize` takes any torch function and any JAX function of the same named numpy arrays that
call `tap("name", value)` (`coretrain.taps`) at the same places; `hooked` taps the modules of a torch model that can't
be changed. `compare` takes what was recorded by other means. `parity/example.py` is an example.

    report = localize(torch_function, jax_function, {"x": x, "weight": weight})
    report.show()
    report.save(Path("runs/mine"))

Both are run in float64, which decides whether there's a bug, on their own (free) and with JAX seated on torch's values,
where only the segment that makes an error shows it; then backward the same way; and where nothing parts, in float32
against the noise of the other framework.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import Tensor

import jaxtrain.loss
import jaxtrain.model
import jaxtrain.trainer
import torchtrain.loss
import torchtrain.model
import torchtrain.trainer
from coretrain.config import RunConfig, load_config
from coretrain.data import batch_hash
from coretrain.errors import UserError, exits_cleanly
from coretrain.parameters import parameter_table, to_jax_tree
from coretrain.schedule import clip_factor, learning_rate
from coretrain.taps import tap
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.pair import batches, noise_only, scrambled
from parity.recorders import JaxRecorder, Record, hooked, record_torch
from parity.runs import compare_runs
from parity.verdict import (
    FORWARD,
    GRADIENT,
    GRADIENT_FLOOR,
    SCALAR,
    SCALAR_FLOOR,
    STATE,
    STATE_FLOOR,
    Report,
    Row,
    Verdict,
    distance,
    judge,
    tap_rows,
    tensor_rows,
)
from torchtrain.trainer import Trainer as TorchTrainer

__all__ = [
    "compare",
    "hooked",
    "jax_recorder",
    "localize",
    "localize_config",
    "localized_tap",
    "record_torch",
    "search",
]

UPDATES = 3
"""Updates that are compared: the second has moments, the third has them mixed."""
ROUNDING_FACTOR, ROUNDING_FLOOR = 4.0, 1e-6
"""Below float64 a framework may be so many times as far from float64 as the other, and (in float32) this much more.

Measured on the presets tiny and gpt2-124m, shrunk: more than twice by 6e-8 in float32, by 6e-3 in bfloat16, whose floor
is 8192 times as high. TF32 in one matmul is 2e-4.
"""
STEP_ROUNDING = 8
"""A step may be off by so many roundings of its parameter."""

Tensors = Mapping[str, np.ndarray]


# --- any pair ---------------------------------------------------------------------------------------------------------


def compare(torch_tensors: Tensors, jax_tensors: Tensors, cap: float = FORWARD, title: str = "compare") -> Report:
    """The verdict on tensors recorded by any means, by name in the order of the computation."""
    rows = [replace(row, cap=cap) for row in tap_rows(Record(dict(torch_tensors)), Record(dict(jax_tensors)), None)]
    verdict = judge(rows)
    return Report(title, rows, verdict, _evidence(verdict, Record(dict(torch_tensors)), Record(dict(jax_tensors))))


def localize(
    torch_function: Callable[..., Tensor],
    jax_function: Callable[..., jax.Array],
    inputs: Tensors,
    differentiate: Sequence[str] | None = None,
    title: str = "localize",
    float32: bool = True,
) -> Report:
    """Run both on the same named arrays, free and seated, forward and backward; see the module's own text.

    Each function takes the inputs by name, as tensors of its framework, and returns one array, of which a fixed random
    projection is differentiated with respect to the inputs in `differentiate` (default: all floating ones). Floating
    inputs come in float64, and in float32 for the second look: whatever else the functions hold must follow them.
    """
    jax.config.update("jax_enable_x64", True)
    wanted = [name for name, value in inputs.items() if np.issubdtype(value.dtype, np.floating)]
    wanted = wanted if differentiate is None else list(differentiate)

    def run(dtype: str, seated: bool) -> tuple[Record, Record, Record | None, Tensors, Tensors]:
        cast = {
            name: value.astype(dtype) if np.issubdtype(value.dtype, np.floating) else value
            for name, value in inputs.items()
        }
        tensors = {name: torch.from_numpy(np.array(v)).requires_grad_(name in wanted) for name, v in cast.items()}

        def torch_loss() -> Tensor:
            output = tap("output", torch_function(**tensors))
            return (output * torch.from_numpy(_direction(tuple(output.shape), dtype))).sum()

        def jax_loss(params: dict[str, jax.Array], rest: dict[str, jax.Array]) -> jax.Array:
            output = tap("output", jax_function(**params, **rest))
            return (output * _direction(output.shape, dtype)).sum()

        ours = record_torch(torch_loss)
        recorder = JaxRecorder(jax_loss)
        arguments = {n: cast[n] for n in wanted}, {n: v for n, v in cast.items() if n not in wanted}
        theirs, gradients = recorder(*arguments)
        on_ours = None
        if seated:
            on_ours, gradients = recorder(*arguments, seats=ours)
        torch_gradients = {n: _array(tensors[n].grad, tensors[n]) for n in wanted}
        return ours, theirs, on_ours, torch_gradients, {n: np.asarray(gradients[n]) for n in wanted}

    ours, theirs, seated, our_gradients, their_gradients = run("float64", True)
    rows = tap_rows(ours, theirs, seated)
    rows += tensor_rows("gradient", our_gradients, their_gradients, GRADIENT, GRADIENT_FLOOR)
    verdict = judge(rows)
    if verdict.kind == "same" and float32:
        narrow = run("float32", False)
        below = rounding_rows(ours, narrow[0], narrow[1], "float32")
        verdict = judge_rounding(below, narrow[0], narrow[1], "float32") or verdict
        rows = below if verdict.kind != "same" else rows
    evidence = {f"input/{name}": np.asarray(value) for name, value in inputs.items()}
    return Report(title, rows, verdict, evidence | _evidence(verdict, ours, seated or theirs))


def _direction(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def _array(gradient: Tensor | None, like: Tensor) -> np.ndarray:
    return torch.zeros_like(like).numpy() if gradient is None else gradient.to_dense().numpy()


def _evidence(verdict: Verdict, ours: Record, theirs: Record) -> dict[str, np.ndarray]:
    """What both make of the tap that parts, and torch's values of what it is made of."""
    part = "cotangents" if verdict.tap.startswith("cotangent of ") else "values"
    name = verdict.tap.removeprefix("cotangent of ")
    found = {
        f"{side}/{name}": getattr(record, part)[name]
        for side, record in (("torch", ours), ("jax", theirs))
        if name in getattr(record, part)
    }
    return found | {f"from/{parent}": ours.values[parent] for parent in ours.parents.get(name, ())}


# --- below float64 ----------------------------------------------------------------------------------------------------


def rounding_rows(exact: Record, ours: Record, theirs: Record, precision: str) -> list[Row]:
    """Each tap of both in a lower precision against float64: the worse one's error, capped by the better one's."""
    rows = []
    for stage, part in (("forward", "values"), ("cotangent", "cotangents")):
        names = list(getattr(exact, part))
        for name in names if part == "values" else reversed(names):
            errors = [
                distance(getattr(record, part).get(name), getattr(exact, part)[name]) for record in (ours, theirs)
            ]
            better, worse = sorted(errors)
            floor = ROUNDING_FLOOR * (1 if precision == "float32" else 2.0**13)
            cap, parents = ROUNDING_FACTOR * better + floor, exact.parents.get(name, ())
            rows.append(
                Row(stage, name, worse, None, cap, max(better, 1e-17), parents, ("torch", "JAX")[errors[1] == worse])
            )
    return rows


def judge_rounding(rows: Sequence[Row], ours: Record, theirs: Record, precision: str) -> Verdict | None:
    """dtype policy, or rounding or kernel, where float64 agrees and a lower precision doesn't; None where it does."""
    for name in ours.dtypes:
        if name in theirs.dtypes and ours.dtypes[name] != theirs.dtypes[name]:
            return Verdict(
                "dtype policy",
                f"float64 agrees, but in {precision} {name} is {ours.dtypes[name]} in torch and "
                f"{theirs.dtypes[name]} in JAX",
                name,
                traps="a cast on one side, a norm or softmax in the compute dtype, promotion of mixed operands",
            )
    verdict = judge(rows, precision)
    if verdict.kind == "same":
        return None
    first = next(row for row in rows if row.parts)
    return replace(
        verdict,
        kind="rounding or kernel",
        sentence=f"float64 agrees, but in {precision} {first.title} of {first.note} is {first.error:.1e} from float64, "
        f"the other framework's {first.floor:.1e} (allowed: {first.cap:.1e})"
        + (f"; {verdict.predecessor}, before it, is within its noise" if verdict.predecessor else ""),
        traps="TF32 or bfloat16 passes in matmuls, an accumulation in low precision, a fused kernel, a softmax or "
        "norm below float32",
    )


# --- our two stacks ---------------------------------------------------------------------------------------------------


def jax_recorder(stack: JaxTrainer) -> JaxRecorder:
    """The recorder of a JAX trainer's model and loss, layers unrolled; compiled at its first call, then kept."""
    config = stack.config
    execution = config.execution.model_copy(update={"scan_layers": False, "checkpoint_activations": "none"})
    unrolled = config.model_copy(update={"execution": execution})
    graph, _ = nnx.split(nnx.eval_shape(lambda: jaxtrain.model.GPT(unrolled, stack.kernel.name)))
    wide = jaxtrain.model.master_dtype(config)
    m, chunk = config.model, config.execution.loss_chunk

    def loss(params: Any, tokens: jax.Array, labels: jax.Array, dropout: Any) -> jax.Array:
        model = nnx.merge(graph, params)
        hidden = model(tokens, dropout)
        model.logits(hidden)  # for its tap alone: the loss makes its own, chunk by chunk
        scale = 1 / jaxtrain.loss.count_targets(labels).astype(wide)
        return jaxtrain.trainer.cross_entropy(hidden, model.head_weight, labels, m.vocabulary, chunk, scale)

    return JaxRecorder(loss)


def torch_taps(stack: TorchTrainer, batch: np.ndarray, update: int) -> tuple[Record, Tensors]:
    """The record of one batch with the dropout of `update`, and the gradients."""
    config, model = stack.config, stack.model
    ids = torch.from_numpy(batch).to(stack.device, torch.long)
    tokens, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    scale = 1 / torchtrain.loss.count_targets(labels).to(torchtrain.model.master_dtype(config))

    class WithLogits:
        """The model, which also makes logits, for their tap alone."""

        head_weight = property(lambda self: model.head_weight)

        def __call__(self, *args: Any) -> Tensor:
            hidden = model(*args)
            model.logits(hidden)
            return hidden

    policy, model.policy = model.policy, "none"  # recomputing would meet every tap twice
    model.zero_grad(set_to_none=True)
    try:
        record = record_torch(
            lambda: torchtrain.trainer._loss(
                WithLogits(), config, tokens, labels, scale, stack._dropout(update, len(batch))
            )
        )
    finally:
        model.policy = policy
    named = {
        name: parameter.grad.to_dense() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return record, torchtrain.model.canonical_tensors(config, named)


def jax_taps(
    stack: JaxTrainer, recorder: JaxRecorder, batch: np.ndarray, update: int, seats: Record | None = None
) -> tuple[Record, Tensors]:
    """The record of one batch with the dropout of `update`, seated on torch's where given, and the gradients."""
    dropout = stack._dropout(update, len(batch))
    record, gradients = recorder(stack.params, batch[:, :-1], batch[:, 1:], dropout, seats=seats)
    return record, jaxtrain.model.canonical_tensors(stack.config, gradients)


Rate = Callable[[RunConfig, int], float]
Clip = Callable[[float, float], float]


def search(
    config: RunConfig,
    weights: Tensors,
    torch_trainer: TorchTrainer,
    jax_trainer: JaxTrainer,
    recorder: JaxRecorder | None = None,
    feeds: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
    rates: tuple[Rate, Rate] = (learning_rate, learning_rate),
    clips: tuple[Clip, Clip] = (clip_factor, clip_factor),
    evidence: dict[str, np.ndarray] | None = None,
) -> Iterator[list[Row]]:
    """Rows, stage by stage in the order of search, of two float64 trainers put at `weights`.

    Data, learning rates over the horizon, values and cotangents at the taps, gradients, what the trainers themselves
    make of the batch (micro-batches included), clip factor, moments and parameters; each update but the first starts
    from torch's state, and all take torch's gradients, in both. What of data, schedule and clip the two sides have of
    their own comes in `feeds`, `rates` and `clips` (torch first). `evidence` is filled with what reproduces a parting.
    """
    evidence = {} if evidence is None else evidence
    made = batches(config, UPDATES)
    feeds = feeds or (made, made)
    yield [
        Row("data", f"batch {i}", float(batch_hash(a) != batch_hash(b)), None, 0, 0, note=_rows_that_differ(a, b))
        for i, (a, b) in enumerate(zip(*feeds, strict=True))
    ]
    yield [_rate_row(config, rates)]

    zeros = {
        group: {name: np.zeros_like(value) for name, value in tensors.items()}
        for group, tensors in torch_trainer.export().items()
    }
    for stack in (torch_trainer, jax_trainer):
        stack.adopt({**zeros, "parameters": weights}, 0)
    batch, apart = feeds[0][0], noise_only(config)
    ours, our_gradients = torch_taps(torch_trainer, batch, 0)
    recorder = recorder or jax_recorder(jax_trainer)
    free, _ = jax_taps(jax_trainer, recorder, batch, 0)
    seated, their_gradients = jax_taps(jax_trainer, recorder, batch, 0, ours)
    rows = tap_rows(ours, free, seated)
    evidence |= _evidence(judge(rows), ours, seated)
    evidence["batch"] = batch
    yield rows
    yield tensor_rows("gradient", our_gradients, their_gradients, GRADIENT, GRADIENT_FLOOR, apart)

    for update, batch in enumerate(feeds[0]):
        (our_loss, our_norm), (their_loss, their_norm) = (
            stack.gradients(batch, update, 1.0) for stack in (torch_trainer, jax_trainer)
        )
        named = {name: parameter.grad for name, parameter in torch_trainer.model.named_parameters()}
        our_gradients = torchtrain.model.canonical_tensors(config, {n: g.to_dense() for n, g in named.items()})
        their_gradients = jaxtrain.model.canonical_tensors(config, jax_trainer.grads)
        note = f"update {update}"
        factors = [clip(our_norm, config.optimizer.clip) for clip in clips]
        yield [
            _scalar("training loss", our_loss, their_loss, note),
            *_noted(tensor_rows("accumulated", our_gradients, their_gradients, GRADIENT, GRADIENT_FLOOR, apart), note),
            _scalar("gradient norm", our_norm, their_norm, note),
            _scalar("clip factor", *factors, note),
        ]
        tree = to_jax_tree(config.model, our_gradients, config.execution.vocab_multiple)
        jax_trainer.grads = jax.tree_util.tree_map_with_path(
            lambda path, leaf, tree=tree: jnp.asarray(tree[jaxtrain.model.dotted(path)], leaf.dtype), jax_trainer.grads
        )
        before = torch_trainer.export()["parameters"]
        # at the end of the warm-up: a step of its first updates is so small that the parameter's rounding hides it
        at = min(config.schedule.warmup_updates + update, config.train.updates - 1)
        for stack, rate, factor in zip((torch_trainer, jax_trainer), rates, factors, strict=True):
            stack.apply(rate(config, at), factor, update)
        ours_after, theirs_after = torch_trainer.export(), jax_trainer.export()
        rows = []
        for group in [group for group in ours_after if group != "parameters"]:
            rows += tensor_rows(group, ours_after[group], theirs_after[group], STATE, STATE_FLOOR)
        moved = [
            {name: state["parameters"][name] - before[name] for name in before} for state in (ours_after, theirs_after)
        ]
        rows += [_with_rounding(row, before, moved[0]) for row in tensor_rows("parameter", *moved, STATE, STATE_FLOOR)]
        yield _noted(rows, note)
        jax_trainer.adopt(ours_after, update + 1)


def localized_tap(
    config: RunConfig, weights: Tensors, torch_trainer: TorchTrainer, jax_trainer: JaxTrainer, **options: Any
) -> str:
    """Name of the first tap where two float64 trainers of `config` part, "" where they don't; stops there.

    `options` are those of `search`. A `recorder = jax_recorder(jax_trainer)` that is passed to many calls is compiled
    once, as long as JAX is left as it was when it was first called.
    """
    for rows in search(config, weights, torch_trainer, jax_trainer, **options):
        first = next((row for row in rows if row.parts), None)
        if first is not None:
            return first.title
    return ""


def localize_config(
    config: RunConfig,
    weights: Tensors | None = None,
    title: str = "",
    below: RunConfig | None = None,
    make_torch: Callable[[RunConfig, Tensors], TorchTrainer] = TorchTrainer,
    make_jax: Callable[[RunConfig, Tensors], JaxTrainer] = JaxTrainer,
    **options: Any,
) -> Report:
    """Both stacks of a float64 `config`; where they agree, those of `below` (float32 and narrower) against float64.

    `options` are those of `search`.
    """
    weights = scrambled(config) if weights is None else weights
    evidence = {f"weights/{name}": value for name, value in weights.items()}
    rows: list[Row] = []
    stacks = make_torch(config, weights), make_jax(config, weights)
    for stage in search(config, weights, *stacks, evidence=evidence, **options):
        rows += stage
        if any(row.parts for row in stage):
            break
    verdict = judge(rows)
    title = title or f"{config.name}: {config.model.layers} layers, {config.model.width} wide"
    if verdict.kind == "same" and below is not None:
        batch = evidence["batch"]
        stacks[0].adopt({"parameters": weights}, 0)
        exact = torch_taps(stacks[0], batch, 0)[0]
        narrow = make_torch(below, weights), make_jax(below, weights)
        ours = torch_taps(narrow[0], batch, 0)[0]
        theirs = jax_taps(narrow[1], jax_recorder(narrow[1]), batch, 0)[0]
        precision = below.precision.compute
        under = rounding_rows(exact, ours, theirs, precision)
        if found := judge_rounding(under, ours, theirs, precision):
            return Report(f"{title}, {precision}", under, found, evidence | _evidence(found, ours, theirs))
        worst = max(under, key=lambda row: row.load)
        verdict = replace(
            verdict,
            sentence=f"{verdict.sentence}; in {precision} both are as far from float64 as the other: at worst "
            f"{worst.title}, {worst.error:.1e} against {worst.floor:.1e}",
        )
    return Report(title, rows, verdict, evidence)


def _with_rounding(row: Row, before: Tensors, moved: Tensors) -> Row:
    """The row of a step, its cap widened by what rounding of the parameter itself makes of the difference."""
    size, step = (float(np.linalg.norm(tensors[row.name])) for tensors in (before, moved))
    return replace(row, cap=row.cap + (STEP_ROUNDING * np.finfo(np.float64).eps * size / step if step else 0.0))


def _scalar(name: str, ours: float, theirs: float, note: str) -> Row:
    error = distance(np.float64(theirs), np.float64(ours))
    return Row("scalar", name, error, None, SCALAR, SCALAR_FLOOR, note=note)


def _noted(rows: Sequence[Row], note: str) -> list[Row]:
    return [replace(row, note=note) for row in rows]


def _rows_that_differ(a: np.ndarray, b: np.ndarray) -> str:
    if a.shape != b.shape:
        return f"shapes {a.shape} and {b.shape}"
    rows = np.flatnonzero((a != b).any(1))
    if not rows.size:
        return ""
    same = sorted(map(bytes, a)) == sorted(map(bytes, b))
    return "the same rows in another order" if same else f"first in row {rows[0]}, {rows.size} of {len(a)} rows"


def _rate_row(config: RunConfig, rates: tuple[Rate, Rate]) -> Row:
    """Learning rates at every update of the horizon: the largest difference, over the peak."""
    errors = [abs(rates[0](config, u) - rates[1](config, u)) / config.optimizer.lr for u in range(config.train.updates)]
    first = next((u for u, error in enumerate(errors) if not error <= SCALAR), None)
    note = "" if first is None else f"from update {first} on"
    return Row("scalar", "learning rate", max(errors), None, SCALAR, SCALAR_FLOOR, note=note)


# --- the command line -------------------------------------------------------------------------------------------------


def shrunk(
    name: str | None, overrides: Sequence[tuple[str, str]], layers: int | None, width: int | None
) -> tuple[RunConfig, RunConfig]:
    """The config in float64 and in its own precision (at least as narrow as float32), small enough to be run at once.

    Kept: norms, positions, MLP, biases, tying, groups of heads, dropout, optimizer, schedule, accumulation. Smaller:
    layers (2), width (64), heads (4 at most), context, vocabulary and batch, where no override asks for another figure.
    """
    config = load_config(name, overrides)
    m, given = config.model, {key for key, _ in overrides}
    groups = min(m.heads // m.kv, 4)
    heads = m.heads if width is None and m.heads <= 4 else groups * max(1, 4 // groups)
    heads = m.heads if "model.heads" in given else heads
    width = width or (m.width if "model.width" in given else min(m.width, 16 * heads))
    if width % heads:
        raise UserError(f"--width {width} is no multiple of the {heads} heads: choose one that is")
    accumulation = min(config.train.accumulation, 2)
    small = {
        "model.layers": layers or min(m.layers, 2),
        "model.width": width,
        "model.heads": heads,
        "model.kv_heads": heads // groups,
        "model.head_width": "none",
        "model.mlp_width": "none",
        "model.context": min(m.context, 48),
        "model.vocab": 301,
        "train.batch_size": 2 * accumulation,
        "train.accumulation": accumulation,
        "execution.loss_chunk": 50,
        "execution.compile": "off",
        "execution.device": "cpu",
    }
    fields = [(key, str(value)) for key, value in small.items() if key not in given]
    own = load_config(name, [*fields, *overrides])
    below = (
        own
        if own.precision.compute != "float64"
        else load_config(name, [*fields, *overrides, ("precision.compute", "float32")])
    )
    exact = [("precision.compute", "float64"), ("execution.attention", "plain"), ("execution.device", "cpu")]
    return load_config(name, [*fields, *overrides, *exact]), below


def _read_inputs(path: Path, config: RunConfig) -> tuple[Tensors, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Weights, and batches of which the first is the saved one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            weights = {key.removeprefix("weights/"): file[key] for key in file if key.startswith("weights/")}
            batch = file["batch"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--inputs {path} can't be read ({error}): give a localize.npz of an earlier call") from None
    for row in parameter_table(config.model):
        if row.name not in weights or weights[row.name].shape != row.shape:
            raise UserError(f"--inputs {path} is of another model ({row.name}): repeat the command that it comes from")
    made = [batch, *batches(config, UPDATES)[1:]]
    return weights, (made, made)


@exits_cleanly
def main() -> int:
    """0 where nothing parts, 1 where something does, 2 for a user's error."""
    words, places, options, overrides = sys.argv[1:], [], {}, []
    if any(word in ("-h", "--help") for word in words):
        print(__doc__)
        return 0
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            places.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"--{key} has no value: give one after it, as in --layers 2")
            value = words.pop(0)
        if key in ("layers", "width", "output", "inputs"):
            options[key] = value
        else:
            overrides.append((key, value))
    folder = Path(options.get("output") or Path("runs") / time.strftime("localize-%Y%m%d-%H%M%S"))
    if len(places) == 2:
        if overrides or options.keys() - {"output"}:
            raise UserError(
                "two runs are given: fields, --layers, --width and --inputs are for a config; leave them out"
            )
        report = compare_runs(Path(places[0]), Path(places[1]))
        report.reproduce = f"python -m parity.localize {places[0]} {places[1]}"
    elif len(places) < 2:
        for key in ("layers", "width"):
            if key in options and not (options[key].isdecimal() and int(options[key])):
                raise UserError(f"--{key} {options[key]} is not a whole number above 0: give one, as in --{key} 2")
        jax.config.update("jax_enable_x64", True)
        torch.set_num_threads(min(torch.get_num_threads(), 4))  # the models are so small that more cost more
        name = places[0] if places else None
        sizes = (int(options[key]) if key in options else None for key in ("layers", "width"))
        config, below = shrunk(name, overrides, *sizes)
        given: dict[str, Any] = {}
        if "inputs" in options:
            given["weights"], given["feeds"] = _read_inputs(Path(options["inputs"]), config)
        report = localize_config(config, below=below, **given)
        report.reproduce = _command(sys.argv[1:], folder)
    else:
        raise UserError(f"{len(places)} names are given: give a config, or the folders of two runs")
    report.save(folder)
    report.show()
    print(f"{folder}: localize.png, localize.txt, localize.npz")
    return int(report.verdict.kind != "same")


def _command(words: list[str], folder: Path) -> str:
    kept, skip = [], False
    for word in words:
        if skip or word.split("=")[0] in ("--output", "--inputs"):
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return " ".join(["python -m parity.localize", *kept, "--inputs", str(folder / "localize.npz")])


if __name__ == "__main__":
    main()
