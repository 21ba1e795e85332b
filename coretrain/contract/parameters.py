"""The parameter table: every parameter's name, shape, first distribution, decay, axes and place in each stack.

Initialisation, optimizer groups, checkpoints, Hugging Face export and parity all read this one table. Canonical names
and shapes are PyTorch's ([out, in] for a linear layer). In JAX the blocks are stacked along a first axis L, and linear
layers hold [in, out].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.config.model import ModelConfig
from coretrain.contract.randomness import normal_rows, uniform_rows

LARGEST = 2**44
"""Numbers of one parameter: what is larger couldn't be held, and doesn't fit the arithmetic of arrays' sizes."""
SCORE = "score.weight"
"""The score head, of models that have one."""


@dataclass(frozen=True)
class Parameter:
    """One row of the table."""

    name: str
    """Canonical name, which is also torchtrain's: `blocks.0.attention.q.weight`."""
    shape: tuple[int, ...]
    """Canonical shape, without padding."""
    init: Literal["normal", "zeros", "ones", "uniform"]
    std: float
    """Standard deviation of a normal or uniform start, else 0."""
    decay: bool
    """Weight decay applies: matrices and embeddings."""
    axes: tuple[str, ...]
    """Logical axis of each dimension: vocab, position, width, heads, kv_heads, hidden, score, rank, virtual,
    bottleneck."""
    jax_path: str
    """Place in jaxtrain's tree: `blocks.attention.q.kernel`."""
    layer: int | None
    """Index along the stacked axis in JAX, or None where the parameter isn't in a block."""
    transposed: bool
    """JAX holds the transpose."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def parameter_table(model: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter of `model`, in the order of the forward pass. A tied head has no row of its own.

    Raises `UserError` for a model that no machine could hold.
    """
    table = tuple(_rows(model))
    largest = max(table, key=lambda row: row.size)
    if largest.size > LARGEST:
        raise UserError(
            "contract/model-too-large",
            f"the model would have {largest.size:.1e} numbers in {largest.name} alone ({' x '.join(largest.axes)} = "
            f"{' x '.join(map(str, largest.shape))}), more than any machine holds: choose smaller sizes",
        )
    return table


def _rows(m: ModelConfig) -> Iterator[Parameter]:
    std, residual_std = m.init_std, m.init_std / math.sqrt(2 * m.layers)
    heads, kv = m.heads * m.head, m.kv * m.head

    def matrix(
        name: str, path: str, out: int, into: int, axes: tuple[str, str], layer: int, std: float
    ) -> Iterator[Parameter]:
        yield Parameter(f"{name}.weight", (out, into), "normal", std, True, axes, f"{path}.kernel", layer, True)
        if m.bias:
            yield Parameter(f"{name}.bias", (out,), "zeros", 0.0, False, axes[:1], f"{path}.bias", layer, False)

    def norm(name: str, path: str, layer: int | None) -> Iterator[Parameter]:
        yield Parameter(f"{name}.weight", (m.width,), "ones", 0.0, False, ("width",), f"{path}.scale", layer, False)
        if m.norm == "layernorm" and m.bias:
            yield Parameter(f"{name}.bias", (m.width,), "zeros", 0.0, False, ("width",), f"{path}.bias", layer, False)

    yield Parameter(
        "embed.token", (m.vocabulary, m.width), "normal", std, True, ("vocab", "width"), "embed.token", None, False
    )
    if m.position == "learned":
        yield Parameter(
            "embed.position",
            (m.context, m.width),
            "normal",
            std,
            True,
            ("position", "width"),
            "embed.position",
            None,
            False,
        )
    for i in range(m.layers):
        at = f"blocks.{i}"
        yield from norm(f"{at}.norm1", "blocks.norm1", i)
        yield from matrix(f"{at}.attention.q", "blocks.attention.q", heads, m.width, ("heads", "width"), i, std)
        yield from matrix(f"{at}.attention.k", "blocks.attention.k", kv, m.width, ("kv_heads", "width"), i, std)
        yield from matrix(f"{at}.attention.v", "blocks.attention.v", kv, m.width, ("kv_heads", "width"), i, std)
        yield from matrix(
            f"{at}.attention.out", "blocks.attention.out", m.width, heads, ("width", "heads"), i, residual_std
        )
        yield from norm(f"{at}.norm2", "blocks.norm2", i)
        if m.mlp == "swiglu":
            yield from matrix(f"{at}.mlp.gate", "blocks.mlp.gate", m.hidden, m.width, ("hidden", "width"), i, std)
        yield from matrix(f"{at}.mlp.up", "blocks.mlp.up", m.hidden, m.width, ("hidden", "width"), i, std)
        yield from matrix(f"{at}.mlp.down", "blocks.mlp.down", m.width, m.hidden, ("width", "hidden"), i, residual_std)
    yield from norm("norm", "norm", None)
    if not m.tied:
        yield Parameter(
            "head.weight", (m.vocabulary, m.width), "normal", std, True, ("vocab", "width"), "head.weight", None, False
        )
    if m.score_head:
        # a start of N(0, 1 / (D + 1)), as in Stiennon et al. 2020
        std = 1 / math.sqrt(m.width + 1)
        yield Parameter(SCORE, (1, m.width), "normal", std, True, ("score", "width"), SCORE, None, False)


def check_score_head(model: ModelConfig) -> None:
    """Raise `UserError` where a model has no score head."""
    if not model.score_head:
        raise UserError(
            "contract/score-head-missing",
            "this model has no score head, which gives rewards and values: train one with model.score_head = true",
        )


def initial_value(row: Parameter, seed: int) -> NDArray[np.float32]:
    """The float32 start of one parameter: a pure function of (seed, name, row), made in blocks of rows."""
    if row.init == "zeros":
        return np.zeros(row.shape, np.float32)
    if row.init == "ones":
        return np.ones(row.shape, np.float32)
    if row.init == "uniform":
        return uniform_rows(seed, row.name, row.shape, math.sqrt(3) * row.std)
    return normal_rows(seed, row.name, row.shape, row.std)


class InitialParameters(Mapping[str, NDArray[np.float32]]):
    """Every parameter's float32 start by canonical name, made when it is asked for."""

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self._rows, self._seed = {row.name: row for row in parameter_table(model)}, seed

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return initial_value(self._rows[name], self._seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class BlankParameters(Mapping[str, NDArray[np.float32]]):
    """Zeros for every parameter, of a stack that will read a checkpoint: drawing a start takes seconds a billion bytes,
    and room."""

    def __init__(self, model: ModelConfig) -> None:
        self._shapes = {row.name: row.shape for row in parameter_table(model)}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return np.broadcast_to(np.float32(0), self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def initial_parameters(model: ModelConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """Every parameter's float32 start by canonical name. Rounded once to float32, so that every dtype starts alike."""
    return {row.name: initial_value(row, seed) for row in parameter_table(model)}


def padded_vocab(model: ModelConfig, multiple: int) -> int:
    """Rows of the embedding (and head) that a stack really holds."""
    return -(-model.vocabulary // multiple) * multiple


def check_names(model: ModelConfig, tensors: Mapping[str, Array], where: str) -> None:
    """Raise `UserError` unless `tensors` has exactly the table's names; none of them is read."""
    check_names_of(parameter_table(model), tensors, where)


def check_rows(table: Sequence[Parameter], tensors: Mapping[str, Array], where: str) -> None:
    """Raise `UserError` unless `tensors` has exactly the names and shapes of some rows: a model's, or an adapter's."""
    check_names_of(table, tensors, where)
    for row in table:
        check_shape(row, tensors[row.name], where)


def check_names_of(table: Sequence[Parameter], tensors: Mapping[str, Array], where: str) -> None:
    """As `check_rows`, of names alone."""
    names = {row.name for row in table}
    if missing := [row.name for row in table if row.name not in tensors]:
        raise UserError(
            "contract/tensor-missing",
            f"{where} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ": it belongs to another model config",
        )
    if extra := [name for name in tensors if name not in names]:
        raise UserError(
            "contract/tensor-unexpected",
            f"{where} has {extra[0]}, which this model doesn't: it belongs to another model config",
        )


def check_shape(row: Parameter, value: Array, where: str) -> None:
    """Raise `UserError` unless `value` has the parameter's shape."""
    if value.shape != row.shape:
        raise UserError(
            "contract/tensor-shape-wrong", f"{where}: {row.name} has shape {value.shape}, the config says {row.shape}"
        )


def to_jax_tree(model: ModelConfig, tensors: Mapping[str, Array], vocab_multiple: int = 1) -> dict[str, Array]:
    """Canonical tensors as jaxtrain holds them: {dotted path: array}, blocks stacked, vocabulary padded with zeros."""
    stacked: dict[str, list[Array]] = {}
    flat: dict[str, Array] = {}
    for row in parameter_table(model):
        value = np.asarray(tensors[row.name])
        value = value.T if row.transposed else value
        if row.layer is None:
            flat[row.jax_path] = pad_vocab(row, value, vocab_multiple)
        else:
            stacked.setdefault(row.jax_path, []).append(value)
    return flat | {path: np.stack(values) for path, values in stacked.items()}


def from_jax_tree(table: Sequence[Parameter], tree: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse of `to_jax_tree`, of the rows whose path `tree` has (an optimizer splits the table)."""
    tensors: dict[str, Array] = {}
    for row in table:
        if row.jax_path not in tree:
            continue
        value = np.asarray(tree[row.jax_path])
        if row.layer is not None:
            value = value[row.layer]
        elif row.axes[0] == "vocab":
            value = value[: row.shape[0]]
        tensors[row.name] = np.ascontiguousarray(value.T if row.transposed else value)
    return tensors


def pad_vocab(row: Parameter, value: Array, multiple: int) -> Array:
    """`value` with zero rows added up to a multiple, where its first axis is the vocabulary."""
    extra = -value.shape[0] % multiple if row.axes[0] == "vocab" else 0
    return np.pad(value, ((0, extra), *((0, 0),) * (value.ndim - 1))) if extra else value
