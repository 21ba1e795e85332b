"""An adapter out of a folder of PEFT; what is none of the contract's, or of another base, is refused by name.

An A of GPT-2's `c_attn` becomes that of q, k and v alike: the same function, but trained further the three go apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.adapters.targets import Target, adapter_targets, trainable_parameters
from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.files import read_json
from coretrain.base.safetensors import TensorFile
from coretrain.config.load import build_config
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import check_rows
from coretrain.formats.huggingface.weights import tensor_maps
from coretrain.formats.peft.config import (
    KEYS,
    TARGETS_OF_KIND,
    check_peft_config,
    patterns_in_time,
    rank_and_scale,
    targeted,
)
from coretrain.formats.peft.names import (
    CONFIG,
    DIGEST,
    FINGERPRINT,
    PREFIX,
    TARGETS,
    WEIGHTS,
    Site,
    bias_name,
    digest,
    patterns,
    sites,
)


def import_peft(
    folder: Path, config: RunConfig, weights: Callable[[], Mapping[str, Array]]
) -> tuple[RunConfig, dict[str, Array]]:
    """An adapter out of a folder of PEFT: `config` with its adapter's fields, and its tensors by canonical name.

    `config` has the base's model, and `weights` gives its tensors, asked for where the file holds some of them. Raises
    `UserError` naming the field or the tensor that the contract doesn't have, or that isn't of this base.
    """
    raw = read_json(folder / CONFIG, "the config of a PEFT adapter")
    check_peft_config(raw, folder / CONFIG)
    if raw.get("target_modules") is None:
        raw["target_modules"] = TARGETS_OF_KIND[config.model.position]
    file = _weights_file(folder)
    reader = _Reader(file, config.model, raw, weights)
    with patterns_in_time(folder / CONFIG):
        chosen = reader.chosen(folder / CONFIG)
        rank, alpha = reader.rank_and_alpha(chosen, folder / CONFIG)
    parts = [part for site in chosen for part in reader.parts[site.module]]
    fields = {
        "kind": "dora" if raw.get("use_dora") else "lora",
        "rank": rank,
        "alpha": alpha,
        "rslora": bool(raw.get("use_rslora")),
        "dropout": float(raw.get("lora_dropout") or 0.0),
        "bias": raw.get("bias", "none"),
        "targets": patterns(config.model, parts),
        "fingerprint": file.metadata.get(FINGERPRINT, config.adapter.fingerprint),
    }
    stated = {"adapter": config.adapter.model_dump(exclude_none=True) | fields}
    config = config.changed(adapter=build_config(stated, str(folder)).adapter)
    tensors = reader.tensors(config, chosen)
    check_rows(trainable_parameters(config), tensors, str(folder))
    return config, tensors


def peft_remarks(folder: Path) -> list[str]:
    """What a folder of PEFT says that neither PEFT nor `import_peft` reads: sentences to print."""
    unread = KEYS.unknown(read_json(folder / CONFIG, "the config of a PEFT adapter"))
    return [f"{CONFIG} has {', '.join(unread)}, which isn't read"] if unread else []


def trained_beside(folder: Path) -> str:
    """The fingerprint of the base's weights, which may not be its newest; '' where the file doesn't say."""
    return _weights_file(folder).metadata.get(FINGERPRINT, "")


def _weights_file(folder: Path) -> TensorFile:
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            "formats/peft-safetensors-missing",
            f"{folder} has no {WEIGHTS}: only safetensors are read, never pickles; write the adapter again with "
            "PEFT's save_pretrained",
        )
    file = TensorFile(folder / WEIGHTS)
    written = file.metadata.get(DIGEST)
    if written not in (None, digest({name: file.read(name) for name in file.names})):
        raise UserError(
            "formats/peft-tensors-changed",
            f"{file.path} is damaged: its tensors aren't those that were written; export the adapter again",
        )
    return file


class _Reader:
    """The tensors of a PEFT file, taken apart one module at a time; what was taken is remembered."""

    def __init__(
        self, file: TensorFile, m: ModelConfig, raw: Mapping[str, Any], weights: Callable[[], Mapping[str, Array]]
    ) -> None:
        self.file, self.model, self.raw, self.weights = file, m, raw, weights
        self.left = set(file.names)
        ours = set(filter(None, file.metadata.get(TARGETS, "").split(",")))
        self.parts = {s.module: tuple(p for p in s.parts if p in ours) or s.parts for s in sites(m)}
        self.blocks = bool(ours)

    def read(self, name: str, shape: tuple[int, ...]) -> Array:
        """A tensor of this shape."""
        if name not in self.file.names:
            raise UserError(
                "formats/peft-tensor-missing",
                f"{self.file.path} lacks the tensor {name} that its config calls for: write it again",
            )
        self.left.discard(name)
        value = self.file.read(name)
        if value.shape != shape:
            raise UserError(
                "formats/peft-tensor-shape-wrong",
                f"{self.file.path}: {name} has shape {value.shape}, base and rank say {shape}: give the base that the "
                "adapter belongs to",
            )
        return value

    def chosen(self, path: Path) -> list[Site]:
        """The modules with an adapter. Raises `UserError` where config and file don't name the same."""
        every = sites(self.model)
        named = set(targeted(self.raw, [site.module for site in every], path))
        held = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in self.file.names if ".lora_" in name}
        if unknown := sorted(held - named):
            raise UserError(
                "formats/peft-adapter-target-unknown",
                f"{self.file.path} has an adapter beside {unknown[0]}, which is no matrix of this base that "
                f"{path.name} names: give the base that the adapter belongs to",
            )
        if not named:
            raise UserError(
                "formats/peft-targets-match-nothing",
                f"{path}: target_modules names no matrix of this base, as {every[1].module}: give the base that the "
                "adapter belongs to",
            )
        return [site for site in every if site.module in named]

    def rank_and_alpha(self, chosen: list[Site], path: Path) -> tuple[int, float]:
        """The one rank and alpha of all adapters; in blocks, of one block."""
        found = {}
        for site in chosen:
            rank, scale = rank_and_scale(self.raw, site.module)
            blocks = len(self.parts[site.module]) if self.blocks else 1
            if rank % blocks:
                raise UserError(
                    "formats/peft-rank-not-blocks",
                    f"{path}: rank_pattern gives {site.module} a rank of {rank}, not {blocks} blocks' one",
                )
            found[rank // blocks, round(scale, 12)] = site.module, rank // blocks, scale
        if len(found) > 1:
            (one, rank, scale), (other, rank2, scale2) = list(found.values())[:2]
            field = "rank_pattern" if rank != rank2 else "alpha_pattern"
            raise UserError(
                "formats/peft-ranks-differ",
                f"{path}: {field} gives {one} rank {rank} and scale {scale:g}, {other} {rank2} and {scale2:g}: "
                "the contract's adapters have the same everywhere",
            )
        ((_, rank, scale),) = found.values()
        alpha = scale * (math.sqrt(rank) if self.raw.get("use_rslora") else rank)
        stated = float(self.raw["lora_alpha"])
        return rank, stated if math.isclose(alpha, stated, rel_tol=1e-12) else alpha

    def tensors(self, config: RunConfig, chosen: list[Site]) -> dict[str, Array]:
        """All canonical tensors of `config`'s adapter. Raises `UserError` for one too many."""
        targets = {target.row.name: target for target in adapter_targets(config)}
        result: dict[str, Array] = {}
        for site in chosen:
            result |= self._taken_apart(site, [targets[part] for part in self.parts[site.module]])
        result |= self._biases(config, {site.module for site in chosen})
        self._check_left()
        return result

    def _taken_apart(self, site: Site, mine: list[Target]) -> dict[str, Array]:
        names, rank = site.names, mine[0].a.shape[0]
        blocks = len(mine) if self.blocks else 1
        rows = mine[0].b.shape[0]
        a = self.read(names["a"], (rank * blocks, mine[0].a.shape[1]))
        b = self.read(names["b"], (rows * len(site.parts), rank * blocks))
        m = self.read(names["m"], (len(b),)) if self.raw.get("use_dora") else None
        result, spare = {}, np.array(b)
        for index, target in enumerate(mine):
            block = index if self.blocks else 0
            columns = slice(block * rank, (block + 1) * rank)
            at = site.parts.index(target.row.name) * rows
            result[target.a.name] = np.ascontiguousarray(a[columns])
            result[target.b.name] = np.ascontiguousarray(b[at : at + rows, columns])
            spare[at : at + rows, columns] = 0
            if m is not None:
                result[f"{target.module}.adapter.m"] = np.ascontiguousarray(m[at : at + rows])
        if spare.any():
            raise UserError(
                "formats/peft-blocks-lost",
                f"{self.file.path}: {names['b']} isn't in blocks any more: it was trained on elsewhere; write it again "
                "with PEFT's save_pretrained, which leaves out where the blocks were",
            )
        return result

    def _biases(self, config: RunConfig, adapted: set[str]) -> dict[str, Array]:
        wanted = {row.name: row for row in trainable_parameters(config) if row.name.endswith(".bias")}
        result: dict[str, Array] = {}
        for place in tensor_maps(self.model):
            if not any(part in wanted for part in place.parts):
                continue
            name = bias_name(place.name, adapted)
            size = sum(self.weights()[part].size if part not in wanted else wanted[part].size for part in place.parts)
            value = self.read(name, (size,))
            for part, piece in zip(place.parts, np.split(value, len(place.parts)), strict=True):
                if part in wanted:
                    result[part] = np.ascontiguousarray(piece)
                elif not np.array_equal(piece, self.weights()[part]):
                    raise UserError(
                        "formats/peft-bias-not-base",
                        f"{self.file.path}: {name} has another {part} than the base, which trains no bias",
                    )
        return result

    def _check_left(self) -> None:
        """What else the file may hold: weights of the base, as PEFT saves an embedding or a head that it adapts."""
        held = {f"{PREFIX}{place.name}": place for place in tensor_maps(self.model)}
        for name in sorted(self.left):
            place = held.get(name.replace(".base_layer.", "."))
            if place is None or len(place.parts) != 1:
                raise UserError(
                    "formats/peft-tensor-unexpected",
                    f"{self.file.path} has the tensor {name}, which no adapter of the contract has",
                )
            value, base = self.file.read(name), self.weights()[place.parts[0]]
            if not np.array_equal(value.T if place.transposed else value, base):
                raise UserError(
                    "formats/peft-weights-not-base",
                    f"{self.file.path}: {name} isn't the base's {place.parts[0]}: it was trained too, or the adapter "
                    "is of another base",
                )
