"""The dtypes that each stack really computes in, against the policy (parity/audit.py)."""

from __future__ import annotations

import numpy as np
import pytest

from coretrain.data.batch import Batch
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.audit import (
    audit,
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
    in_torch, in_jax = torch_ops(ours, batch), jax_ops(theirs, batch)
    wanted = expected(config.model)
    for found in (in_torch, in_jax):
        assert wanted <= seen(found), wanted - seen(found)
        assert {op.phase for op in found if op.kind == "matmul"} == {"forward", "backward"}
    assert ("gradient sum", "micro-batches") in seen(in_jax)  # in torch it is the gradients' own dtype, below
    sums = [("chunk sum", "loss") in seen(found) for found in (in_torch, in_jax)]
    assert sums == [dtype in ("bfloat16", "float16"), True]  # elsewhere torch's is within a product
    with_jax_gradients(theirs, batch)
    for stack, found in (
        ("torch", in_torch | states(ours, torch_gradients)),
        ("jax", in_jax | states(theirs, jax_gradients)),
    ):
        rows, wrong = audit(stack, found, dtype)
        facts["dtypes"] += [row | {"variant": variant} for row in rows]
        hold(DTYPES, len(wrong), f"{wrong[0]['stack']} {wrong[0]['class']}, {wrong[0]['site']}" if wrong else "")
