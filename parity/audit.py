"""The dtypes that each stack really computes in, against the policy: thresholds can't police it, bfloat16 is too noisy.

JAX's are read from the jaxprs of loss, gradients, norm and optimizer, torch's from every call that reaches its
dispatcher. Some operations have a class of their own; all other arithmetic goes by the place where it stands, so that a
product or a sum that somebody adds is judged too. Casts to fewer bits are allowed in a few places, and a value that one
place has narrowed must not be widened there again. What a fused kernel does inside is neither's to see: plain attention
is audited, and test_kernels.py judges the others.
"""

import functools
import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import jax
import jax.extend.source_info_util
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import jaxtrain.decode
import jaxtrain.layers
import jaxtrain.step
import torchtrain.decode
import torchtrain.layers

COMPUTE, MASTER, NOWHERE = "compute", "master", "nowhere"
BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
"""Of the mantissa."""
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
    "chunk sum": MASTER,
    "target scale": MASTER,
    "dropout": COMPUTE,
    "optimizer": MASTER,
    "first_moment": MASTER,
    "second_moment": MASTER,
    "momentum": MASTER,
    "narrowing": NOWHERE,
    "round trip": NOWHERE,
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
    **dict.fromkeys(
        ("product", "_product", "plus", "times", "_times", "over_tokens"), "linear layers"
    ),  # jaxtrain.wide
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
    "target_scale": "target scale",
    "drop": "dropout",
    "Optimizer.step": "optimizer",
    "scale_by_adam": "optimizer",
    "tree_update_moment": "optimizer",
    "add_decayed_weights": "optimizer",
}
WHOLE = {  # all arithmetic of a site that has no class of its own
    "attention": "softmax",
    "loss": "loss",
    "norms": "norm",
    "rotary": "rotary",
    "embed": "embedding",
    "global_norm": "gradient norm",
    "micro-batches": "gradient sum",
    "target scale": "target scale",
    "optimizer": "optimizer",
    "mlp": "activation",
    "block": "residual",
    "linear layers": "activation",
    "dropout": "dropout",
}
ARITHMETIC = {
    *("add", "add_", "add_any", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "neg", "pow", "integer_pow"),
    *("square", "sqrt", "rsqrt", "reciprocal", "exp", "exp_", "log", "log_", "tanh", "logistic", "sigmoid", "erf"),
    *("max", "reduce_max", "amax", "reduce_sum", "sum", "mean", "cumsum", "logsumexp", "softmax", "_softmax"),
    *("_log_softmax", "clamp_min", "scatter_add_", "copy_", "addcmul", "lerp", "linalg_vector_norm"),
    *("_foreach_mul_", "_foreach_add_", "_fused_adamw_"),
}
NARROWED = {"attention", "embed", "linear layers", "loss", "norms", "rotary"}
"""Where a value may be cast to fewer bits on its way forward; on the way back, the cotangent of what was widened."""
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
    **{(op, "linear layers"): "gradient sum" for op in ("reduce_sum",)},
    **{(op, "global_norm"): "gradient norm" for op in ("linalg_vector_norm", "reduce_sum", "sqrt", "add")},
}
BACKWARD = {  # torch's backward pass has no frames of ours: its own names say what they belong to
    "native_layer_norm_backward": "norm",
    "_fused_rms_norm_backward": "norm",
    "gelu_backward": "activation",
    "silu_backward": "activation",
}


def classify(op, function, phase, dtypes, shape=(), width=None):
    """The `Op` of an operation called `op` in `function`, or None where no class of the policy is concerned.

    `shape` is that of its result, `width` the model's.
    """
    floats = tuple(d for d in dtypes if d.startswith(("float", "bfloat")))
    site = next((place for name, place in SITES.items() if function.startswith(name)), "elsewhere")
    kind = "matmul" if op in MATMULS else AT.get((op, site)) or BACKWARD.get(op)
    if site == "loss" and op in ("add", "add_", "addmm_", "copy_") and len(shape) == 2:
        kind = "chunk sum"  # of the head's gradient
    elif site == "loss" and op in ("mul", "mul_") and len(shape) == 2 and shape[-1] == width:
        kind = "activation"  # a row's factor onto hidden states
    elif (op, site, phase) == ("add_any", "norms", "backward"):
        kind = None  # cotangents of the residual stream too
    elif kind is None and op in ARITHMETIC:
        kind = WHOLE.get(site)
    return Op(kind, site, phase, floats) if kind and floats else None


def narrowing(function, phase, before, after, rank):
    """The `Op` of a cast to fewer bits that no place has to make, or None.

    A norm's gain and a target's weight (of rank 1) keep their bits until they are multiplied.
    """
    if not {before, after} <= BITS.keys() or BITS[after] >= BITS[before]:
        return None
    site = next((place for name, place in SITES.items() if function.startswith(name)), "elsewhere")
    allowed = (
        phase == "backward" or before == "float64" or (site in NARROWED and (site not in ("norms", "loss") or rank > 1))
    )
    return None if allowed else Op("narrowing", site, phase, (before, after))


class _Watch(TorchDispatchMode):
    """Every operation that torch dispatches, with the innermost function of torchtrain that asked for it."""

    def __init__(self, width=None):
        super().__init__()
        self.width = width
        self.found: set[Op] = set()
        self.narrowed = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, (function, phase) = func.overloadpacket.__name__, _function()
        tensors = [x for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, torch.Tensor)]
        asked = (kwargs or {}).get("dtype")  # an input is cast to it on the way in
        if name.endswith("_") and not name.startswith("_"):
            tensors = tensors[:1]  # what is added to, whatever is added
        if name in ("_fused_adamw_", "_foreach_add_"):
            tensors = [x for x in tensors if x.ndim]  # its own counters are float32 always
        dtypes = tuple(map(_dtype, [asked] if asked else [t.dtype for t in tensors]))
        result = func(*args, **(kwargs or {}))
        shape = tuple(result.shape) if isinstance(result, torch.Tensor) else ()
        if op := classify(name, function, phase, dtypes, shape, self.width):
            self.found.add(op)
        if name == "_to_copy" and asked:
            self._cast(function, phase, tensors[0], result)
        return result

    def _cast(self, function, phase, before, after):
        first, second = _dtype(before.dtype), _dtype(after.dtype)
        if op := narrowing(function, phase, first, second, before.ndim):
            self.found.add(op)
        if BITS.get(second, 0) < BITS.get(first, 0):
            self.narrowed[after] = function, first
        elif phase == "forward" and self.narrowed.get(before) == (function, second):
            self.found.add(Op("round trip", function, phase, (second, first)))


def _dtype(dtype):
    return str(dtype).removeprefix("torch.")


def _function():
    """The innermost function of torchtrain that asks for an operation, and whether autograd does it on the way back."""
    frame: FrameType | None = sys._getframe(2)
    phase = "forward"
    while frame is not None and Path(frame.f_code.co_filename).parent.name not in ("torchtrain", "parallel"):
        phase = "backward" if frame.f_code.co_name == "_engine_run_backward" else phase
        frame = frame.f_back
    return ("" if frame is None else frame.f_code.co_qualname), phase


def torch_ops(trainer, batch):
    """What torch computes in loss, gradients, norm and update."""
    with _Watch(trainer.config.model.width) as watch:
        trainer.gradients(batch, 3, 1.0)
    kept = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    with watch:
        trainer.apply(1e-3, 0.5, 0)
    for name, parameter in trainer.model.named_parameters():
        parameter.grad = kept.get(name)
    return watch.found


def jax_ops(trainer, batch):
    """What JAX computes in loss, gradients, norm and update; nothing is compiled or run."""
    one = jaxtrain.layers.master_dtype(trainer.config).type(1)
    dropout = jaxtrain.step.dropout_masks(trainer.config, 3, len(batch))
    made, found, width = trainer.programs, set[Op](), trainer.config.model.width
    traced = jax.make_jaxpr(made.gradients)(trainer.params, trainer.frozen, batch, one, dropout)
    _walk(traced.jaxpr, found, width)
    moments = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), made.moments)
    traced = jax.make_jaxpr(made.step)(trainer.params, moments, trainer.params, one, one, (one, one))
    _walk(traced.jaxpr, found, width, "Optimizer.step")
    return found


def _asked_by(source):
    """The innermost function of jaxtrain that asks for an equation, else the innermost that is not JAX's."""
    summary = jax.extend.source_info_util.summarize(source, num_frames=8)  # FILE:LINE (FUNCTION), the innermost last
    frames = [line.rpartition(" (")[::2] for line in reversed(summary.splitlines()) if line.endswith(")")]
    own = [name for place, name in frames if Path(place.rpartition(":")[0]).parent.name in ("jaxtrain", "parallel")]
    return next(iter([*own, *(name for _, name in frames)]), "").rstrip(")")


def decoding_ops(ours, theirs):
    """What torch and JAX compute in a step of decoding three tokens; nothing of JAX's is compiled."""
    tokens, m = np.array([[1, 2, 3]], np.int32), ours.config.model
    mask, empty = np.tri(3, 5, dtype=bool)[None], np.zeros((m.layers, 1, 5, m.kv, m.head), np.float32)
    cache = torchtrain.layers.Cache(*(torch.from_numpy(empty.copy()).to(ours.model.dtype) for _ in range(2)))
    with torch.no_grad(), torchtrain.decode.cast_once(ours.model) as head, _Watch(m.width) as watch:
        hidden, _ = ours.model.decode(
            torch.from_numpy(tokens), torch.from_numpy(tokens), torch.from_numpy(mask), cache, 0
        )
        ours.model.logits(hidden[:, -1], head)
    model = theirs.whole_model()
    stored = jax.tree.map(lambda x: x.astype(model.dtype), jaxtrain.layers.Cache(jnp.array(empty), jnp.array(empty)))
    step = functools.partial(jaxtrain.decode._step.__wrapped__, theirs.programs.graph)  # type: ignore[attr-defined]  # jax.jit keeps it
    traced = jax.make_jaxpr(step)(*jaxtrain.decode.cast_once(model), tokens, tokens, mask, stored, 0)
    found: set[Op] = set()
    _walk(traced.jaxpr, found, m.width)
    return watch.found, found


def _sums_over_rows(eqn):
    """Whether a product sums over the first axis of both factors, as a matrix' gradient does over tokens."""
    contracted, _ = eqn.params.get("dimension_numbers", (((), ()), ()))
    return all(0 in axes for axes in contracted)


def _walk(jaxpr, found, width, function="", phase="forward"):
    narrowed: dict[object, tuple[str, str]] = {}
    for eqn in jaxpr.eqns:
        # what lies inside of jax.nn's own jits has no source of its own: it is its caller's
        own = _asked_by(eqn.source_info) or function
        now = "backward" if "transpose" in str(eqn.source_info.name_stack) else phase
        dtypes = tuple(str(v.aval.dtype) for v in eqn.invars if hasattr(v.aval, "dtype"))
        shape = tuple(eqn.outvars[0].aval.shape) if eqn.outvars and hasattr(eqn.outvars[0].aval, "shape") else ()
        name = eqn.primitive.name
        if op := classify(name, own, now, dtypes, shape, width):
            found.add(op)
            if op[:3] == ("matmul", "linear layers", "backward") and _sums_over_rows(eqn):
                found.add(op._replace(kind="gradient sum", dtypes=(str(eqn.outvars[0].aval.dtype),)))
        if name == "convert_element_type":
            before, after = dtypes[0], str(eqn.outvars[0].aval.dtype)
            if op := narrowing(own, now, before, after, len(shape)):
                found.add(op)
            if BITS.get(after, 0) < BITS.get(before, 0):
                narrowed[eqn.outvars[0]] = own, before
            elif now == "forward" and narrowed.get(eqn.invars[0]) == (own, after):
                found.add(Op("round trip", own, now, (after, before)))
        params = dict(eqn.params)
        if params.get("branches_platforms"):  # what any other platform than the CPU does stands last
            params["branches"] = params["branches"][-1:]
        for value in jax.tree.leaves(list(params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                _walk(inner, found, width, own, now)


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
        wanted = {COMPUTE: dtype, MASTER: master, NOWHERE: NOWHERE}[POLICY[op.kind]]
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
        ("gradient norm", "global_norm"), ("activation", "loss"), ("chunk sum", "loss"),
        ("optimizer", "optimizer"),
        ("target scale", "target scale"),
    }  # fmt: skip
    return pairs | {("rotary", "rotary")} if model.position == "rope" else pairs


def with_jax_gradients(trainer, batch):
    """The trainer with gradients of zero in the dtypes that JAX's have: known without running it."""
    one = jaxtrain.layers.master_dtype(trainer.config).type(1)
    dropout = jaxtrain.step.dropout_masks(trainer.config, 3, len(batch))
    shapes = jax.eval_shape(trainer.programs.gradients, trainer.params, trainer.frozen, batch, one, dropout)[2]
    trainer.last_gradients = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return trainer
