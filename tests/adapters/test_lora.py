"""Adapters as a user meets them: fields and their faults, files, the command lines; PEFT as an outside oracle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from flax import nnx

import jaxtrain.adapters
import jaxtrain.model
import torchtrain.adapters
import torchtrain.model
from coretrain.adapters.merge import fingerprint, merged
from coretrain.adapters.targets import (
    adapter_table,
    adapter_targets,
    initial_adapter,
    trained_table,
    with_adapter,
)
from coretrain.base.errors import UserError
from coretrain.checkpoint.interchange import (
    interchange_of,
    load_interchange,
    newest_interchange,
    save_interchange,
)
from coretrain.checkpoint.manifest import Progress
from coretrain.contract.parameters import initial_parameters, parameter_table
from coretrain.contract.quantization import quantize, quantized_table
from coretrain.runs.adapted import adapter_config, merge_run, with_base
from coretrain.runs.convert import export_run
from coretrain.runs.folder import resumed_config
from coretrain.tokenizers.registry import bytes_tokenizer
from coretrain.training.command_line import Command
from coretrain.training.generate import generate_text
from coretrain.training.resolve import completed
from jaxtrain.generate import generate_each as jax_each
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.pair import (
    jax_gradients,
    jax_logits,
    torch_gradients,
    torch_logits,
)
from tests.contract.test_quantized import bitsandbytes_nf4
from tests.formats.test_huggingface import Float64Norm, Float64Rotary
from tests.support.whole_runs import arguments, run
from torchtrain.adapters import Adapters
from torchtrain.generate import generate_each as torch_each
from torchtrain.trainer import Trainer as TorchTrainer

LORA = {"adapter__kind": "lora", "adapter__rank": 4}
ENDS_A_TURN_WITH = (
    "{% for message in messages %}{{ message['content'] }}NAME"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_the_table_and_its_start(small_config):
    config = small_config(**LORA, adapter__bias="lora_only", adapter__targets="blocks.*.mlp.down.weight")
    assert [row.name for row in trained_table(config)] == [
        f"blocks.{layer}.mlp.down.{part}" for layer in (0, 1) for part in ("adapter.a", "adapter.b")
    ] + ["blocks.0.mlp.down.bias", "blocks.1.mlp.down.bias"]
    assert [row.shape for row in adapter_table(config)[:2]] == [(4, 128), (32, 4)]
    start = initial_adapter(config)
    # U(+-1/sqrt(in)), as kaiming_uniform_(a=sqrt(5)): its largest of 512 draws is within 5% of the bound
    assert 0.95 < np.abs(start["blocks.0.mlp.down.adapter.a"]).max() * 128**0.5 <= 1
    assert not start["blocks.0.mlp.down.adapter.b"].any()
    assert not adapter_targets(small_config())
    assert small_config(**LORA, adapter__alpha=8).adapter.scale == 2
    assert small_config(**LORA, adapter__alpha=8, adapter__rslora="true").adapter.scale == 4


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"adapter__targets": "blocks.*.attention.query.*"}, "matches no matrix of this model: names are as"),
        ({"adapter__targets": "blocks.*.norm1.weight"}, "matches no matrix of this model"),
        ({"adapter__rank": 33}, r"adapter\.rank = 33 is above the smaller side of blocks.0.attention.q.weight"),
        ({"adapter__targets": "embed.token"}, "this tied model's head too"),
        ({"adapter__targets": "blocks.0.*", "adapter__bias": "lora_only"}, "in some layers only"),
    ],
)
def test_faults_of_fields_name_them(small_config, fields, word):
    config = small_config(**(LORA | fields))
    with pytest.raises(UserError, match=word):
        adapter_table(config)
    with pytest.raises(UserError, match=word):
        TorchTrainer(config)


def test_no_target_is_refused(small_config):
    with pytest.raises(UserError, match=r"adapter\.targets is empty"):
        small_config(**LORA, adapter__targets="[]")


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
    with pytest.raises(UserError, match=r"model\.width is the base's, .*: leave it out"):
        completed(replace(command, overrides=(*given, ("model.width", "64"))))
    with pytest.raises(UserError, match=r"has no base: give the folder"):
        completed(replace(command, config=small_config(**LORA)))
    for resume in (None, base):
        with pytest.raises(UserError, match=r"adapter\.kind = none trains a whole model without it: set adapter\.kind"):
            completed(replace(command, config=small_config(adapter__base=base), resume=resume))
    filled, tensors = with_base(completed(command).config)
    assert filled.adapter.fingerprint == fingerprint(config, tensors)
    with pytest.raises(UserError, match=r"model\.width = 64, the base .* has 32: it is another model"):
        with_base(config)
    other = initial_parameters(small_config().model, 6)
    shutil.rmtree(base / "interchange")
    where = base / "interchange" / "update-00000000"
    save_interchange(where, small_config(), {"parameters": other}, Progress(), "import")
    with pytest.raises(UserError, match=r"fingerprint .*, the adapter was trained on .*: give that base"):
        with_base(filled)
    with pytest.raises(UserError, match="trained a whole model and no adapter"):
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
    longer = shorter.model_copy(update={"model": shorter.model.model_copy(update={"context": 25})})
    with pytest.raises(UserError, match=r"model\.context = 25 is longer than the 24 of the base"):
        completed(Command(longer, None, None, given))
    batch, run = np.random.default_rng(0).integers(0, 101, (4, 9), dtype=np.int32), tmp_path / "lora"
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
        tensors = {row.name: 0.2 * rng.standard_normal(row.shape).astype(np.float32) for row in adapter_table(adapter)}
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
    with pytest.raises(UserError, match="two folders are named first"):
        said("first", "first")
    with pytest.raises(UserError, match=rf"adapter\.quantize of .*other is int8, that of .*first {quantize}"):
        said("first", "other")


def test_an_adapter_of_another_model_is_refused(small_config):
    """Also where every shape is the same, and beside weights in other bits than it was trained beside."""
    config = small_config(**LORA)
    bank = Adapters(small_config(), TorchTrainer(small_config()).model)
    for field, value in (("mlp_width", 256), ("heads", 2), ("norm_eps", 1e-6)):
        other = small_config(**LORA, **{f"model__{field}": value})
        with pytest.raises(UserError, match=rf"adapter default is of another model: its model\.{field} = {value}"):
            bank.add(other, initial_adapter(other))
    other = small_config(**LORA, adapter__quantize="int8")
    with pytest.raises(
        UserError, match=r"trained with adapter\.quantize = int8, and the weights here are held with none"
    ):
        bank.add(other, initial_adapter(other))
    bank.add(small_config(**LORA, model__context=8), initial_adapter(config))
    assert list(bank.kept) == ["default"]


@pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def test_a_merge_in_the_model_is_rounded_once(small_config, make):
    """Bit for bit the merged run's float32 weights; also of layers and matrices that have no adapter."""
    untied = {"model__tied": "false"}
    targets = "blocks.*.attention.q.weight,blocks.1.mlp.up.weight,embed.token"
    config = small_config(**LORA, **untied, adapter__targets=targets)
    rng, weights = np.random.default_rng(0), initial_parameters(config.model, 1)
    adapter = {row.name: rng.standard_normal(row.shape).astype(np.float32) for row in adapter_table(config)}
    stack = make(small_config(**untied), weights)
    model = stack.model if make is TorchTrainer else nnx.merge(stack.graph, stack._whole())
    bank = (torchtrain.adapters if make is TorchTrainer else jaxtrain.adapters).Adapters(small_config(**untied), model)
    bank.add(config, adapter)
    bank.switch("default")
    bank.merge()
    for row in parameter_table(config.model):
        if make is TorchTrainer:
            found = dict(model.named_parameters())[row.name][: row.shape[0]].detach().numpy()
        else:
            found = bank._weight(row)
        assert np.array_equal(found, merged(config, weights, adapter)[row.name]), row.name


@pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def test_native_checkpoints_hold_the_adapter_alone(small_config, make, tmp_path):
    config = small_config(**LORA, adapter__dropout=0.1)
    stack, batch = make(config), np.random.default_rng(0).integers(0, 101, (4, 25), dtype=np.int32)
    stack.gradients(batch, 0, 1.0)
    stack.apply(1e-2, 1.0, 0)
    (tmp_path / "native").mkdir()
    stack.save(tmp_path / "native").result()
    other = make(config)
    other.load(tmp_path / "native", 1)
    ours, theirs = stack.export(), other.export()
    assert set(ours["parameters"]) == {row.name for row in adapter_table(config)} == set(ours["first_moment"])
    for group, tensors in ours.items():
        for name, value in tensors.items():
            assert np.array_equal(value, theirs[group][name]), (group, name)
    assert stack.evaluate(batch) == other.evaluate(batch)


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
    with pytest.raises(UserError, match=r"adapter\.rank can't change at --resume"):
        resumed_config(lora, [("adapter.rank", "3")])
    with pytest.raises(UserError, match="holds an adapter alone: add --merge"):
        export_run(lora, tmp_path / "hf", "huggingface")
    merge_run(lora, whole)
    loaded = load_interchange(newest_interchange(whole))
    weights = load_interchange(interchange_of(moved, "update-00000004")).groups["parameters"]
    changed = [name for name in weights if not np.array_equal(weights[name], loaded.groups["parameters"][name])]
    assert len(changed) == 14
    assert json.loads((whole / "config.json").read_text())["adapter"]["kind"] == "none"


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_peft_computes_the_same(small_config, monkeypatch, kind):
    """Logits and gradients of Hugging Face's Llama with PEFT's adapters, in float64; nf4: on bitsandbytes' numbers.

    Floors 2.7e-15 and 1.0e-14; a scale of alpha / rank would change the logits by 1.0 of their norm.
    """
    peft = pytest.importorskip("peft", reason="PEFT is the oracle: pip install peft accelerate")
    transformers = pytest.importorskip("transformers")
    llama = transformers.models.llama.modeling_llama
    monkeypatch.setattr(llama, "LlamaRMSNorm", Float64Norm)  # its own go through float32
    monkeypatch.setattr(llama, "LlamaRotaryEmbedding", Float64Rotary)
    form = {"model__norm": "rmsnorm", "model__position": "rope", "model__mlp": "swiglu", "model__bias": "false"}
    more = {"model__tied": "false", "model__kv_heads": 2, "precision__compute": "float64", "adapter__alpha": 12}
    targets = "blocks.*.attention.*.weight,blocks.1.mlp.down.weight,embed.token,head.weight"
    more |= {"adapter__targets": targets, "adapter__rslora": "true", "adapter__quantize": kind, "optimizer__clip": 0}
    config = small_config(**LORA, **form, **more)
    m, rng = config.model, np.random.default_rng(0)
    weights = {name: v.astype(np.float64) * 3 for name, v in initial_parameters(m, 1).items()}
    adapter = {row.name: rng.standard_normal(row.shape) * 0.1 for row in adapter_table(config)}
    base = dict(weights)
    for row in quantized_table(config):
        given = weights[row.name].astype(np.float32)
        base[row.name] = bitsandbytes_nf4(given, quantize(given, "nf4").arrays["offset"])
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=m.vocabulary, hidden_size=m.width, intermediate_size=m.hidden, num_hidden_layers=m.layers,
            num_attention_heads=m.heads, num_key_value_heads=m.kv, max_position_embeddings=m.context,
            rms_norm_eps=m.norm_eps, tie_word_embeddings=False, attn_implementation="sdpa",
            rope_parameters={"rope_type": "default", "rope_theta": m.rope_theta},
        )
    )  # fmt: skip
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens", "lm_head", "layers.1.mlp.down_proj"]
    wanted = peft.LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules=names, lora_dropout=0.0)
    model = peft.get_peft_model(theirs, wanted).double()
    named = dict(model.named_parameters())
    assert len([name for name in named if "lora_" in name]) == len(adapter)
    with torch.no_grad():
        for name, value in (base | adapter).items():
            named[_peft_name(name, named)].copy_(torch.from_numpy(value))
    batch = rng.integers(0, m.vocabulary, (4, m.context + 1), dtype=np.int32)
    ids = torch.from_numpy(batch).long()
    logits = model(ids[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    for make in (TorchTrainer, JaxTrainer):
        stack = make(config, weights | adapter)
        stack.gradients(batch, 0, 1.0)
        ours = (torch_logits if make is TorchTrainer else jax_logits)(stack, batch[:, :-1], 0)
        assert np.linalg.norm(ours - logits.detach().numpy()) < 1e-13 * np.linalg.norm(ours), stack.name
        found = (torch_gradients if make is TorchTrainer else jax_gradients)(stack)
        assert found.keys() == adapter.keys()
        for name, value in found.items():
            gradient = named[_peft_name(name, named)].grad.numpy()
            assert np.linalg.norm(value - gradient) < 1e-12 * np.linalg.norm(gradient), (stack.name, name)


PLACES = {
    "attention.q": "self_attn.q_proj", "attention.k": "self_attn.k_proj", "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj", "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
}  # fmt: skip


def _peft_name(name, named):
    """PEFT's name of a canonical one."""
    module, _, leaf = name.rpartition(".adapter.") if ".adapter." in name else name.rpartition(".")
    if module.startswith("blocks."):
        _, layer, part = module.split(".", 2)
        stem = f"base_model.model.model.layers.{layer}.{PLACES[part]}"
    else:
        stem = "base_model.model." + {"embed": "model.embed_tokens", "head": "lm_head", "norm": "model.norm"}[module]
    if ".adapter." in name:
        kind = f"lora_embedding_{leaf.upper()}" if module == "embed" else f"lora_{leaf.upper()}"
        return f"{stem}.{kind}.default" + ("" if module == "embed" else ".weight")
    plain = f"{stem}.weight"
    return plain if plain in named else f"{stem}.base_layer.weight"


@pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def test_frozen_matrices_are_held_in_the_compute_dtype(make, small_config, monkeypatch):
    """A third of the memory of masters and their copies, and not one bit of another loss or gradient."""
    config = small_config(**LORA, precision__compute="bfloat16", model__tied="false")
    batch = np.random.default_rng(0).integers(0, 101, (4, 25), dtype=np.int32)

    def update() -> tuple:
        stack = make(config, initial_parameters(config.model, 1))
        loss = stack.gradients(batch, 0, 1.0)
        stack.apply(1e-2, 1.0, 0)
        weights = stack.model.named_parameters() if make is TorchTrainer else nnx.to_flat_state(stack._whole())
        dtypes = {path if isinstance(path, str) else ".".join(path): str(leaf.dtype) for path, leaf in weights}
        return loss, stack.gradients(batch, 1, 1.0), {n: d.removeprefix("torch.") for n, d in dtypes.items()}

    *held, dtypes = update()
    matrices = {name for name in dtypes if name.endswith(("q.weight", "q.kernel", "down.weight", "down.kernel"))}
    assert {dtypes[name] for name in matrices} == {"bfloat16"}
    whole = {name for name in dtypes if ".adapter." in name or "norm" in name or name in ("embed.token", "head.weight")}
    assert {dtypes[name] for name in whole} == {"float32"}
    for module in (torchtrain.model, jaxtrain.model):
        monkeypatch.setattr(module, "frozen_matrices", lambda config: ())
    *cast, dtypes = update()
    assert set(dtypes.values()) == {"float32"}
    assert held == cast


def test_a_rounded_base_takes_no_magnitudes_and_no_merge(small_config):
    """Both are of whole weights, and below an adapter's own run in bfloat16 there are none."""
    half = {"precision__compute": "bfloat16"}
    config = small_config(**LORA, **half)
    stack = TorchTrainer(config, initial_parameters(config.model, 1))
    bank = Adapters(config, stack.model)
    tensors = stack.export()["parameters"]
    bank.add(config, tensors)
    bank.switch("default")
    with pytest.raises(UserError, match=r"added to whole weights, and the base of a run with adapter\.kind = lo"):
        bank.merge()
    dora = small_config(**LORA | {"adapter__kind": "dora", "adapter__name": "other"}, **half)
    whole = with_adapter(dora, initial_parameters(config.model, 1))
    with pytest.raises(UserError, match=r"adapter other needs the norms of whole weights, .* held in bfloat16"):
        bank.add(dora, {row.name: np.asarray(whole[row.name]) for row in trained_table(dora)})
