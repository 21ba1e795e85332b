"""The dtypes that each stack really computes in, against the policy: thresholds can't police it, bfloat16 is too noisy.

JAX's are read from the jaxpr of loss, gradients and norm, torch's from every call that reaches its dispatcher. What a
fused kernel does inside is neither's to see: plain attention is audited, and test_kernels.py judges the others.
"""

import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import jax
import jax.extend.source_info_util
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jaxtrain.layers
import jaxtrain.step

COMPUTE, MASTER = "compute", "master"
POLICY = {
    "matmul": COMPUTE,
    "activation": COMPUTE,
    "residual": COMPUTE,
    "softmax": MASTER,
    "norm": MASTER,
    "loss": MASTER,
    "rotary": MASTER,
    "embedding": MASTER,
    "gradient norm": MASTER,
    "weights": MASTER,
    "gradients": MASTER,
    "gradient sum": MASTER,
    "first_moment": MASTER,
    "second_moment": MASTER,
    "momentum": MASTER,
}
"""What each class of operations computes in: the compute dtype, or the master weights'."""
WIDER = {
    # scores leave JAX's product in float32, so their cotangent comes in as float32 too; torch rounds both
    ("jax", "matmul", "attention", "backward"),
    # torch adds the rows' norms up in float64
    ("torch", "gradient norm", "global_norm", "forward"),
}
"""Where a stack is known to compute in more than the policy asks for; never in less."""


class Op(NamedTuple):
    """One kind of computation, where it was seen, and the dtypes that it took."""

    kind: str
    site: str
    phase: str
    dtypes: tuple[str, ...]


SITES = {  # a function of either stack, and the name of what it computes
    "Linear": "linear layers",
    "linear": "linear layers",
    "masked_attention": "attention",
    "_over_chunks": "loss",
    "_CrossEntropy": "loss",
    "Norm": "norms",
    "MLP": "mlp",
    "Block": "block",
    "rotate": "rotary",
    "GPT._embed": "embed",
    "global_norm": "global_norm",
    "tree_norm": "global_norm",
    "tree_sum": "global_norm",
    "gradients.<locals>.micro": "micro-batches",
}
MATMULS = {"dot_general", "mm", "addmm", "addmm_", "bmm", "baddbmm"}
AT = {  # (operation, site): class; the operations have the names that each framework gives them
    **{(op, "attention"): "softmax" for op in ("exp", "reduce_max", "reduce_sum", "div", "amax", "sum", "clamp_min")},
    **{(op, "loss"): "loss" for op in ("exp", "log", "reduce_max", "reduce_sum", "_softmax", "amax", "sum")},
    **{(op, "norms"): "norm" for op in ("rsqrt", "reduce_sum", "native_layer_norm", "_fused_rms_norm")},
    **{(op, "mlp"): "activation" for op in ("tanh", "logistic", "gelu", "silu")},
    **{(op, "rotary"): "rotary" for op in ("mul", "sub", "add")},
    **{(op, "block"): "residual" for op in ("add",)},
    **{(op, "embed"): "embedding" for op in ("add", "embedding", "gather")},
    **{(op, "micro-batches"): "gradient sum" for op in ("add",)},
    **{(op, "global_norm"): "gradient norm" for op in ("linalg_vector_norm", "reduce_sum", "sqrt", "add")},
}
BACKWARD = {  # torch's backward pass has no frames of ours: its own names say what they belong to
    "native_layer_norm_backward": "norm",
    "_fused_rms_norm_backward": "norm",
    "gelu_backward": "activation",
    "silu_backward": "activation",
}


def classify(op, function, phase, dtypes):
    """The `Op` of an operation called `op` in `function`, or None where no class of the policy is concerned."""
    floats = tuple(d for d in dtypes if d.startswith(("float", "bfloat")))
    site = next((place for name, place in SITES.items() if function.startswith(name)), "elsewhere")
    kind = "matmul" if op in MATMULS else AT.get((op, site)) or BACKWARD.get(op)
    return Op(kind, site, phase, floats) if kind and floats else None


class _Watch(TorchDispatchMode):
    """Every operation that torch dispatches, with the innermost function of torchtrain that asked for it."""

    def __init__(self):
        super().__init__()
        self.found: set[Op] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, torch.Tensor)]
        asked = (kwargs or {}).get("dtype")  # an input is cast to it on the way in
        dtypes = tuple(str(d).removeprefix("torch.") for d in ([asked] if asked else [t.dtype for t in tensors]))
        function = _function()
        phase = "backward" if function in ("gradients", "Trainer.gradients") else "forward"
        if op := classify(func.overloadpacket.__name__, function, phase, dtypes):
            self.found.add(op)
        return func(*args, **(kwargs or {}))


def _function():
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and Path(frame.f_code.co_filename).parent.name not in ("torchtrain", "parallel"):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_qualname


def torch_ops(trainer, batch):
    """What torch computes in loss, gradients and norm."""
    with _Watch() as watch:
        trainer.gradients(batch, 3, 1.0)
    return watch.found


def jax_ops(trainer, batch):
    """What JAX computes in loss, gradients and norm; nothing is compiled or run."""
    one = jaxtrain.layers.master_dtype(trainer.config).type(1)
    dropout = jaxtrain.step.dropout_masks(trainer.config, 3, len(batch))
    traced = jax.make_jaxpr(trainer.programs.gradients)(trainer.params, trainer.frozen, batch, one, dropout)
    found: set[Op] = set()
    _walk(traced.jaxpr, found)
    return found


def _walk(jaxpr, found, function="", phase="forward"):
    for eqn in jaxpr.eqns:
        summary = jax.extend.source_info_util.summarize(eqn.source_info)  # FILE:LINE (FUNCTION)
        # what lies inside of jax.nn's own jits has no source of its own: it is its caller's
        own = summary.rpartition("(")[2].rstrip(")") or function
        now = "backward" if "transpose" in str(eqn.source_info.name_stack) else phase
        dtypes = tuple(str(v.aval.dtype) for v in eqn.invars if hasattr(v.aval, "dtype"))
        if op := classify(eqn.primitive.name, own, now, dtypes):
            found.add(op)
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                _walk(inner, found, own, now)


def states(trainer, gradients):
    """The dtypes of weights, gradients and moments, one `Op` a tensor."""
    groups = trainer.export()
    named = {"weights": groups.pop("parameters"), "gradients": gradients(trainer), **groups}
    return {Op(kind, name, "state", (str(t.dtype),)) for kind, tensors in named.items() for name, t in tensors.items()}


def audit(stack, found, dtype):
    """Rows for the report, and those among them that are against the policy."""
    master = "float64" if dtype == "float64" else "float32"
    rows = []
    for op in sorted(found):
        wanted = dtype if POLICY[op.kind] == COMPUTE else master
        others = set(op.dtypes) - {wanted}
        wider = (stack, op.kind, op.site, op.phase) in WIDER and all(
            torch.finfo(getattr(torch, d)).bits > torch.finfo(getattr(torch, wanted)).bits for d in others
        )
        row = {"stack": stack, "class": op.kind, "site": op.site, "phase": op.phase, "compute": dtype}
        row |= {"dtypes": list(op.dtypes), "policy": wanted, "ok": not others or wider, "wider": bool(others) and wider}
        rows.append(row)
    return rows, [row for row in rows if not row["ok"]]


def seen(found):
    """What the audit has looked at, so that it can't pass by seeing nothing."""
    return {(op.kind, op.site) for op in found}


def expected(model):
    """What any audit of such a model must have seen: (class, site)."""
    pairs = {
        ("matmul", "linear layers"), ("matmul", "attention"), ("matmul", "loss"), ("softmax", "attention"),
        ("norm", "norms"), ("loss", "loss"), ("activation", "mlp"), ("residual", "block"), ("embedding", "embed"),
        ("gradient norm", "global_norm"),
    }  # fmt: skip
    return pairs | {("rotary", "rotary")} if model.position == "rope" else pairs


def with_jax_gradients(trainer, batch):
    """The trainer with gradients of zero in the dtypes that JAX's have: known without running it."""
    one = jaxtrain.layers.master_dtype(trainer.config).type(1)
    dropout = jaxtrain.step.dropout_masks(trainer.config, 3, len(batch))
    shapes = jax.eval_shape(trainer.programs.gradients, trainer.params, trainer.frozen, batch, one, dropout)[2]
    trainer.last_gradients = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return trainer
