"""Adapters: their start, gradients beside a frozen base, updates that leave it alone, a merge and back, a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from flax import nnx

import jaxtrain.adapters
import torchtrain.adapters
from coretrain.adapters.kinds import MERGEABLE
from coretrain.adapters.targets import adapter_parameters, with_adapter
from coretrain.config.run import RunConfig
from coretrain.contract.randomness import normal_rows
from coretrain.contract.schedule import clip_factor, learning_rate
from parity.compiling import quick_jit
from parity.errors import (
    largest_error,
    mismatches,
    nrel,
    worst_tensor,
)
from parity.gates import (
    CACHE,
    FROZEN,
    GRADIENTS,
    INITIAL,
    LOGITS,
    LOSS,
    MERGED,
    NORM,
    UPDATE,
    Gate,
)
from parity.pair import (
    GPT2,
    LLAMA,
    batches,
    make_config,
    noise_only,
    perturbed,
)
from parity.probes.decode import (
    FORCED,
    PROMPTS,
    cached_logits,
    traced_afresh,
    whole_logits,
)
from parity.probes.sides import (
    TORCH,
    Seen,
    Side,
    gradients_of,
    logits_of,
    make,
)

ADAPTED = {
    "gpt2-like": GPT2
    | {
        "adapter.kind": "lora",
        "adapter.rank": 4,
        "adapter.alpha": 12,
        "adapter.dropout": 0.2,
        "adapter.bias": "all",
    },
    # layers without an adapter beside some that have one, in stacked arrays; an embedding and a head
    "llama-like": LLAMA
    | {
        "adapter.kind": "lora",
        "adapter.rank": 5,
        "adapter.alpha": 16,
        "adapter.rslora": "true",
        "adapter.dropout": 0.3,
        "adapter.targets": "blocks.*.attention.*.weight,blocks.1.mlp.*,embed.token,head.weight",
        "execution.checkpoint_activations": "full",
    },
    # DoRA without dropout takes the model's own product again, with its bias; with dropout it makes another
    "dora, gpt2-like": GPT2 | {"adapter.kind": "dora", "adapter.rank": 4, "adapter.alpha": 12},
    "dora, llama-like": LLAMA
    | {
        "adapter.kind": "dora",
        "adapter.rank": 5,
        "adapter.dropout": 0.3,
        "adapter.targets": "blocks.*.attention.*.weight,blocks.1.mlp.*,embed.token,head.weight",
    },
    "prefix, llama-like": LLAMA | {"adapter.kind": "prefix", "adapter.virtual_tokens": 6},
    "bottleneck, gpt2-like": GPT2 | {"adapter.kind": "bottleneck", "adapter.bottleneck_width": 5},
}
"""An adapter for each form of the model: every field at work in one of them, alpha unlike the rank."""

QUANTIZED = {
    "nf4, gpt2-like": ADAPTED["gpt2-like"] | {"adapter.quantize": "nf4"},
    "int4, llama-like": ADAPTED["llama-like"] | {"adapter.quantize": "int4"},
    "int8, unrolled": ADAPTED["gpt2-like"] | {"adapter.quantize": "int8", "execution.scan_layers": "false"},
}
"""Each kind of few bits below the same adapters: recomputed, in micro-batches, unrolled."""

FORMS = ADAPTED | QUANTIZED

LORA = {"torch": torchtrain.adapters, "jax": jaxtrain.adapters}


def adapted_weights(config: RunConfig) -> dict[str, np.ndarray]:
    """Perturbed base weights, and adapters that are at work: at the start B is zero, and hides A and the scale."""
    weights = dict(with_adapter(config, perturbed(config)))
    for row in adapter_parameters(config):
        weights[row.name] = weights[row.name] + normal_rows(2, f"scramble/{row.name}", row.shape, 0.03)
    return weights


def base_of(s: Side, stack: Any) -> dict[str, np.ndarray]:
    """Copies of what must not train, by each stack's own names."""
    if s is TORCH:
        named = [*stack.model.named_parameters(), *stack.model.named_buffers()]  # a quantized weight's bytes
        return {name: p.detach().numpy().copy() for name, p in named if not p.requires_grad}
    return {".".join(map(str, path)): np.array(leaf[...]) for path, leaf in nnx.to_flat_state(stack.frozen)}


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> int:
    """Elements of the base that aren't what they were."""
    return sum(mismatches(after[name], value) for name, value in before.items())


def run_start(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(ADAPTED[variant])
    return s.trainer.Trainer(config, perturbed(config)).export()["parameters"]


def judge_start(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {INITIAL: sum(mismatches(ours[name], theirs[name]) for name in theirs)}


def run_gradients(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(FORMS[variant])
    stack, batch = make(s, config, adapted_weights(config), shared), batches(config, 1)[0]
    logits = logits_of(s, stack, batch.tokens, 3)
    loss, norm = stack.gradients(batch, 3, 1.0)
    return {"logits": logits, "loss": loss, "norm": norm, "gradients": gradients_of(s, stack)}


def judge_gradients(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    apart = noise_only(make_config(FORMS[variant]))
    return {
        LOGITS: nrel(ours["logits"], theirs["logits"]),
        LOSS: abs(ours["loss"] - theirs["loss"]),
        NORM: abs(ours["norm"] - theirs["norm"]) / theirs["norm"],
        GRADIENTS: worst_tensor(ours["gradients"], theirs["gradients"], apart)[0],
    }


def run_updates(s: Side, variant: str, state: str, shared: frozenset[str], updates: int = 3) -> Seen:
    config = make_config(FORMS[variant])
    stack = make(s, config, adapted_weights(config), shared)
    before, start = base_of(s, stack), stack.export()["parameters"]
    for update, batch in enumerate(batches(config, updates)):
        _, norm = stack.gradients(batch, update, 1.0)
        stack.apply(learning_rate(config, update), clip_factor(norm, config.optimizer.clip), update)
    return {"changed": changed(before, base_of(s, stack)), "start": start, "state": stack.export()}


def judge_updates(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    apart = noise_only(make_config(FORMS[variant]))
    error, _ = largest_error((ours["state"], theirs["state"]), theirs["start"], apart)
    return {FROZEN: ours["changed"], UPDATE: error}


def run_merge(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Logits without dropout: with the adapter beside the weights, merged into them, out again, and switched off."""
    config = make_config(ADAPTED[variant])
    weights, tokens = adapted_weights(config), batches(config, 1)[0].tokens
    stack = make(s, config, weights, shared)
    # biases that the adapter has trained aren't the base's
    adapter = {n: v + 0.1 * n.endswith(".bias") for n, v in stack.export()["parameters"].items()}
    stack.adopt({"parameters": adapter}, 0)
    beside = logits_of(s, stack, tokens, None)
    rows = {row.name for row in adapter_parameters(config)}
    bare = make_config(ADAPTED[variant], adapter__kind="none")
    plain = make(s, bare, {name: value for name, value in weights.items() if name not in rows}, shared)
    model = plain.whole_model()
    compiled: dict[Any, Any] = {}
    base = _logits(s, model, tokens, compiled)
    bank = LORA[s.name].Adapters(bare, model)
    bank.add(config, adapter)
    bank.add(*other_adapter(config))
    seen = {"beside": beside, "base": base}
    there_and_back = {"merged": bank.merge, "out again": bank.unmerge} if config.adapter.kind in MERGEABLE else {}
    for name, act in {
        "switched on": lambda: bank.switch(config.adapter.name),
        **there_and_back,
        "the other": lambda: bank.switch("other"),
        "none": lambda: bank.switch(None),
    }.items():
        act()
        seen[name] = _logits(s, model, tokens, compiled)
    return seen


def _logits(s: Side, model: Any, tokens: np.ndarray, compiled: dict[Any, Any]) -> np.ndarray:
    """Logits of a model without dropout; in JAX models of one structure share what is in `compiled`."""
    if s is TORCH:
        with torch.no_grad():
            return model.logits(model(torch.from_numpy(tokens).long())).numpy()
    graph, params = nnx.split(model)

    def forward(params: Any, tokens: np.ndarray) -> Any:
        model = nnx.merge(graph, params)
        return model.logits(model(tokens))

    return np.asarray(compiled.setdefault(graph, quick_jit(forward))(params, tokens))


def other_adapter(config: RunConfig) -> tuple[RunConfig, dict[str, np.ndarray]]:
    """Another adapter for the same base: low-rank, of rank 2, on values alone."""
    fields = {
        "kind": "lora",
        "name": "other",
        "rank": 2,
        "bias": "none",
        "targets": ("blocks.*.attention.v.weight",),
        "alpha": 3.0,
    }
    other = config.model_copy(update={"adapter": config.adapter.model_copy(update=fields)})
    rows = adapter_parameters(other)
    return other, {row.name: normal_rows(3, f"scramble/{row.name}", row.shape, 0.3) for row in rows}


def judge_merge(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    same = [name for name in ("switched on", "merged", "out again") if name in ours]
    errors = [nrel(ours[name], ours["beside"]) for name in same] + [nrel(ours["none"], ours["base"])]
    errors.append(nrel(ours["the other"], theirs["the other"]))
    return {MERGED: max(errors, key=lambda error: float("inf") if np.isnan(error) else error)}


def run_decode(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Prefill and two single steps with an adapter out of the cache, and the same by whole forward passes."""
    config = make_config(ADAPTED[variant])
    stack = make(s, config, adapted_weights(config), shared)
    with traced_afresh(shared):
        cached = cached_logits(s, stack, PROMPTS, FORCED, config.model.context)
    return {"cached": cached, "whole": whole_logits(s, stack, PROMPTS, FORCED, config.model.context)}


def judge_decode(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {CACHE: nrel(ours["cached"], theirs["whole"])}
