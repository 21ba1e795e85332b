"""An adapter over its base as a user meets them: the base's model and weights, several adapters, whole runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from coretrain.adapters.merge import fingerprint
from coretrain.adapters.targets import adapter_parameters, adapter_targets
from coretrain.base.errors import UserError
from coretrain.checkpoint.interchange import (
    interchange_of,
    load_interchange,
    newest_interchange,
    save_interchange,
)
from coretrain.checkpoint.manifest import Progress
from coretrain.contract.parameters import initial_parameters
from coretrain.inference.generate import generate_text
from coretrain.runs.adapted import adapter_config, merge_run, with_base
from coretrain.runs.convert import export_run
from coretrain.runs.folder import resumed_config
from coretrain.tokenizers.registry import bytes_tokenizer
from coretrain.training.command_line import Command
from coretrain.training.resolve import completed
from jaxtrain.generate import generate_each as jax_each
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.batches import random_text
from tests.support.refusal import refused
from tests.support.whole_runs import arguments, run
from torchtrain.generate import generate_each as torch_each
from torchtrain.trainer import Trainer as TorchTrainer

LORA = {"adapter__kind": "lora", "adapter__rank": 4}


ENDS_A_TURN_WITH = (
    "{% for message in messages %}{{ message['content'] }}NAME"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture
def base(tmp_path, small_config):
    """The folder of a run that has only its weights."""
    config, folder = small_config(), tmp_path / "base"
    tensors = initial_parameters(config.model, 5)
    save_interchange(folder / "interchange" / "update-00000000", config, {"parameters": tensors}, Progress(), "import")
    (folder / "config.json").write_text(config.to_json())
    return folder


def test_a_base_brings_its_model_and_is_known_by_its_weights(small_config, base, tmp_path):
    config = small_config(**LORA, adapter__base=base, model__width=64)
    given = (("adapter.base", str(base)), ("model.residual_dropout", "0.3"))
    command = Command(config, None, None, given)
    assert completed(command).config.model.width == 32
    with refused("training/field-set-by-base", "model.width"):
        completed(replace(command, overrides=(*given, ("model.width", "64"))))
    with refused("training/adapter-without-base"):
        completed(replace(command, config=small_config(**LORA)))
    for resume in (None, base):
        with refused("training/base-without-adapter"):
            completed(replace(command, config=small_config(adapter__base=base), resume=resume))
    filled, tensors = with_base(completed(command).config)
    assert filled.adapter.fingerprint == fingerprint(config, tensors)
    with refused("runs/base-model-differs", "64", "32"):
        with_base(config)
    other = initial_parameters(small_config().model, 6)
    shutil.rmtree(base / "interchange")
    where = base / "interchange" / "update-00000000"
    save_interchange(where, small_config(), {"parameters": other}, Progress(), "import")
    with refused("runs/base-fingerprint-differs"):
        with_base(filled)
    with refused("runs/not-an-adapter-run"):
        adapter_config(base)


@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_shorter_context_than_the_bases(small_config, tmp_path, tied):
    """Learned positions are cut for the adapter's run, and whole again in a merge; other tensors stay."""
    config, folder = small_config(model__tied=tied), tmp_path / "base"
    weights = initial_parameters(config.model, 5)
    save_interchange(interchange_of(folder, "update-00000000"), config, {"parameters": weights}, Progress(), "import")
    (folder / "config.json").write_text(config.to_json())
    asked = (*((key.replace("__", "."), str(value)) for key, value in LORA.items()), ("adapter.base", str(folder)))
    shorter = small_config(**LORA, adapter__base=folder, model__context=8)
    assert completed(Command(shorter, None, None, asked)).config.model.context == 24  # the file's is of no adapter
    given = (*asked, ("model.context", "8"))
    config, base = with_base(completed(Command(shorter, None, None, given)).config)
    assert config.model.context == 8
    assert {name: base[name].shape for name in base}["embed.position"] == (8, 32)
    # a file that is for adapters says how long its rows are, as configs/smollm2-lora.toml does
    assert completed(Command(shorter, None, None, ())).config.model.context == 8
    assert (
        completed(Command(shorter, None, None, asked[:1])).config.model.context == 8
    )  # of another kind than the file's
    longer = shorter.changed(model__context=25)
    with refused("runs/context-exceeds-base", "25", "24"):
        completed(Command(longer, None, None, given))
    batch, run = random_text(config), tmp_path / "lora"
    # the default targets, beside a tied head and an untied one
    stacks = [make(config, base) for make in ((TorchTrainer, JaxTrainer) if tied == "true" else (TorchTrainer,))]
    for stack in stacks:
        stack.gradients(batch, 0, 1.0)
        stack.apply(1e-2, 1.0, 0)
    losses = [stack.evaluate(batch) for stack in stacks]
    # float32; other rows of the positions change it by 3e-3
    assert max(losses) - min(losses) < 1e-5 * losses[0]
    where = interchange_of(run, "update-00000001")
    save_interchange(where, config, stacks[0].export(), Progress(update=1), "torch")
    (run / "config.json").write_text(config.to_json())
    merge_run(run, tmp_path / "whole")
    whole = load_interchange(newest_interchange(tmp_path / "whole"))
    assert whole.config.model.context == 24
    moved = {name for name in weights if not np.array_equal(weights[name], whole.groups["parameters"][name])}
    assert moved == {target.row.name for target in adapter_targets(config)}


@pytest.mark.parametrize(
    ("stack", "ranks", "quantize", "chat"),
    [("torch", (2, 3), "none", False), ("torch", (2, 3), "int4", True), ("jax", (3, 3), "int4", True)],
)
def test_several_adapters_answer_over_one_base(small_config, tmp_path, stack, ranks, quantize, chat, capsys):
    """Each says what it says alone: beside weights in as many bits, and asked in its own template's form."""
    sizes = {"model__vocab": 257, "model__context": 48}
    config, folder = small_config(**sizes), tmp_path / "base"
    weights = {name: 5 * value for name, value in initial_parameters(config.model, 5).items()}
    save_interchange(interchange_of(folder, "update-00000000"), config, {"parameters": weights}, Progress(), "import")
    (folder / "config.json").write_text(config.to_json())
    held = {"first": quantize, "second": quantize, "other": "int8"}
    for seed, (name, kind) in enumerate(held.items()):
        fields = LORA | {"adapter__rank": (*ranks, 4)[seed], "adapter__quantize": kind, "adapter__base": folder}
        adapter, _ = with_base(small_config(**sizes | fields))
        rng = np.random.default_rng(seed)
        tensors = {
            row.name: 0.2 * rng.standard_normal(row.shape).astype(np.float32) for row in adapter_parameters(adapter)
        }
        where = interchange_of(tmp_path / name, "update-00000000")
        save_interchange(where, adapter, {"parameters": tensors}, Progress(), "import")
        (tmp_path / name / "config.json").write_text(adapter.to_json())
        bytes_tokenizer().save(tmp_path / name)
        (tmp_path / name / "chat_template.jinja").write_text(ENDS_A_TURN_WITH.replace("NAME", name))
    bytes_tokenizer().save(folder)
    make, each = (TorchTrainer, torch_each) if stack == "torch" else (JaxTrainer, jax_each)

    def said(*names: str, prompts: tuple[str, ...] = ("a", "bcd")) -> list[str]:
        words = [word for name in names for word in ("--adapter", str(tmp_path / name))]
        words += ["--chat"] if chat else []
        generate_text([str(folder), *words, "--temperature", "0", "--tokens", "6", *prompts], stack, make, each)
        return capsys.readouterr().out.split("-" * 40 + "\n")[:-1]

    first, second, both = said("first"), said("second"), said("first", "second")
    assert first != second
    assert both == [f"[{name}] {text}" for name, one in (("first", first), ("second", second)) for text in one]
    with refused("runs/adapter-names-repeat", "first"):
        said("first", "first")
    with pytest.raises(UserError, match=rf"adapter\.quantize of .*other is int8, that of .*first {quantize}"):
        said("first", "other")


@pytest.mark.whole
def test_from_a_base_to_a_merged_run(corpus, tmp_path):
    """Train, adapt, go on with the base, move it, go on with the adapter in the other stack, merge."""
    base, moved, lora, whole = (tmp_path / name for name in ("base", "moved", "lora", "merged"))
    run("torch", *arguments(corpus, "--train.updates=4", f"--output={base}"))
    free = [word for word in arguments(corpus) if not word.startswith(("--model.", "--data.tokenizer"))]
    adapt = ["--adapter.kind=lora", f"--adapter.base={base}", "--adapter.dropout=0.1", "--train.updates=4"]
    out = run("torch", *free, *adapt, "--optimizer.lr=0.1", f"--output={lora}")
    assert "14 matrices, rank 8" in out
    run("torch", "--resume", base, "--train.updates=5")
    base.rename(moved)
    assert sorted(path.name for path in (moved / "interchange").glob("*-*[45]")) == [
        "update-00000004",
        "update-00000005",
    ]
    run("jax", "--resume", lora, "--adapter.base", moved, "--train.updates=6")
    with refused("runs/resume-changes-field", "adapter.rank"):
        resumed_config(lora, [("adapter.rank", "3")])
    with pytest.raises(UserError, match="holds an adapter alone: add --merge"):
        export_run(lora, tmp_path / "hf", "huggingface")
    merge_run(lora, whole)
    loaded = load_interchange(newest_interchange(whole))
    weights = load_interchange(interchange_of(moved, "update-00000004")).groups["parameters"]
    changed = [name for name in weights if not np.array_equal(weights[name], loaded.groups["parameters"][name])]
    assert len(changed) == 14
    assert json.loads((whole / "config.json").read_text())["adapter"]["kind"] == "none"
