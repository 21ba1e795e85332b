"""Both stacks built from one config, on the CPU, with the same weights and batches."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

import jaxtrain.model
import jaxtrain.step
import torchtrain.model
import torchtrain.step
from coretrain.base.arrays import Tensors
from coretrain.base.errors import UserError
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import initial_parameters, parameter_table
from coretrain.contract.randomness import normal_rows
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.data.batch import Batch, windows
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.compiling import quick_jit
from parity.forms import GPT2_FORM, LLAMA_FORM, Fields
from torchtrain.trainer import Trainer as TorchTrainer

SMALL: Fields = {
    "precision.compute": "float64",
    "execution.device": "cpu",
    "execution.attention": "plain",
    "execution.compile": "off",
    "execution.scan_layers": "true",  # as on every accelerator; unset, a CPU unrolls so few layers
    "execution.loss_chunk": 50,
    "model.layers": 2,
    "model.width": 48,
    "model.heads": 4,
    "model.context": 40,
    "model.vocab": 301,
    "train.batch_size": 4,
    "train.updates": 200,
    "schedule.warmup_updates": 10,
    "optimizer.clip": 0.2,
    **GPT2_FORM,
}
GPT2: Fields = {
    "model.residual_dropout": 0.1,
    "model.embedding_dropout": 0.1,
    "train.accumulation": 2,
}
LLAMA: Fields = {
    **LLAMA_FORM,
    "model.kv_heads": 2,
}
ODD: Fields = {
    "model.mlp_width": 100,
    "model.norm_eps": 2e-3,
    "model.init_std": 0.03,
    "optimizer.lr": 2e-3,
    "optimizer.beta1": 0.85,
    "optimizer.beta2": 0.9997,
    "optimizer.eps": 1e-6,
    "optimizer.weight_decay": 0.05,
    "schedule.horizon": 190,
    "schedule.min_lr": 3e-4,
    "train.seed": 99,
}
"""Numbers that aren't the defaults, in the last two variants: a stack that reads a default in their place differs."""
VARIANTS: dict[str, Fields] = {
    "gpt2-like": GPT2,
    "llama-like": LLAMA,
    "gpt2-like, full recompute": GPT2 | {"execution.checkpoint_activations": "full"},
    "llama-like, matmuls kept": LLAMA | {"execution.checkpoint_activations": "matmuls"},
    "llama-like, unrolled": LLAMA | {"execution.scan_layers": "false"},
    "llama-like with biases, tied, muon": LLAMA
    | ODD
    | {
        "model.bias": "true",
        "model.tied": "true",
        "model.head_width": 14,
        "model.rope_theta": 300.0,
        "model.rope_scaling": '{"type": "llama3", "factor": 4.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0, '
        '"original_context": 32}',
        "model.residual_dropout": 0.15,
        "model.embedding_dropout": 0.05,
        "optimizer.name": "muon",
        "optimizer.muon_momentum": 0.93,
        "schedule.kind": "linear",
    },
    "gpt2-like without biases, adam": GPT2
    | ODD
    | {
        "model.bias": "false",
        "model.head_width": 10,
        "model.kv_heads": 1,
        "optimizer.name": "adam",
        "schedule.kind": "wsd",
        "schedule.decay_fraction": 0.3,
        "schedule.decay_shape": "1-sqrt",
    },
}
BASIC = ["gpt2-like", "llama-like"]
"""The variants that every rung is climbed with; `--config` adds its own."""
LONG = [*BASIC, "llama-like with biases, tied, muon", "gpt2-like without biases, adam"]
"""Those that are trained for many updates: recomputing and unrolling end with the gradients."""


def add_variant(config: RunConfig, layers: int | None, width: int | None) -> str:
    """Send `config` through the whole ladder too, with fewer layers or a smaller width where asked; gives its name.

    Model, optimizer and the kind of schedule are the config's. Vocabulary, rows, rates and clip stay those of `SMALL`:
    they change no algorithm, the clip must be at work, and a real vocabulary would take minutes an update in float64.
    """
    if width is not None and (width < 2 or width % 2):
        raise UserError(
            "parity/width-is-odd",
            f"--width {width}: choose an even width, heads are halved by rotary positions",
        )
    model = config.model.model_dump()
    model |= {"vocab": SMALL["model.vocab"], "context": min(SMALL["model.context"], model["context"])}
    model["layers"] = layers or model["layers"]
    if width:
        heads = next(n for n in range(min(model["heads"], width // 2), 0, -1) if width % n == 0 and width // n % 2 == 0)
        groups = config.model.heads // config.model.kv
        kv = next(n for n in range(max(1, heads // groups), 0, -1) if heads % n == 0)
        hidden = max(1, round(config.model.hidden * width / model["width"]))
        model |= {"width": width, "heads": heads, "kv_heads": kv, "head_width": None, "mlp_width": hidden}
    model["rope_scaling"] = json.dumps(model["rope_scaling"]) if model["rope_scaling"] else None
    fields = {f"model.{name}": value for name, value in model.items()}
    rule, kind = config.optimizer.model_dump(exclude={"lr", "clip"}), config.schedule.kind
    needs: dict[str, Fields] = {"rewarm": {"schedule.start_lr": 1e-5}, "infinite": {"schedule.cooldown_updates": 20}}
    fields |= {f"optimizer.{name}": value for name, value in rule.items()}
    fields |= {"schedule.kind": kind} | needs.get(kind, {})
    shape = f"{model['layers']} layers, width {model['width']}"
    name = f"{config.name} ({shape})"
    VARIANTS[name] = fields
    BASIC.append(name)
    LONG.append(name)
    return name


@dataclass(frozen=True)
class Device:
    """A device to judge on: its name, and what torch and JAX call it (None where they haven't got it)."""

    name: str
    torch: str | None
    jax: str | None


def present_devices() -> list[Device]:
    """The devices that torch or JAX find here; the CPU first."""
    found = [Device("cpu", "cpu", "cpu")]
    gpu = "cuda" if _jax_has("gpu") else None
    if torch.cuda.is_available() or gpu:
        found.append(Device("cuda", "cuda" if torch.cuda.is_available() else None, gpu))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "mps", None))
    if _jax_has("tpu"):
        found.append(Device("tpu", None, "tpu"))
    return found


DEVICES: list[Device] = []
"""The devices of this session; `settle` decides."""


def settle(devices: list[str] | None, config: str | None, layers: int | None, width: int | None) -> None:
    """Take the judge's options: devices by name (None: every one present), and a config for one more variant.

    Raises `UserError` for a device that isn't here, and for a config that can't be had.
    """
    present = {device.name: device for device in present_devices()}
    for name in devices or ():
        if name not in present:
            raise UserError(
                "parity/device-not-found",
                f"--device {name}: neither torch nor JAX finds one here; leave --device out to use what is present "
                f"({', '.join(present)}), or see twintrain doctor",
            )
    DEVICES[:] = [present[name] for name in dict.fromkeys(devices or present)]
    if config is not None:
        make_config(VARIANTS[add_variant(load_config(config), layers, width)])
    elif layers is not None or width is not None:
        raise UserError(
            "parity/shrink-without-config",
            "--layers and --width shrink the model of --config: name one with --config",
        )


def _jax_has(platform: str) -> bool:
    try:
        return bool(jax.devices(platform))
    except RuntimeError:
        return False


def make_config(variant: Fields, **more: object) -> RunConfig:
    """The small config with a variant's switches; `section__field=value` on top."""
    fields = SMALL | variant | {key.replace("__", "."): value for key, value in more.items()}
    return load_config("tiny", [(key, str(value)) for key, value in fields.items()])


def perturbed(config: RunConfig) -> dict[str, np.ndarray]:
    """Weights that hide nothing: every bias and gain away from 0 and 1, every matrix larger than at the start.

    At the start a dropped bias changes nothing, and attention is so even that its scale hardly counts.
    """
    weights = initial_parameters(config.model, config.train.seed)
    for row in parameter_table(config.model):
        if row.init == "normal":
            weights[row.name] = weights[row.name] * np.float32(4)
        else:
            weights[row.name] = weights[row.name] + normal_rows(1, f"scramble/{row.name}", (*row.shape, 1), 0.3)[..., 0]
    return weights


def tiny_head(config: RunConfig) -> dict[str, np.ndarray]:
    """Perturbed, with an untied head a 256th as large: in float16 most gradients underflow without a loss scale."""
    weights = perturbed(config)
    return weights | {"head.weight": weights["head.weight"] / np.float32(256)}


@functools.cache
def trained(config: RunConfig, updates: int = 16) -> Tensors:
    """Weights after a few updates from the initial ones, in torch."""
    trainer = TorchTrainer(config)
    for update, batch in enumerate(batches(config, 2) * (updates // 2)):
        _, norm = trainer.gradients(batch, update, 1.0)
        trainer.apply(3 * config.optimizer.lr, clip_factor(norm, config.optimizer.clip), update)
    return trainer.export()["parameters"]


WEIGHTS: dict[str, Callable[[RunConfig], Tensors]] = {
    "initial": lambda config: initial_parameters(config.model, config.train.seed),
    "perturbed": perturbed,
    "trained": trained,
}
"""The three states in which the stacks are compared."""


def batches(config: RunConfig, count: int) -> list[Batch]:
    """Random rows of tokens over the whole vocabulary, both its ends among them, with ignored labels.

    The last column is only a label: -100 there is ignored. The first rows have them and the last have not, so that
    micro-batches have unequal numbers of targets.
    """
    rng = np.random.default_rng(0)
    shape = (config.train.batch_size, config.model.context + 1)
    made = [rng.integers(0, config.model.vocabulary, shape, dtype=np.int32) for _ in range(count)]
    for batch in made:
        batch[0, :2] = 0, config.model.vocabulary - 1
        batch[:2, -1] = -100
        if not (batch[:, 1:] >= 0).any():  # a context of 1
            batch[0, -1] = 0
    return [windows(batch) for batch in made]


def noise_only(config: RunConfig) -> frozenset[str]:
    """Key biases, where positions are learned: softmax cancels what is the same for all keys, so that their gradient
    is zero, what floating point leaves is noise, and Adam makes whole steps of it. (Rotary positions turn the bias
    with the key: there it counts.)
    """
    names = (row.name for row in parameter_table(config.model) if row.name.endswith("attention.k.bias"))
    return frozenset(names if config.model.position == "learned" else ())


def restart(stack: TorchTrainer | JaxTrainer, weights: Mapping[str, np.ndarray]) -> None:
    """A trainer at `weights` with zero moments, as before the first update."""
    groups = {name: {n: np.zeros_like(t) for n, t in g.items()} for name, g in stack.export().items()}
    stack.adopt(groups | {"parameters": weights}, 0)


@dataclass
class Pair:
    """The two trainers."""

    config: RunConfig
    torch: TorchTrainer
    jax: JaxTrainer
    start: Tensors

    @property
    def stacks(self) -> tuple[TorchTrainer, JaxTrainer]:
        """Torch first."""
        return self.torch, self.jax

    @property
    def excluded(self) -> frozenset[str]:
        """Tensors that are compared apart."""
        return noise_only(self.config)

    def reset(self, weights: Tensors) -> None:
        """Both stacks at `weights` with zero moments, as before the first update."""
        self.start = weights
        for stack in self.stacks:
            restart(stack, weights)

    def logits(self, tokens: np.ndarray, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits [B, T, V] of both, with the dropout of `update`."""
        return torch_logits(self.torch, tokens, update), jax_logits(self.jax, tokens, update)

    def gradients(self, batch: Batch, update: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """(loss, norm) of torch and of JAX; the gradients stay in the trainers."""
        first, second = (stack.gradients(batch, update, 1.0) for stack in self.stacks)
        return first, second

    def gradient_tensors(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The last gradients of both by canonical name."""
        return torch_gradients(self.torch), jax_gradients(self.jax)

    def apply(self, update: int, norms: tuple[float, float]) -> None:
        """One clipped update of each with its own norm."""
        stacks: tuple[TorchTrainer | JaxTrainer, ...] = self.stacks
        for stack, norm in zip(stacks, norms, strict=True):
            stack.apply(learning_rate(self.config, update), clip_factor(norm, self.config.optimizer.clip), update)

    def states(self) -> tuple[Mapping[str, Tensors], Mapping[str, Tensors]]:
        """Parameters and moments of both."""
        return self.torch.export(), self.jax.export()


def torch_logits(stack: TorchTrainer, tokens: np.ndarray, update: int) -> np.ndarray:
    """Logits [B, T, V] with the dropout of `update`."""
    with torch.no_grad():
        ids = torch.from_numpy(tokens).to(stack.device, torch.long)
        dropout = torchtrain.step.dropout_masks(stack.config, update, len(tokens))
        hidden = stack.model(ids, dropout and dropout.to(stack.device))
        return stack.model.logits(hidden).cpu().numpy()


def jax_logits(stack: JaxTrainer, tokens: np.ndarray, update: int) -> np.ndarray:
    """Logits [B, T, V] with the dropout of `update`."""
    dropout = jaxtrain.step.dropout_masks(stack.config, update, len(tokens))
    jit = quick_jit if stack.config.precision.compute == "float64" else jax.jit
    return np.asarray(_compiled_logits[jit](*nnx.split(stack.whole_model()), tokens, dropout))


def _logits(graph, params, tokens, dropout):
    model = nnx.merge(graph, params)
    return model.logits(model(tokens, dropout))


_compiled_logits = {jit: jit(_logits, static_argnums=0) for jit in (jax.jit, quick_jit)}


def torch_gradients(stack: TorchTrainer) -> dict[str, np.ndarray]:
    """The last gradients by canonical name."""
    named = {name: p.grad for name, p in stack.model.named_parameters() if p.requires_grad and p.grad is not None}
    return torchtrain.model.canonical_tensors(stack.config, named)


def jax_gradients(stack: JaxTrainer) -> dict[str, np.ndarray]:
    """The last gradients by canonical name."""
    return jaxtrain.model.canonical_tensors(stack.config, stack.last_gradients)


def make_pair(config: RunConfig, weights: Tensors | None = None, quick: bool = False) -> Pair:
    """Both trainers with `weights` (default: perturbed); `quick`: JAX's programs by `quick_jit`."""
    weights = perturbed(config) if weights is None else weights
    pair = Pair(config, TorchTrainer(config, weights), JaxTrainer(config, weights), weights)
    if quick:
        programs = pair.jax.programs
        parts = ("gradients", "step", "update")
        own: dict[str, Any] = {part: quick_jit(getattr(programs, part).__wrapped__) for part in parts}
        pair.jax.programs = replace(programs, **own)
    return pair


@functools.cache
def shared(config: RunConfig) -> Pair:
    """The one pair of `config` in this process, so that it's compiled once; whoever takes it resets it first.

    `quick_jit` compiles, in float64, variants that aren't trained for long, and all in float16, which nobody trains in
    on a CPU. The others are compiled as a run compiles them.
    """
    long = any(config == make_config(VARIANTS[name]) for name in LONG)
    dtype = config.precision.compute
    return make_pair(config, quick=dtype == "float16" or (dtype == "float64" and not long))
