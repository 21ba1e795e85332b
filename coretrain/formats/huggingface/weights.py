"""Weights to and from Hugging Face folders: the GPT-2 and the Llama architecture, without a framework.

GPT-2 keeps linear layers as `Conv1D` [in, out], with q, k and v fused; Llama keeps PyTorch's [out, in]. Both rotate
half-split, as the contract does, so that no row is permuted. Sources: transformers' `modeling_gpt2.py`,
`modeling_llama.py`, 5.23.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.files import folder_beside, put_in_place, read_json, write_atomically
from coretrain.base.lazy import LazyTensors
from coretrain.base.safetensors import TensorFile, TensorWriter
from coretrain.config.model import ModelConfig
from coretrain.contract.parameters import parameter_table
from coretrain.formats.huggingface.config import architecture, hf_config, model_config
from coretrain.formats.huggingface.tokenizer import write_tokenizer
from coretrain.formats.mapping import TensorMap
from coretrain.tokenizers.chat_template import turn_end
from coretrain.tokenizers.chat_template_file import read_chat_template
from coretrain.tokenizers.registry import load_tokenizer
from coretrain.tokenizers.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CARD = "README.md"
SHARD_BYTES = 5 * 10**9
UNUSED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Buffers that old folders hold among the weights: causal masks and frequencies, which are no parameters."""


def tensor_maps(m: ModelConfig) -> Iterator[TensorMap]:
    """Every tensor of the Hugging Face folder of `m`. A tied head has none."""
    return _gpt2_maps(m) if architecture(m) == "gpt2" else _llama_maps(m)


def _gpt2_maps(m: ModelConfig) -> Iterator[TensorMap]:
    yield TensorMap("transformer.wte.weight", ("embed.token",))
    yield TensorMap("transformer.wpe.weight", ("embed.position",))
    for i in range(m.layers):
        theirs, ours = f"transformer.h.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            matrix = kind == "weight"
            qkv = tuple(f"{ours}.attention.{part}.{kind}" for part in "qkv")
            yield TensorMap(f"{theirs}.ln_1.{kind}", (f"{ours}.norm1.{kind}",))
            yield TensorMap(f"{theirs}.attn.c_attn.{kind}", qkv, matrix)
            yield TensorMap(f"{theirs}.attn.c_proj.{kind}", (f"{ours}.attention.out.{kind}",), matrix)
            yield TensorMap(f"{theirs}.ln_2.{kind}", (f"{ours}.norm2.{kind}",))
            yield TensorMap(f"{theirs}.mlp.c_fc.{kind}", (f"{ours}.mlp.up.{kind}",), matrix)
            yield TensorMap(f"{theirs}.mlp.c_proj.{kind}", (f"{ours}.mlp.down.{kind}",), matrix)
    yield TensorMap("transformer.ln_f.weight", ("norm.weight",))
    yield TensorMap("transformer.ln_f.bias", ("norm.bias",))
    if not m.tied:
        yield TensorMap("lm_head.weight", ("head.weight",))


def _llama_maps(m: ModelConfig) -> Iterator[TensorMap]:
    yield TensorMap("model.embed_tokens.weight", ("embed.token",))
    linear = {f"attention.{ours}": f"self_attn.{ours[0]}_proj" for ours in ("q", "k", "v", "out")}
    linear |= {f"mlp.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    for i in range(m.layers):
        theirs, ours = f"model.layers.{i}", f"blocks.{i}"
        yield TensorMap(f"{theirs}.input_layernorm.weight", (f"{ours}.norm1.weight",))
        yield TensorMap(f"{theirs}.post_attention_layernorm.weight", (f"{ours}.norm2.weight",))
        for mine, name in linear.items():
            for kind in ("weight", "bias") if m.bias else ("weight",):
                yield TensorMap(f"{theirs}.{name}.{kind}", (f"{ours}.{mine}.{kind}",))
    yield TensorMap("model.norm.weight", ("norm.weight",))
    if not m.tied:
        yield TensorMap("lm_head.weight", ("head.weight",))


def export_huggingface(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Array],
    tokenizer_folder: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    card: str = "",
) -> None:
    """Write `tensors` (canonical) as a folder that `AutoModelForCausalLM.from_pretrained` loads; whole or not at all.

    `tokenizer_folder` is where `Tokenizer.save` wrote; with it `AutoTokenizer` loads too. `card` is its README. Raises
    `UserError` naming the field that Hugging Face's architectures lack, a folder that isn't empty, or a tokenizer that
    wouldn't be the same.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("formats/hf-target-not-empty", f"{folder} exists and is not empty: choose another folder")
    architecture(config)
    tokenizer = None if tokenizer_folder is None else load_tokenizer(tokenizer_folder)
    if tokenizer and tokenizer.vocab > config.vocabulary:
        raise UserError(
            "formats/hf-vocabulary-differs",
            f"{tokenizer_folder} has a vocabulary of {tokenizer.vocab}, the model's is {config.vocabulary}: "
            "give the tokenizer that the model was trained with",
        )
    with folder_beside(folder) as temporary:
        dtype = _write_weights(temporary, config, tensors, shard_bytes)
        _write_json(temporary / "config.json", hf_config(config, dtype, tokenizer.roles if tokenizer else {}))
        template = read_chat_template(tokenizer_folder) if tokenizer_folder else None
        _write_json(temporary / "generation_config.json", _generation_config(tokenizer, template))
        if tokenizer:
            write_tokenizer(temporary, tokenizer, config.context, template)
        if card:
            write_atomically(temporary / CARD, card)
        put_in_place(temporary, folder)


def _generation_config(tokenizer: Tokenizer | None, template: str | None) -> dict[str, int | list[int]]:
    """Ids of special tokens; generation ends at the end of a document, and of a turn where there is a template."""
    if tokenizer is None:
        return {}
    roles = tokenizer.roles
    ids: dict[str, int | list[int]] = {f"{role}_token_id": roles[role] for role in ("bos", "pad") if role in roles}
    ends = [roles.get("eos"), *tokenizer.ends, turn_end(template, tokenizer)]
    every = [end for end in dict.fromkeys(ends) if end is not None]
    return ids | {"eos_token_id": every[0] if len(every) == 1 else every}


def _write_weights(folder: Path, m: ModelConfig, tensors: Mapping[str, Array], shard_bytes: int) -> str:
    """Shards of at most `shard_bytes` (or one tensor), of which one tensor is held; returns the dtype's name."""
    sizes = {row.name: row.size for row in parameter_table(m)}
    dtype = str(tensors["embed.token"].dtype)
    shards: list[list[TensorMap]] = [[]]
    filled = 0
    for place in tensor_maps(m):
        size = sum(sizes[part] for part in place.parts) * np.dtype(dtype).itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(place)
        filled += size
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        names = [place.name for place in shard]
        with TensorWriter(folder / file, names, {"format": "pt"}) as writer:
            for place in shard:
                writer.add(place.name, _join(place, tensors))
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(sizes.values()) * np.dtype(dtype).itemsize
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return dtype


def _join(place: TensorMap, tensors: Mapping[str, Array]) -> Array:
    parts = [np.asarray(tensors[part]) for part in place.parts]
    return np.ascontiguousarray(np.concatenate([part.T if place.transposed else part for part in parts], axis=-1))


def _write_json(path: Path, content: object) -> None:
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


class HuggingFaceTensors(LazyTensors):
    """Canonical tensors out of a Hugging Face folder, each read when it is asked for.

    float64 and float32 keep their bits, bfloat16 and float16 widen to float32, which is exact.
    """

    def __init__(self, folder: Path, m: ModelConfig) -> None:
        """Raises `UserError` naming a tensor that is missing, or one of another shape, or one too many."""
        files, self._parts = _weight_files(folder), dict[str, tuple[TensorMap, int, TensorFile, str]]()
        rows, used = {row.name: row for row in parameter_table(m)}, set()
        for place in tensor_maps(m):
            # Folders of the bare GPT2Model (the hub's gpt2 is one) lack the prefix.
            name = place.name if place.name in files else place.name.removeprefix("transformer.")
            if name not in files:
                raise UserError(
                    "formats/hf-tensor-missing",
                    f"{folder} lacks the tensor {place.name} that its config.json calls for: download it again",
                )
            used.add(name)
            parts = [rows[part].shape[::-1] if place.transposed else rows[part].shape for part in place.parts]
            wanted, found = (*parts[0][:-1], sum(part[-1] for part in parts)), files[name].shape(name)
            if found != wanted:
                raise UserError(
                    "formats/hf-tensor-shape-wrong",
                    f"{folder}: {name} has shape {found}, its config.json says {wanted}",
                )
            self._parts |= {part: (place, index, files[name], name) for index, part in enumerate(place.parts)}
        spare = [name for name in files if name not in used and not name.endswith(UNUSED)]
        if extra := [name for name in spare if not (m.tied and name == "lm_head.weight")]:
            raise UserError(
                "formats/hf-tensor-unexpected",
                f"{folder} has the tensor {extra[0]}, for which the contract's model has no place",
            )
        super().__init__(self._parts, self._read)

    def _read(self, name: str) -> Array:
        place, index, file, held = self._parts[name]
        piece = np.split(file.read(held), len(place.parts), axis=-1)[index]
        return np.ascontiguousarray(piece.T if place.transposed else piece)


def import_huggingface(folder: Path) -> tuple[ModelConfig, HuggingFaceTensors]:
    """The model of a Hugging Face folder: its config, and its tensors in the canonical form, still on disk.

    Raises `UserError` naming the file or the field, for a switch that the contract doesn't have and for damaged files.
    """
    raw = read_json(folder / "config.json", "the config of a Hugging Face model")
    config = model_config(raw, folder / "config.json")
    return config, HuggingFaceTensors(folder, config)


def _weight_files(folder: Path) -> dict[str, TensorFile]:
    """{tensor name: the open file that holds it}."""
    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        held = read_json(folder / INDEX, "the index of the weights").get("weight_map")
        if not isinstance(held, dict) or not all(isinstance(name, str) for name in held.values()):
            raise UserError(
                "formats/weight-map-damaged",
                f"{folder / INDEX} is damaged (weight_map should name every tensor's file): restore it",
            )
        names = sorted(set(held.values()))
    elif not (folder / WEIGHTS).is_file():
        raise UserError(
            "formats/hf-safetensors-missing",
            f"{folder} has no {WEIGHTS}: only safetensors are read, never pickles; "
            "write the model again with transformers' save_pretrained",
        )
    files = [TensorFile(folder / name) for name in names]
    return {name: file for file in files for name in file.names}
