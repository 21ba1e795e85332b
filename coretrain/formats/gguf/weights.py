"""A model to and from GGUF: the architectures llama and gpt2, their fields and tensors, and the run's tokenizer.

llama.cpp rotates neighbouring rows of q and k where the contract rotates halves, so that the rows of each head are
interleaved in the file. Sources: convert_hf_to_gguf.py and llama-arch.cpp at github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.parse import from_json
from coretrain.config.load import build_config
from coretrain.config.model import ModelConfig
from coretrain.contract.parameters import check_shape, parameter_table
from coretrain.contract.rotary import rotary_divisors
from coretrain.formats.gguf.file import GGUFFile, GgufTensor, write_gguf
from coretrain.formats.gguf.keys import ENDS, GENERAL, KEYS, TOKENIZER
from coretrain.formats.gguf.tokenizer import tokenizer_facts
from coretrain.formats.huggingface.config import architecture
from coretrain.formats.keys import worded
from coretrain.formats.mapping import TensorMap
from coretrain.tokenizers.tokenizer import Tokenizer

ROPE_FREQS = "rope_freqs.weight"
OWN_SCALING = "twintrain.rope_scaling"
UNSET = 2**32 - 1
"""An id that stands for none."""
FILE_TYPES = {"none": 0, "f16": 1, "q4_0": 2, "q8_0": 7}
"""llama.cpp's numbers for what most tensors are held as."""


def interleave(value: Array, heads: int) -> Array:
    """Rows of each head from halves (0 1 2 3) to neighbouring pairs (0 2 1 3); value [heads x C] or [heads x C, D]."""
    halves = value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def restore_halves(value: Array, heads: int) -> Array:
    """The inverse of `interleave`."""
    pairs = value.reshape(heads, len(value) // heads // 2, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)


def tensor_maps(m: ModelConfig) -> Iterator[TensorMap]:
    """Every tensor of the GGUF file of `m`. A tied head has none."""
    gpt2 = m.position == "learned"
    kinds = ("weight", "bias") if m.bias else ("weight",)
    norms = ("weight", "bias") if m.norm == "layernorm" else ("weight",)
    yield TensorMap("token_embd.weight", ("embed.token",))
    if gpt2:
        yield TensorMap("position_embd.weight", ("embed.position",))
    for i in range(m.layers):
        theirs, ours = f"blk.{i}", f"blocks.{i}"
        for kind in norms:
            yield TensorMap(f"{theirs}.attn_norm.{kind}", (f"{ours}.norm1.{kind}",))
            yield TensorMap(f"{theirs}.ffn_norm.{kind}", (f"{ours}.norm2.{kind}",))
        for kind in kinds:
            q, k, v = (f"{ours}.attention.{part}.{kind}" for part in "qkv")
            if gpt2:
                yield TensorMap(f"{theirs}.attn_qkv.{kind}", (q, k, v))
            else:
                yield TensorMap(f"{theirs}.attn_q.{kind}", (q,), heads=m.heads)
                yield TensorMap(f"{theirs}.attn_k.{kind}", (k,), heads=m.kv)
                yield TensorMap(f"{theirs}.attn_v.{kind}", (v,))
            yield TensorMap(f"{theirs}.attn_output.{kind}", (f"{ours}.attention.out.{kind}",))
            for part in ("gate", "up", "down") if m.mlp == "swiglu" else ("up", "down"):
                yield TensorMap(f"{theirs}.ffn_{part}.{kind}", (f"{ours}.mlp.{part}.{kind}",))
    for kind in norms:
        yield TensorMap(f"output_norm.{kind}", (f"norm.{kind}",))
    if not m.tied:
        yield TensorMap("output.weight", ("head.weight",))


class GGUFTensors(Mapping[str, Array]):
    """Canonical float32 tensors out of a GGUF file, each read when it is asked for."""

    def __init__(self, file: GGUFFile, m: ModelConfig) -> None:
        """Raises `UserError` naming a tensor that is missing, or one of another shape, or one too many."""
        self._file, self._rows = file, {row.name: row for row in parameter_table(m)}
        places = list(tensor_maps(m))
        self._places = {part: (place, index) for place in places for index, part in enumerate(place.parts)}
        known = {place.name for place in places} | {ROPE_FREQS} | ({"output.weight"} if m.tied else set())
        if extra := [name for name in file.names if name not in known]:
            raise UserError(
                "formats/gguf-tensor-unexpected",
                f"{file.path} has the tensor {extra[0]}, for which the contract's model has no place",
            )
        missing = next((place.name for place in places if place.name not in file.names), None)
        if missing and missing.endswith(".bias") and m.position == "rope":
            raise UserError(
                "formats/gguf-biases-partial",
                f"{file.path} has blk.0.attn_q.bias and no {missing}: the contract has biases everywhere or nowhere",
            )
        if missing:
            raise UserError(
                "formats/gguf-tensor-missing",
                f"{file.path} lacks the tensor {missing}: it is no whole model; download it again",
            )
        for place in places:
            wanted = [self._rows[part].shape for part in place.parts]
            shape = (sum(rows for rows, *_ in wanted), *wanted[0][1:])
            if file.shape(place.name) != shape:
                raise UserError(
                    "formats/gguf-tensor-shape-wrong",
                    f"{file.path}: {place.name} has shape {file.shape(place.name)}, its fields say {shape}",
                )

    def __getitem__(self, name: str) -> Array:
        place, index = self._places[name]
        value = self._file.read(place.name)
        value = restore_halves(value, place.heads) if place.heads else value
        start = sum(self._rows[part].shape[0] for part in place.parts[:index])
        value = np.ascontiguousarray(value[start : start + self._rows[name].shape[0]])
        check_shape(self._rows[name], value, str(self._file.path))
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._rows  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def gguf_model(file: GGUFFile) -> ModelConfig:
    """The contract's model for a GGUF file. Raises `UserError` naming the field that it doesn't have."""
    kind = file.fact("general.architecture")
    if kind not in ("llama", "gpt2"):
        raise UserError(
            "formats/gguf-architecture-unsupported",
            f"{file.path}: general.architecture = {kind} can't be imported: llama and gpt2 can",
        )
    _check_keys(file, kind)
    width, heads = number(file, f"{kind}.embedding_length"), number(file, f"{kind}.attention.head_count")
    head = width // max(heads, 1)
    head = number(file, "llama.attention.key_length", head) if kind == "llama" else head
    _check_heads(file, kind, heads, head)
    if "token_embd.weight" not in file.names:
        raise UserError(
            "formats/gguf-embedding-missing",
            f"{file.path} lacks the tensor token_embd.weight: it is no whole model; download it again",
        )
    fields = {
        "layers": number(file, f"{kind}.block_count"),
        "width": width,
        "heads": heads,
        "context": number(file, f"{kind}.context_length"),
        "mlp_width": number(file, f"{kind}.feed_forward_length"),
        "vocab": file.shape("token_embd.weight")[0],
        "tied": _tied(file),
    }
    fields |= _gpt2_fields(file) if kind == "gpt2" else _llama_fields(file, width, heads, head)
    model = build_config({"model": fields}, str(file.path)).model
    return _with_rope_freqs(file, model) if ROPE_FREQS in file.names else model


def gguf_remarks(file: GGUFFile, ends: Collection[int]) -> list[str]:
    """What a GGUF file says that the import doesn't follow: sentences to print.

    `ends` are the ids at which a run's text ends.
    """
    facts, remarks = file.facts, list[str]()
    if facts.get("tokenizer.ggml.model") == "llama":  # SentencePiece's has a BOS where nothing is said of it
        facts = {"tokenizer.ggml.add_bos_token": True} | facts
    if asked := GENERAL.not_followed(facts):
        remarks.append(f"the file asks for {worded(facts, asked)}: a run doesn't keep it, give generate what it has")
    if added := TOKENIZER.not_followed(facts):
        remarks.append(f"the file asks for {worded(facts, added)}: a run puts no such token around a text")
    if more := [f"{key} = {facts[key]}" for key in ENDS if facts.get(key, -1) not in (-1, UNSET, *ends)]:
        remarks.append(f"the file ends a text at {', '.join(more)} too, at which a run's text goes on")
    return remarks


def _check_keys(file: GGUFFile, kind: str) -> None:
    """Raise `UserError` naming a key whose value the contract lacks, or one that is in none of the lists."""
    for keys in (GENERAL, KEYS[kind]):
        if key := keys.unsupported(file.facts):
            raise UserError(
                "formats/gguf-value-unsupported",
                f"{file.path}: {key} = {file.facts[key]} can't be imported: the contract has {keys.only[key][0]}",
            )
    unknown = [key for key in KEYS[kind].unknown(file.facts) if key.startswith(f"{kind}.")]
    if unknown := [key for key in unknown if file.facts[key]]:  # 0 or false asks for nothing
        raise UserError(
            "formats/gguf-key-unknown",
            f"{file.path}: {unknown[0]} = {file.facts[unknown[0]]} can't be imported: the contract has no such thing; "
            "take another file of the same model",
        )


def _check_heads(file: GGUFFile, kind: str, heads: int, head: int) -> None:
    """Raise `UserError` naming a count that the contract has once for all, or that GPT-2 has no choice of."""
    wanted = {"attention.key_length": head, "attention.value_length": head}
    wanted |= {"rope.dimension_count": head} if kind == "llama" else {"attention.head_count_kv": heads}
    for name, value in wanted.items():
        if (found := number(file, f"{kind}.{name}", value)) != value:
            raise UserError(
                "formats/gguf-heads-unsupported",
                f"{file.path}: {kind}.{name} = {found} can't be imported: the contract has {value} here",
            )


def number(file: GGUFFile, key: str, absent: int | None = None) -> int:
    """A count that must be there, unless `absent` says what its absence means; one for each layer must all be alike."""
    value = file.fact(key) if absent is None else file.facts.get(key, absent)
    values = set(value) if isinstance(value, list) else {value}
    if len(values) != 1:
        raise UserError(
            "formats/gguf-field-varies", f"{file.path}: {key} varies by layer, which the contract doesn't have"
        )
    if not isinstance(one := values.pop(), int):
        raise UserError(
            "formats/gguf-not-whole-number", f"{file.path}: {key} = {one!r} is no whole number: download it again"
        )
    return one


def _tied(file: GGUFFile) -> bool:
    """Whether the head is the embedding: it is left out, or a copy, as older files of gpt2 have it."""
    if "output.weight" not in file.names:
        return True
    head, embedding = file.raw("output.weight"), file.raw("token_embd.weight")
    return head.dtype == embedding.dtype and np.array_equal(head, embedding)


def _short(value: Any) -> float:
    """A float32 fact as the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06."""
    if not isinstance(value, int | float):
        raise UserError(
            "formats/gguf-not-a-number", f"{value!r} stands where a GGUF file has a number: download it again"
        )
    return float(str(np.float32(value)))


def _gpt2_fields(file: GGUFFile) -> dict[str, Any]:
    return {"norm_eps": _short(file.fact("gpt2.attention.layer_norm_epsilon"))}


def _llama_fields(file: GGUFFile, width: int, heads: int, head: int) -> dict[str, Any]:
    return {
        "kv_heads": number(file, "llama.attention.head_count_kv", heads),
        "head_width": None if head * heads == width else head,
        "norm": "rmsnorm",
        "norm_eps": _short(file.fact("llama.attention.layer_norm_rms_epsilon")),
        "position": "rope",
        "rope_theta": _short(file.facts.get("llama.rope.freq_base", 10000.0)),
        "rope_scaling": _linear_scaling(file),
        "mlp": "swiglu",
        "bias": "blk.0.attn_q.bias" in file.names,
    }


def _linear_scaling(file: GGUFFile) -> dict[str, Any] | None:
    """As llama.cpp reads it: a factor alone is linear, older files have it under another key, and 0 stands for none."""
    if file.facts.get("llama.rope.scaling.type", "linear") != "linear":
        return None
    old = file.facts.get("llama.rope.scale_linear", 0)
    factor = _short(file.facts.get("llama.rope.scaling.factor", old))
    return {"type": "linear", "factor": factor} if factor not in (0, 1) else None


def _with_rope_freqs(file: GGUFFile, m: ModelConfig) -> ModelConfig:
    """`m` with the scaling whose divisors of frequencies the file holds: what a file of ours says, else Llama 3.1's."""
    held = file.read(ROPE_FREQS)
    told = {"type": "llama3", "factor": _short(float(held.max(initial=1.0)))}
    if isinstance(own := file.facts.get(OWN_SCALING), str):
        try:
            told = from_json(own) or told
        except ValueError as error:
            raise UserError(
                "formats/gguf-own-scaling-damaged", f"{file.path}: {OWN_SCALING} is no JSON ({error}): export it again"
            ) from None
    scaled = build_config({"model": m.model_dump() | {"rope_scaling": told}}, str(file.path)).model
    if held.shape != (m.head // 2,) or m.rope_scaling or not np.allclose(held, rotary_divisors(scaled), 1e-5, 0):
        raise UserError(
            "formats/gguf-rope-freqs-unsupported",
            f"{file.path}: {ROPE_FREQS} can't be imported: it isn't what Llama 3.1 divides its frequencies by",
        )
    return scaled if (held != 1).any() else m


def model_facts(m: ModelConfig, name: str, quantization: str) -> dict[str, Any]:
    """The metadata of a model. Raises `UserError` naming a switch that neither architecture has."""
    kind = architecture(m)
    facts: dict[str, Any] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[quantization],
        "general.quantization_version": 2,
        f"{kind}.vocab_size": m.vocabulary,
        f"{kind}.context_length": m.context,
        f"{kind}.embedding_length": m.width,
        f"{kind}.block_count": m.layers,
        f"{kind}.feed_forward_length": m.hidden,
        f"{kind}.attention.head_count": m.heads,
    }
    if kind == "gpt2":
        return facts | {"gpt2.attention.layer_norm_epsilon": m.norm_eps}
    if m.rope_scaling and m.rope_scaling.type == "linear":
        facts |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": m.rope_scaling.factor}
    elif m.rope_scaling:
        facts |= {OWN_SCALING: m.rope_scaling.model_dump_json()}  # llama.cpp needs no more than the tensor
    return facts | {
        "llama.attention.head_count_kv": m.kv,
        "llama.attention.key_length": m.head,
        "llama.attention.value_length": m.head,
        "llama.attention.layer_norm_rms_epsilon": m.norm_eps,
        "llama.rope.dimension_count": m.head,
        "llama.rope.freq_base": m.rope_theta,
    }


def export_gguf(
    path: Path,
    name: str,
    m: ModelConfig,
    tensors: Mapping[str, Array],
    tokenizer: Tokenizer,
    chat_template: str | None = None,
    quantization: str = "none",
) -> str | None:
    """Write canonical `tensors` and the tokenizer as one GGUF file, whole or not at all.

    Returns a sentence to print where llama.cpp splits text in another way than the tokenizer. Raises `UserError` naming
    what GGUF's architectures lack, or a file that exists.
    """
    facts = model_facts(m, name, quantization)
    words, remark = tokenizer_facts(tokenizer, m.vocabulary, chat_template)
    shapes = {row.name: row.shape for row in parameter_table(m)}
    pieces = [_piece(place, shapes, tensors) for place in tensor_maps(m)]
    if m.rope_scaling and m.rope_scaling.type == "llama3":
        pieces.append(GgufTensor(ROPE_FREQS, (m.head // 2,), lambda: rotary_divisors(m).astype(np.float32)))
    write_gguf(path, architecture(m), facts | words, pieces, quantization)
    return remark


def _piece(place: TensorMap, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Array]) -> GgufTensor:
    def value() -> Array:
        joined = np.concatenate([np.asarray(tensors[part], np.float32) for part in place.parts])
        return interleave(joined, place.heads) if place.heads else joined

    rows = sum(shapes[part][0] for part in place.parts)
    return GgufTensor(place.name, (rows, *shapes[place.parts[0]][1:]), value)
