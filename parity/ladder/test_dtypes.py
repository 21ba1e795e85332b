"""The dtypes that each stack really computes in, against the policy (parity/audit.py)."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxtrain.decode
import torchtrain.decode
from coretrain.contract.parameters import parameter_table
from coretrain.data.batch import Batch
from jaxtrain.arrays import dotted
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.audit import (
    Op,
    audit,
    decoding_ops,
    expected,
    jax_ops,
    seen,
    states,
    torch_ops,
    with_jax_gradients,
)
from parity.gates import DTYPES
from parity.outcomes import facts, hold
from parity.pair import (
    BASIC,
    VARIANTS,
    batches,
    jax_gradients,
    make_config,
    perturbed,
    torch_gradients,
)
from torchtrain.trainer import Trainer as TorchTrainer


def trainers(variant, dtype):
    """Both stacks with plain attention, and each one's gradients."""
    config = make_config(VARIANTS[variant] | {"train.accumulation": 2}, precision__compute=dtype)
    weights = perturbed(config)
    return config, TorchTrainer(config, weights), JaxTrainer(config, weights)


@pytest.mark.parametrize("variant", BASIC)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_every_operation_against_the_policy(variant, dtype):
    config, ours, theirs = trainers(variant, dtype)
    batch = batches(config, 1)[0]
    if variant == "llama-like":  # with what each target counts, and with places in samples
        counts = np.linspace(0.5, 2, batch.labels.size, dtype=np.float32).reshape(batch.labels.shape)
        places = np.broadcast_to(np.arange(len(batch.labels[0])) % 17, batch.labels.shape).astype(np.int32)
        batch = Batch(batch.tokens, batch.labels, places, counts)
    fresh = {group: tensors for group, tensors in ours.export().items() if group != "parameters"}  # of no update yet
    unborn = {Op(group, name, "state", (str(t.dtype),)) for group in fresh for name, t in fresh[group].items()}
    in_torch, in_jax = torch_ops(ours, batch) | unborn, jax_ops(theirs, batch)
    wanted = expected(config.model)
    for found in (in_torch, in_jax):
        assert wanted <= seen(found), wanted - seen(found)
        assert {op.phase for op in found if op.kind == "matmul"} == {"forward", "backward"}
    # in torch it is the gradients' own dtype, below
    assert {("gradient sum", "micro-batches"), ("gradient sum", "linear layers")} <= seen(in_jax)
    with_jax_gradients(theirs, batch)
    for stack, found in (
        ("torch", in_torch | states(ours, torch_gradients)),
        ("jax", in_jax | states(theirs, jax_gradients)),
    ):
        rows, wrong = audit(stack, found, dtype)
        facts["dtypes"] += [row | {"variant": variant} for row in rows]
        hold(DTYPES, len(wrong), f"{wrong[0]['stack']} {wrong[0]['class']}, {wrong[0]['site']}" if wrong else "")


@pytest.mark.parametrize("variant", BASIC)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoding_against_the_policy(variant, dtype):
    """Out of a cache too; matrices are cast once for all steps, and they alone: gains, biases and embeddings aren't."""
    config, ours, theirs = trainers(variant, dtype)
    in_torch, in_jax = decoding_ops(ours, theirs)
    for stack, found in (("torch", in_torch), ("jax", in_jax)):
        assert {("matmul", "attention"), ("norm", "norms"), ("residual", "block")} <= seen(found)
        _, wrong = audit(stack, found, dtype)
        hold(DTYPES, len(wrong), f"decoding, {stack} {wrong[0]['class']}, {wrong[0]['site']}" if wrong else "")
    matrices = {row.name for row in parameter_table(config.model) if row.layer is not None and len(row.shape) == 2}
    for stack, dtypes in (("torch", torch_cast(ours)), ("jax", jax_cast(theirs))):
        kept = {name for name, kind in dtypes.items() if kind != "float32"}
        hold(DTYPES, len(kept ^ (matrices if dtype != "float32" else set())), f"cast for decoding, {stack}")


def torch_cast(trainer):
    """The dtype of each parameter while text is made; afterwards all are as before."""
    before = {name: p.dtype for name, p in trainer.model.named_parameters()}
    with torchtrain.decode.cast_once(trainer.model) as head:
        assert head.dtype == trainer.model.dtype
        dtypes = {name: str(p.dtype).removeprefix("torch.") for name, p in trainer.model.named_parameters()}
    assert before == {name: p.dtype for name, p in trainer.model.named_parameters()}
    return dtypes


def jax_cast(trainer):
    """The dtype of each parameter while text is made, by canonical name."""
    state, head = jaxtrain.decode.cast_once(trainer.whole_model())
    assert str(head.dtype) == trainer.config.precision.compute
    flat = {dotted(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {row.name: str(flat[row.jax_path]) for row in parameter_table(trainer.config.model)}
