"""What a planted bug is looked at with: small experiments on one stack, and the gates that judge their outcome.

A probe runs one stack and returns what it saw; its judge compares that with what the other stack saw. The unmutated
outcome of either stack is computed once, and so is what JAX compiled for it.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

import jaxtrain.attention
import jaxtrain.data
import jaxtrain.generate
import jaxtrain.model
import jaxtrain.optimizer
import jaxtrain.trainer
import torchtrain.attention
import torchtrain.data
import torchtrain.generate
import torchtrain.model
import torchtrain.optimizer
import torchtrain.trainer
from coretrain.checkpoint import Progress, load_interchange, save_interchange
from coretrain.config import RunConfig
from coretrain.data import Data, batch_hash, open_data
from coretrain.parameters import parameter_table, to_jax_tree
from coretrain.randomness import normal_rows
from coretrain.sampling import Sampling, pad_prompts
from coretrain.schedule import clip_factor, learning_rate
from coretrain.tables import dropout_keys
from parity.compare import (
    ALONE,
    CACHE,
    DECAY,
    GRADIENTS,
    INITIAL,
    KERNEL_64,
    LOGITS,
    LOSS,
    MASKS,
    NORM,
    NORMS_32,
    RATE_USED,
    ROUND_TRIP,
    ROWS,
    SAMPLES,
    UPDATE,
    Gate,
    budget,
    displacement,
    largest_error,
    mismatches,
    nrel,
    worst_tensor,
)
from parity.pair import VARIANTS, WEIGHTS, batches, jax_gradients, make_config, noise_only, torch_gradients

Seen = dict[str, Any]

# Two updates, a checkpoint, two more, against four in one go in the other stack.
RESUME = Gate(
    "resume from a stack's own checkpoint", 1e-11, 2e-14, "a moment lost, a count of updates off by one", "identity"
)
LOGITS_32 = budget("cpu", "float32", "logits")

# An eighth of the time that -O3 takes goes into these models' arithmetic, seven into compiling it.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


@dataclass(frozen=True)
class Side:
    """One stack with its modules, and the few words that the frameworks spell differently."""

    name: str
    xp: Any
    call: str
    nn: Any
    model: ModuleType
    attention: ModuleType
    optimizer: ModuleType
    data: ModuleType
    generate: ModuleType
    trainer: ModuleType

    def array(self, value: np.ndarray) -> Any:
        """A tensor of this framework."""
        return torch.from_numpy(np.ascontiguousarray(value)) if self.name == "torch" else jnp.asarray(value)

    def cast(self, x: Any, dtype: str) -> Any:
        """x in another dtype."""
        return x.to(getattr(torch, dtype)) if self.name == "torch" else x.astype(dtype)

    def rounded(self, x: Any, dtype: str) -> Any:
        """x through another dtype and back."""
        return self.cast(self.cast(x, dtype), str(x.dtype).removeprefix("torch."))

    def stop(self, x: Any) -> Any:
        """x without gradient."""
        return x.detach() if self.name == "torch" else jax.lax.stop_gradient(x)

    def parameter(self, value: Any) -> Any:
        """The array of a parameter."""
        return value if self.name == "torch" else value[...]

    def gain(self, norm: Any) -> Any:
        """The gain of a Norm."""
        return norm.weight if self.name == "torch" else norm.scale[...]


TORCH = Side(
    "torch", torch, "forward", F, torchtrain.model, torchtrain.attention, torchtrain.optimizer, torchtrain.data,
    torchtrain.generate, torchtrain.trainer,
)  # fmt: skip
JAX = Side(
    "jax", jnp, "__call__", jax.nn, jaxtrain.model, jaxtrain.attention, jaxtrain.optimizer, jaxtrain.data,
    jaxtrain.generate, jaxtrain.trainer,
)  # fmt: skip
SIDES = {"torch": TORCH, "jax": JAX}


@dataclass(frozen=True)
class Probe:
    """An experiment on one stack, and the judge of its outcome: gate -> error of the first against the second."""

    run: Callable[[Side, str, str, frozenset[str]], Seen]
    judge: Callable[[Seen, Seen, str, str], dict[Gate, float]]
    gates: tuple[Gate, ...]


UNMUTATED = frozenset({"gradients", "step", "decode"})
"""What of JAX's compiled work is shared; a mutant shares only what it leaves alone."""


@functools.cache
def _weights(config: RunConfig, state: str) -> dict[str, np.ndarray]:
    return WEIGHTS[state](config)


@functools.cache
def _compiled(config: RunConfig, part: str) -> Any:
    """JAX's gradients or optimizer step of `config`, compiled once."""
    return _fresh(jaxtrain.trainer.Trainer(config), part)


def _fresh(stack: Any, part: str) -> Any:
    if part == "gradients":
        return quick_jit(functools.partial(jaxtrain.trainer._gradients, stack.graph, stack.config))
    return quick_jit(stack.optimizer.step)


def make(s: Side, config: RunConfig, weights: Mapping[str, np.ndarray] | None, shared: frozenset[str]) -> Any:
    """A trainer; JAX's takes what is already compiled of `shared`, and compiles the rest afresh."""
    stack = s.trainer.Trainer(config, weights)
    if s is JAX:
        for part in ("gradients", "step"):
            setattr(stack, f"_{part}", _compiled(config, part) if part in shared else _fresh(stack, part))
    return stack


def logits_of(s: Side, stack: Any, tokens: np.ndarray, update: int | None) -> np.ndarray:
    """Logits [B, T, V] with the dropout of `update`, traced afresh in JAX; without dropout where it is None."""
    dropout = None if update is None else stack._dropout(update, len(tokens))
    if s is TORCH:
        with torch.no_grad():
            return stack.model.logits(stack.model(torch.from_numpy(tokens).long(), dropout)).numpy()

    def forward(params, tokens, dropout):
        model = nnx.merge(stack.graph, params)
        return model.logits(model(tokens, dropout))

    return np.asarray(quick_jit(forward)(stack.params, tokens, dropout))


def gradients_of(s: Side, stack: Any) -> dict[str, np.ndarray]:
    """The last gradients by canonical name."""
    return torch_gradients(stack) if s is TORCH else jax_gradients(stack)


# Logits, losses and gradients of three batches at the same weights; or three updates.

STEPS = 3


def _run_gradients(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    stack, made = make(s, config, _weights(config, state), shared), batches(config, STEPS)
    seen: Seen = {"logits": logits_of(s, stack, made[0][:, :-1], 0), "losses": [], "norms": []}
    for update, batch in enumerate(made):
        loss, norm = stack.gradients(batch, update, 1.0)
        seen["losses"].append(loss)
        seen["norms"].append(norm)
        seen.setdefault("gradients", gradients_of(s, stack))
    return seen


def _judge_gradients(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    apart = noise_only(make_config(VARIANTS[variant]))
    return {
        LOGITS: nrel(ours["logits"], theirs["logits"]),
        LOSS: _largest(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
        NORM: _largest(abs(a - b) / b for a, b in zip(ours["norms"], theirs["norms"], strict=True)),
        GRADIENTS: worst_tensor(ours["gradients"], theirs["gradients"], apart)[0],
    }


def _run_logits(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    return {"logits": logits_of(s, make(s, config, _weights(config, state), shared), batches(config, 1)[0][:, :-1], 0)}


def _judge_logits(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {LOGITS: nrel(ours["logits"], theirs["logits"])}


def _largest(errors: Any) -> float:
    return float(np.max(np.array(list(errors))))  # NaN counts as the largest; Python's max loses it


def _run_updates(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    stack = make(s, config, _weights(config, state), shared)
    seen: Seen = {"losses": [], "norms": []}
    for update, batch in enumerate(batches(config, STEPS)):
        loss, norm = stack.gradients(batch, update, 1.0)
        seen["losses"].append(loss)
        seen["norms"].append(norm)
        seen.setdefault("gradients", gradients_of(s, stack))
        stack.apply(learning_rate(config, update), clip_factor(norm, config.optimizer.clip), update)
    return seen | {"state": stack.export()}


def _judge_updates(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    config = make_config(VARIANTS[variant])
    both, apart = (ours["state"], theirs["state"]), noise_only(config)
    return {
        # Only the first is taken at equal weights: later ones show the update's fault, not the loss'.
        LOSS: abs(ours["losses"][0] - theirs["losses"][0]),
        NORM: _largest(abs(a - b) / b for a, b in zip(ours["norms"][:1], theirs["norms"][:1], strict=True)),
        GRADIENTS: worst_tensor(ours["gradients"], theirs["gradients"], apart)[0],
        UPDATE: largest_error(both, _weights(config, state), apart)[0],
    }


def _run_evaluation(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    batch = batches(config, 1)[0]
    total = make(s, config, _weights(config, state), shared).evaluate(batch)
    return {"loss": total / int((batch[:, 1:] >= 0).sum())}


def _judge_evaluation(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {LOSS: abs(ours["loss"] - theirs["loss"])}


def _run_float32(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    narrow = make_config(VARIANTS[variant], precision__compute="float32")
    tokens = batches(config, 1)[0][:, :-1]
    return {
        dtype: logits_of(s, make(s, c, _weights(config, state), shared), tokens, 0)
        for dtype, c in (("float32", narrow), ("float64", config))
    }


def _judge_float32(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {LOGITS_32: nrel(ours["float32"], theirs["float64"])}


# Without a model: initial weights, masks, rates, decay, the optimizer alone, norms, attention alone.


def _run_initial(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    return s.trainer.Trainer(make_config(VARIANTS[variant])).export()["parameters"]


def _judge_initial(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    assert ours.keys() == theirs.keys()
    return {INITIAL: sum(mismatches(ours[name], theirs[name]) for name in ours)}


def _run_masks(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config, rate = make_config(VARIANTS[variant]), 0.3
    keys, rows, x = dropout_keys(config.model, 7, 11), np.array([5, 0, 9, 4_000_000]), np.ones((4, 20, 48))
    keys, rows = (keys.view(np.int32), rows.astype(np.int32)) if s is TORCH else (keys, rows.astype(np.uint32))
    dropout = s.model.Dropout(s.array(keys), s.array(rows))
    sites = [s.model.drop(s.array(x), rate, dropout, site) for site in range(len(keys))]
    return {"kept": np.stack([np.asarray(site) > 0 for site in sites])}


def _judge_masks(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {MASKS: mismatches(ours["kept"], theirs["kept"])}


def _bare(**more: object) -> RunConfig:
    """The smallest model that has every kind of parameter: what is looked at is the optimizer."""
    return make_config(VARIANTS["gpt2-like"], model__layers=1, model__width=16, **more)


def _give(s: Side, stack: Any, gradients: Mapping[str, np.ndarray]) -> None:
    """`gradients`, by canonical name, in the place of those of a batch."""
    if s is TORCH:
        for name, parameter in stack.model.named_parameters():
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad[: len(gradients[name])] = torch.from_numpy(gradients[name])
        return
    config = stack.config
    tree = to_jax_tree(config.model, gradients, config.execution.vocab_multiple)
    flat = dict(nnx.to_flat_state(stack.params))
    stack.grads = nnx.from_flat_state(
        {path: leaf.replace(jnp.asarray(tree[".".join(path)], leaf.dtype)) for path, leaf in flat.items()}
    )


def _run_rates(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """With gradients of one and no decay Adam's first moment over its second is one: it moves by the rate."""
    config = _bare(optimizer__eps=1e-30, optimizer__weight_decay=0)
    stack = make(s, config, _weights(config, "initial"), shared)
    ones = {row.name: np.ones(row.shape) for row in parameter_table(config.model)}
    gains = [_gain(s, stack)]
    for update in range(config.train.updates + 1):
        _give(s, stack, ones)
        stack.apply(learning_rate(config, update), 1.0, update)
        gains.append(_gain(s, stack))
    return {"rates": -np.diff(gains)}


def _gain(s: Side, stack: Any) -> float:
    return float(stack.model.norm.weight.detach()[0] if s is TORCH else stack.params["norm"]["scale"][...][0])


def _judge_rates(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    # Absolute, beside a parameter of size 1: its rounding is 1e-16, a rate 1e-4 to 3e-3.
    return {RATE_USED: float(np.abs(ours["rates"] - theirs["rates"]).max())}


def _run_decay(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = _bare()
    stack = make(s, config, _weights(config, state), shared)
    _give(s, stack, {row.name: np.zeros(row.shape) for row in parameter_table(config.model)})
    before = stack.export()["parameters"]
    stack.apply(0.1, 1.0, 0)
    return {"ratio": {name: value / before[name] for name, value in stack.export()["parameters"].items()}}


def _judge_decay(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    # Two roundings at most; a wrong decay of any kind is 1e-5 at least.
    wrong = [not np.allclose(ours["ratio"][name], theirs["ratio"][name], 1e-15, 0) for name in theirs["ratio"]]
    return {DECAY: sum(wrong)}


def _run_alone(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Gradients of 1e-1 to 1e-9, below Adam's epsilon."""
    config = _bare()
    stack, rows = make(s, config, _weights(config, state), shared), parameter_table(config.model)
    for update in range(20):
        given = {
            row.name: normal_rows(update, f"gradient/{row.name}", (*row.shape, 1), 10.0 ** -(n % 5 * 2 + 1))[..., 0]
            for n, row in enumerate(rows)
        }
        _give(s, stack, given)
        stack.apply(1e-3, 0.75, update)
    return stack.export()["parameters"]


def _judge_alone(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {ALONE: displacement(ours, theirs, _weights(_bare(), state))[0]}


def _run_norms(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    x = np.random.default_rng(0).standard_normal((8, 48)).astype(np.float32) + np.float32(1000)
    wide = x.astype(np.float64)
    wide = wide - wide.mean(-1, keepdims=True) if config.model.norm == "layernorm" else wide
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + config.model.norm_eps)
    if s is TORCH:
        norm = s.model.Norm(config.model)
        torch.nn.init.ones_(norm.weight)
        if norm.bias is not None:
            torch.nn.init.zeros_(norm.bias)
        return {"exact": exact, "found": norm(torch.from_numpy(x)).detach().numpy()}
    norm = s.model.Norm(config.model, (), jnp.dtype("float32"))
    norm.scale[...] = jnp.ones(48, jnp.float32)
    if norm.bias is not None:
        norm.bias[...] = jnp.zeros(48, jnp.float32)
    return {"exact": exact, "found": np.asarray(norm(jnp.asarray(x)))}


def _judge_norms(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {NORMS_32: nrel(ours["found"], ours["exact"])}


def _run_kernels(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    rng = np.random.default_rng(0)
    shapes = {"square": (6, 6, 2), "more keys": (2, 6, 2), "many heads": (2, 6, 4)}
    seen = {}
    for name, (T, S, K) in shapes.items():
        arrays = [s.array(rng.standard_normal((2, n, h, 8))) for n, h in ((T, 4), (S, K), (S, K))]
        seen[name] = np.asarray(s.attention.attention("plain", *arrays))
    return seen


def _judge_kernels(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {KERNEL_64: _largest(nrel(ours[name], theirs[name]) for name in theirs)}


# With text: rows, and a resume.


@functools.cache
def _text() -> tuple[RunConfig, Data]:
    """A small corpus, and the config of a resume over it."""
    folder = Path(tempfile.mkdtemp(prefix="parity-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"document {n}: " + "the quick brown fox jumps over the lazy dog. " * 8)
    more = {
        "data.source": folder, "data.cache": folder / "cache", "data.tokenizer": "bytes",
        "data.validation_fraction": 0.1, "data.prepare_processes": 1, "model.layers": 1, "train.updates": 150,
    }  # fmt: skip
    config = make_config(VARIANTS["llama-like"] | more)
    return config, open_data(config, lambda _: None)


def _run_rows(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config, data = _text()
    assert data.train.windows(config.model.context) < 150 * config.train.batch_size, "the run must go beyond an epoch"
    return {start: [batch_hash(batch) for batch in s.trainer.train_batches(data, config, start)] for start in (0, 73)}


def _judge_rows(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    pairs = itertools.chain(*(itertools.zip_longest(ours[start], theirs[start]) for start in theirs))
    return {ROWS: sum(a != b for a, b in pairs)}


def _run_resume(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Four updates in one go, and two, a checkpoint, a new trainer and two more."""
    config, data = _text()
    seen: Seen = {}
    stack = make(s, config, _weights(config, state), shared)
    whole = _train(stack, data, 0, 2)
    with tempfile.TemporaryDirectory() as folder:
        stack.save(Path(folder))
        stack.wait()
        seen["whole rows"] = whole + _train(stack, data, 2, 4)
        seen["whole"] = stack.export()
        other = make(s, config, None, shared)
        other.load(Path(folder), 2)
    seen["resumed rows"] = whole + _train(other, data, 2, 4)
    return seen | {"resumed": other.export()}


def _train(stack: Any, data: Data, start: int, stop: int) -> list[str]:
    hashes = []
    for update, batch in zip(range(start, stop), stack.batches(data, start, stop), strict=False):
        _, norm = stack.gradients(batch, update, 1.0)
        stack.apply(1e-3, clip_factor(norm, stack.config.optimizer.clip), update)
        hashes.append(batch_hash(batch))
    return hashes


def _judge_resume(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    rows = itertools.zip_longest(ours["resumed rows"], theirs["whole rows"])
    both = (ours["resumed"], theirs["whole"])
    start = _weights(_text()[0], state)
    return {ROWS: sum(a != b for a, b in rows), RESUME: largest_error(both, start, frozenset())[0]}


def _run_round_trip(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Random float64 tensors: adopted, exported, written in the interchange form, read, adopted and exported."""
    config = make_config(VARIANTS[variant])
    rng = np.random.default_rng(0)
    stack = s.trainer.Trainer(config, _weights(config, state))
    given = {g: {n: rng.random(t.shape) for n, t in tensors.items()} for g, tensors in stack.export().items()}
    stack.adopt(given, 3)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "state"
        save_interchange(place, config, written := stack.export(), Progress(), s.name)
        read = {g: dict(tensors) for g, tensors in load_interchange(place).groups.items()}
    stack.adopt(read, 3)
    return {"given": given, "found": stack.export(), "written": written}


def _judge_round_trip(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    # What is written counts too: a matrix transposed on the way out, each time, is itself again after two.
    given, found = ours["given"], (ours["written"], ours["found"])
    tensors = [(state[g][n], t) for state in found for g, group in given.items() for n, t in group.items()]
    return {ROUND_TRIP: sum(mismatches(a, b) for a, b in tensors)}


# Generation.

PROMPTS = [[5, 9, 2, 300, 0, 7], [11], [3, 3, 8]]
NEW = 12
SAMPLINGS = (Sampling(0, 0, 1.0, 0), Sampling(1.0, 0, 1.0, 3), Sampling(0.7, 5, 1.0, 4), Sampling(1.3, 50, 0.6, 5))


def _run_decode(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Prefill and two single steps with given tokens out of the cache, and the same by whole forward passes."""
    config = make_config(VARIANTS[variant])
    m, weights = config.model, _weights(config, state)
    if "decode" not in shared:
        jaxtrain.generate._step.clear_cache()
    stack, padded = s.trainer.Trainer(config, weights), pad_prompts(PROMPTS, m.vocabulary, m.context, 2)
    T, slots = padded.tokens.shape[1], m.context
    empty = np.zeros((m.layers, 3, slots, m.kv, m.head))
    cache = s.model.Cache(s.array(empty), s.array(empty.copy()))
    forced = np.array([[4, 250], [17, 0], [99, 8]], np.int32)
    inputs, positions, at, cached = padded.tokens, padded.positions, 0, []
    for step in range(3):
        mask = padded.mask(at, at + inputs.shape[1], slots)
        if s is TORCH:
            with torch.no_grad():
                hidden, cache = stack.model.step(*map(torch.from_numpy, (inputs, positions, mask)), cache, at)
                cached.append(stack.model.logits(hidden[:, -1]).numpy())
        else:
            found, cache = s.generate._step(stack.graph, stack.params, inputs, positions, mask, cache, at)
            cached.append(np.asarray(found))
        at += inputs.shape[1]
        inputs, positions = forced[:, step : step + 1], positions[:, -1:] + 1
    assert at == T + 2
    rows = np.zeros((3, m.context), np.int32)
    for row, prompt in enumerate(PROMPTS):
        rows[row, : len(prompt) + 2] = prompt + list(forced[row])
    whole = logits_of(s, stack, rows, None)
    picked = [np.stack([whole[r, len(p) - 1 + step] for r, p in enumerate(PROMPTS)]) for step in range(3)]
    tokens = [stack.generate(PROMPTS, NEW, sampling, ()) for sampling in SAMPLINGS]
    if "decode" not in shared:
        jaxtrain.generate._step.clear_cache()
    return {"cached": np.stack(cached), "whole": np.stack(picked), "tokens": np.array(tokens)}


def _judge_decode(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {
        LOGITS: nrel(ours["whole"], theirs["whole"]),
        CACHE: nrel(ours["cached"], theirs["whole"]),
        SAMPLES: mismatches(ours["tokens"], theirs["tokens"]),
    }


PROBES = {
    "gradients": Probe(_run_gradients, _judge_gradients, (LOGITS, LOSS, NORM, GRADIENTS)),
    "logits": Probe(_run_logits, _judge_logits, (LOGITS,)),
    "updates": Probe(_run_updates, _judge_updates, (LOSS, NORM, GRADIENTS, UPDATE)),
    "evaluation": Probe(_run_evaluation, _judge_evaluation, (LOSS,)),
    "float32": Probe(_run_float32, _judge_float32, (LOGITS_32,)),
    "initial": Probe(_run_initial, _judge_initial, (INITIAL,)),
    "masks": Probe(_run_masks, _judge_masks, (MASKS,)),
    "rates": Probe(_run_rates, _judge_rates, (RATE_USED,)),
    "decay": Probe(_run_decay, _judge_decay, (DECAY,)),
    "alone": Probe(_run_alone, _judge_alone, (ALONE,)),
    "norms": Probe(_run_norms, _judge_norms, (NORMS_32,)),
    "kernels": Probe(_run_kernels, _judge_kernels, (KERNEL_64,)),
    "rows": Probe(_run_rows, _judge_rows, (ROWS,)),
    "resume": Probe(_run_resume, _judge_resume, (ROWS, RESUME)),
    "round trip": Probe(_run_round_trip, _judge_round_trip, (ROUND_TRIP,)),
    "decode": Probe(_run_decode, _judge_decode, (LOGITS, CACHE, SAMPLES)),
}


@functools.cache
def unmutated(side: str, probe: str, variant: str, state: str) -> Seen:
    """What a stack as it is sees."""
    return PROBES[probe].run(SIDES[side], variant, state, UNMUTATED)
