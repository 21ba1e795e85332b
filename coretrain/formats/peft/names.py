"""Where PEFT has an adapter's tensors: the modules of a Hugging Face model, and their names in the file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coretrain.base.arrays import Array
from coretrain.config.model import ModelConfig
from coretrain.formats.huggingface.weights import tensor_maps

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
BESIDE = {"a": "lora_A.weight", "b": "lora_B.weight", "m": "lora_magnitude_vector"}
BESIDE_EMBEDDING = BESIDE | {"a": "lora_embedding_A", "b": "lora_embedding_B"}
"""PEFT's names of an adapter's tensors, by the ends of the canonical ones."""
TARGETS, FINGERPRINT, DIGEST = "twintrain.targets", "twintrain.base", "twintrain.digest"
"""Metadata of the file: which canonical matrices it is of, the fingerprint of the base's weights, its own digest."""


@dataclass(frozen=True)
class Site:
    """A module of the Hugging Face model, made of one canonical matrix or, in GPT-2's `c_attn`, of three."""

    module: str
    """`model.layers.0.self_attn.q_proj`."""
    parts: tuple[str, ...]
    """Names of the canonical matrices, `blocks.0.attention.q.weight`."""

    @property
    def names(self) -> dict[str, str]:
        """PEFT's names of its tensors, by the ends of the canonical ones; m is DoRA's alone."""
        beside = BESIDE_EMBEDDING if self.parts == ("embed.token",) else BESIDE
        return {end: f"{PREFIX}{self.module}.{name}" for end, name in beside.items()}


def sites(m: ModelConfig) -> list[Site]:
    """Every module of `m` that can have an adapter, in the order of the Hugging Face folder."""
    found = [
        (place.name.removesuffix(".weight"), place.parts) for place in tensor_maps(m) if place.name.endswith(".weight")
    ]
    return [Site(*one) for one in found if "norm" not in one[1][0] and one[1] != ("embed.position",)]


def digest(tensors: Mapping[str, Array]) -> str:
    """32 hexadecimal digits of a file's tensors by name, float16 widened to float32 as it is read."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = np.asarray(tensors[name])
        value = np.ascontiguousarray(value.astype(np.float32) if value.dtype == np.float16 else value)
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(value.tobytes())
    return found.hexdigest()


def bias_name(name: str, adapted: Collection[str]) -> str:
    """PEFT's name of a bias: beside an adapter its module is wrapped."""
    module = name.removesuffix(".bias")
    return f"{PREFIX}{module}.base_layer.bias" if module in adapted else f"{PREFIX}{name}"


def patterns(m: ModelConfig, names: Sequence[str]) -> tuple[str, ...]:
    """The names as `adapter.targets`: `blocks.*.attention.q.weight` where all layers have it."""
    held, result = set(names), list[str]()
    for name in names:
        if name.startswith("blocks."):
            part = name.split(".", 2)[2]
            everywhere = all(f"blocks.{layer}.{part}" in held for layer in range(m.layers))
            name = f"blocks.*.{part}" if everywhere else name
        if name not in result:
            result.append(name)
    return tuple(result)
