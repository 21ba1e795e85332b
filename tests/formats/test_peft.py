"""Folders of PEFT: PEFT itself loads them and computes the same, bits come back, and what isn't ours is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from coretrain.adapters.targets import adapter_parameters, trainable_parameters
from coretrain.base.errors import UserError
from coretrain.base.safetensors import TensorFile
from coretrain.checkpoint.interchange import (
    interchange_of,
    load_interchange,
    newest_interchange,
    save_interchange,
)
from coretrain.checkpoint.manifest import Progress
from coretrain.config.adapter import AdapterConfig
from coretrain.config.run import RunConfig
from coretrain.config.training import PrecisionConfig
from coretrain.contract.parameters import initial_parameters
from coretrain.formats.huggingface.weights import import_huggingface
from coretrain.formats.peft.names import WEIGHTS
from coretrain.formats.peft.reader import import_peft
from coretrain.runs.adapted import merge_run, with_base
from coretrain.runs.convert import export_run, import_run
from parity.probes.sides import JAX, TORCH, logits_of
from tests.support.commands import ROOT
from tests.support.refusal import refused

peft = pytest.importorskip("peft", reason="PEFT is the oracle: pip install peft accelerate")
transformers = pytest.importorskip("transformers")
LLAMA = {"model__norm": "rmsnorm", "model__position": "rope", "model__mlp": "swiglu", "model__bias": "false"}
LORA = {"adapter__kind": "lora", "adapter__rank": 4, "adapter__alpha": 12, "precision__compute": "float64"}
KINDS = {
    "llama, tied": LLAMA,
    "llama, all that it can have": LLAMA
    | {
        "model__tied": "false",
        "model__kv_heads": 2,
        "adapter__rslora": "true",
        "adapter__targets": "blocks.*.attention.*.weight,blocks.1.mlp.down.weight,embed.token,head.weight",
    },
    "llama, its biases": LLAMA | {"model__bias": "true", "adapter__bias": "all", "adapter__targets": "blocks.*.mlp.*"},
    "gpt2, tied": {"adapter__dropout": 0.1},
    "gpt2, q and v alone": {
        "adapter__rslora": "true",
        "adapter__targets": "blocks.*.attention.[qv].weight,blocks.0.attention.out.weight",
        "adapter__bias": "all",
    },
    "llama, dora": LLAMA | {"adapter__kind": "dora", "adapter__targets": "blocks.*.mlp.*,blocks.0.attention.q.weight"},
    "gpt2, dora": {"adapter__kind": "dora", "adapter__targets": "blocks.*.attention.*.weight"},
    "gpt2, biases beside": {"adapter__targets": "blocks.*.attention.v.weight", "adapter__bias": "lora_only"},
}


def write_run(folder: Path, config: RunConfig, tensors: dict[str, np.ndarray]) -> None:
    """A run that has only its newest state."""
    where = interchange_of(folder, "update-00000000")
    save_interchange(where, config, {"parameters": tensors}, Progress(), "import")
    (folder / "config.json").write_text(config.to_json())


@pytest.fixture
def made(small_config, tmp_path):
    """A function: the folders of a base and of an adapter on it, float64, no tensor of either like another."""

    def make(**fields: object) -> tuple[Path, Path]:
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        config = small_config(**(LORA | {"adapter__base": base} | fields))
        rng = np.random.default_rng(3)
        weights = {name: 3 * v.astype(np.float64) for name, v in initial_parameters(config.model, 1).items()}
        weights = {n: v + 0.1 * rng.standard_normal(v.shape) * n.endswith("bias") for n, v in weights.items()}
        write_run(base, small_config(**{k: v for k, v in fields.items() if not k.startswith("adapter")}), weights)
        config, _ = with_base(config)
        tensors = {row.name: rng.standard_normal(row.shape) * 0.2 for row in trainable_parameters(config)}
        write_run(adapter, config, tensors)
        return base, adapter

    return make


def on(base: Path) -> RunConfig:
    """A config that names a base and nothing else."""
    return RunConfig(adapter=AdapterConfig(base=str(base)), precision=PrecisionConfig(compute="float64"))


def parameters(run: Path) -> dict[str, np.ndarray]:
    return dict(load_interchange(newest_interchange(run)).groups["parameters"])


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS.keys())
def test_peft_computes_the_same_and_bits_come_back(made, tmp_path, fields, float64_oracle):
    """Floor 2.0e-14 of the logits' norm; alpha / rank for rsLoRA's scale gives 0.57 and 0.81, q's rows for v's 1.2."""
    base, adapter = made(**fields)
    export_run(base, tmp_path / "hf", "hf")
    export_run(adapter, tmp_path / "peft", "peft")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="sdpa")
    model = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").eval()
    config = load_interchange(newest_interchange(adapter)).config
    tokens = np.random.default_rng(0).integers(0, config.model.vocabulary, (2, config.model.context))
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)).logits.numpy()
        merged = model.merge_and_unload()(torch.from_numpy(tokens)).logits.numpy()
    assert wanted.dtype == np.float64
    weights = {**parameters(base), **parameters(adapter)}
    for side in (TORCH, JAX):
        found = logits_of(side, side.trainer.Trainer(config, weights), tokens.astype(np.int32), None)
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert error < 1e-13
    # PEFT's own merge: a Conv1D not known as one would add the transpose, or fail
    assert np.linalg.norm(merged - wanted) < 1e-12 * np.linalg.norm(wanted)
    import_run(tmp_path / "peft", tmp_path / "again", on(base))
    back = parameters(tmp_path / "again")
    assert back.keys() == parameters(adapter).keys()
    for name, value in parameters(adapter).items():
        assert back[name].dtype == value.dtype
        assert back[name].tobytes() == value.tobytes(), name
    again = load_interchange(newest_interchange(tmp_path / "again")).config
    assert [row.name for row in adapter_parameters(again)] == [row.name for row in adapter_parameters(config)]
    assert again.adapter.model_dump(exclude={"targets"}) == config.adapter.model_dump(exclude={"targets"})


def test_what_peft_saves_again_is_read_too(made, tmp_path, float64_oracle):
    """Without our metadata, and with the embedding that PEFT puts beside its adapter."""
    base, adapter = made(**KINDS["llama, all that it can have"])
    export_run(base, tmp_path / "hf", "hf")
    export_run(adapter, tmp_path / "peft", "peft")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").save_pretrained(tmp_path / "saved")
    assert not TensorFile(tmp_path / "saved" / WEIGHTS).metadata.keys() & {"twintrain.base", "twintrain.targets"}
    import_run(tmp_path / "saved", tmp_path / "again", on(base))
    for name, value in parameters(adapter).items():
        assert parameters(tmp_path / "again")[name].tobytes() == value.tobytes(), name


def test_an_adapter_that_peft_made_of_gpt2(made, tmp_path):
    """One A beside the fused c_attn is that of q, k and v alike; the cap is that of our own adapters."""
    base, _ = made(**KINDS["gpt2, tied"])
    export_run(base, tmp_path / "hf", "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="sdpa")
    wanted = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)
    model = peft.get_peft_model(theirs, wanted).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.from_numpy(np.random.default_rng(len(name)).standard_normal(parameter.shape)))
    model.save_pretrained(tmp_path / "peft")
    import_run(tmp_path / "peft", tmp_path / "run", on(base))
    config = load_interchange(newest_interchange(tmp_path / "run")).config
    assert config.adapter.targets == tuple(
        f"blocks.*.{p}.weight" for p in (*("attention." + c for c in "qkv"), "mlp.down")
    )
    assert (config.adapter.rank, config.adapter.alpha) == (3, 5)
    tokens = np.random.default_rng(0).integers(0, config.model.vocabulary, (2, config.model.context))
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    stack = TORCH.trainer.Trainer(config, {**parameters(base), **parameters(tmp_path / "run")})
    found = logits_of(TORCH, stack, tokens, None)
    assert np.linalg.norm(found - theirs) < 1e-13 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' can't be imported: 'LORA' can"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layers_pattern": "layers"}, "layers_pattern"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "some"}, "bias = 'some'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"task_type": "SEQ_CLS"}, "task_type = 'SEQ_CLS' can't be imported"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying = True can't be imported"),
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"init_lora_weights": "mica"}, "init_lora_weights = 'mica' trains A alone"),
        ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "layers_to_transform stands beside"),
        ({"target_modules": None}, "which is no matrix of this base that adapter_config.json names"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' changes the base's weights"),
        ({"r": None}, "lacks the field r"),
        ({"r": 0}, "r = 0, where PEFT has a whole number above 0"),
        ({"r": "4"}, "r = '4', where PEFT has a whole number"),
        ({"lora_alpha": "x"}, "lora_alpha = 'x', where PEFT has a number"),
        ({"lora_dropout": "x"}, "lora_dropout = 'x', where PEFT has a number"),
        ({"use_rslora": "yes"}, "use_rslora = 'yes' can't be imported"),
        ({"target_modules": 5}, "target_modules = 5, where PEFT has a list of names, or a pattern"),
        ({"target_modules": "(c_attn"}, r"target_modules = '\(c_attn', where PEFT has a list"),
        ({"exclude_modules": [5]}, r"exclude_modules = \[5\], where PEFT has a list"),
        ({"rank_pattern": [4]}, r"rank_pattern = \[4\], where PEFT has whole numbers above 0 by patterns"),
        ({"rank_pattern": {"(q": 4}}, "rank_pattern = .*where PEFT has"),
        ({"alpha_pattern": {"q": "4"}}, "alpha_pattern = .*where PEFT has numbers by patterns"),
        ({"layers_to_transform": "0"}, "layers_to_transform = '0', where PEFT has a layer's number"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": ["wq"]}, "which is no matrix of this base that adapter_config.json names"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern gives .*q_proj"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern gives .*q_proj"),
        ({"r": 5}, r"lora_A.weight has shape \(4, 32\), base and rank say \(5, 32\)"),
    ],
)
def test_what_the_contract_lacks_is_refused_by_name(made, tmp_path, fields, word):
    base, adapter = made(**KINDS["llama, tied"])
    export_run(adapter, tmp_path / "peft", "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=word):
        import_run(tmp_path / "peft", tmp_path / "run", on(base))
    assert not (tmp_path / "run").exists()


def test_layers_and_patterns_of_names(made, tmp_path):
    """What PEFT leaves out of the targets isn't looked for: the tensors of layer 0 are one too many then."""
    base, adapter = made(**KINDS["llama, tied"] | {"adapter__targets": "blocks.1.attention.q.weight"})
    export_run(adapter, tmp_path / "peft", "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    raw = json.loads(path.read_text())
    assert raw["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    for number, names in enumerate(
        [
            {"target_modules": ["q_proj"], "layers_to_transform": [1]},
            {"target_modules": ["q_proj"], "layers_to_transform": 1},
            {"target_modules": r".*\.1\..*q_proj"},
            {"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"},
            {"target_modules": ["model.layers.1.self_attn.q_proj"], "layers_to_transform": [0]},  # as PEFT has it
        ]
    ):
        path.write_text(json.dumps(raw | names))
        lines = import_run(tmp_path / "peft", tmp_path / f"run{number}", on(base))
        assert not [line for line in lines if line.startswith("note: ")]
    path.write_text(json.dumps(raw | {"unsloth": 1}))
    assert "note: adapter_config.json has unsloth, which isn't read" in import_run(
        tmp_path / "peft", tmp_path / "noted", on(base)
    )
    path.write_text(json.dumps(raw | {"target_modules": ["q_proj"]}))
    with pytest.raises(UserError, match=r"lacks the tensor .*layers\.0\.self_attn\.q_proj\.lora_A\.weight"):
        import_run(tmp_path / "peft", tmp_path / "run", on(base))


def test_files_that_are_damaged_or_of_another_model(made, tmp_path, small_config):
    base, adapter = made(**KINDS["llama, tied"])
    export_run(adapter, tmp_path / "peft", "peft")
    weights = tmp_path / "peft" / WEIGHTS
    content = load_file(weights)
    other = small_config(**KINDS["llama, tied"], model__width=48)
    write_run(tmp_path / "wide", other, initial_parameters(other.model, 1))
    same = small_config(**KINDS["llama, tied"], precision__compute="float64")
    write_run(tmp_path / "same", same, initial_parameters(same.model, 2))

    def is_refused(word: str, where: Path = base) -> None:
        with pytest.raises(UserError, match=word):
            import_run(tmp_path / "peft", tmp_path / "run", on(where))
        assert not (tmp_path / "run").exists()

    is_refused("fingerprint .*, the adapter was trained on", tmp_path / "wide")
    is_refused("fingerprint .*, the adapter was trained on", tmp_path / "same")
    is_refused("is itself an adapter's run", adapter)
    with refused("runs/import-base-not-set"):
        import_run(tmp_path / "peft", tmp_path / "run", RunConfig())
    with refused("runs/import-sets-peft-field", "rank"):
        import_run(tmp_path / "peft", tmp_path / "run", on(base), [("adapter.rank", "8")])
    first = sorted(content)[0]
    save_file({name: value for name, value in content.items() if name != first}, weights)
    is_refused(f"lacks the tensor {first} that its config calls for")
    save_file(content | {first: content[first][:, 1:].copy()}, weights)
    is_refused(f"{first} has shape")
    tied = {f"base_model.model.lm_head.lora_{part}.weight": content[first] for part in "AB"}
    save_file(content | tied, weights)
    is_refused("has an adapter beside lm_head, which is no matrix of this base")
    save_file(content | {"base_model.model.x": content[first]}, weights)
    is_refused(r"has the tensor base_model\.model\.x, which no adapter of the contract has")
    save_file(content, weights)
    weights.write_bytes(weights.read_bytes()[:-1])
    is_refused("is damaged: its length is not what its header says")
    weights.write_bytes(b"\xff" * 100)
    is_refused("is damaged: it has no safetensors header")
    weights.unlink()
    is_refused("only safetensors are read, never pickles")


def test_a_flipped_bit_is_never_read_as_something_else(made, tmp_path):
    """Anywhere in the file: in its header, its metadata or its tensors."""
    base, adapter = made(**KINDS["llama, tied"] | {"adapter__targets": "blocks.*.mlp.down.weight"})
    export_run(adapter, tmp_path / "peft", "peft")
    path, given = tmp_path / "peft" / WEIGHTS, load_interchange(newest_interchange(base))
    config = given.config.changed(adapter=AdapterConfig(base=str(base)))
    whole, weights = path.read_bytes(), dict(given.groups["parameters"])
    wanted, refused = parameters(adapter), 0
    for position in np.linspace(0, len(whole) - 1, 300).astype(int):
        raw = bytearray(whole)
        raw[position] ^= 1 << (position % 7)
        path.write_bytes(raw)
        try:
            _, found = import_peft(tmp_path / "peft", config, lambda: weights)
        except UserError:
            refused += 1
            continue
        assert all(np.array_equal(found[name], value) for name, value in wanted.items()), position
    assert refused > 280  # the rest is white space, and metadata that the run's other checks see


def test_nothing_is_overwritten_and_other_runs_are_refused(made, tmp_path):
    base, adapter = made(**KINDS["gpt2, tied"])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with refused("runs/export-target-not-empty"):
        export_run(adapter, tmp_path / "there", "peft")
    with refused("runs/peft-needs-low-rank", "a whole model"):
        export_run(base, tmp_path / "peft", "peft")
    with refused("runs/peft-takes-no-merge"):
        export_run(adapter, tmp_path / "peft", "peft", merge=True)
    with pytest.raises(UserError, match="is a whole model: leave --merge out"):
        export_run(base, tmp_path / "hf", "hf", merge=True)
    with pytest.raises(UserError, match="holds an adapter alone: add --merge to write it and its base as one"):
        export_run(adapter, tmp_path / "hf", "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "there"]


def test_half_precision_and_the_card(made, tmp_path):
    base, adapter = made(**KINDS["llama, tied"])
    export_run(adapter, tmp_path / "peft", "peft", "f16")
    found = load_file(tmp_path / "peft" / WEIGHTS)
    assert {str(value.dtype) for value in found.values()} == {"float16"}
    card = (tmp_path / "peft" / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n")
    assert "base_model" not in card, "a hub refuses a folder's name there"
    assert "| held as | f16 |" in card
    assert str(tmp_path) not in card, "no folder of this machine"
    assert str(base / "export") in (tmp_path / "peft" / "adapter_config.json").read_text()
    export_run(adapter, tmp_path / "hf", "hf", merge=True)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "base with a low-rank adapter of rank 4, alpha 12 merged into it" in card
    assert "validation loss | not measured" in card
    _, dora = made(adapter__kind="dora", **KINDS["llama, tied"])
    export_run(dora, tmp_path / "dora", "peft")
    card = (tmp_path / "dora" / "README.md").read_text()
    assert "A DoRA adapter of rank 4, alpha 12 for base" in card
    assert "- dora\n" in card


def test_merged_exports_are_the_merged_run(made, tmp_path):
    """--merge writes what the verb merge and then an export do."""
    base, adapter = made(**KINDS["llama, tied"])
    export_run(adapter, tmp_path / "hf", "hf", merge=True)
    merge_run(adapter, tmp_path / "whole")
    _, found = import_huggingface(tmp_path / "hf")
    for name, value in parameters(tmp_path / "whole").items():
        assert found[name].tobytes() == value.tobytes(), name
    assert any(not np.array_equal(value, parameters(base)[name]) for name, value in found.items())
    base.rename(tmp_path / "moved")
    with refused("runs/base-not-found"):
        export_run(adapter, tmp_path / "again", "hf", merge=True)
    export_run(adapter, tmp_path / "again", "hf", merge=True, base=tmp_path / "moved")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "hf" / "model.safetensors"
    ).read_bytes()


@pytest.mark.whole
def test_the_command_line(made, tmp_path):
    """Out and in again by scripts/convert.py; a flipped bit in the run's file ends it."""
    base, adapter = made(**KINDS["llama, tied"])

    def call(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, ROOT / "scripts" / "convert.py", *words]
        return subprocess.run([*map(str, command)], capture_output=True, text=True)

    done = call(adapter, "--to", "peft")
    assert done.returncode == 0, done.stderr
    assert "AutoPeftModelForCausalLM" in done.stdout
    done = call(adapter / "export" / "adapter-peft", tmp_path / "new", "--adapter.base", base, "--train.updates", "7")
    assert done.returncode == 0, done.stderr
    assert "rank 4, scale 3, 28 tensors" in done.stdout
    assert json.loads((tmp_path / "new" / "config.json").read_text())["train"]["updates"] == 7
    shard = next(newest_interchange(adapter).glob("*.safetensors"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    done = call(adapter, tmp_path / "peft", "--to", "peft")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is damaged: its SHA-256 is not that of what was written" in done.stderr


def test_dora_on_a_part_of_c_attn_is_refused(made, tmp_path):
    _, adapter = made(adapter__kind="dora", adapter__targets="blocks.*.attention.q.weight")
    with refused("formats/dora-on-partial-qkv", "blocks.0.a", "tion.q.weight"):
        export_run(adapter, tmp_path / "peft", "peft")
    assert not (tmp_path / "peft").exists()
