"""Does the judge see anything? Bugs that people made, planted into one stack; the gate named beside each must catch it.

A bug is a function that patches one stack at run time, in torchtrain or in jaxtrain; the other stack is the judge's
reference. Most are planted on either side in turn. Declared equivalents change how something is computed and not what:
no gate may tell them from the original.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

import jaxtrain.optimizer
import torchtrain.model
from coretrain.data import Data, Updates
from coretrain.data.batches import Split
from coretrain.randomness import uniforms
from coretrain.sampling import Sampling
from coretrain.schedule import clip_factor, learning_rate
from coretrain.taps import tap
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
)
from parity.localize import jax_recorder, localized_tap
from parity.pair import VARIANTS, WEIGHTS, make_config
from parity.probes import (
    JAX,
    LOGITS_32,
    PROBES,
    RESUME,
    SIDES,
    TORCH,
    UNMUTATED,
    Seen,
    Side,
    make,
    quick_jit,
    unmutated,
)

GPT, LLAMA = "gpt2-like", "llama-like"
BIASED, RECOMPUTED = "llama-like with biases, tied, muon", "gpt2-like, full recompute"

_PROBE_OF = {gate: name for name in reversed(PROBES) for gate in PROBES[name].gates}
_UNTOUCHED = {
    "optimizer": {"gradients"},
    "sampling": {"decode"},
    **{area: {"gradients", "step"} for area in ("clip", "schedule", "data", "checkpoint", "init")},
}
"""What of JAX's compiled work the bugs of an area leave alone; elsewhere all is traced afresh."""

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """A bug in one stack, or a change that is none (`gate` None): how to plant it and who must see it."""

    name: str
    side: str
    area: str
    about: str
    plant: Callable[[Patch, Side], None]
    variant: str
    state: str
    probe: str
    gate: Gate | None
    tap: str | None
    shared: frozenset[str]

    @property
    def id(self) -> str:
        """Name of the test."""
        return f"{self.side}: {self.name}"


MUTANTS: list[Mutant] = []

MATRIX: list[dict[str, Any]] = []
"""The kill matrix of this session, as JSON has it: what `kill` has planted, and where `locate` found it."""

LOCATED: dict[str, tuple[str, str | None]] = {}
"""By the bug's id: the tap that the localizer named, and the right one."""


def mutant(
    area: str,
    gate: Gate | None,
    variant: str = GPT,
    tap: str | None = None,
    sides: tuple[str, ...] = ("torch", "jax"),
    state: str = "scrambled",
    probe: str | None = None,
    retraced: bool = False,
) -> Callable[[Callable[[Patch, Side], None]], Callable[[Patch, Side], None]]:
    """Register a bug for each of `sides`; its docstring is the mistake as people make it."""

    def register(plant: Callable[[Patch, Side], None]) -> Callable[[Patch, Side], None]:
        about, name = " ".join((plant.__doc__ or "").split()), plant.__name__.replace("_", " ")
        shared = frozenset() if retraced else frozenset(_UNTOUCHED.get(area, ()))
        for side in sides:
            how = probe or (_PROBE_OF[gate] if gate else "gradients")
            if gate is LOGITS and side == "jax":
                how = "logits"  # compiling the gradients too would cost four times as much
            MUTANTS.append(Mutant(name, side, area, about, plant, variant, state, how, gate, tap, shared))
        return plant

    return register


def identity(mutant: Mutant) -> dict[str, float]:
    """Errors of the unmutated pair where `mutant` is looked at; any above its cap is a false alarm."""
    return _errors(mutant, unmutated(mutant.side, mutant.probe, mutant.variant, mutant.state))


def kill(mutant: Mutant) -> set[str]:
    """Names of the gates that tell the mutated stack from the other one; noted in `MATRIX`."""
    row = entry(mutant)  # it lives until it is killed
    identity(mutant)  # first, so that nothing shared is traced while the bug is planted
    with pytest.MonkeyPatch.context() as patch:
        mutant.plant(patch, SIDES[mutant.side])
        seen = PROBES[mutant.probe].run(SIDES[mutant.side], mutant.variant, mutant.state, mutant.shared)
    caps = {gate.name: gate.cap for gate in PROBES[mutant.probe].gates}
    killers = {name for name, error in _errors(mutant, seen).items() if not error <= caps[name]}
    row["killed_by"] = sorted(killers)
    return killers


def locate(mutant: Mutant) -> str:
    """The tap at which the localizer finds the bug, "" where it finds none; noted in `MATRIX`."""
    config, weights, jax_trainer, recorder = _correct(mutant.variant, mutant.state)
    with pytest.MonkeyPatch.context() as patch:
        mutant.plant(patch, SIDES[mutant.side])
        torch_trainer = make(TORCH, config, weights, UNMUTATED)
        if mutant.side == "jax":
            jax_trainer = make(JAX, config, weights, mutant.shared)
            recorder = _recorder(jax_trainer)
        found = localized_tap(config, weights, torch_trainer, jax_trainer, recorder=recorder)
    LOCATED[mutant.id] = found, mutant.tap
    for row in MATRIX:
        if (row["name"], row["side"]) == (mutant.name, mutant.side):
            row["localized_tap"] = found
    return found


@functools.cache
def _correct(variant: str, state: str) -> tuple[Any, Any, Any, Any]:
    """(config, weights, JAX's trainer as it is, its recorder), all traced before any bug is planted."""
    config = make_config(VARIANTS[variant])
    weights = WEIGHTS[state](config)
    stack = make(JAX, config, weights, UNMUTATED)
    recorder = _recorder(stack)
    false_alarm = localized_tap(config, weights, make(TORCH, config, weights, UNMUTATED), stack, recorder=recorder)
    assert not false_alarm, f"the localizer finds {false_alarm} in a correct pair"
    return config, weights, stack, recorder


def _recorder(stack: Any) -> Any:
    recorder = jax_recorder(stack)
    recorder._compiled = quick_jit(recorder._run)
    return recorder


def entry(mutant: Mutant) -> dict[str, Any]:
    """The row of `mutant` in `MATRIX`."""
    for row in MATRIX:
        if (row["name"], row["side"]) == (mutant.name, mutant.side):
            return row
    row = {name: getattr(mutant, name) for name in ("name", "side", "area", "about", "variant", "state")}
    row |= {"declared": mutant.gate.name if mutant.gate else None, "killed_by": []}
    row |= {"expected_tap": mutant.tap, "localized_tap": LOCATED.get(mutant.id, (None,))[0]}
    MATRIX.append(row | {"equivalent": mutant.gate is None})
    return MATRIX[-1]


def _errors(mutant: Mutant, seen: Seen) -> dict[str, float]:
    other = unmutated("jax" if mutant.side == "torch" else "torch", mutant.probe, mutant.variant, mutant.state)
    judged = PROBES[mutant.probe].judge(seen, other, mutant.variant, mutant.state)
    return {gate.name: error for gate, error in judged.items()}


def matrix_lines() -> list[str]:
    """The kill matrix as text: mutants by area, who must kill each, how many gates did, and where it was found."""
    lines = []
    if MATRIX:
        lines.append(f"{'area':<11}{'planted bug':<50}{'side':<7}{'must be killed by':<48}{'gates':>5}  found at")
    for row in sorted(MATRIX, key=lambda row: (row["equivalent"], row["area"], row["name"], row["side"])):
        count, declared = len(row["killed_by"]), row["declared"] or "nothing: it is equivalent"
        caught = declared in row["killed_by"] if not row["equivalent"] else not count
        mark = str(count) if caught else "KILLED" if row["equivalent"] else "LIVES"
        place = row["localized_tap"] or ""
        if place and place != row["expected_tap"]:
            place += f" (WRONG: {row['expected_tap']})"
        lines.append(f"{row['area']:<11}{row['name']:<50}{row['side']:<7}{declared:<48}{mark:>5}  {place}".rstrip())
    if bugs := [row for row in MATRIX if not row["equivalent"]]:
        dead = sum(row["declared"] in row["killed_by"] for row in bugs)
        lines.append(f"mutation score: {dead} of {len(bugs)} killed by the gate declared")
    if LOCATED:
        hits = sum(found == expected for found, expected in LOCATED.values())
        lines.append(f"localizer: {hits} of {len(LOCATED)} found at the right tap")
    return lines


def wrap(patch: Patch, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put `make(what is there)` in its place."""
    patch.setattr(owner, name, make(getattr(owner, name)))


# Model: activations.


_GELU = math.sqrt(2 / math.pi)


def _gelu(patch: Patch, s: Side, constant: float = _GELU, cubic: float = 0.044715) -> None:
    def gelu(x: Any, approximate: Any = None) -> Any:
        return 0.5 * x * (1 + s.xp.tanh(constant * (x + cubic * x**3)))

    patch.setattr(s.nn, "gelu", gelu)


@mutant("model", LOGITS, tap="blocks.0.activation")
def gelu_constant_of_ten_digits(patch: Patch, s: Side) -> None:
    """sqrt(2 / pi) typed in with ten digits."""
    _gelu(patch, s, 0.7978845608)


@mutant("model", LOGITS, tap="blocks.0.activation")
def gelu_constant_wrong_in_its_7th_digit(patch: Patch, s: Side) -> None:
    """A digit mistyped: 0.0447151 for 0.044715."""
    _gelu(patch, s, cubic=0.0447151)


@mutant("model", LOGITS, tap="blocks.0.activation")
def gelu_constant_in_float32(patch: Patch, s: Side) -> None:
    """A constant made in float32 inside a float64 path."""
    _gelu(patch, s, float(np.float32(_GELU)))


@mutant("model", LOGITS, tap="blocks.0.activation")
def gelu_erf(patch: Patch, s: Side) -> None:
    """The exact GELU for its tanh form: torch's default against JAX's."""
    exact = "none" if s is TORCH else False
    wrap(patch, s.nn, "gelu", lambda f: lambda x, approximate: f(x, approximate=exact))


@mutant("model", LOGITS, tap="blocks.1.activation")
def gelu_erf_in_the_last_block_only(patch: Patch, s: Side) -> None:
    """One block built from another config."""
    last: list[Any] = [False]

    def forward(f: Any) -> Any:
        def call(self: Any, x: Any, rotary: Any, dropout: Any, *layer: Any) -> Any:
            last[0] = layer[0] == 1 if layer else self.site == 3
            return f(self, x, rotary, dropout, *layer)

        return call

    def gelu(f: Any) -> Any:
        exact = "none" if s is TORCH else False

        def both(x: Any, approximate: Any) -> Any:
            return s.xp.where(s.xp.asarray(last[0]), f(x, approximate=exact), f(x, approximate=approximate))

        return both

    wrap(patch, s.model.Block, s.call, forward)
    wrap(patch, s.nn, "gelu", gelu)


@mutant("model", LOGITS, LLAMA, "blocks.0.activation")
def silu_with_a_slope(patch: Patch, s: Side) -> None:
    """x sigmoid(1.702 x), GELU's approximation, for SiLU."""
    wrap(patch, s.nn, "silu", lambda f: lambda x: f(1.702 * x) / 1.702)


@mutant("model", LOGITS, LLAMA, "blocks.0.activation")
def gate_and_up_exchanged(patch: Patch, s: Side) -> None:
    """SiLU on the wrong half of SwiGLU, as when a joint matrix is split the other way."""

    def forward(self: Any, x: Any) -> Any:
        gate, up = tap("blocks.#.gate", self.gate(x)), tap("blocks.#.up", self.up(x))
        return tap("blocks.#.down", self.down(tap("blocks.#.activation", gate * s.nn.silu(up))))

    patch.setattr(s.model.MLP, s.call, forward)


# Model: norms.


def _norm(patch: Patch, s: Side, compute: Callable[[Any, Any, Any], Any]) -> None:
    """`compute(norm, x, normalize)`, where normalize(difference, mean square) is the usual end of it."""

    def forward(self: Any, x: Any) -> Any:
        def normalize(difference: Any, square: Any) -> Any:
            y = difference / s.xp.sqrt(square + self.eps) * s.gain(self)
            return y if self.bias is None else y + s.parameter(self.bias)

        return compute(self, x, normalize)

    patch.setattr(s.model.Norm, s.call, forward)


def _mean(x: Any) -> Any:
    return x.mean(-1, keepdims=True)


@mutant("model", LOGITS, tap="blocks.0.norm1")
def norm_epsilon(patch: Patch, s: Side) -> None:
    """epsilon 1e-6 for 1e-5: HF's defaults differ from model to model."""
    wrap(patch, s.model.Norm, s.call, lambda f: lambda self, x: (_set(self, eps=1e-6), f(self, x))[1])


def _set(module: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(module, name, value)


@mutant("model", LOGITS, tap="blocks.1.norm2")
def norm_epsilon_in_one_layer_only(patch: Patch, s: Side) -> None:
    """One norm of one block built with a default epsilon."""

    def forward(f: Any) -> Any:
        def call(self: Any, x: Any, rotary: Any, dropout: Any, layer: Any = None) -> Any:
            if s is TORCH:
                _set(self.norm2, eps=1e-6 if self.site == 3 else self.norm1.eps)
                return f(self, x, rotary, dropout)
            _set(self.norm2, eps=jnp.where(layer == 1, 1e-6, self.norm1.eps))
            return f(self, x, rotary, dropout, layer)

        return call

    wrap(patch, s.model.Block, s.call, forward)


@mutant("model", LOGITS, tap="norm")
def final_norm_epsilon(patch: Patch, s: Side) -> None:
    """The final norm built apart from the others, with another epsilon."""

    def forward(f: Any) -> Any:
        def call(self: Any, *args: Any) -> Any:
            _set(self.norm, eps=1e-6)
            return f(self, *args)

        return call

    wrap(patch, s.model.GPT, s.call, forward)


@mutant("model", LOGITS, LLAMA, "blocks.0.norm1")
def rms_epsilon_outside_the_root(patch: Patch, s: Side) -> None:
    """x / (rms + eps) for x / sqrt(ms + eps)."""

    def compute(norm: Any, x: Any, _: Any) -> Any:
        return x / (s.xp.sqrt(_mean(x * x)) + norm.eps) * s.gain(norm)

    _norm(patch, s, compute)


@mutant("model", LOGITS, LLAMA, "blocks.0.norm1")
def rmsnorm_subtracts_the_mean(patch: Patch, s: Side) -> None:
    """LayerNorm's centring left in RMSNorm."""
    wrap(patch, s.model.Norm, s.call, lambda f: lambda self, x: f(self, x - _mean(x)))


@mutant("model", LOGITS, tap="blocks.0.norm1")
def variance_over_n_minus_1(patch: Patch, s: Side) -> None:
    """torch.std's default, Bessel's correction, in LayerNorm."""

    def compute(norm: Any, x: Any, normalize: Any) -> Any:
        centred = x - _mean(x)
        return normalize(centred, _mean(centred**2) * x.shape[-1] / (x.shape[-1] - 1))

    _norm(patch, s, compute)


@mutant("model", LOGITS, LLAMA, "blocks.0.norm1")
def norm_in_bfloat16(patch: Patch, s: Side) -> None:
    """Autocast reaches into the norm."""
    wrap(patch, s.model.Norm, s.call, lambda f: lambda self, x: f(self, s.rounded(x, "bfloat16")))


@mutant("model", LOGITS, tap="blocks.0.norm1")
def norm_in_float32(patch: Patch, s: Side) -> None:
    """A hard-coded float32 upcast, which in float64 is a downcast."""
    wrap(patch, s.model.Norm, s.call, lambda f: lambda self, x: s.rounded(f(self, x), "float32"))


@mutant("model", NORMS_32)
def fast_variance(patch: Patch, s: Side) -> None:
    """E[x^2] - E[x]^2: only float32 inputs whose mean is far above their spread show it."""
    _norm(patch, s, lambda norm, x, normalize: normalize(x - _mean(x), _mean(x * x) - _mean(x) ** 2))


@mutant("model", GRADIENTS, tap="cotangent of blocks.1.residual2")
def norm_statistics_without_gradient(patch: Patch, s: Side) -> None:
    """Mean and variance detached: the forward pass is right."""

    def compute(norm: Any, x: Any, normalize: Any) -> Any:
        mean = s.stop(_mean(x))
        return normalize(x - mean, s.stop(_mean((x - mean) ** 2)))

    _norm(patch, s, compute)


# Model: attention.


def _root(patch: Patch, s: Side, change: Callable[[float], float]) -> None:
    patch.setattr(s.attention, "math", types.SimpleNamespace(sqrt=change))


@mutant("model", LOGITS, tap="blocks.0.attention")
def attention_scale_off_by_a_millionth(patch: Patch, s: Side) -> None:
    """1 / sqrt(C), a millionth off."""
    _root(patch, s, lambda c: math.sqrt(c) * (1 + 1e-6))


@mutant("model", LOGITS, tap="blocks.0.attention")
def attention_scale_in_float32(patch: Patch, s: Side) -> None:
    """The scale made in float32 inside a float64 path."""
    _root(patch, s, lambda c: float(np.float32(math.sqrt(c))))


@mutant("model", LOGITS, tap="blocks.0.attention")
def attention_scale_of_the_whole_width(patch: Patch, s: Side) -> None:
    """1 / sqrt(D) for 1 / sqrt(C)."""
    _root(patch, s, lambda c: math.sqrt(4 * c))


def _mask(patch: Patch, s: Side, diagonal: int) -> None:
    def masked(f: Any) -> Any:
        def compute(q: Any, k: Any, v: Any, mask: Any) -> Any:
            seen = np.tril(np.ones(mask.shape, bool), diagonal)
            return f(q, k, v, s.array(seen))

        return compute

    wrap(patch, s.attention, "masked_attention", masked)


@mutant("model", LOGITS, tap="blocks.0.attention")
def next_token_is_seen(patch: Patch, s: Side) -> None:
    """tril with a diagonal of 1."""
    _mask(patch, s, 1)


@mutant("model", LOGITS, tap="blocks.0.attention")
def own_token_is_hidden(patch: Patch, s: Side) -> None:
    """A strict inequality in the mask."""
    _mask(patch, s, -1)


@mutant("model", KERNEL_64)
def mask_aligned_top_left(patch: Patch, s: Side) -> None:
    """is_causal where there are more keys than queries: torch aligns the mask at the top left."""
    plain = s.attention.KERNELS["plain"]

    def compute(q: Any, k: Any, v: Any) -> Any:
        seen = np.tril(np.ones((q.shape[0], q.shape[1], k.shape[1]), bool))
        return s.attention.masked_attention(q, k, v, s.array(seen))

    patch.setitem(s.attention.KERNELS, "plain", dataclasses.replace(plain, compute=compute))


@mutant("model", LOGITS, LLAMA, "blocks.0.attention")
def attention_in_float32(patch: Patch, s: Side) -> None:
    """A hard-coded float32 softmax inside a float64 path."""

    def masked(f: Any) -> Any:
        def compute(q: Any, k: Any, v: Any, mask: Any) -> Any:
            return s.cast(f(*(s.cast(x, "float32") for x in (q, k, v)), mask), "float64")

        return compute

    wrap(patch, s.attention, "masked_attention", masked)


def _attention(patch: Patch, s: Side, change: Callable[[Any, Any, Any], tuple[Any, Any, Any]]) -> None:
    """`change` on q, k, v before attention."""
    wrap(patch, s.model, "attention", lambda f: lambda kernel, q, k, v: f(kernel, *change(q, k, v)))


@mutant("model", LOGITS, LLAMA, "blocks.0.attention")
def key_heads_tiled(patch: Patch, s: Side) -> None:
    """repeat for repeat_interleave: key head h mod K serves query head h."""

    def tile(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
        heads = [h % k.shape[2] for h in range(q.shape[2])]
        return q, s.xp.stack([k[:, :, h] for h in heads], 2), s.xp.stack([v[:, :, h] for h in heads], 2)

    _attention(patch, s, tile)


@mutant("model", GRADIENTS, LLAMA, "cotangent of blocks.1.k_rotated")
def keys_without_gradient(patch: Patch, s: Side) -> None:
    """A detach that was meant for a cache."""
    _attention(patch, s, lambda q, k, v: (q, s.stop(k) + 0 * k, v))


# Model: rotary positions.


@mutant("model", LOGITS, LLAMA, "blocks.0.q_rotated")
def rope_interleaved(patch: Patch, s: Side) -> None:
    """GPT-J's pairs (0, 1), (2, 3) for Llama's halves."""

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        first, second = x[..., ::2], x[..., 1::2]
        cos, sin = cos[..., None, :], sin[..., None, :]
        return s.xp.stack([first * cos - second * sin, second * cos + first * sin], -1).reshape(x.shape)

    patch.setattr(s.model, "rotate", rotate)


@mutant("model", LOGITS, LLAMA, "blocks.0.q_rotated")
def rope_base_off_in_its_8th_digit(patch: Patch, s: Side) -> None:
    """Base 10000.001 for 10000."""
    change = {"rope_theta": 10000.001}
    wrap(patch, s.model, "rotary_tables", lambda f: lambda m, length: f(m.model_copy(update=change), length))


@mutant("model", LOGITS, LLAMA, "blocks.0.q_rotated")
def rope_tables_in_float32(patch: Patch, s: Side) -> None:
    """Angles kept in float32, as transformers does."""

    def tables(f: Any) -> Any:
        return lambda m, length: tuple(t.astype(np.float32).astype(np.float64) for t in f(m, length))

    wrap(patch, s.model, "rotary_tables", tables)


@mutant("model", LOGITS, LLAMA, "blocks.0.k_rotated")
def rope_of_keys_one_position_late(patch: Patch, s: Side) -> None:
    """Keys rotated by the next position's angle, as after a cache that counts from 1."""
    kv = make_config(VARIANTS[LLAMA]).model.kv

    def late(f: Any) -> Any:
        def rotate(x: Any, cos: Any, sin: Any) -> Any:
            return f(x, *((s.xp.roll(t, -1, 0) for t in (cos, sin)) if x.shape[-2] == kv else (cos, sin)))

        return rotate

    wrap(patch, s.model, "rotate", late)


@mutant("model", LOGITS, LLAMA, "blocks.0.q_rotated")
def rope_turns_the_other_way(patch: Patch, s: Side) -> None:
    """The sign of the sine."""
    wrap(patch, s.model, "rotate", lambda f: lambda x, cos, sin: f(x, cos, -sin))


# Model: linear layers, residual stream, embedding, head.

_PARTS = ("q", "k", "v", "out", "gate", "up", "down")


def _linear(patch: Patch, s: Side, part: str, change: Callable[[Any, Any], Any]) -> None:
    """`change(layer, y)` on the output of every linear layer called `part`."""

    def named(f: Any) -> Any:
        def call(self: Any, *args: Any) -> Any:
            for name in _PARTS:
                if getattr(self, name, None) is not None:
                    _set(getattr(self, name), part=name)
            return f(self, *args)

        return call

    def forward(f: Any) -> Any:
        def call(self: Any, x: Any) -> Any:
            y = f(self, x)
            return change(self, y) if self.part == part else y

        return call

    wrap(patch, s.model.Attention, "heads", named)
    wrap(patch, s.model.MLP, s.call, named)
    wrap(patch, s.model.Linear, s.call, forward)


def _drop_bias(patch: Patch, s: Side, part: str) -> None:
    _linear(patch, s, part, lambda layer, y: y - s.parameter(layer.bias))


@mutant("model", LOGITS, tap="blocks.0.v")
def value_bias_dropped(patch: Patch, s: Side) -> None:
    """A bias that the conversion forgot; initial weights hide it."""
    _drop_bias(patch, s, "v")


@mutant("model", LOGITS, tap="blocks.0.q")
def query_bias_dropped(patch: Patch, s: Side) -> None:
    """A bias that the conversion forgot; initial weights hide it."""
    _drop_bias(patch, s, "q")


@mutant("model", LOGITS, tap="blocks.0.down")
def bias_of_the_mlp_dropped(patch: Patch, s: Side) -> None:
    """A bias that the conversion forgot; initial weights hide it."""
    _drop_bias(patch, s, "down")


@mutant("model", LOGITS, tap="blocks.0.out")
def output_bias_added_twice(patch: Patch, s: Side) -> None:
    """A bias inside the matmul's epilogue and once more after it."""
    _linear(patch, s, "out", lambda layer, y: y + s.parameter(layer.bias))


@mutant("model", LOGITS, BIASED, "blocks.0.k")
def key_bias_dropped_where_positions_rotate(patch: Patch, s: Side) -> None:
    """With rotary positions a key bias counts: softmax cancels it only where it is the same for all keys."""
    _drop_bias(patch, s, "k")


@mutant("model", LOGITS, LLAMA, "blocks.0.up")
def matmul_in_float32(patch: Patch, s: Side) -> None:
    """One matmul whose result type is hard-coded."""
    _linear(patch, s, "up", lambda layer, y: s.rounded(y, "float32"))


@mutant("model", LOGITS_32, LLAMA)
def matmuls_in_bfloat16_passes(patch: Patch, s: Side) -> None:
    """The default matmul precision of a GPU or a TPU, in a float32 run."""

    def forward(f: Any) -> Any:
        def call(self: Any, x: Any) -> Any:
            return f(self, s.rounded(x, "bfloat16") if str(x.dtype).endswith("float32") else x)

        return call

    wrap(patch, s.model.Linear, s.call, forward)


@mutant("model", LOGITS, tap="blocks.0.residual1")
def residual_branches_scaled_in_the_forward_pass(patch: Patch, s: Side) -> None:
    """1 / sqrt(2 L), which belongs into the first weights, applied to the branches."""

    def scaled(f: Any) -> Any:
        def drop(x: Any, rate: float, dropout: Any, site: Any) -> Any:
            y = f(x, rate, dropout, site)
            return y if isinstance(site, int) and site == 0 else 0.5 * y

        return drop

    wrap(patch, s.model, "drop", scaled)


def _block(patch: Patch, s: Side, change: Callable[[Any, Any, Any, Any], Any]) -> None:
    """`change(x, normed, residual1, norm2)` -> (what the residual adds to, what norm2 gets), without dropout."""

    def call(self: Any, x: Any, rotary: Any, dropout: Any, layer: Any = None) -> Any:
        normed = tap("blocks.#.norm1", self.norm1(x))
        stream, _ = change(x, normed, None, None)
        first = tap("blocks.#.residual1", stream + self.attention(normed, rotary))
        _, into = change(x, normed, first, self.norm2)
        return tap("blocks.#.residual2", first + self.mlp(tap("blocks.#.norm2", self.norm2(into))))

    patch.setattr(s.model.Block, s.call, call)


@mutant("model", LOGITS, LLAMA, "blocks.0.residual1")
def residual_from_the_normed_stream(patch: Patch, s: Side) -> None:
    """x = norm(x) written over the residual stream."""
    _block(patch, s, lambda x, normed, first, norm2: (normed, first))


@mutant("model", LOGITS, LLAMA, "blocks.0.norm2")
def attention_and_mlp_in_parallel(patch: Patch, s: Side) -> None:
    """GPT-J's block: the MLP reads the block's input."""
    _block(patch, s, lambda x, normed, first, norm2: (x, x))


def _embed(patch: Patch, s: Side, change: Callable[[Any, Any, Any, Any], Any]) -> None:
    """`change(embed, model, tokens, position)` in place of the embedding."""

    def embed(f: Any) -> Any:
        return lambda self, tokens, position: change(functools.partial(f, self), self, tokens, position)

    wrap(patch, s.model.GPT, "_embed", embed)


@mutant("model", LOGITS, tap="embed")
def embedding_times_root_of_width(patch: Patch, s: Side) -> None:
    """Gemma's and T5's habit."""
    _embed(patch, s, lambda f, model, tokens, position: f(tokens, position) * math.sqrt(model.config.width))


@mutant("model", LOGITS, tap="embed")
def positions_count_from_1(patch: Patch, s: Side) -> None:
    """fairseq's offset in the table of positions."""
    _embed(patch, s, lambda f, model, tokens, position: f(tokens, s.xp.roll(position, -1, 0)))


@mutant("model", LOGITS, tap="embed")
def last_id_out_of_range(patch: Patch, s: Side) -> None:
    """A vocabulary one too small: JAX clamps an id that is out of range, without a word."""
    _embed(patch, s, lambda f, model, tokens, position: f(tokens.clip(None, model.config.vocabulary - 2), position))


def _head(patch: Patch, s: Side, change: Callable[[Any, Any], Any]) -> None:
    """`change(model, weight)` in place of the output head."""
    original = s.model.GPT.head_weight.fget
    patch.setattr(s.model.GPT, "head_weight", property(lambda self: change(self, original(self))))


@mutant("model", GRADIENTS, tap="gradient of embed.token")
def tied_head_untied(patch: Patch, s: Side) -> None:
    """A copy of the embedding as head: the logits are right, and the head's share of the gradient is lost."""
    if s is TORCH:  # a sparse gradient of the embedding's own would have nothing dense to be added into
        wrap(patch, F, "embedding", lambda f: lambda tokens, weight, sparse=False: f(tokens, weight))
    _head(patch, s, lambda model, weight: s.stop(weight))


@mutant("model", LOGITS, LLAMA, "logits")
def untied_head_tied(patch: Patch, s: Side) -> None:
    """tie_word_embeddings at its default."""
    _head(patch, s, lambda model, weight: s.parameter(model.embed.token) + 0 * weight)


@mutant("model", LOGITS, LLAMA, "logits")
def logits_in_float32(patch: Patch, s: Side) -> None:
    """logits.float(), which in float64 is a downcast."""

    def logits(self: Any, hidden: Any) -> Any:
        weight = self.head_weight[: self.config.vocabulary]
        return tap("logits", s.rounded(hidden @ weight.T, "float32"))

    patch.setattr(s.model.GPT, "logits", logits)


# Loss.


def _loss(patch: Patch, s: Side, change: Callable[..., tuple[Any, ...]]) -> None:
    """`change(hidden, head, labels, vocab, chunk, scale)` on what the loss gets."""
    wrap(patch, s.trainer, "cross_entropy", lambda f: lambda *args: f(*change(*args)))


@mutant("loss", LOSS)
def labels_shifted(patch: Patch, s: Side) -> None:
    """Labels shifted once in the data and once more in the loss."""
    _loss(patch, s, lambda h, w, labels, v, c, scale: (h, w, s.xp.roll(labels, 1, -1), v, c, scale))


@mutant("loss", LOSS)
def padding_in_the_loss(patch: Patch, s: Side) -> None:
    """The vocabulary's padding takes part in the softmax."""
    _loss(patch, s, lambda h, w, labels, v, c, scale: (h, w, labels, len(w), c, scale))


@mutant("loss", LOSS)
def ignored_label_counts(patch: Patch, s: Side) -> None:
    """-100 clamped to a token."""
    _loss(patch, s, lambda h, w, labels, v, c, scale: (h, w, labels.clip(0), v, c, scale))


@mutant("loss", LOSS)
def mean_of_means(patch: Patch, s: Side) -> None:
    """Each micro-batch over its own targets: right only where they have equally many."""

    def change(h: Any, w: Any, labels: Any, v: int, c: int, scale: Any) -> tuple[Any, ...]:
        return h, w, labels, v, c, s.cast(1 / ((labels != -100).sum() * 2), "float64")

    _loss(patch, s, change)


@mutant("loss", LOSS)
def sum_for_mean(patch: Patch, s: Side) -> None:
    """reduction="sum"."""
    _loss(patch, s, lambda h, w, labels, v, c, scale: (h, w, labels, v, c, 0 * scale + 1))


@mutant("loss", LOSS)
def last_chunk_dropped(patch: Patch, s: Side) -> None:
    """Chunks by whole division: the rest of the tokens is lost."""

    def change(h: Any, w: Any, labels: Any, v: int, c: int, scale: Any) -> tuple[Any, ...]:
        count = math.prod(labels.shape)
        kept = s.array(np.arange(count).reshape(labels.shape) < count // c * c)
        return h, w, s.xp.where(kept, labels, -100), v, c, scale

    _loss(patch, s, change)


@mutant("loss", LOSS)
def loss_in_float32(patch: Patch, s: Side) -> None:
    """The loss summed up in float32."""
    wrap(patch, s.trainer, "cross_entropy", lambda f: lambda *args: s.rounded(f(*args), "float32"))


@mutant("loss", NORM)
def gradients_summed_for_averaged(patch: Patch, s: Side) -> None:
    """Gradients twice as large beside the right loss: the clip and Adam leave next to nothing of it."""

    def doubled(f: Any) -> Any:
        def gradients(self: Any, batch: Any, update: int, scale: float) -> tuple[float, float]:
            loss, norm = f(self, batch, update, scale)
            _each_gradient(s, self, lambda g: 2 * g)
            return loss, 2 * norm

        return gradients

    wrap(patch, s.trainer.Trainer, "gradients", doubled)


def _each_gradient(s: Side, stack: Any, change: Callable[[Any], Any]) -> None:
    """`change` on the last gradients of a trainer."""
    if s is TORCH:
        for parameter in stack.model.parameters():
            parameter.grad = change(parameter.grad)
    else:
        stack.grads = jax.tree.map(change, stack.grads)


# Initial weights.


def _initial(patch: Patch, s: Side, change: Callable[[Any, dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    wrap(patch, s.trainer, "initial_parameters", lambda f: lambda model, seed: change(model, f(model, seed)))


@mutant("init", INITIAL, state="initial")
def init_std_off_by_a_millionth(patch: Patch, s: Side) -> None:
    """A std that isn't quite the config's."""
    _initial(patch, s, lambda model, w: {name: v * np.float32(1 + 1e-6) for name, v in w.items()})


@mutant("init", INITIAL, state="initial")
def init_from_another_stream(patch: Patch, s: Side) -> None:
    """The framework's own random numbers; here: another seed."""
    wrap(patch, s.trainer, "initial_parameters", lambda f: lambda model, seed: f(model, seed + 1))


@mutant("init", INITIAL, state="initial")
def init_transposed(patch: Patch, s: Side) -> None:
    """Square matrices laid out the other way: shapes can't show it."""

    def change(model: Any, w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: v.T.copy() if v.ndim == 2 and v.shape[0] == v.shape[1] else v for name, v in w.items()}

    _initial(patch, s, change)


@mutant("init", INITIAL, state="initial")
def residual_scale_missing_from_init(patch: Patch, s: Side) -> None:
    """GPT-2's 1 / sqrt(2 L) left out of the projections into the residual stream."""

    def change(model: Any, w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        scale = np.float32(math.sqrt(2 * model.layers))
        return {n: v * scale if n.endswith(("out.weight", "down.weight")) else v for n, v in w.items()}

    _initial(patch, s, change)


@mutant("init", INITIAL, state="initial")
def biases_start_like_a_linear_layers(patch: Patch, s: Side) -> None:
    """nn.Linear's own uniform biases, which nobody set to zero."""
    rng = np.random.default_rng(0)

    def change(model: Any, w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {n: rng.uniform(-0.1, 0.1, v.shape).astype(v.dtype) if ".bias" in n else v for n, v in w.items()}

    _initial(patch, s, change)


# Dropout.


@mutant("dropout", LOSS)
def dropout_stream_reused_across_updates(patch: Patch, s: Side) -> None:
    """A key that is never split: every update draws the same masks."""
    wrap(patch, s.trainer, "dropout_keys", lambda f: lambda model, seed, update: f(model, seed, 0))


@mutant("dropout", LOSS)
def dropout_counts_rows_from_the_micro_batch(patch: Patch, s: Side) -> None:
    """Masks that depend on how the batch is split."""
    wrap(patch, s.trainer, "Dropout", lambda f: lambda keys, rows: f(keys, rows - rows[0]))


def _drop(patch: Patch, s: Side, change: Callable[..., Any]) -> None:
    """`change(drop, x, rate, dropout, site)` where dropout is at work."""

    def wrapped(f: Any) -> Any:
        def drop(x: Any, rate: float, dropout: Any, site: Any) -> Any:
            return x if rate == 0 or dropout is None else change(f, x, rate, dropout, site)

        return drop

    wrap(patch, s.model, "drop", wrapped)


@mutant("dropout", LOGITS)
def dropout_not_scaled(patch: Patch, s: Side) -> None:
    """What is kept isn't divided by 1 - rate."""
    _drop(patch, s, lambda f, x, rate, dropout, site: f(x, rate, dropout, site) * (1 - rate))


@mutant("dropout", LOGITS)
def dropout_mask_of_another_site(patch: Patch, s: Side) -> None:
    """Sites counted from 1."""
    _drop(patch, s, lambda f, x, rate, dropout, site: f(x, rate, dropout, (site + 1) % dropout.keys.shape[0]))


@mutant("dropout", LOGITS)
def embedding_not_dropped(patch: Patch, s: Side) -> None:
    """No dropout after the embedding."""

    def change(f: Any, x: Any, rate: float, dropout: Any, site: Any) -> Any:
        return x if isinstance(site, int) and site == 0 else f(x, rate, dropout, site)

    _drop(patch, s, change)


@mutant("dropout", MASKS)
def dropout_rate_in_8_bits(patch: Patch, s: Side) -> None:
    """The threshold rounded to a byte, as some kernels do."""
    patch.setattr(s.model, "dropout_threshold", lambda rate: round(rate * 256) << 16)


@mutant("dropout", MASKS)
def dropout_of_whole_tokens(patch: Patch, s: Side) -> None:
    """One draw for all features of a token."""
    patch.setattr(s.model, "FEATURE_STEP", 0)


@mutant("dropout", MASKS, sides=("torch",))
def dropout_hash_with_an_arithmetic_shift(patch: Patch, s: Side) -> None:
    """The sign bit drawn in: int32 for uint32."""
    patch.setattr(torchtrain.model, "_shift_right", lambda x, bits: x >> bits)


@mutant("dropout", LOSS, probe="evaluation")
def dropout_in_evaluation(patch: Patch, s: Side) -> None:
    """model.eval() forgotten."""

    def always(f: Any) -> Any:
        def loss(*args: Any) -> Any:
            *known, tokens, labels, scale, dropout = args
            keys = s.trainer.dropout_keys(known[1].model, 0, 0)
            keys, rows = (keys.view(np.int32), np.int32) if s is TORCH else (keys, np.uint32)
            mask = s.model.Dropout(s.array(keys), s.array(np.arange(len(tokens), dtype=rows)))
            return f(*known, tokens, labels, scale, dropout or mask)

        return loss

    wrap(patch, s.trainer, "_loss", always)


@mutant("dropout", GRADIENTS, RECOMPUTED, sides=("torch",))
def recomputed_with_another_mask(patch: Patch, s: Side) -> None:
    """Activation checkpoints that don't restore the random state: another mask in the backward pass."""

    def change(f: Any, x: Any, rate: float, dropout: Any, site: Any) -> Any:
        backward = torch._C._current_graph_task_id() != -1
        return f(x, rate, dropout, (site + 1) % dropout.keys.shape[0] if backward else site)

    _drop(patch, s, change)


# Optimizer.


def _configured(patch: Patch, s: Side, **changes: Any) -> None:
    """The optimizer built from other settings."""

    def init(f: Any) -> Any:
        def build(self: Any, config: Any, parameters: Any) -> None:
            f(self, config.model_copy(update={"optimizer": config.optimizer.model_copy(update=changes)}), parameters)

        return build

    wrap(patch, s.optimizer.Optimizer, "__init__", init)


def _table(patch: Patch, s: Side, decays: Callable[[Any], bool]) -> None:
    """Weight decay on the rows that `decays` names."""

    def table(f: Any) -> Any:
        return lambda model: tuple(dataclasses.replace(row, decay=decays(row)) for row in f(model))

    wrap(patch, s.optimizer, "parameter_table", table)


def _after(patch: Patch, s: Side, change: Callable[[Any, Any, Any, Any], Any]) -> None:
    """`change(row, old, new, lr)` for what an update makes of a parameter."""
    if s is TORCH:

        def stepped(f: Any) -> Any:
            @torch.no_grad()
            def step(self: Any, lr: float, factor: float) -> None:
                old = {name: p.clone() for name, p in self.parameters.items()}
                f(self, lr, factor)
                for row in s.optimizer.parameter_table(self.config.model):
                    parameter = self.parameters[row.name]
                    parameter.copy_(change(row, old[row.name], parameter.clone(), lr))

            return step

    else:

        def stepped(f: Any) -> Any:
            def step(self: Any, params: Any, state: Any, gradients: Any, lr: Any, factor: Any, corrections: Any) -> Any:
                rows = {row.jax_path: row for row in s.optimizer.parameter_table(self.config.model)}
                new, state = f(self, params, state, gradients, lr, factor, corrections)

                def changed(path: Any, before: Any, after: Any) -> Any:
                    return change(rows[jaxtrain.optimizer.dotted(path)], before, after, lr)

                return jax.tree_util.tree_map_with_path(changed, params, new), state

            return step

    wrap(patch, s.optimizer.Optimizer, "step", stepped)


def _moments(patch: Patch, s: Side, change: Callable[[Any], Any]) -> None:
    """`change` on every moment after an update."""
    if s is TORCH:

        def stepped(f: Any) -> Any:
            @torch.no_grad()
            def step(self: Any, lr: float, factor: float) -> None:
                f(self, lr, factor)
                for state in self.adam.state.values():
                    for name in ("exp_avg", "exp_avg_sq"):
                        state[name].copy_(change(state[name]))

            return step

    else:

        def stepped(f: Any) -> Any:
            def step(self: Any, *args: Any) -> Any:
                new, state = f(self, *args)
                return new, jax.tree.map(change, state)

            return step

    wrap(patch, s.optimizer.Optimizer, "step", stepped)


def _torch_count(patch: Patch, count: float) -> None:
    """torch's Adam as if it had made `count` updates before the first."""

    def init(f: Any) -> Any:
        def build(self: Any, config: Any, model: Any) -> None:
            f(self, config, model)
            for group in self.adam.param_groups:
                for p in group["params"]:
                    zeros = (torch.zeros_like(p), torch.zeros_like(p))
                    self.adam.state[p] = {"step": torch.tensor(count), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}

        return build

    wrap(patch, torchtrain.trainer.Optimizer, "__init__", init)


@mutant("optimizer", UPDATE)
def no_update_at_all(patch: Patch, s: Side) -> None:
    """Parameters that the optimizer never got: a tolerance of twice the learning rate lets it pass."""
    _after(patch, s, lambda row, old, new, lr: old)


@mutant("optimizer", UPDATE)
def sign_flipped(patch: Patch, s: Side) -> None:
    """Up the hill: a tolerance of twice the learning rate lets it pass."""
    _after(patch, s, lambda row, old, new, lr: 2 * old - new)


@mutant("optimizer", DECAY)
def decay_on_biases_and_gains(patch: Patch, s: Side) -> None:
    """One parameter group for all."""
    _table(patch, s, lambda row: True)


@mutant("optimizer", DECAY)
def no_decay_on_embeddings(patch: Patch, s: Side) -> None:
    """Embeddings among what isn't decayed, as in some recipes."""
    _table(patch, s, lambda row: row.decay and not row.name.startswith("embed"))


@mutant("optimizer", UPDATE, LLAMA)
def decay_a_thousandth_high(patch: Patch, s: Side) -> None:
    """weight_decay x 1.001."""
    _configured(patch, s, weight_decay=0.1 * 1.001)


@mutant("optimizer", UPDATE, LLAMA)
def decay_on_the_updated_parameter(patch: Patch, s: Side) -> None:
    """Decay after Adam's step instead of before it."""
    _after(patch, s, lambda row, old, new, lr: new * (1 - lr * 0.1) if row.decay else new)
    _configured(patch, s, weight_decay=0.0)


@mutant("optimizer", UPDATE, LLAMA)
def decay_in_the_gradient(patch: Patch, s: Side) -> None:
    """Adam's L2 term for AdamW's decoupled decay."""
    _configured(patch, s, weight_decay=0.0)
    if s is TORCH:

        def stepped(f: Any) -> Any:
            def step(self: Any, lr: float, factor: float) -> None:
                for row in s.optimizer.parameter_table(self.config.model):
                    p = self.parameters[row.name]
                    p.grad = factor * p.grad + (0.1 * p.detach() if row.decay else 0)
                f(self, lr, 1.0)

            return step

    else:

        def stepped(f: Any) -> Any:
            def step(self: Any, params: Any, state: Any, grads: Any, lr: Any, factor: Any, corrections: Any) -> Any:
                rows = {row.jax_path: row for row in s.optimizer.parameter_table(self.config.model)}

                def coupled(path: Any, g: Any, p: Any) -> Any:
                    return factor * g + (0.1 * p if rows[jaxtrain.optimizer.dotted(path)].decay else 0)

                grads = jax.tree_util.tree_map_with_path(coupled, grads, params)
                return f(self, params, state, grads, lr, jnp.ones_like(factor), corrections)

            return step

    wrap(patch, s.optimizer.Optimizer, "step", stepped)


@mutant("optimizer", UPDATE)
def beta1_off_in_its_7th_digit(patch: Patch, s: Side) -> None:
    """beta1 0.9000001."""
    _configured(patch, s, beta1=0.9000001)


@mutant("optimizer", UPDATE)
def beta2_at_its_default(patch: Patch, s: Side) -> None:
    """beta2 0.999 for 0.95."""
    _configured(patch, s, beta2=0.999)


@mutant("optimizer", ALONE)
def epsilon_ten_times_larger(patch: Patch, s: Side) -> None:
    """epsilon 1e-7 for 1e-8: Keras' default."""
    _configured(patch, s, eps=1e-7)


@mutant("optimizer", ALONE)
def epsilon_before_the_correction(patch: Patch, s: Side) -> None:
    """m / (sqrt(v) + eps), corrected afterwards, as in the paper's short form."""
    if s is TORCH:
        count = [0]

        def stepped(f: Any) -> Any:
            def step(self: Any, lr: float, factor: float) -> None:
                count[0] += 1
                o = self.config.optimizer
                for group in self.adam.param_groups:
                    group["eps"] = o.eps / math.sqrt(1 - o.beta2 ** count[0])
                f(self, lr, factor)

            return step

        wrap(patch, s.optimizer.Optimizer, "step", stepped)
    else:
        _jax_adam(patch, lambda m, v, one, two, eps: m / one / ((jnp.sqrt(v) + eps) / jnp.sqrt(two)))


def _jax_adam(patch: Patch, direction: Callable[..., Any]) -> None:
    """jaxtrain's Adam with another formula at its end."""

    def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
        def init(params: Any) -> Any:
            return jaxtrain.optimizer.Moments(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

        def update(updates: Any, state: Any, params: Any = None, *, corrections: Any, **_: Any) -> Any:
            first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, updates)
            second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.second, updates)
            moved = jax.tree.map(lambda m, v: direction(m, v, *corrections, eps), first, second)
            return moved, jaxtrain.optimizer.Moments(first, second)

        return optax.GradientTransformationExtraArgs(init, update)

    patch.setattr(jaxtrain.optimizer, "scale_by_adam", scale_by_adam)


@mutant("optimizer", UPDATE)
def bias_correction_off_by_one(patch: Patch, s: Side) -> None:
    """The count of updates read after it was raised."""
    if s is TORCH:
        _torch_count(patch, 1.0)
    else:
        wrap(patch, s.optimizer.Optimizer, "corrections", lambda f: lambda self, applied: f(self, applied + 1))


@mutant("optimizer", UPDATE)
def no_bias_correction(patch: Patch, s: Side) -> None:
    """BERT's Adam."""
    if s is TORCH:
        _torch_count(patch, 1e6)
    else:
        patch.setattr(s.optimizer.Optimizer, "corrections", lambda self, applied: (1.0, 1.0))


@mutant("optimizer", UPDATE, sides=("jax",))
def bias_correction_in_float32(patch: Patch, s: Side) -> None:
    """optax's own scale_by_adam: 1 - beta^t in float32."""

    def corrections(self: Any, applied: int) -> tuple[float, float]:
        o, t = self.config.optimizer, np.float32(applied + 1)
        return tuple(float(1 - np.float32(beta) ** t) for beta in (o.beta1, o.beta2))

    patch.setattr(s.optimizer.Optimizer, "corrections", corrections)


@mutant("optimizer", UPDATE, LLAMA)
def moments_in_bfloat16(patch: Patch, s: Side) -> None:
    """Moments in the dtype of the activations."""
    _moments(patch, s, lambda moment: s.rounded(moment, "bfloat16"))


@mutant("optimizer", UPDATE, LLAMA)
def moments_in_float32(patch: Patch, s: Side) -> None:
    """Moments in float32 inside a float64 path."""
    _moments(patch, s, lambda moment: s.rounded(moment, "float32"))


@mutant("optimizer", UPDATE, LLAMA)
def weights_in_float32(patch: Patch, s: Side) -> None:
    """Parameters that pass through a narrower master copy after each update."""
    _after(patch, s, lambda row, old, new, lr: s.rounded(new, "float32"))


@mutant("optimizer", NORM, sides=("torch",))
def gradients_not_cleared(patch: Patch, s: Side) -> None:
    """zero_grad forgotten: the second batch's gradients hold the first's."""
    patch.setattr(torchtrain.model.GPT, "zero_grad", lambda self, set_to_none=True: None)


@mutant("optimizer", UPDATE, BIASED)
def muon_momentum_off(patch: Patch, s: Side) -> None:
    """Momentum 0.9 for 0.95."""
    _configured(patch, s, muon_momentum=0.9)


@mutant("optimizer", UPDATE, BIASED)
def muon_scaled_by_the_shorter_side(patch: Patch, s: Side) -> None:
    """0.2 sqrt(min(rows, columns)) for max."""

    def orthogonalize(f: Any) -> Any:
        return lambda matrix: f(matrix) * math.sqrt(min(matrix.shape[-2:]) / max(matrix.shape[-2:]))

    wrap(patch, s.optimizer, "orthogonalize", orthogonalize)


@mutant("optimizer", UPDATE, BIASED)
def newton_schulz_coefficient_off(patch: Patch, s: Side) -> None:
    """3.4445 typed as 3.4446."""
    patch.setattr(s.optimizer, "NEWTON_SCHULZ", (3.4446, -4.7750, 2.0315))


@mutant("optimizer", UPDATE, BIASED)
def muon_orthogonalizes_in_bfloat16(patch: Patch, s: Side) -> None:
    """The original's cast, where the contract has none."""
    wrap(patch, s.optimizer, "orthogonalize", lambda f: lambda matrix: s.rounded(f(matrix), "bfloat16"))


# Clip.


def _clip(patch: Patch, s: Side, rule: Callable[[float, float], float]) -> None:
    """`rule(norm, limit)` for the factor that an update's gradients are multiplied by."""

    def gradients(f: Any) -> Any:
        def noted(self: Any, *args: Any) -> tuple[float, float]:
            loss, self.noted_norm = f(self, *args)
            return loss, self.noted_norm

        return noted

    def apply(f: Any) -> Any:
        def clipped(self: Any, lr: float, factor: float, applied: int) -> None:
            f(self, lr, rule(self.noted_norm, self.config.optimizer.clip), applied)

        return clipped

    wrap(patch, s.trainer.Trainer, "gradients", gradients)
    wrap(patch, s.trainer.Trainer, "apply", apply)


@mutant("clip", UPDATE, LLAMA)
def clip_without_epsilon(patch: Patch, s: Side) -> None:
    """optax's clip for torch's: no 1e-6."""
    _clip(patch, s, lambda norm, limit: min(1.0, limit / norm))


@mutant("clip", UPDATE)
def clip_a_hundredth_high(patch: Patch, s: Side) -> None:
    """1.01 times the limit."""
    _clip(patch, s, lambda norm, limit: clip_factor(norm, 1.01 * limit))


@mutant("clip", UPDATE)
def no_clip(patch: Patch, s: Side) -> None:
    """The clipped gradients are computed and not used."""
    _clip(patch, s, lambda norm, limit: 1.0)


@mutant("clip", UPDATE)
def clip_of_each_tensor(patch: Patch, s: Side) -> None:
    """optax.clip_by_block_rms' mistake: each tensor by its own norm."""

    def apply(f: Any) -> Any:
        def clipped(self: Any, lr: float, factor: float, applied: int) -> None:
            limit = self.config.optimizer.clip
            _each_gradient(s, self, lambda g: g * clip_factor(float((g**2).sum()) ** 0.5, limit))
            f(self, lr, 1.0, applied)

        return clipped

    wrap(patch, s.trainer.Trainer, "apply", apply)


@mutant("clip", NORM)
def norm_taken_after_the_clip(patch: Patch, s: Side) -> None:
    """The norm that is reported, and clipped by, is that of clipped gradients."""

    def gradients(f: Any) -> Any:
        def after(self: Any, *args: Any) -> tuple[float, float]:
            loss, norm = f(self, *args)
            return loss, norm * clip_factor(norm, self.config.optimizer.clip)

        return after

    wrap(patch, s.trainer.Trainer, "gradients", gradients)


@mutant("clip", NORM, retraced=True)
def norm_without_one_tensor(patch: Patch, s: Side) -> None:
    """A tensor that isn't in the list of what is clipped (the last; JAX's first is a key bias, which has no norm)."""
    wrap(patch, s.trainer, "global_norm", lambda f: lambda gradients: f(list(gradients)[:-1]))


@mutant("clip", NORM, retraced=True)
def norm_as_a_sum_of_norms(patch: Patch, s: Side) -> None:
    """Tensors' norms added up without their squares."""
    wrap(patch, s.trainer, "global_norm", lambda f: lambda gradients: sum(f([g]) for g in gradients))


# Schedule. The contract's loop hands the rate over; here the stack has one of its own.


def _rate(patch: Patch, s: Side, rule: Callable[[Any, int, float], float]) -> None:
    """`rule(config, update, lr)` for the rate that an update gets."""

    def apply(f: Any) -> Any:
        return lambda self, lr, factor, applied: f(self, rule(self.config, applied, lr), factor, applied)

    wrap(patch, s.trainer.Trainer, "apply", apply)


def _scheduled(config: Any, update: int, **changes: Any) -> float:
    return learning_rate(config.model_copy(update={"schedule": config.schedule.model_copy(update=changes)}), update)


@mutant("schedule", RATE_USED)
def schedule_one_update_late(patch: Patch, s: Side) -> None:
    """scheduler.step() before the first update is missed."""
    _rate(patch, s, lambda config, update, lr: learning_rate(config, max(update - 1, 0)))


@mutant("schedule", RATE_USED)
def cosine_over_one_update_more(patch: Patch, s: Side) -> None:
    """The cosine ends at N + 1."""
    _rate(patch, s, lambda c, update, lr: _scheduled(c, update, horizon=c.train.updates + 1))


@mutant("schedule", RATE_USED)
def cosine_over_one_update_less(patch: Patch, s: Side) -> None:
    """The cosine ends at N - 1."""
    _rate(patch, s, lambda c, update, lr: _scheduled(c, update, horizon=c.train.updates - 1))


@mutant("schedule", RATE_USED)
def first_rate_is_zero(patch: Patch, s: Side) -> None:
    """A warm-up from 0: the first update changes nothing."""
    _rate(patch, s, lambda config, update, lr: learning_rate(config, update - 1) if update else 0.0)


@mutant("schedule", RATE_USED)
def warmup_in_micro_steps(patch: Patch, s: Side) -> None:
    """The schedule is stepped once for each micro-batch."""
    _rate(patch, s, lambda config, update, lr: learning_rate(config, update * config.train.accumulation))


@mutant("schedule", RATE_USED)
def warmup_ends_one_update_early(patch: Patch, s: Side) -> None:
    """lr (n + 1) / warmup for lr (n + 1) / (warmup + 1)."""

    def rule(config: Any, update: int, lr: float) -> float:
        warmup = config.schedule.warmup_updates
        return lr * (warmup + 1) / warmup if update < warmup else lr

    _rate(patch, s, rule)


@mutant("schedule", RATE_USED)
def min_lr_ignored(patch: Patch, s: Side) -> None:
    """The cosine goes down to zero."""
    _rate(patch, s, lambda config, update, lr: _scheduled(config, update, min_lr=0.0))


@mutant("schedule", RATE_USED)
def rate_off_by_a_millionth(patch: Patch, s: Side) -> None:
    """lr x (1 + 1e-6)."""
    _rate(patch, s, lambda config, update, lr: lr * (1 + 1e-6))


@mutant("schedule", RATE_USED)
def rate_in_float32(patch: Patch, s: Side) -> None:
    """The rate rounded to float32 on its way to the device."""
    _rate(patch, s, lambda config, update, lr: float(np.float32(lr)))


# Data.


class _Short(Split):
    def windows(self, context: int) -> int:
        return super().windows(context) - 1


class _Shifted(Split):
    def read(self, window: int, context: int) -> Any:
        row = super().read(window, context)
        return np.append(row[1:], row[:1])


@dataclass(frozen=True)
class _Repeating(Updates):
    def batch(self, update: int) -> Any:
        per_epoch = sum(split.windows(self.context) for split in self.splits) // self.batch_size
        return super().batch(update % per_epoch)


def _updates(patch: Patch, s: Side, change: Callable[[Updates], Updates]) -> None:
    wrap(patch, s.data, "updates_of", lambda f: lambda *args: change(f(*args)))


def _splits(kind: type[Split]) -> Callable[[Updates], Updates]:
    return lambda u: dataclasses.replace(u, splits=tuple(kind(split.name, split.shards) for split in u.splits))


def _start(patch: Patch, s: Side, by: int) -> None:
    """A resume that begins `by` updates from where it should."""

    def batches(f: Any) -> Any:
        def moved(data: Data, config: Any, start: int = 0, *more: int) -> Iterator[Any]:
            return f(data, config, start + by if start else start, *more)

        return moved

    wrap(patch, s.trainer, "train_batches", batches)


@mutant("data", ROWS)
def rows_permuted_inside_a_batch(patch: Patch, s: Side) -> None:
    """The same rows in another order: no loss shows it, and dropout does."""
    wrap(patch, s.trainer, "train_batches", lambda f: lambda *args: (batch[::-1] for batch in f(*args)))


@mutant("data", ROWS)
def last_window_dropped(patch: Patch, s: Side) -> None:
    """range(len - 1): one window is never read."""
    _updates(patch, s, _splits(_Short))


@mutant("data", ROWS)
def windows_shifted_by_one_token(patch: Patch, s: Side) -> None:
    """Windows that begin at 1."""
    _updates(patch, s, _splits(_Shifted))


@mutant("data", ROWS)
def every_epoch_in_the_same_order(patch: Patch, s: Side) -> None:
    """set_epoch forgotten."""

    def repeat(u: Updates) -> Updates:
        return _Repeating(**{field.name: getattr(u, field.name) for field in dataclasses.fields(u)})

    _updates(patch, s, repeat)


@mutant("data", ROWS)
def order_of_another_seed(patch: Patch, s: Side) -> None:
    """The shuffle's seed isn't the run's."""
    _updates(patch, s, lambda u: dataclasses.replace(u, seed=u.seed + 1))


@mutant("data", ROWS)
def resume_replays_a_batch(patch: Patch, s: Side) -> None:
    """The cursor saved before it was raised."""
    _start(patch, s, -1)


@mutant("data", ROWS)
def resume_skips_a_batch(patch: Patch, s: Side) -> None:
    """The cursor saved after a prefetch."""
    _start(patch, s, 1)


# Checkpoints.


def _loaded(patch: Patch, s: Side, change: Callable[[dict[str, Any], int], int]) -> None:
    """`change(groups, applied)` on what a resume has loaded; it gives the count of updates."""

    def load(f: Any) -> Any:
        def changed(self: Any, folder: Any, applied: int) -> None:
            f(self, folder, applied)
            groups = {name: dict(tensors) for name, tensors in self.export().items()}
            self.adopt(groups, change(groups, applied))

        return changed

    wrap(patch, s.trainer.Trainer, "load", load)


def _lost(group: str) -> Callable[[dict[str, Any], int], int]:
    def change(groups: dict[str, Any], applied: int) -> int:
        groups[group] = {name: np.zeros_like(tensor) for name, tensor in groups[group].items()}
        return applied

    return change


@mutant("checkpoint", RESUME, LLAMA)
def first_moment_lost_on_resume(patch: Patch, s: Side) -> None:
    """Momentum starts from zero."""
    _loaded(patch, s, _lost("first_moment"))


@mutant("checkpoint", RESUME, LLAMA)
def second_moment_lost_on_resume(patch: Patch, s: Side) -> None:
    """The optimizer's state isn't loaded in full."""
    _loaded(patch, s, _lost("second_moment"))


@mutant("checkpoint", RESUME, LLAMA)
def count_of_updates_off_by_one_on_resume(patch: Patch, s: Side) -> None:
    """Bias correction goes on one update late."""
    if s is TORCH:
        _loaded(patch, s, lambda groups, applied: applied - 1)
        return

    def load(f: Any) -> Any:
        def noted(self: Any, folder: Any, applied: int) -> None:
            f(self, folder, applied)
            self.late = 1

        return noted

    def apply(f: Any) -> Any:
        return lambda self, lr, factor, applied: f(self, lr, factor, applied - getattr(self, "late", 0))

    wrap(patch, s.trainer.Trainer, "load", load)
    wrap(patch, s.trainer.Trainer, "apply", apply)


@mutant("checkpoint", RESUME, LLAMA)
def weights_rounded_to_bfloat16_on_resume(patch: Patch, s: Side) -> None:
    """Weights loaded through the dtype of the activations."""

    def change(groups: dict[str, Any], applied: int) -> int:
        narrow = {n: torch.tensor(t).bfloat16().to(torch.float64).numpy() for n, t in groups["parameters"].items()}
        groups["parameters"] = narrow
        return applied

    _loaded(patch, s, change)


@mutant("checkpoint", ROWS, LLAMA, probe="resume")
def data_cursor_off_by_one_on_resume(patch: Patch, s: Side) -> None:
    """A resume that trains on the next update's batch."""

    def batches(f: Any) -> Any:
        return lambda self, data, start, stop: f(self, data, start + 1 if start else 0, stop + 1 if start else stop)

    wrap(patch, s.trainer.Trainer, "batches", batches)


def _exported(patch: Patch, s: Side, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    """`change(group, tensor)` on every tensor that is exported."""

    def export(f: Any) -> Any:
        return lambda self: {g: {n: change(g, t) for n, t in tensors.items()} for g, tensors in f(self).items()}

    wrap(patch, s.trainer.Trainer, "export", export)


@mutant("checkpoint", ROUND_TRIP)
def weights_rounded_to_float32_on_export(patch: Patch, s: Side) -> None:
    """float32 tensors in the file of a float64 run."""
    _exported(patch, s, lambda group, t: t.astype(np.float32).astype(t.dtype) if group == "parameters" else t)


@mutant("checkpoint", ROUND_TRIP)
def moments_rounded_to_bfloat16_on_export(patch: Patch, s: Side) -> None:
    """Moments saved in half their width to spare disk."""

    def change(group: str, t: np.ndarray) -> np.ndarray:
        return t if group == "parameters" else torch.tensor(t).bfloat16().to(torch.float64).numpy()

    _exported(patch, s, change)


@mutant("checkpoint", ROUND_TRIP)
def square_matrices_transposed_on_export(patch: Patch, s: Side) -> None:
    """Layouts confused where shapes can't show it."""
    _exported(patch, s, lambda group, t: t.T.copy() if t.ndim == 2 and t.shape[0] == t.shape[1] else t)


@mutant("checkpoint", ROUND_TRIP)
def moments_left_out_on_adoption(patch: Patch, s: Side) -> None:
    """A state taken over from the other stack without its moments."""

    def adopt(f: Any) -> Any:
        return lambda self, groups, applied: f(self, {"parameters": groups["parameters"]}, applied)

    wrap(patch, s.trainer.Trainer, "adopt", adopt)


# Generation.


def _decoded(patch: Patch, s: Side, change: Callable[..., tuple[Any, Any]]) -> None:
    """`change(tokens, positions, mask)` -> (positions, mask) of a decoding step."""

    def step(f: Any) -> Any:
        def call(self: Any, tokens: Any, positions: Any, mask: Any, cache: Any, at: Any) -> Any:
            return f(self, tokens, *change(tokens, positions, mask), cache, at)

        return call

    wrap(patch, s.model.GPT, "step", step)


@mutant("generation", CACHE)
def cache_slot_off_by_one(patch: Patch, s: Side) -> None:
    """A new token's keys overwrite the last one's."""

    def step(f: Any) -> Any:
        def call(self: Any, x: Any, rotary: Any, mask: Any, keys: Any, values: Any, at: Any) -> Any:
            return f(self, x, rotary, mask, keys, values, at - 1 if x.shape[1] == 1 else at)

        return call

    wrap(patch, s.model.Block, "step", step)


@mutant("generation", CACHE)
def position_of_a_new_token_off_by_one(patch: Patch, s: Side) -> None:
    """Positions counted from 1 once the prompt is in the cache."""
    _decoded(patch, s, lambda tokens, pos, mask: (pos + 1 if tokens.shape[1] == 1 else pos, mask))


@mutant("generation", CACHE, LLAMA)
def rotary_position_of_a_new_token_off_by_one(patch: Patch, s: Side) -> None:
    """Positions counted from 1 once the prompt is in the cache."""
    _decoded(patch, s, lambda tokens, pos, mask: (pos + 1 if tokens.shape[1] == 1 else pos, mask))


@mutant("generation", CACHE)
def positions_count_left_padding(patch: Patch, s: Side) -> None:
    """arange over a left-padded batch."""

    def change(tokens: Any, positions: Any, mask: Any) -> tuple[Any, Any]:
        counted = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        return (s.array(counted) if tokens.shape[1] > 1 else positions), mask

    _decoded(patch, s, change)


@mutant("generation", CACHE)
def left_padding_is_seen(patch: Patch, s: Side) -> None:
    """No attention mask for a batch of unequal prompts."""

    def change(tokens: Any, positions: Any, mask: Any) -> tuple[Any, Any]:
        causal = np.broadcast_to(np.tril(np.ones(mask.shape[1:], bool)), mask.shape)
        return positions, s.array(causal) if tokens.shape[1] > 1 else mask

    _decoded(patch, s, change)


@mutant("sampling", SAMPLES)
def temperature_after_top_p(patch: Patch, s: Side) -> None:
    """The nucleus is cut before the temperature changes the probabilities."""

    def choose(f: Any) -> Any:
        def chosen(logits: Any, sampling: Sampling, position: int) -> Any:
            if sampling.temperature == 0:
                return f(logits, sampling, position)
            order = np.argsort(-logits, axis=-1, kind="stable")
            ranked = np.take_along_axis(logits, order, -1)
            if sampling.top_k:
                ranked[:, sampling.top_k :] = -np.inf
            weights = np.exp(ranked - ranked[:, :1])
            weights /= weights.sum(-1, keepdims=True)
            ranked[np.cumsum(weights, -1) - weights >= sampling.top_p] = -np.inf
            weights = np.exp((ranked - ranked[:, :1]) / sampling.temperature)
            cumulative = np.cumsum(weights, -1)
            draws = uniforms(sampling.seed, "sampling", position, len(logits))[:, None] * cumulative[:, -1:]
            return np.take_along_axis(order, (cumulative <= draws).sum(-1)[:, None], -1)[:, 0]

        return chosen

    wrap(patch, s.generate, "choose_tokens", choose)


@mutant("sampling", SAMPLES)
def same_random_number_every_step(patch: Patch, s: Side) -> None:
    """A key that is never split."""
    wrap(patch, s.generate, "choose_tokens", lambda f: lambda logits, sampling, position: f(logits, sampling, 0))


@mutant("sampling", SAMPLES)
def top_k_off_by_one(patch: Patch, s: Side) -> None:
    """The k-th largest logit itself is cut, by a comparison that isn't strict."""

    def choose(f: Any) -> Any:
        def chosen(logits: Any, sampling: Sampling, position: int) -> Any:
            fewer = sampling.top_k - 1 if sampling.top_k else 0
            return f(logits, dataclasses.replace(sampling, top_k=fewer), position)

        return chosen

    wrap(patch, s.generate, "choose_tokens", choose)


FEW = {
    "torch": (
        "gelu constant of ten digits",
        "norm epsilon in one layer only",
        "fast variance",
        "mean of means",
        "gradients summed for averaged",
        "dropout stream reused across updates",
        "clip without epsilon",
        "decay on the updated parameter",
        "every epoch in the same order",
        "weights rounded to float32 on export",
        "finite mask value",
    ),
    "jax": (
        "attention scale off by a millionth",
        "init from another stream",
        "dropout of whole tokens",
        "no update at all",
        "decay on biases and gains",
        "cosine over one update less",
        "rows permuted inside a batch",
        "moments left out on adoption",
    ),
}
"""What `pytest parity` runs by default: of every area some, on both sides, chosen for what they cost to compile."""


def deselect_mutation(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For pytest_collection_modifyitems: the full set runs where `-m` names it or a test is asked for by its id.

    So do the sweeps that are marked slow.
    """
    asked = any("::" in str(word) for word in config.args)
    left_out = [mark for mark in ("mutation", "slow") if not asked and mark not in (config.option.markexpr or "")]
    kept = [item for item in items if not any(item.get_closest_marker(mark) for mark in left_out)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


# Equivalents: another way to the same numbers.


@mutant("equivalent", None)
def finite_mask_value(patch: Patch, s: Side) -> None:
    """-1e30 for -inf where something is masked: its exponential is zero as well."""

    def masked(q: Any, k: Any, v: Any, mask: Any) -> Any:
        groups = q.shape[2] // k.shape[2]
        k, v = (s.xp.stack([x[:, :, h // groups] for h in range(q.shape[2])], 2) for x in (k, v))
        scores = s.xp.einsum("bthc,bshc->bhts", q, k) / math.sqrt(q.shape[-1])
        weights = s.nn.softmax(s.xp.where(mask[:, None], scores, -1e30), -1)
        return s.xp.einsum("bhts,bshc->bthc", weights, v)

    patch.setattr(s.attention, "masked_attention", masked)


@mutant("equivalent", None)
def key_bias_dropped_where_positions_are_learned(patch: Patch, s: Side) -> None:
    """Softmax cancels what is the same for all keys."""
    _drop_bias(patch, s, "k")


@mutant("equivalent", None, LLAMA)
def rope_positions_all_one_later(patch: Patch, s: Side) -> None:
    """Rotary attention sees differences of positions only."""
    wrap(patch, s.model, "rotary_tables", lambda f: lambda m, length: tuple(table[1:] for table in f(m, length + 1)))


@mutant("equivalent", None)
def another_chunk_of_the_loss(patch: Patch, s: Side) -> None:
    """7 rows of logits at a time for 50."""
    _loss(patch, s, lambda h, w, labels, v, c, scale: (h, w, labels, v, 7, scale))


@mutant("equivalent", None)
def micro_batches_in_another_number(patch: Patch, s: Side) -> None:
    """Four micro-batches for two: gradients are added up in another order."""

    def init(f: Any) -> Any:
        def build(self: Any, config: Any, tensors: Any = None) -> None:
            f(self, config.model_copy(update={"train": config.train.model_copy(update={"accumulation": 4})}), tensors)

        return build

    wrap(patch, s.trainer.Trainer, "__init__", init)


@mutant("equivalent", None)
def queries_scaled_for_scores(patch: Patch, s: Side) -> None:
    """1 / sqrt(C) on the queries, as splash attention wants it."""
    _attention(patch, s, lambda q, k, v: (q / math.sqrt(q.shape[-1]), k, v))
    _root(patch, s, lambda c: 1.0)


@mutant("equivalent", None, LLAMA, probe="updates")
def decay_subtracted_for_multiplied(patch: Patch, s: Side) -> None:
    """p - lr x decay x p for p (1 - lr x decay), and back."""
    _configured(patch, s, weight_decay=0.0)
    if s is TORCH:
        _after(patch, s, lambda row, old, new, lr: new - lr * 0.1 * old if row.decay else new)
    else:
        _after(patch, s, lambda row, old, new, lr: old * (1 - lr * 0.1) + (new - old) if row.decay else new)


@mutant("equivalent", None, BIASED, probe="updates")
def muon_on_the_tall_side(patch: Patch, s: Side) -> None:
    """Newton-Schulz without the transpose of tall matrices: dearer, and the same polynomial of the matrix."""

    def orthogonalize(x: Any) -> Any:
        a, b, c = s.optimizer.NEWTON_SCHULZ
        x = x / s.xp.sqrt((x * x).sum((-2, -1), keepdims=True))
        for _ in range(5):
            square = x @ x.mT
            x = a * x + (b * square + c * (square @ square)) @ x
        return x

    patch.setattr(s.optimizer, "orthogonalize", orthogonalize)
