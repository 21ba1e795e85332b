"""A run's adapter as a folder of PEFT: `adapter_config.json`, `adapter_model.safetensors`, README.md.

A and B are [r, in] and [out, r] in both, beside GPT-2's transposed `Conv1D` too. GPT-2 has q, k and v in one matrix
`c_attn`, with one A: our adapters of q, k and v, each with its own A, are there one of their ranks' sum, A one below
the other and B in blocks, at the same scale; DoRA's magnitudes are those of the rows of all three.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

from coretrain.adapters.targets import Target, adapter_targets, trainable_parameters
from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.files import folder_beside, put_in_place, write_atomically
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import check_rows
from coretrain.formats.huggingface.config import architecture
from coretrain.formats.huggingface.weights import CARD, tensor_maps
from coretrain.formats.peft.config import peft_config, short_names
from coretrain.formats.peft.names import (
    CONFIG,
    DIGEST,
    FINGERPRINT,
    TARGETS,
    WEIGHTS,
    Site,
    bias_name,
    digest,
    sites,
)
from coretrain.formats.peft.reader import import_peft


def to_peft(
    config: RunConfig, tensors: Mapping[str, Array], base: str, weights: Callable[[], Mapping[str, Array]]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """An adapter's config and tensors as PEFT has them, `base` where it finds its base.

    `weights` gives the base's tensors, asked for where a bias of `c_attn` trains in part.
    """
    c = config.adapter
    check_rows(trainable_parameters(config), tensors, f"adapter {c.name}")
    targets = {target.row.name: target for target in adapter_targets(config)}
    chosen = [site for site in sites(config.model) if any(part in targets for part in site.parts)]
    ranks, alphas = dict[str, int](), dict[str, float]()
    result: dict[str, Array] = {}
    for site in chosen:
        mine = [targets[part] for part in site.parts if part in targets]
        if len(mine) > 1:
            ranks[site.module] = len(mine) * c.rank
            alphas[site.module] = c.alpha * (math.sqrt(len(mine)) if c.rslora else len(mine))
        result |= _joined(site, mine, tensors)
        if c.kind == "dora":
            result[site.names["m"]] = _magnitudes(site, mine, tensors)
    result |= _biases(config, {site.module for site in chosen}, tensors, weights)
    every = [site.module for site in sites(config.model)]
    names = short_names([site.module for site in chosen], every)
    gpt2 = architecture(config.model) == "gpt2"
    raw = peft_config(c.rank, c.alpha, c.rslora, c.kind == "dora", c.dropout, c.bias, names, ranks, alphas, gpt2, base)
    return raw, result


def _joined(site: Site, mine: list[Target], tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of one module; of several matrices A one below the other and B in blocks."""
    a, b = ([np.asarray(tensors[row.name]) for row in rows] for rows in zip(*((t.a, t.b) for t in mine), strict=True))
    if len(site.parts) == 1:
        return {site.names["a"]: a[0], site.names["b"]: b[0]}
    rows, rank = len(b[0]), len(a[0])
    blocks = np.zeros((rows * len(site.parts), rank * len(mine)), b[0].dtype)
    for index, target in enumerate(mine):
        at = site.parts.index(target.row.name) * rows
        blocks[at : at + rows, index * rank : (index + 1) * rank] = b[index]
    return {site.names["a"]: np.concatenate(a), site.names["b"]: blocks}


def _magnitudes(site: Site, mine: list[Target], tensors: Mapping[str, Array]) -> Array:
    """The magnitudes of one module's outputs. Raises `UserError` where only some of its matrices have any."""
    if len(mine) < len(site.parts):
        raise UserError(
            "formats/dora-on-partial-qkv",
            f"adapter.kind = dora beside {mine[0].row.name} alone can't be written: PEFT has magnitudes for all of "
            f"{site.module}, which is q, k and v",
        )
    return np.concatenate([np.asarray(tensors[f"{target.module}.adapter.m"]) for target in mine])


def _biases(
    config: RunConfig, adapted: set[str], tensors: Mapping[str, Array], weights: Callable[[], Mapping[str, Array]]
) -> dict[str, Array]:
    result: dict[str, Array] = {}
    for place in tensor_maps(config.model):
        if place.name.endswith(".bias") and any(part in tensors for part in place.parts):
            whole = tensors if all(part in tensors for part in place.parts) else {**weights(), **tensors}
            result[bias_name(place.name, adapted)] = np.concatenate([np.asarray(whole[part]) for part in place.parts])
    return result


def export_peft(
    folder: Path,
    config: RunConfig,
    tensors: Mapping[str, Array],
    base: str,
    weights: Callable[[], Mapping[str, Array]],
    card: str = "",
) -> None:
    """Write an adapter as a folder that `PeftModel.from_pretrained` loads, then read it back; whole or not at all.

    Arguments as of `to_peft`; `card` is its README. Raises `UserError` naming the field that Hugging Face's
    architectures lack, or a folder that isn't empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("formats/peft-target-not-empty", f"{folder} exists and is not empty: choose another folder")
    raw, content = to_peft(config, tensors, base, weights)
    c = config.adapter
    targets = [target.row.name for target in adapter_targets(config)]
    metadata = {"format": "pt", TARGETS: ",".join(targets), FINGERPRINT: c.fingerprint, DIGEST: digest(content)}
    with folder_beside(folder) as temporary:
        content = {name: np.ascontiguousarray(value) for name, value in content.items()}
        write_atomically(temporary / WEIGHTS, to_safetensors(content, metadata=metadata))
        write_atomically(temporary / CONFIG, json.dumps(raw, indent=2, sort_keys=True) + "\n")
        if card:
            write_atomically(temporary / CARD, card)
        _check_written(temporary, config, tensors, weights)
        put_in_place(temporary, folder)


def _check_written(
    folder: Path, config: RunConfig, tensors: Mapping[str, Array], weights: Callable[[], Mapping[str, Array]]
) -> None:
    found, again = import_peft(folder, config, weights)
    for name in tensors:
        if not np.array_equal(again[name], np.asarray(tensors[name]), equal_nan=True):
            raise UserError(
                "formats/peft-weights-not-written",
                f"{folder / WEIGHTS} doesn't hold {name} as it was written: is the disk sound?",
            )
    if not math.isclose(found.adapter.scale, config.adapter.scale, rel_tol=1e-12):
        raise UserError(
            "formats/peft-scale-not-written",
            f"{folder / CONFIG} doesn't hold the adapter's scale as it was written: is the disk sound?",
        )
