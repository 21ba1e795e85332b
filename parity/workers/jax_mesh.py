"""Trains a tiny model on one device and on meshes of virtual ones, in float64, in a process of its own: how far apart
are losses, norms, parameters and moments? `parity/ladder/test_mesh.py` starts it, with XLA_FLAGS that make the devices.

`python -m parity.workers.jax_mesh CASES`: CASES is JSON, [[variant, {axis: size}, bug or null], ...]; one line of JSON
each.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from coretrain.adapters.targets import trainable_parameters, with_adapter
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import initial_parameters
from coretrain.contract.schedule import learning_rate
from coretrain.contract.update import Limits, Orders, Read, Standing
from coretrain.data.batch import windows
from coretrain.processes.layout import layout_of
from jaxtrain.layers import Linear
from jaxtrain.parallel.choose import make_trainer
from jaxtrain.parallel.sharding import Sharding, make_mesh
from jaxtrain.parallel.trainer import ParallelTrainer
from parity.errors import largest_error
from parity.forms import GPT2_FORM, LLAMA_FORM, Fields
from parity.pair import noise_only
from parity.probes.alignment import aligned_fields, alignment_batch
from parity.workers.mesh_bugs import planted

UPDATES, UPDATES_WITH_A_BUG = 20, 4
BAD, SKIPPED = 2, 1.0
"""An update in which one number on one device is none, and what stands for its loss and norm, which must both be so."""
TINY: Fields = {
    "precision.compute": "float64",
    "execution.device": "cpu",
    "execution.attention": "plain",
    "execution.loss_chunk": 20,
    "execution.scan_layers": "true",
    "model.layers": 2,
    "model.width": 16,
    "model.heads": 8,
    "model.mlp_width": 32,
    "model.context": 16,
    "model.vocab": 101,
    "train.batch_size": 16,
    "train.accumulation": 2,
    "train.updates": UPDATES,
    "schedule.warmup_updates": 2,
    "optimizer.clip": 0.2,
    "data.cache": "none",
    "parallel.data": 1,
}
VARIANTS: dict[str, Fields] = {
    "gpt2-like": {
        **GPT2_FORM,
        "model.residual_dropout": 0.1,
        "model.embedding_dropout": 0.1,
    },
    "llama-like": {
        **LLAMA_FORM,
        "model.kv_heads": 4,
        "model.residual_dropout": 0.1,
    },
    "unrolled, muon": {
        **LLAMA_FORM,
        "model.bias": "true",
        "model.tied": "true",
        "optimizer.name": "muon",
        "execution.scan_layers": "false",
        "execution.checkpoint_activations": "full",
    },
    "dpo": {**LLAMA_FORM, "model.kv_heads": 4, **aligned_fields("dpo")},
    "reward": {**GPT2_FORM, **aligned_fields("reward")},
    "ppo": {**LLAMA_FORM, **aligned_fields("ppo"), "optimizer.clip": 0.01},
    "adapter": {
        **LLAMA_FORM,
        "adapter.kind": "dora",
        "adapter.rank": 3,
        "adapter.dropout": 0.1,
        "adapter.targets": "blocks.*.weight,embed.token,head.weight",
    },
}
FREE = Limits(math.inf, math.inf)
TORUS = "llama-like, torus"
"""Where `parallel.fsdp` is split over axes of a torus, as on TPUs; a CPU has none."""
SUMS = "sums"
"""No training: the gradients of one linear layer in bfloat16, of which two devices' shares nearly cancel."""
LEFT = 2.0**-9
"""What is left of them: a number that is none of bfloat16's between 1 and 2."""
VARIANTS[TORUS] = VARIANTS["llama-like"]
State = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Outcome:
    """Of a training: (loss, norm) of every update, a validation sum, and the state after some of the updates."""

    seen: list[tuple[float, float]]
    validation: float
    states: dict[int, State]


def config_of(variant: str, axes: dict[str, int], alone: bool = False) -> RunConfig:
    """The tiny config of a variant, shared along these axes of `parallel`, or the same training on one device."""
    fields = TINY | VARIANTS[variant]
    if axes.get("pipeline", 1) > 1:
        fields |= {"train.accumulation": 4, "model.layers": 4}
    if not alone:
        fields |= {f"parallel.{axis}": size for axis, size in axes.items()}
    return load_config("tiny", [(key, str(value)) for key, value in fields.items()])


def train(config: RunConfig, updates: int) -> Outcome:
    """Train on the devices that `config.parallel` asks for."""
    trainer, rng = make_trainer(config), np.random.default_rng(0)
    p = config.parallel
    devices = trainer.devices.layout.devices if isinstance(trainer, ParallelTrainer) else 1
    assert devices == (p.data or 1) * p.fsdp * p.tensor * p.context * p.pipeline
    states: dict[int, State] = {}
    seen: list[tuple[float, float]] = []
    begun: list[Read] = []  # one is begun before the figures of the one before it are read, as in a run
    rows = config.train.batch_size, config.model.context + 1

    def settle(left: int) -> None:
        while len(begun) > left:
            loss, norm, applied, _ = begun.pop(0)()
            assert applied == (math.isfinite(loss) or math.isfinite(norm))
            seen.append((loss, norm) if applied else (SKIPPED, SKIPPED))

    for update in range(updates):
        ids = rng.integers(0, config.model.vocabulary, rows, dtype=np.int32)
        ids[0, :2] = 0, config.model.vocabulary - 1
        ids[:3, -1] = -100  # devices and micro-batches with unequal numbers of targets
        aligned = config.train.objective != "cross_entropy"
        batch = alignment_batch(config, update) if aligned else windows(ids)
        if (
            config.model.mlp == "swiglu" and not aligned
        ):  # of the forms, some with factors of targets, which are cut as labels are
            factors = np.random.default_rng(update).random(batch.labels.shape, np.float32)
            batch = dataclasses.replace(batch, weights=factors)
        settle(0 if update in (BAD, BAD + 1) else 1)
        known = Standing(sum(pair != (SKIPPED, SKIPPED) for pair in seen), 0, False)
        orders = Orders(learning_rate(config, update), FREE, 1.0, known, alone=not begun)
        whole = trainer.params
        if update == BAD:  # its program takes the arrays that it is given for its own
            trainer.params = one_nan(jax.tree.map(jnp.copy, whole))
        begun.append(trainer.update(batch, update, orders, lambda: None))
        trainer.params = whole if update == BAD else trainer.params
        if update + 1 in (updates, UPDATES_WITH_A_BUG):
            settle(0)
            states[update + 1] = {group: dict(tensors) for group, tensors in trainer.export().items()}
    return Outcome(seen, trainer.evaluate(batch.rows(slice(min(config.micro_batch + 3, len(batch) - 1)))), states)


def one_nan(params: Any) -> Any:
    """The parameters with a single number that is none, in what the last device holds of a norm's gain (or an
    adapter's first matrix)."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)

    def spoilt(array: jax.Array) -> jax.Array:
        parts = [shard.data for shard in array.addressable_shards]
        parts[-1] = parts[-1].at[(0,) * array.ndim].set(math.nan)
        return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)

    norms = [path for path, _ in leaves if "norm" in jax.tree_util.keystr(path)]
    path = norms[0] if norms else leaves[0][0]
    return jax.tree_util.tree_unflatten(tree, [spoilt(leaf) if at == path else leaf for at, leaf in leaves])


def apart(config: RunConfig, ours: Outcome, theirs: Outcome) -> dict[str, float]:
    """Largest differences: losses (nats), norms and validation (relative), state (relative to the way it has come)."""
    updates = max(ours.states)
    mine, reference = np.array(ours.seen), np.array(theirs.seen[:updates])
    whole = with_adapter(config, initial_parameters(config.model, config.train.seed))
    start = {row.name: np.asarray(whole[row.name]) for row in trainable_parameters(config)}
    states = ours.states[updates], theirs.states[updates]
    return {
        "loss": float(np.abs(mine - reference)[:, 0].max()),
        "norm": float((np.abs(mine - reference) / reference)[:, 1].max()),
        "validation": abs(ours.validation - theirs.validation) / theirs.validation if updates == UPDATES else 0.0,
        "state": largest_error(states, start, noise_only(config))[0],
    }


def lost(axes: dict[str, int]) -> float:
    """How much of such a gradient is lost, relative: a matrix' as `Sharding.in_use` gives it, and a bias'."""
    config = config_of("gpt2-like", axes).changed(precision__compute="bfloat16")
    layout = layout_of(config, math.prod(axes.values()))
    sharding = Sharding(make_mesh(layout, jax.devices()[: layout.devices]), config)
    width = config.model.width
    graph, state = nnx.split(Linear(width, width, True, (), jnp.float32))

    def loss(state: Any, x: jax.Array, upstream: jax.Array) -> jax.Array:
        layer = nnx.merge(graph, state)
        layer.kernel[...] = sharding.in_use("blocks.attention.q.kernel", layer.kernel[...], jnp.dtype(jnp.bfloat16))
        return (layer(x) * upstream).astype(jnp.float32).sum()

    rows = np.zeros((8, 2, width))
    rows[0], rows[-1], rows[0, 1] = 1, -0.5, LEFT  # 1 + 2^-9 on the first device, -1 on the last
    x, upstream = (
        sharding.put(array.astype(jnp.bfloat16), "batch", None, None) for array in (np.ones_like(rows), rows)
    )
    found = jax.jit(jax.grad(loss))(jax.tree.map(jnp.zeros_like, state), x, upstream)
    return max(float(np.abs(np.asarray(leaf) / LEFT - 1).max()) for leaf in jax.tree.leaves(found))


def main() -> None:
    """Run the cases of the command line."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    references: dict[RunConfig, Outcome] = {}
    for variant, axes, bug in json.loads(sys.argv[1]):
        began = time.perf_counter()
        if variant == SUMS:
            with planted(bug):
                found = {"loss": 0.0, "norm": 0.0, "validation": 0.0, "state": lost(axes)}
            print(json.dumps({"variant": variant, "axes": axes, "bug": bug, **found}), flush=True)
            continue
        alone = config_of(variant, axes, alone=True)
        if alone not in references:
            references[alone] = train(alone, UPDATES)
            assert references[alone].seen[BAD] == (SKIPPED, SKIPPED), "one number that is none must reach all"
            assert min(norm for _, norm in references[alone].seen) > alone.optimizer.clip, "the clip must be at work"
        config = config_of(variant, axes)
        with planted(bug, torus=variant == TORUS):
            trained = train(config, UPDATES_WITH_A_BUG if bug else UPDATES)
        facts = {"variant": variant, "axes": axes, "bug": bug, **apart(config, trained, references[alone])}
        print(json.dumps(facts | {"seconds": round(time.perf_counter() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
