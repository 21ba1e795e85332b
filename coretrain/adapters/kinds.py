"""What an adapter has beside or in place of A and B: DoRA's magnitudes, a prefix of keys and values, a bottleneck.

- dora (Liu et al. 2024, as PEFT computes it): W' = m (W + scale B A) / ||W + scale B A||, a magnitude m and a norm for
  each output of W, the norm a constant in the backward pass; m starts as ||W||, so that W' starts as W. Of an embedding
  [V, D] the outputs are its D columns. A row of zeros has magnitude 0, and is left as it is.
- prefix (Li and Liang 2021, without their MLP): `virtual_tokens` trained keys and values before those of every layer,
  which all queries see. They aren't rotated, and as in PEFT rotary positions count the prefix: the first token has
  position `virtual_tokens`. Learned positions have no row to spare: there tokens keep their own.
- bottleneck (Houlsby et al. 2019): y + up act(down y) of the output y of attention and MLP, before it is added to the
  residual stream; the MLP's alone is the place of Pfeiffer et al. 2021. `up` starts at zero, the model as the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import Parameter

MERGEABLE = ("lora", "dora")
"""Kinds that are a change of weights."""
LAST = {"attention": "attention.out", "mlp": "mlp.down"}
"""The matrix at the end of each sublayer."""
PREFIX_STD = 1.0
"""Of the first keys and values, as PEFT draws them (torch's Embedding)."""


def magnitude_row(row: Parameter, a: Parameter, b: Parameter) -> Parameter:
    """The magnitudes of a matrix, one for each output; their start depends on the base (`magnitudes`)."""
    name, path = (text.removesuffix(".a") + ".m" for text in (a.name, a.jax_path))
    more = {"init": "ones", "std": 0.0, "decay": False, "transposed": False}
    # below, `more` holds fields of a row of several types
    return replace(row, name=name, jax_path=path, shape=b.shape[:1], axes=b.axes[:1], **more)  # type: ignore[arg-type]  # of each field its own


def prefix_rows(config: RunConfig, chosen: Sequence[Parameter]) -> list[tuple[Parameter, tuple[Parameter, ...]]]:
    """(the key matrix, keys and values before its own) of every layer."""
    c, m = config.adapter, config.model
    if c.virtual_tokens > m.context:
        raise UserError(
            "adapters/too-many-virtual-tokens",
            f"adapter.virtual_tokens = {c.virtual_tokens} is above model.context = {m.context}: choose fewer",
        )
    if len({row.layer for row in chosen}) < m.layers:
        raise UserError(
            "adapters/prefix-needs-all-layers",
            "adapter.targets leaves layers out, and a prefix stands in all of them: leave adapter.targets out",
        )
    keys = [row for row in chosen if row.name.endswith("attention.k.weight")] or chosen
    found = []
    for layer in range(m.layers):
        row = next(row for row in keys if row.layer == layer)
        like = replace(
            row, shape=(c.virtual_tokens, m.kv * m.head), axes=("virtual", "kv_heads"),
            init="normal", std=PREFIX_STD, decay=True, transposed=False,
        )  # fmt: skip
        parts = tuple(_named(like, f"blocks.{layer}.attention.prefix.{part}") for part in "kv")
        found.append((row, parts))
    return found


def bottleneck_rows(config: RunConfig, chosen: Sequence[Parameter]) -> list[tuple[Parameter, tuple[Parameter, ...]]]:
    """(a sublayer's last matrix, what stands behind it) of every sublayer with a chosen matrix."""
    m = config.model
    places = dict.fromkeys((row.layer, row.name.split(".")[2]) for row in chosen)
    if m.bias and any([part for _, part in places].count(name) != m.layers for _, name in places):
        raise UserError(
            "adapters/bottleneck-layers-differ",
            "adapter.targets names some layers only, and the biases of bottlenecks can't be held so by stacked layers: "
            "choose adapter.targets that are the same in all layers",
        )
    rows = {row.name: row for row in chosen}
    return [
        (rows.get(f"blocks.{layer}.{LAST[part]}.weight", next(r for r in chosen if r.layer == layer)), parts)
        for (layer, part) in places
        for parts in [_bottleneck(config, chosen[0], f"blocks.{layer}.{part}.adapter", layer)]
    ]


def _bottleneck(config: RunConfig, row: Parameter, stem: str, layer: int | None) -> tuple[Parameter, ...]:
    m, width = config.model, config.adapter.bottleneck_width
    down = replace(
        row, layer=layer, shape=(width, m.width), axes=("bottleneck", "width"), init="normal", std=m.init_std
    )
    up = replace(down, shape=(m.width, width), axes=("width", "bottleneck"), init="zeros", std=0.0)
    bias = replace(up, decay=False, transposed=False)
    rows = {
        "down": down,
        "down_bias": replace(bias, shape=(width,), axes=("bottleneck",)),
        "up": up,
        "up_bias": replace(bias, shape=(m.width,), axes=("width",)),
    }
    return tuple(_named(value, f"{stem}.{n}") for n, value in rows.items() if m.bias or not n.endswith("bias"))


def _named(row: Parameter, name: str) -> Parameter:
    first, _, rest = name.split(".", 2)
    return replace(row, name=name, jax_path=f"{first}.{rest}")


def magnitudes(weight: Array, embedding: bool) -> NDArray[np.float64]:
    """||W|| of each output: of a row [out, in], of an embedding's column."""
    return np.asarray(np.linalg.norm(np.asarray(weight, np.float64), axis=0 if embedding else 1))


def directed(weight: Array, delta: NDArray[np.float64], m: Array, embedding: bool) -> NDArray[np.float64]:
    """What DoRA adds to W whose direction changes by `delta`: m (W + delta) / ||W + delta|| - W."""
    wide = np.asarray(weight, np.float64)
    moved, size = wide + delta, np.asarray(m, np.float64)
    norm = magnitudes(moved, embedding)
    factor = np.where(size == 0, 1.0, size / np.where(norm == 0, 1.0, norm))
    return moved * (factor if embedding else factor[:, None]) - wide


def check_mergeable(config: RunConfig) -> None:
    """Raise `UserError` for an adapter that no change of weights could replace."""
    if config.adapter.kind not in MERGEABLE:
        raise UserError(
            "adapters/kind-not-mergeable",
            f"adapter.kind = {config.adapter.kind} is no change of the base's weights and can't be merged into them: "
            "generate from the adapter's run itself, or train a lora or dora adapter",
        )


def shown(config: RunConfig, tensors: int) -> str:
    """An adapter in a line for the run's header."""
    c = config.adapter
    if c.kind == "prefix":
        return f"prefix of {c.virtual_tokens} keys and values in {config.model.layers} layers"
    if c.kind == "bottleneck":
        return f"{tensors} bottlenecks of width {c.bottleneck_width}, {c.bottleneck_activation}"
    scale = "alpha / sqrt(rank)" if c.rslora else "alpha / rank"
    dora = ", with magnitudes (DoRA)" if c.kind == "dora" else ""
    return f"{tensors} matrices, rank {c.rank}, {scale} = {c.scale:g}{dora}"
