"""What adapters stand on when it goes on or moves, and runs under another name: found, kept, opened, exported."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from coretrain.adapters.targets import initial_adapter, trainable_parameters
from coretrain.base.errors import UserError
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import interchange_of, newest_interchange, save_interchange
from coretrain.checkpoint.manifest import DamagedCheckpoint, Progress
from coretrain.contract.parameters import initial_parameters
from coretrain.formats.huggingface.tokenizer import write_tokenizer
from coretrain.inference.generate import open_for_generation
from coretrain.runs.adapted import check_tokenizer, merge_run, with_base
from coretrain.runs.base import Base, keep_base
from coretrain.runs.convert import export_run, import_run
from coretrain.runs.files import with_own_files
from coretrain.runs.folder import open_run, resumed_config
from coretrain.tokenizers.chat_template import PLAIN
from coretrain.tokenizers.registry import bytes_tokenizer, named_tokenizer
from coretrain.tokenizers.tokenizer import GPT2_PATTERN, Tokenizer
from coretrain.training.command_line import Command
from coretrain.training.resolve import completed
from tests.support.files import flip_bit
from tests.support.refusal import refused

LORA = {"adapter__kind": "lora", "adapter__rank": 4, "model__vocab": 257}


@pytest.fixture
def made(small_config, tmp_path):
    """A function: the folder of a base with a checkpoint after each of some updates, all weights different."""

    def make(*updates: int) -> Path:
        config, folder = small_config(model__vocab=257), tmp_path / "base"
        for update in updates:
            start = initial_parameters(config.model, update)
            tensors = {name: value + update * name.endswith("bias") for name, value in start.items()}
            where = interchange_of(folder, f"update-{update:08d}")
            save_interchange(where, config, {"parameters": tensors}, Progress(update=update), "torch")
        (folder / "config.json").write_text(config.to_json())
        return folder

    return make


def test_a_base_that_went_on_is_found_by_its_weights(small_config, made, monkeypatch):
    base = made(2)
    lora, tensors = with_base(small_config(**LORA, adapter__base=base))
    assert keep_base(lora, tensors.folder) == ""
    made(4)
    CheckpointFolder(base / "interchange").prune(keep=1)
    again, tensors = with_base(lora)
    assert tensors.folder == interchange_of(base, "update-00000002")
    assert np.array_equal(tensors["norm.weight"], initial_parameters(lora.model, 2)["norm.weight"])
    assert again == lora
    newest, tensors = with_base(small_config(**LORA, adapter__base=base))  # a new adapter
    assert tensors.folder == interchange_of(base, "update-00000004")
    (base / "interchange" / "update-00000002.pinned").unlink()  # it is still there, and found by its weights
    assert with_base(lora)[0] == lora
    CheckpointFolder(base / "interchange").prune(keep=1)
    with pytest.raises(UserError, match=rf"fingerprint {newest.adapter.fingerprint}, the adapter was trained on"):
        with_base(lora)

    def full(*given: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(CheckpointFolder, "pin", full)
    assert "can't be marked as in use (Read-only file system): don't go on with" in keep_base(newest, tensors.folder)


def test_a_damaged_base_is_called_damaged(small_config, made):
    """And not another base; damage to a checkpoint that the adapter doesn't stand on is no matter."""
    base = made(2)
    lora, _ = with_base(small_config(**LORA, adapter__base=base))
    made(4)
    (interchange_of(base, "update-00000004") / "manifest.json").unlink()
    assert with_base(lora)[0] == lora
    with refused("checkpoint/manifest-missing", "update-00000004"):
        with_base(small_config(**LORA, adapter__base=base))
    flip_bit(interchange_of(base, "update-00000002") / "parameters-00001.safetensors", -1)
    with pytest.raises(DamagedCheckpoint, match="base"):
        with_base(lora)


def test_a_base_that_is_not_there(small_config, made, tmp_path):
    """Whoever asks for it; what the sentence names is a way out."""
    base = made(2)
    lora, _ = with_base(small_config(**LORA, adapter__base=base))
    adapter = tmp_path / "lora"
    where = interchange_of(adapter, "update-00000000")
    save_interchange(where, lora, {"parameters": initial_adapter(lora)}, Progress(), "import")
    (adapter / "config.json").write_text(lora.to_json())
    bytes_tokenizer().save(adapter)
    moved = base.rename(tmp_path / "moved")
    stack = SimpleNamespace(name="torch", adopt=lambda groups, applied: None)
    for ask in (
        lambda: with_base(lora),
        lambda: completed(Command(lora, None, None, ())),
        lambda: check_tokenizer(lora, "any"),
        lambda: export_run(adapter, tmp_path / "hf", "hf", merge=True),
        lambda: merge_run(adapter, tmp_path / "merged"),
        lambda: open_for_generation(adapter, lambda config, start: stack),
    ):
        with refused("runs/base-not-found"):
            ask()
    assert open_for_generation(moved, lambda config, start: stack, adapter) is stack
    given = resumed_config(adapter, [("adapter.base", str(moved))])
    assert with_base(given)[0].adapter.fingerprint == lora.adapter.fingerprint
    with refused("checkpoint/run-not-found", "nowhere"):
        newest_interchange(tmp_path / "nowhere")


def test_an_adapter_of_peft_takes_the_bases_tokenizer(small_config, made, tmp_path):
    """Another one is refused before anything is written: at --resume the run would go by the one that it keeps."""
    base = made(2)
    bytes_tokenizer().save(base)
    lora, _ = with_base(small_config(**LORA, adapter__base=base))
    where = interchange_of(tmp_path / "lora", "update-00000000")
    save_interchange(where, lora, {"parameters": initial_adapter(lora)}, Progress(), "import")
    (tmp_path / "lora" / "config.json").write_text(lora.to_json())
    export_run(tmp_path / "lora", tmp_path / "peft", "peft")
    with refused("runs/import-sets-base-field", "data.tokenizer"):
        import_run(tmp_path / "peft", tmp_path / "run", small_config(adapter__base=base), [("data.tokenizer", "gpt2")])
    assert not (tmp_path / "run").exists()
    import_run(tmp_path / "peft", tmp_path / "run", small_config(adapter__base=base))
    assert (base / "interchange" / "update-00000002.pinned").is_file()
    config = open_run((tmp_path / "run").rename(tmp_path / "moved"))
    own = with_own_files(config, tmp_path / "moved").data.tokenizer
    assert named_tokenizer(own).fingerprint == bytes_tokenizer().fingerprint


def test_a_tokenizer_and_a_template_beside_an_adapter_of_peft(small_config, made, tmp_path):
    """As TRL saves them: the template is the run's, and of another tokenizer it is said that the base's is taken."""
    base = made(2)
    bytes_tokenizer().save(base)
    (base / "chat_template.jinja").write_text(PLAIN)
    lora, _ = with_base(small_config(**LORA, adapter__base=base))
    where = interchange_of(tmp_path / "lora", "update-00000000")
    save_interchange(where, lora, {"parameters": initial_adapter(lora)}, Progress(), "import")
    (tmp_path / "lora" / "config.json").write_text(lora.to_json())
    export_run(tmp_path / "lora", tmp_path / "peft", "peft")
    padded = Tokenizer("padded", bytes_tokenizer().ranks, None, 256, {"<|endoftext|>": 256, "<pad>": 257})
    mine = PLAIN.replace("###", "##")
    for number, (tokenizer, words) in enumerate(((bytes_tokenizer(), ""), (padded, "special tokens (<pad>)"))):
        write_tokenizer(tmp_path / "peft", tokenizer, 40, mine)
        lines = import_run(tmp_path / "peft", tmp_path / f"run{number}", small_config(adapter__base=base))
        assert (tmp_path / f"run{number}" / "chat_template.jinja").read_text() == mine
        assert any("its own differs" in line for line in lines) == bool(words)
        assert words in "".join(lines)
    merging = Tokenizer("merging", bytes_tokenizer().ranks | {b"re": 256}, GPT2_PATTERN, 257)
    write_tokenizer(tmp_path / "peft", merging, 40)
    with refused("runs/import-tokenizer-not-base", "peft", "base"):
        import_run(tmp_path / "peft", tmp_path / "run", small_config(adapter__base=base))
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_peft_finds_a_base_that_went_on(small_config, made, tmp_path):
    """Its file holds biases of the base that don't train, q's beside which k's and v's are those of then."""
    base = made(2)
    fields = LORA | {"adapter__bias": "lora_only", "adapter__targets": "blocks.*.attention.q.weight"}
    lora, tensors = with_base(small_config(**fields, adapter__base=base))
    keep_base(lora, tensors.folder)
    where = interchange_of(tmp_path / "lora", "update-00000000")
    trained = {row.name: tensors[row.name] for row in trainable_parameters(lora) if row.name in tensors}
    save_interchange(where, lora, {"parameters": initial_adapter(lora) | trained}, Progress(), "import")
    (tmp_path / "lora" / "config.json").write_text(lora.to_json())
    export_run(tmp_path / "lora", tmp_path / "peft", "peft")
    made(4)
    import_run(tmp_path / "peft", tmp_path / "run", small_config(adapter__base=base))
    assert open_run(tmp_path / "run").adapter.fingerprint == lora.adapter.fingerprint


def test_what_is_likeliest_is_read_first(small_config, made, monkeypatch):
    """Weights of gigabytes are hashed to be known, so that a pin saves reading those of the newest checkpoint."""
    base = made(2)
    lora, tensors = with_base(small_config(**LORA, adapter__base=base))
    keep_base(lora, tensors.folder)
    made(4)
    opened = []
    monkeypatch.setattr("coretrain.runs.base.load_interchange", lambda path: opened.append(path.name) or load(path))
    from coretrain.checkpoint.interchange import load_interchange as load

    with_base(lora)
    assert opened == ["update-00000002"]
    assert [path.name for path in Base(base).checkpoints("")] == ["update-00000004"]


def test_peft_finds_the_base_that_the_adapter_stands_on(small_config, made, tmp_path):
    """Named by its run or by a checkpoint, the newest or not, there or moved."""
    base = made(2)
    second = interchange_of(base, "update-00000002")
    lora, tensors = with_base(small_config(**LORA, adapter__base=second))
    keep_base(lora, tensors.folder)
    adapter = tmp_path / "lora"
    where = interchange_of(adapter, "update-00000000")
    save_interchange(where, lora, {"parameters": initial_adapter(lora)}, Progress(), "import")
    (adapter / "config.json").write_text(lora.to_json())

    def written(name: str, place: Path | None = None) -> tuple[str, str]:
        lines = export_run(adapter, tmp_path / name, "peft", base=place)
        raw = json.loads((tmp_path / name / "adapter_config.json").read_text())
        return raw["base_model_name_or_path"], lines[-1].partition("twintrain convert ")[2]

    own, older = base / "export" / "base-hf", base / "export" / "base-update-00000002-hf"
    assert written("one") == (str(own), f"{base} --to hf")
    assert written("two", base) == (str(own), f"{base} --to hf")
    made(4)
    assert written("three", base) == written("four") == (str(older), f"{second} {older} --to hf")
    alone = second.rename(tmp_path / "alone")
    beside = tmp_path / "alone-hf"
    assert written("five", alone) == (str(beside), f"{alone} {beside} --to hf")
    gone = tmp_path / "gone"
    assert written("six", gone) == (str(gone / "export" / "gone-hf"), f"{gone} {gone / 'export' / 'gone-hf'} --to hf")


def test_an_imported_run_under_another_name_has_its_own_files(small_config, made, tmp_path):
    """Its config names files in a folder that is no more; a template that was asked for comes before the source's."""
    base = made(0)
    bytes_tokenizer().save(base)
    (base / "chat_template.jinja").write_text(PLAIN.replace("###", "##"))
    export_run(base, tmp_path / "hf", "hf")
    with refused("runs/import-base-without-peft", "hf"):
        import_run(tmp_path / "hf", tmp_path / "run", small_config(adapter__base=base))
    (tmp_path / "mine.jinja").write_text(PLAIN)
    asked = small_config(data__format="chat", data__chat_template=tmp_path / "mine.jinja")
    import_run(tmp_path / "hf", tmp_path / "run", asked)
    import_run(tmp_path / "hf", tmp_path / "plain", small_config())
    assert (tmp_path / "plain" / "chat_template.jinja").read_text() == PLAIN.replace("###", "##")
    (tmp_path / "mine.jinja").unlink()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    config = open_run(moved)
    with refused("tokenizers/file-not-found", "run/tokenizer"):
        named_tokenizer(config.data.tokenizer)
    own = with_own_files(config, moved).data
    assert named_tokenizer(own.tokenizer).fingerprint == bytes_tokenizer().fingerprint
    assert Path(str(own.chat_template)).read_text() == PLAIN
    assert with_own_files(config, None) == config
    with refused("runs/chat-template-unreadable", "mine.jinja"):
        import_run(tmp_path / "hf", tmp_path / "again", asked)
    assert not (tmp_path / "again").exists()
