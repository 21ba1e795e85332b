"""AdamW, Adam and Muon as the contract has them; learning rate and count of applied updates come from outside.

`Moments` and the `scale_by_` transformations have no twin: torch.optim.AdamW keeps its
moments and does these steps itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from coretrain.adapters.targets import trainable_parameters
from coretrain.base.lazy import LazyTensors
from coretrain.config.run import RunConfig
from coretrain.contract.optimizer import NEWTON_SCHULZ, decay_rate, takes_muon
from jaxtrain.arrays import dotted, exported, placed


def global_norm(gradients: Iterable[Array]) -> Array:
    """2-norm of all gradients together, in at least float32."""
    return optax.global_norm([g.astype(jnp.promote_types(g.dtype, jnp.float32)) for g in gradients])


def orthogonalize(matrix: Array) -> Array:
    """Muon's five Newton-Schulz steps on [..., rows, columns], in the matrix' own dtype: near U V^T of its SVD."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / jnp.maximum(jnp.linalg.matrix_norm(x, keepdims=True), 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.mT if tall else x


class Moments(NamedTuple):
    """Both moments of Adam, trees like the parameters (optax.MaskedNode where Muon holds the parameter)."""

    first: Any
    second: Any


def _kept(fine: Array | None, new: Any, old: Any) -> Any:
    """`new` where an update is applied, else `old`; `fine` None: it is."""
    return new if fine is None else jax.tree.map(lambda new, old: jnp.where(fine, new, old), new, old)


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Adam's direction; `corrections` = (1 - b1^t, 1 - b2^t) are handed to `update`.

    optax.scale_by_adam computes them in float32 from a counter of its own: up to 1e-4 off at b2 near 1, and blind to
    skipped updates. Here they come in float64 from the count of applied updates.
    """

    def init(params: Any) -> Moments:
        return Moments(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(
        updates: Any,
        state: Moments,
        params: Any = None,
        *,
        corrections: tuple[Array, Array],
        fine: Array | None = None,
        **_: Any,
    ) -> tuple[Any, Moments]:
        # the direction comes of the moments that are kept: of others it would need a copy of the old ones
        first = _kept(fine, optax.tree.update_moment(updates, state.first, b1, 1), state.first)
        second = _kept(fine, optax.tree.update_moment_per_elem_norm(updates, state.second, b2, 2), state.second)
        one, two = corrections
        direction = jax.tree.map(lambda m, v: (m / one) / (jnp.sqrt(v / two) + eps), first, second)
        return direction, Moments(first, second)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_muon(beta: float) -> optax.GradientTransformationExtraArgs:
    """Muon's direction with Nesterov momentum, scaled by 0.2 sqrt(max(rows, columns)) as match_rms_adamw."""

    def update(updates: Any, state: Any, params: Any = None, *, fine: Array | None = None, **_: Any) -> tuple[Any, Any]:
        state = _kept(fine, jax.tree.map(lambda buffer, g: buffer * beta + g * (1 - beta), state, updates), state)

        def direction(g: Array, buffer: Array) -> Array:
            return orthogonalize((1 - beta) * g + beta * buffer) * (0.2 * math.sqrt(max(g.shape[-2:])))

        return jax.tree.map(direction, updates, state), state

    return optax.GradientTransformationExtraArgs(optax.tree.zeros_like, update)


class Optimizer:
    """The update rule over a model's parameters, and its moments by canonical name.

    AdamW decays the parameter first, p (1 - lr x decay), then takes lr x m / (sqrt(v) + eps) with both moments
    bias-corrected (Loshchilov and Hutter 2019). Muon (match_rms_adamw scaling) takes the blocks' matrices.
    """

    # In torch this object holds the moments; here they are a value, `init`ed, passed through `step` and donated.

    def __init__(self, config: RunConfig, params: nnx.State) -> None:
        o = config.optimizer
        self.config = config
        table = {row.jax_path: row for row in trainable_parameters(config)}
        paths = jax.tree_util.tree_map_with_path(lambda path, _: dotted(path), params)
        decays = jax.tree.map(lambda path: table[path].decay, paths)
        kinds = jax.tree.map(lambda path: "muon" if takes_muon(config, table[path]) else "adam", paths)
        self.decay = decay_rate(o)
        self.rule = optax.chain(
            optax.partition(
                {"adam": scale_by_adam(o.beta1, o.beta2, o.eps), "muon": scale_by_muon(o.muon_momentum)}, kinds
            ),
            optax.add_decayed_weights(self.decay, mask=decays),
        )

    def init(self, params: nnx.State) -> Any:
        """Zero moments."""
        return self.rule.init(params)

    def step(
        self,
        params: nnx.State,
        state: Any,
        gradients: nnx.State,
        lr: Array,
        factor: Array,
        corrections: Any,
        fine: Array | None = None,
    ) -> tuple[nnx.State, Any]:
        """One update with `gradients`, first multiplied by `factor` (clip and loss scale together).

        `fine` is a scalar: where it is false, parameters and state stay as they are.
        """
        gradients = jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)
        direction, state = self.rule.update(gradients, state, params, corrections=corrections, fine=fine)
        return _kept(fine, jax.tree.map(lambda p, d: p - lr.astype(p.dtype) * d, params, direction), params), state

    def abstract(self, params: nnx.State) -> Any:
        """Shapes, dtypes and places of the moments of `params`, which are such too: each lies as its parameter does."""
        places = {dotted(path): leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[_parameter(path)]),
            jax.eval_shape(self.init, params),
        )

    def moments(self, state: Any, read: Callable[[Any], Any] = lambda leaf: leaf) -> dict[str, LazyTensors]:
        """Moments by group and canonical name, as the interchange checkpoint has them; each is read when asked for."""

        def group_of(leaves: Mapping[str, Any]) -> LazyTensors:
            return exported(trainable_parameters(self.config), leaves, lambda path: read(leaves[path]))

        return {group: group_of(leaves) for group, leaves in _groups(state).items()}

    def load(self, state: Any, moments: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
        """Moments of the form and at the places of `state`, as `moments` gives them, taken one at a time."""
        multiple = self.config.execution.vocab_multiple
        filled = {
            group: placed(trainable_parameters(self.config), leaves, moments.get(group, {}), multiple)
            for group, leaves in _groups(state).items()
        }
        return jax.tree_util.tree_map_with_path(lambda path, _: filled[_group(path)][_parameter(path)], state)


def _groups(state: Any) -> dict[str, dict[str, Any]]:
    """Leaves by group and by their parameter's dotted path."""
    found: dict[str, dict[str, Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        found.setdefault(_group(path), {})[_parameter(path)] = leaf
    return found


def _group(path: Any) -> str:
    names = [getattr(part, "name", None) for part in path]
    return "first_moment" if "first" in names else "second_moment" if "second" in names else "momentum"


def _parameter(path: Any) -> str:
    return dotted(path).removeprefix("adam.").removeprefix("muon.")  # optax.partition's own level
