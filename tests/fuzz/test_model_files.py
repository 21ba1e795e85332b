"""Model folders of Hugging Face, GGUF files and folders of PEFT that few expect: taken, or refused in a sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random

import numpy as np
import pytest

from coretrain.adapters.targets import trainable_parameters
from coretrain.base.safetensors import TensorFile
from coretrain.config.load import load_config
from coretrain.config.model import ModelConfig, RopeScaling
from coretrain.contract.parameters import initial_parameters
from coretrain.formats.gguf.file import GGUFFile
from coretrain.formats.gguf.tokenizer import gguf_chat_template, read_gguf_tokenizer
from coretrain.formats.gguf.weights import GGUFTensors, export_gguf, gguf_model
from coretrain.formats.huggingface.weights import INDEX, export_huggingface, import_huggingface
from coretrain.formats.peft.reader import import_peft, trained_beside
from coretrain.formats.peft.writer import export_peft
from coretrain.tokenizers.tokenizer import Tokenizer
from tests.support.fuzzing import as_json, damaged, ends_well, fuzzed, mutated, odd, replaced
from tests.support.gguf_files import rewrite
from tests.support.models import perturbed
from tests.support.refusal import refused

pytest.importorskip("gguf")
LLAMA = ModelConfig(
    layers=2, width=16, heads=2, context=16, vocab=261, norm="rmsnorm", position="rope", mlp="swiglu", bias=False,
    tied=False, rope_scaling=RopeScaling(type="llama3", factor=8.0, original_context=8),
)  # fmt: skip
GPT2 = ModelConfig(layers=1, width=16, heads=2, context=16, vocab=261)


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    """What takes long is given up sooner."""
    monkeypatch.setattr("coretrain.formats.peft.config.SECONDS", 0.3)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folders `gpt2`, `llama` in two shards, `peft`; files `gpt2.gguf`, `llama.gguf`."""
    folder = tmp_path_factory.mktemp("models")
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abab": 257}
    specials = {"<|endoftext|>": 258, "<|im_start|>": 259, "<|im_end|>": 260}
    tokenizer = Tokenizer("small", ranks, r"\w+|\W", 258, specials, {"bos": 259, "eos": 258})
    for name, model in (("gpt2", GPT2), ("llama", LLAMA)):
        tensors = perturbed(model, np.float32)
        export_huggingface(folder / name, model, tensors, None, 30_000)
        export_gguf(folder / f"{name}.gguf", name, model, tensors, tokenizer)
    words = {"kind": "lora", "rank": 2, "targets": "blocks.*.attention.*.weight,blocks.*.mlp.*"}
    config = load_config("tiny", [(f"adapter.{name}", str(value)) for name, value in words.items()]).changed(model=GPT2)
    adapter = {row.name: np.ones(row.shape, np.float32) for row in trainable_parameters(config)}
    export_peft(folder / "peft", config, adapter, "base", lambda: initial_parameters(GPT2, 1))
    return folder


def values(tensors) -> None:
    for name in tensors:
        tensors[name]


def header(random: Random, raw: bytes) -> bytes:
    """A safetensors file with another header before the same data."""
    length = int.from_bytes(raw[:8], "little")
    found = as_json(mutated(random, json.loads(raw[8 : 8 + length])))
    said = random.choice((len(found), len(found), len(found), 0, 2**63, length))
    return said.to_bytes(8, "little") + found + raw[8 + length :]


@fuzzed(10)
def test_folders_of_hugging_face(made, random):
    folder = made / random.choice(("gpt2", "llama"))
    path = random.choice([folder / "config.json", folder / "config.json", *folder.glob(INDEX)])
    with replaced(path, damaged(random, path)):
        ends_well(f"Hugging Face's {path.name}", lambda: values(import_huggingface(folder)[1]))


@fuzzed(5)
def test_safetensors(made, random):
    path = random.choice(sorted(made.glob("*/model*.safetensors")))
    raw = path.read_bytes()

    def read() -> None:
        file = TensorFile(path)
        for name in file.names:
            file.read(name)
        values(import_huggingface(path.parent)[1])

    with replaced(path, header(random, raw) if random.random() < 0.8 else damaged(random, path)):
        ends_well("safetensors", read)


@fuzzed(6)
def test_gguf_fields(made, random):
    path, again = made / f"{random.choice(('gpt2', 'llama'))}.gguf", made / "again.gguf"
    facts = {name: value for name, value in GGUFFile(path).facts.items() if not name.startswith("GGUF.")}
    for name in random.sample(sorted(facts), random.choice((1, 1, 2))):
        facts[name] = mutated(random, {name: facts[name]}, 1).get(name)
    again.unlink(missing_ok=True)
    try:
        rewrite(path, again, facts)
    except Exception:  # what GGUF can't hold is no file of it
        return
    ends_well("GGUF's fields", lambda: read_gguf(again))


@fuzzed(6)
def test_gguf_bytes(made, random):
    path = made / f"{random.choice(('gpt2', 'llama'))}.gguf"
    raw = bytearray(damaged(random, path))
    for _ in range(random.choice((0, 1, 3))):  # numbers of 8 bytes among the fields, lengths of texts and lists too
        at = random.randrange(min(len(raw), 6000) + 1)
        raw[at : at + 8] = random.choice((2**60, 2**63, 2**64 - 1, 2**32, 0, 9, 8)).to_bytes(8, "little")
    with replaced(path, bytes(raw)):
        ends_well("GGUF's bytes", lambda: read_gguf(path))


def read_gguf(path: Path) -> None:
    file = GGUFFile(path)
    values(GGUFTensors(file, gguf_model(file)))
    read_gguf_tokenizer(file).encode("abab")
    gguf_chat_template(file)


@fuzzed(8)
def test_folders_of_peft(made, random):
    path = made / "peft" / random.choice(("adapter_config.json",) * 3 + ("adapter_model.safetensors",))
    config = load_config("tiny").changed(model=GPT2)

    def read() -> None:
        trained_beside(path.parent)
        import_peft(path.parent, config, lambda: initial_parameters(GPT2, 1))

    raw = header(random, path.read_bytes()) if path.suffix == ".safetensors" else damaged(random, path)
    if path.suffix == ".json" and random.random() < 0.1:
        said = json.loads(path.read_text())
        evil = random.choice(
            ("([a-z0-9_.]+)+!", "(.*)*!", "(.*.*.*.*.*.*.*.*)!", "[", "*", "(?P<a>x)(?P<a>y)", odd(random))
        )
        place = random.choice(("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"))
        raw = as_json(said | {place: {str(evil)[:99]: 2} if "pattern" in place else evil})
    with replaced(path, raw):
        ends_well(f"PEFT's {path.name}", read)


def test_a_list_that_is_longer_than_its_file(tmp_path):
    """The package gguf would go on for 2**60 numbers."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    for kind, size in ((0, 2**60), (12, 2**63), (9, 2**64 - 1)):
        field = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, kind, size)
        (tmp_path / "x.gguf").write_bytes(head + field + bytes(40))
        with refused("formats/gguf-file-unreadable", "x.gguf"):
            GGUFFile(tmp_path / "x.gguf")


@pytest.mark.parametrize("pattern", ["([a-z0-9_.]+)+!", "(.*)*!", "(.*.*.*.*.*.*.*.*)!"])
def test_a_pattern_that_is_never_decided(made, pattern):
    path, config = made / "peft" / "adapter_config.json", load_config("tiny").changed(model=GPT2)
    with (
        replaced(path, as_json(json.loads(path.read_text()) | {"target_modules": pattern})),
        refused("formats/peft-pattern-too-slow", "adapter_config.json"),
    ):
        import_peft(path.parent, config, lambda: initial_parameters(GPT2, 1))
