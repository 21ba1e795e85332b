"""The command that brings models in and out, from one form to the others, and its mistakes."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from coretrain.base.errors import UserError
from coretrain.checkpoint.interchange import (
    interchange_of,
    load_interchange,
    newest_interchange,
    save_interchange,
)
from coretrain.checkpoint.manifest import Progress
from coretrain.config.data import DataConfig
from coretrain.config.load import config_from_json
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.formats.gguf.file import GGUFFile
from coretrain.formats.gguf.weights import export_gguf
from coretrain.runs.convert import export_run, exported_to, import_run
from coretrain.tokenizers.registry import load_tokenizer
from coretrain.tokenizers.tokenizer import Tokenizer
from tests.support.commands import convert
from tests.support.gguf_files import TEMPLATE
from tests.support.models import LLAMA, MODELS, SMALL, perturbed
from tests.support.refusal import refused


@pytest.mark.whole
def test_command_line_from_gguf_to_all_forms(
    tmp_path: Path, pretrained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In from GGUF, out to GGUF and Hugging Face, in again from there: weights, specials and template are the same."""
    model = ModelConfig(**SMALL | {"vocab": pretrained.vocab}, **LLAMA, kv_heads=2)
    tensors = perturbed(model)
    export_gguf(tmp_path / "m.gguf", "m", model, tensors, pretrained, TEMPLATE)
    out = convert("--train.updates", 50, tmp_path / "m.gguf", "--name", "my", tmp_path / "run")
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == TEMPLATE
    assert config_from_json((tmp_path / "run" / "config.json").read_text()).train.updates == 50
    for form, quantization, name in (
        ("gguf", "q8_0", "run-q8_0.gguf"),
        ("gguf", "none", "run.gguf"),
        ("hf", "f16", "run-f16-hf"),
    ):
        out = convert(tmp_path / "run", "--to", form, "--quantize", quantization)
        assert out.returncode == 0, out.stderr
        assert (tmp_path / "run" / "export" / name).exists()
    facts = (GGUFFile(path).facts for path in (tmp_path / "m.gguf", tmp_path / "run" / "export" / "run.gguf"))
    first, second = ({key: value for key, value in each.items() if key != "general.name"} for each in facts)
    assert first == second

    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "export" / "run-f16-hf")
    said = [{"role": "user", "content": "it's 12"}]
    ids = fast.apply_chat_template(said, return_dict=False)
    assert ids == [1, *pretrained.encode("it's 12").tolist(), 2]
    assert (fast.bos_token_id, fast.eos_token_id, fast.pad_token_id) == (1, 2, 2)
    lines = import_run(tmp_path / "run" / "export" / "run-f16-hf", tmp_path / "again")
    assert "its chat template too" in lines[1]
    assert load_tokenizer(tmp_path / "again").fingerprint == pretrained.fingerprint
    again = load_interchange(newest_interchange(tmp_path / "again")).groups["parameters"]
    assert all(
        again[name].tobytes() == value.astype(np.float16).astype(np.float32).tobytes()
        for name, value in tensors.items()
    )

    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with refused("runs/export-target-is-cwd"):
        export_run(tmp_path / "run", Path("."), "hf")
    for words, message in (
        ((tmp_path / "m.gguf", tmp_path / "run"), "exists and is not empty"),
        ((tmp_path / "run", "--to", "gguf"), "run.gguf exists"),
        ((tmp_path / "run", "--to", "hf", "--quantize", "q4_0"), "--quantize q4_0 is a form of GGUF files"),
    ):
        out = convert(*words)
        assert out.returncode == 2
        assert out.stderr.startswith("error: ")
        assert out.stderr.count("\n") == 1
        assert message in out.stderr


@pytest.mark.parametrize(
    "words", [("m.gguf", "run", "--output=x"), ("run", "--to", "hf", "--resume=x"), ("merge", "a", "b", "--spawn")]
)
def test_what_the_trainers_alone_do_is_refused(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    """Passed over, a run would be written elsewhere than it was asked for."""
    script = importlib.import_module("twintrain.convert")
    monkeypatch.setattr(sys, "argv", ["convert.py", *words])
    with pytest.raises(UserError, match=r"--(output|resume|spawn) is for the trainers: name the target after the sou"):
        script.main()


@pytest.mark.whole
def test_a_checkpoint_needs_a_target_and_gguf_a_tokenizer(tmp_path: Path) -> None:
    place = interchange_of(tmp_path / "run", "update-00000007")
    model = MODELS["llama"]
    save_interchange(place, RunConfig(model=model), {"parameters": perturbed(model)}, Progress(update=7), "jax")
    with refused("runs/export-into-checkpoint"):
        exported_to(place, "gguf")
    out = convert(tmp_path / "run", "--to", "gguf")
    assert (out.returncode, out.stderr.count("\n")) == (2, 1)
    assert "has no tokenizer" in out.stderr


@pytest.mark.whole
def test_command_line_round_trip(tmp_path: Path, trained: Tokenizer) -> None:
    model = ModelConfig(**SMALL | {"vocab": trained.vocab}, **LLAMA)
    data = DataConfig(format="chat", row_tokens=24)
    config, tensors = RunConfig(model=model, data=data), perturbed(model)
    run = tmp_path / "run"
    trained.save(run)
    place = interchange_of(run, "update-00000007")
    save_interchange(place, config, {"parameters": tensors}, Progress(update=7, data_fingerprint="f"), "jax")

    out = convert("export", run, tmp_path / "hf")
    assert out.returncode == 0, out.stderr
    assert "after update 7, written by jax), with its tokenizer" in out.stdout
    assert "| updates | 7 of 16 x 24 tokens" in (tmp_path / "hf" / "README.md").read_text()
    assert convert("export", run, tmp_path / "copy", "--format", "interchange").returncode == 0
    assert load_interchange(tmp_path / "copy").progress.update == 7
    out = convert("import", tmp_path / "hf", tmp_path / "new", "--train.updates", 50, "--model.context", 24)
    assert out.returncode == 0, out.stderr
    imported = load_interchange(interchange_of(tmp_path / "new", "update-00000000"))
    assert (imported.progress.update, imported.progress.data_fingerprint, imported.stack) == (0, "", "import")
    assert list(imported.groups) == ["parameters"]
    assert all(imported.groups["parameters"][name].tobytes() == value.tobytes() for name, value in tensors.items())
    assert load_tokenizer(tmp_path / "new").ranks == trained.ranks
    written = config_from_json((tmp_path / "new" / "config.json").read_text())
    assert written == imported.config
    assert (written.train.updates, written.model.context, written.model.norm) == (50, 24, "rmsnorm")
    assert written.data.tokenizer == str(tmp_path / "new" / "tokenizer.tiktoken")

    again = convert("export", run, tmp_path / "hf")
    assert again.returncode == 2
    assert again.stderr == f"error: {tmp_path / 'hf'} exists and is not empty: choose another folder\n"
    assert convert("export", tmp_path / "nowhere", tmp_path / "x").returncode == 2
    assert convert("import", run, tmp_path / "y").returncode == 2


def test_an_import_that_was_killed_or_failed_is_begun_anew(
    tmp_path: Path, pretrained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(**SMALL | {"vocab": pretrained.vocab}, **LLAMA, kv_heads=2)
    source, run = tmp_path / "m.GGUF", tmp_path / "[a]" / "run"
    export_gguf(source, "m", model, perturbed(model), pretrained)
    for killed in (".tmp-1-config.json", "tokenizer_facts.json", "interchange/.tmp-update-00000000/half"):
        (run / killed).parent.mkdir(parents=True, exist_ok=True)
        (run / killed).write_text("x")
    with refused("runs/import-target-not-empty", str(run)):  # these may be anyone's: no import has marked them
        import_run(source, run)
    (run / ".lock").touch()
    import_run(source, run)
    assert not list(run.rglob(".tmp-*"))
    assert load_interchange(newest_interchange(run)).progress == Progress()
    with refused("runs/import-target-not-empty", str(run)):
        import_run(source, run)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Tokenizer, "save", full)
    with pytest.raises(OSError, match="No space left"):
        import_run(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()
