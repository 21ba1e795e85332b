"""GGUF files read and changed by the package gguf, which is another hand's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from coretrain.config.model import ModelConfig
from coretrain.formats.gguf.file import GGUFFile
from coretrain.formats.gguf.weights import GGUFTensors, gguf_model

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def reopened(path: Path) -> tuple[ModelConfig, GGUFTensors]:
    """The model and the tensors of a GGUF file."""
    file = GGUFFile(path)
    return gguf_model(file), GGUFTensors(file, gguf_model(file))


def rewrite(
    source: Path, target: Path, facts: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None
) -> None:
    """A copy of a GGUF file with some facts (None: left out) and tensors ((array, kind), None: left out) changed."""
    old = gguf.GGUFReader(source)
    fields = {key: field.contents() for key, field in old.fields.items() if not key.startswith("GGUF.")}
    fields |= facts or {}
    writer = gguf.GGUFWriter(target, fields.pop("general.architecture"))
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            kinds[type(value)](key, value)
    held = {tensor.name: (tensor.data, tensor.tensor_type.name) for tensor in old.tensors} | (tensors or {})
    for name, pair in held.items():
        if pair is not None:
            kind = gguf.GGMLQuantizationType[pair[1]]
            writer.add_tensor(name, np.asarray(pair[0]), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
