"""Weights to and from Hugging Face folders: the GPT-2 and the Llama architecture, without a framework.

GPT-2 keeps linear layers as `Conv1D` [in, out], with q, k and v fused; Llama keeps PyTorch's [out, in]. Both rotate
half-split, as the contract does, so that no row is permuted. Sources: transformers' `modeling_gpt2.py`,
`modeling_llama.py`, 5.24.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.files import folder_beside, put_in_place, read_json, write_atomically
from coretrain.base.lazy import LazyTensors
from coretrain.base.safetensors import TensorFile, TensorWriter
from coretrain.config.model import ModelConfig
from coretrain.contract.parameters import SCORE, parameter_table
from coretrain.formats.huggingface.config import architecture, config_remarks, hf_config, is_classifier, model_config
from coretrain.formats.huggingface.keys import ENDS, SAMPLING
from coretrain.formats.huggingface.tokenizer import write_tokenizer
from coretrain.formats.keys import worded
from coretrain.formats.mapping import TensorMap
from coretrain.tokenizers.chat_template import turn_end
from coretrain.tokenizers.chat_template_file import read_chat_template
from coretrain.tokenizers.registry import load_tokenizer
from coretrain.tokenizers.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CARD = "README.md"
SHARD_BYTES = 5 * 10**9
CONFIG, GENERATION = "config.json", "generation_config.json"
HEAD, SCORES = "lm_head.weight", "score.weight"
SHARDS_OF_PROCESSES = "shard-*-model-*-of-*.safetensors"
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
    yield from _heads(m)


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
    yield from _heads(m)


def _heads(m: ModelConfig) -> Iterator[TensorMap]:
    if not m.tied:  # beside a score head too, though transformers' classifiers pass it over
        yield TensorMap(HEAD, ("head.weight",))
    if m.score_head:
        yield TensorMap(SCORES, (SCORE,))


def export_huggingface(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Array],
    tokenizer_folder: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    card: str = "",
) -> None:
    """Write `tensors` (canonical) as a folder that `AutoModelForCausalLM.from_pretrained` loads; whole or not at all.

    With a score head it is one of `AutoModelForSequenceClassification`, whose one label is the score.
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
        _write_json(temporary / CONFIG, hf_config(config, dtype, tokenizer.roles if tokenizer else {}))
        template = read_chat_template(tokenizer_folder) if tokenizer_folder else None
        _write_json(temporary / GENERATION, _generation_config(tokenizer, template))
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

    def __init__(self, folder: Path, m: ModelConfig, files: Mapping[str, TensorFile]) -> None:
        """`files` has the file of each tensor.

        Raises `UserError` naming a tensor that is missing, or one of another shape, or one too many.
        """
        self._parts = dict[str, tuple[TensorMap, int, TensorFile, str]]()
        rows, places = {row.name: row for row in parameter_table(m)}, list(tensor_maps(m))
        names = {place.name: _held(m, place.name, files) for place in places}
        head, embedding = _held(m, HEAD, files), places[0].name
        if m.tied:  # a copy of the embedding, which may stand for it
            names[embedding] = names[embedding] or head
        known = {*names.values(), head}
        if extra := [name for name in files if name not in known and not name.endswith(UNUSED)]:
            raise UserError(
                "formats/hf-tensor-unexpected",
                f"{folder} has the tensor {extra[0]}, for which the contract's model has no place",
            )
        for place in places:
            name = names[place.name]
            if name is None:
                raise UserError(
                    "formats/hf-tensor-missing",
                    f"{folder} lacks the tensor {place.name} that its config.json calls for: add the file that holds "
                    "it, or correct config.json",
                )
            parts = [rows[part].shape[::-1] if place.transposed else rows[part].shape for part in place.parts]
            wanted, found = (*parts[0][:-1], sum(part[-1] for part in parts)), files[name].shape(name)
            if found != wanted:
                raise UserError(
                    "formats/hf-tensor-shape-wrong",
                    f"{folder}: {name} has shape {found}, its config.json says {wanted}",
                )
            self._parts |= {part: (place, index, files[name], name) for index, part in enumerate(place.parts)}
        super().__init__(self._parts, self._read)

    def _read(self, name: str) -> Array:
        place, index, file, held = self._parts[name]
        piece = np.split(file.read(held), len(place.parts), axis=-1)[index]
        return np.ascontiguousarray(piece.T if place.transposed else piece)


def import_huggingface(folder: Path) -> tuple[ModelConfig, HuggingFaceTensors]:
    """The model of a Hugging Face folder: its config, and its tensors in the canonical form, still on disk.

    Raises `UserError` naming the file or the field, for a switch that the contract doesn't have and for damaged files.
    """
    raw = _config(folder)
    config = model_config(raw, folder / CONFIG)
    files = _weight_files(folder)
    if is_classifier(raw) and SCORES in files:
        config = config.model_copy(update={"score_head": True})
    embedding, head = (_held(config, name, files) for name in (next(tensor_maps(config)).name, HEAD))
    if config.tied and embedding and head and not files[head].same(head, files[embedding], embedding):
        config = config.model_copy(update={"tied": False})  # as transformers: what the weights hold counts
    return config, HuggingFaceTensors(folder, config, files)


def import_remarks(folder: Path, model: ModelConfig) -> list[str]:
    """What a folder says that `import_huggingface` doesn't follow: sentences to print."""
    remarks = config_remarks(_config(folder), model)
    if (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        remarks.append(f"{WEIGHTS} is read, and {INDEX} isn't, as in transformers")
    return remarks


def generation_remarks(folder: Path, ends: Collection[int]) -> list[str]:
    """What a folder's generation_config.json asks of sampling, which no run keeps: sentences to print.

    `ends` are the ids at which a run's text ends.
    """
    if not (folder / GENERATION).is_file():
        return []
    raw, remarks = read_json(folder / GENERATION, "the folder's wishes for generation"), list[str]()
    if asked := SAMPLING.not_followed(raw):
        remarks.append(f"{GENERATION} asks for {worded(raw, asked)}: a run doesn't keep it, give generate what it has")
    theirs = raw.get(ENDS)
    theirs = theirs if isinstance(theirs, list) else [theirs]
    if more := [end for end in theirs if end is not None and end not in ends]:
        remarks.append(f"{GENERATION} ends a text at ids {more} too, at which a run's text goes on")
    if unread := SAMPLING.unknown(raw):
        remarks.append(f"{GENERATION} has {', '.join(unread)}, which isn't read")
    return remarks


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG, "the config of a Hugging Face model")


def _held(m: ModelConfig, name: str, files: Collection[str]) -> str | None:
    """A tensor's name in the files: with the name of the bare model before it, or, as that model writes it, without."""
    bare = "transformer." if architecture(m) == "gpt2" else "model."
    other = name.removeprefix(bare) if name.startswith(bare) else f"{bare}{name}"
    return next((one for one in (name, other) if one in files), None)


def _weight_files(folder: Path) -> dict[str, TensorFile]:
    """{tensor name: the open file that holds it}. A whole file comes before an index, as in transformers."""
    names = [WEIGHTS]
    if shards := sorted(folder.glob(SHARDS_OF_PROCESSES)):
        raise UserError(
            "formats/hf-shards-of-processes",
            f"{shards[0]} is a part of a distributed checkpoint, which can't be imported: write the model again with "
            "transformers' save_pretrained",
        )
    if not (folder / WEIGHTS).is_file():
        if not (folder / INDEX).is_file():
            raise UserError(
                "formats/hf-safetensors-missing",
                f"{folder} has no {WEIGHTS}: only safetensors are read, never pickles; "
                "write the model again with transformers' save_pretrained",
            )
        held = read_json(folder / INDEX, "the index of the weights").get("weight_map")
        if not isinstance(held, dict) or not all(isinstance(name, str) for name in held.values()):
            raise UserError(
                "formats/weight-map-damaged",
                f"{folder / INDEX} is damaged (weight_map should name every tensor's file): restore it",
            )
        names = sorted(set(held.values()))
    found: dict[str, TensorFile] = {}
    for file in [TensorFile(folder / name) for name in names]:
        if twice := [name for name in file.names if name in found]:
            raise UserError(
                "formats/hf-tensor-twice",
                f"{file.path} has the tensor {twice[0]}, and {found[twice[0]].path.name} has it too: leave one out",
            )
        found |= dict.fromkeys(file.names, file)
    return found
