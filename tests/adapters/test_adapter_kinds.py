"""DoRA, prefixes and bottlenecks as a user meets them; PEFT and plain torch hooks as outside oracles, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals
from torch.utils.checkpoint import CheckpointPolicy

import torchtrain.model
from coretrain.adapters.merge import merged
from coretrain.adapters.targets import adapter_parameters, adapter_targets, trainable_parameters, with_adapter
from coretrain.base.errors import UserError
from coretrain.config.adapter import AdapterConfig
from coretrain.contract.parameters import initial_parameters
from coretrain.contract.sampling import Sampling
from coretrain.formats.huggingface.weights import export_huggingface
from coretrain.inference.generate import open_for_generation
from coretrain.runs.adapted import merge_run
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.pair import torch_gradients, torch_logits
from tests.support.batches import random_text
from tests.support.peft_oracle import peft_name
from tests.support.refusal import refused
from tests.support.whole_runs import arguments, run
from torchtrain.adapters import Adapters
from torchtrain.trainer import Trainer as TorchTrainer

LLAMA = {
    "model__norm": "rmsnorm", "model__position": "rope", "model__mlp": "swiglu", "model__bias": "false",
    "model__tied": "false", "model__kv_heads": 2,
}  # fmt: skip
DOUBLE = {"precision__compute": "float64", "optimizer__clip": 0}


@pytest.fixture
def pair_of(small_config, tmp_path, float64_oracle):
    """A function: (config, base, adapter, batch, transformers' model of the base) of some fields, all in float64."""

    def make(**fields):
        config, rng = small_config(**DOUBLE, **fields), np.random.default_rng(0)
        m = config.model
        draw = {name: v.astype(np.float64) * 3 for name, v in initial_parameters(m, 1).items()}
        base = {name: v + 0.1 * rng.standard_normal(v.shape) for name, v in draw.items()}
        whole = with_adapter(config, base)
        adapter = {
            row.name: whole[row.name] + 0.1 * rng.standard_normal(row.shape) for row in adapter_parameters(config)
        }
        batch = random_text(config)
        export_huggingface(tmp_path / "hf", m, base, None)
        kind = transformers.LlamaForCausalLM if m.position == "rope" else transformers.GPT2LMHeadModel
        theirs = kind.from_pretrained(tmp_path / "hf", dtype=torch.float64)
        return config, base, adapter, batch, theirs.eval()

    return make


def held_against(logits, gradients, config, base, adapter, batch):
    """Torch's logits and gradients are the oracle's; JAX's are held against torch's in parity/ladder/test_adapters.py.

    Floors 1.6e-15 and 6.7e-15.
    """
    stack = TorchTrainer(config, base | adapter)
    stack.gradients(batch, 0, 1.0)
    ours, found = torch_logits(stack, batch.tokens, 0), torch_gradients(stack)
    assert np.linalg.norm(ours - logits) < 1e-13 * np.linalg.norm(logits)
    assert found.keys() == gradients.keys()
    for name, value in found.items():
        assert np.linalg.norm(value - gradients[name]) < 1e-12 * np.linalg.norm(gradients[name]), name


def through(model, batch, **more):
    """Logits of a transformers model, after its backward pass."""
    tokens, labels = (torch.from_numpy(ids).long() for ids in (batch.tokens, batch.labels))
    logits = model(tokens, **more).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    return logits.detach().numpy()


def test_peft_computes_the_same_dora(pair_of):
    """Linear layers, an embedding and a head. Norms that aren't detached change gradients by 0.1 of their size."""
    peft = pytest.importorskip("peft", reason="PEFT is the oracle: pip install peft accelerate")
    targets = "blocks.*.attention.*.weight,blocks.1.mlp.down.weight,embed.token,head.weight"
    fields = {"adapter__kind": "dora", "adapter__rank": 4, "adapter__alpha": 12, "adapter__targets": targets}
    config, base, adapter, batch, theirs = pair_of(**LLAMA, **fields)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens", "lm_head", "layers.1.mlp.down_proj"]
    wanted = peft.LoraConfig(r=4, lora_alpha=12, use_dora=True, target_modules=names, lora_dropout=0.0)
    model = peft.get_peft_model(theirs, wanted).double()
    named = dict(model.named_parameters())

    def parameter(name):
        if not name.endswith(".adapter.m"):
            return named[peft_name(name, named)]
        stem = peft_name(name[:-1] + "a", named).rpartition(".lora_")[0]
        return named[f"{stem}.lora_magnitude_vector.default.weight"]

    assert len([name for name in named if "lora_" in name]) == len(adapter)
    with torch.no_grad():
        for name, value in adapter.items():
            parameter(name).copy_(torch.from_numpy(value))
    logits = through(model, batch)
    held_against(logits, {n: parameter(n).grad.numpy() for n in adapter}, config, base, adapter, batch)
    # merged, in numpy and by PEFT
    ours = TorchTrainer(config.changed(adapter=AdapterConfig()), merged(config, base, adapter))
    assert np.abs(torch_logits(ours, batch.tokens, 0) - logits).max() < 1e-12
    with torch.no_grad():
        again = model.merge_and_unload()(torch.from_numpy(batch.tokens).long()).logits.numpy()
    assert np.abs(again - logits).max() < 1e-12


def test_peft_drops_for_dora_alike(small_config, monkeypatch):
    """What is dropped is dropped for W x too, the bias is left as it is: one layer under one mask."""
    peft = pytest.importorskip("peft")
    config = small_config(**DOUBLE, adapter__kind="dora", adapter__rank=3, adapter__alpha=5, adapter__dropout=0.5)
    layer = TorchTrainer(config).model.blocks[0].attention.q
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 32, generator=rng, dtype=torch.float64)
    mask = 2.0 * (torch.rand(x.shape, generator=rng) < 0.5)

    class Masked(torch.nn.Module):
        def forward(self, x):
            return x * mask

    wanted = peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=["0"], lora_dropout=0.5)
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(32, 32)), wanted).double().train()
    theirs = model.base_model.model[0]
    theirs.lora_dropout["default"] = Masked()
    pairs = {
        "weight": theirs.base_layer.weight, "bias": theirs.base_layer.bias,
        "adapter.a": theirs.lora_A["default"].weight, "adapter.b": theirs.lora_B["default"].weight,
        "adapter.m": theirs.lora_magnitude_vector["default"].weight,
    }  # fmt: skip
    own = dict(layer.named_parameters())
    with torch.no_grad():
        for name, value in pairs.items():
            value.add_(torch.randn(value.shape, generator=rng, dtype=torch.float64), alpha=0.3)
            own[name].copy_(value)
    monkeypatch.setattr(torchtrain.layers, "drop", lambda x, rate, masks, part: x * mask)
    assert torch.allclose(layer(x), theirs(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_peft_computes_the_same_prefix(pair_of, form):
    """Positions start behind the prefix where they rotate; learned ones have no rows for that, and PEFT is told so."""
    peft = pytest.importorskip("peft")
    config, base, adapter, batch, theirs = pair_of(
        **(LLAMA if form == "llama" else {}), adapter__kind="prefix", adapter__virtual_tokens=5
    )
    wanted = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(theirs, wanted).double()
    table = model.prompt_encoder["default"].embedding.weight
    order = [f"blocks.{layer}.attention.prefix.{part}" for layer in range(2) for part in "kv"]
    with torch.no_grad():
        table.copy_(torch.from_numpy(np.concatenate([adapter[name] for name in order], 1)))
    places = {} if form == "llama" else {"position_ids": torch.arange(config.model.context)[None] - 5}
    logits = through(model, batch, **places)
    parts = dict(zip(order, np.split(table.grad.numpy(), 4, 1), strict=True))
    held_against(logits, parts, config, base, adapter, batch)


def test_hooks_compute_the_same_bottleneck(pair_of):
    """transformers' GPT-2 with y + up act(down y) hung behind attention and MLP, in plain torch."""
    config, base, adapter, batch, theirs = pair_of(
        adapter__kind="bottleneck", adapter__bottleneck_width=5, adapter__bottleneck_activation="silu"
    )
    own = {name: torch.from_numpy(value).requires_grad_() for name, value in adapter.items()}

    def behind(stem):
        down, down_bias, up, up_bias = (own[f"{stem}.adapter.{n}"] for n in ("down", "down_bias", "up", "up_bias"))

        def hook(module, args, output):
            y = output[0] if isinstance(output, tuple) else output
            hidden = y @ down.T + down_bias
            y = y + (hidden * torch.sigmoid(hidden)) @ up.T + up_bias
            return (y, *output[1:]) if isinstance(output, tuple) else y

        return hook

    for layer, block in enumerate(theirs.transformer.h):
        block.attn.register_forward_hook(behind(f"blocks.{layer}.attention"))
        block.mlp.register_forward_hook(behind(f"blocks.{layer}.mlp"))
    logits = through(theirs, batch)
    held_against(logits, {n: t.grad.numpy() for n, t in own.items()}, config, base, adapter, batch)


@pytest.mark.parametrize("kind", ["dora", "bottleneck"])
def test_the_start_is_the_base(small_config, kind):
    """Loss of a new adapter's run is its base's, to 1e-14: DoRA's magnitudes start as norms in float64."""
    config = small_config(**DOUBLE, adapter__kind=kind)
    bare, batch = config.changed(adapter=AdapterConfig()), random_text(config)
    losses = [TorchTrainer(each, initial_parameters(config.model, 3)).evaluate(batch) for each in (config, bare)]
    assert abs(losses[0] - losses[1]) < 1e-14 * losses[1]


def test_what_a_kind_trains(small_config):
    def names(**fields):
        return [row.name.removeprefix("blocks.0.") for row in trainable_parameters(small_config(**fields))]

    assert names(adapter__kind="dora", adapter__targets="blocks.0.mlp.up.weight") == [
        f"mlp.up.adapter.{part}" for part in "abm"
    ]
    assert names(adapter__kind="prefix")[:2] == ["attention.prefix.k", "attention.prefix.v"]
    parts = ["down", "down_bias", "up", "up_bias"]
    pfeiffer = names(adapter__kind="bottleneck", adapter__targets="blocks.*.mlp.*")
    assert pfeiffer[:4] == [f"mlp.adapter.{part}" for part in parts]
    houlsby = names(adapter__kind="bottleneck")
    assert houlsby[:8] == [f"{sub}.adapter.{part}" for sub in ("attention", "mlp") for part in parts]
    one = {"adapter__targets": "blocks.1.*", "model__bias": "false"}
    assert len(adapter_targets(small_config(adapter__kind="bottleneck", **one))) == 2


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"kind": "prefix", "targets": "blocks.*.mlp.*"}, "matches no matrix of this model that a prefix takes"),
        ({"kind": "bottleneck", "targets": "embed.token"}, "matches no matrix of this model that a bottleneck takes"),
        ({"kind": "prefix", "targets": "blocks.0.*"}, "leaves layers out, and a prefix stands in all of them"),
        ({"kind": "bottleneck", "targets": "blocks.0.*"}, "names some layers only"),
        ({"kind": "prefix", "virtual_tokens": 25}, r"virtual_tokens = 25 is above model\.context = 24: choose fewer"),
        ({"kind": "prefix", "dropout": 0.1}, r"adapter\.dropout = 0\.1 is for kinds lora and dora, and adapter\.kind"),
        ({"kind": "bottleneck", "bias": "lora_only"}, r"adapter\.bias = lora_only is for kinds lora and dora"),
        ({"kind": "dora", "rank": 33}, r"adapter\.rank = 33 is above the smaller side of blocks.0.attention.q.weight"),
    ],
)
def test_faults_of_fields_name_them(small_config, fields, word):
    with pytest.raises(UserError, match=word):
        adapter_parameters(small_config(**{f"adapter__{name}": value for name, value in fields.items()}))


@pytest.mark.parametrize("kind", ["prefix", "bottleneck"])
def test_what_is_no_change_of_weights_is_not_merged(small_config, kind):
    config = small_config(adapter__kind=kind)
    tensors = with_adapter(config, initial_parameters(config.model, 1))
    adapter = {row.name: tensors[row.name] for row in adapter_parameters(config)}
    with pytest.raises(UserError, match=rf"adapter\.kind = {kind} is no change of the base's weights"):
        merged(config, tensors, adapter)
    bank = Adapters(small_config(), TorchTrainer(small_config()).model)
    bank.add(config, adapter)
    bank.switch("default")
    with refused("adapters/kind-not-mergeable"):
        bank.merge()
    slot = "prefix" if kind == "prefix" else "adapter"
    assert getattr(bank.model.blocks[0].attention, slot) is not None


@pytest.mark.whole
def test_from_a_base_to_text_through_a_prefix(corpus, tmp_path):
    """Train, adapt, the same greedy text from both stacks; a merge is refused before it writes."""
    base, prefix = tmp_path / "base", tmp_path / "prefix"
    run("torch", *arguments(corpus, "--train.updates=4", f"--output={base}"))
    free = [word for word in arguments(corpus) if not word.startswith(("--model.", "--data.tokenizer"))]
    adapt = ["--adapter.kind=prefix", f"--adapter.base={base}", "--adapter.virtual_tokens=4", "--train.updates=4"]
    out = run("torch", *free, *adapt, "--optimizer.lr=0.1", f"--output={prefix}")
    assert "prefix of 4 keys and values in 2 layers" in out
    texts = []
    for make in (TorchTrainer, JaxTrainer):
        stack = open_for_generation(prefix, make)
        texts.append(stack.generate([[40, 41, 42], [50]], 6, Sampling(0, 0, 1.0, 0), ()))
    assert texts[0] == texts[1]
    with refused("adapters/kind-not-mergeable"):
        merge_run(prefix, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_recomputation_keeps_no_product_as_large_as_a_matrix(small_config, monkeypatch, capsys):
    """B A of DoRA's norm is such a product, and the policy that keeps matmuls' outputs takes it for an activation."""
    fields = {"adapter__kind": "dora", "execution__checkpoint_activations": "matmuls", "model__bias": "false"}
    config = small_config(**fields, adapter__targets="blocks.*.mlp.up.weight", execution__scan_layers="true")
    torch_stack, jax_stack = (make(config, initial_parameters(config.model, 0)) for make in (TorchTrainer, JaxTrainer))
    kept, contexts, tokens = [], torchtrain.model.create_selective_checkpoint_contexts, np.zeros((2, 24), np.int32)

    def noting(policy):
        def noted(context, op, *args, **more):
            found = policy(context, op, *args, **more)
            if found == CheckpointPolicy.MUST_SAVE:
                kept.append((args[0].shape[0], args[1].shape[1]))
            return found

        return contexts(noted)

    monkeypatch.setattr(torchtrain.model, "create_selective_checkpoint_contexts", noting)
    torch_stack.model(torch.from_numpy(tokens).long())
    assert (48, 128) in kept, "the layer's own output, of 48 tokens"
    assert (128, 32) not in kept
    graph, whole = nnx.split(jax_stack.whole_model())
    print_saved_residuals(lambda state: nnx.merge(graph, state)(tokens).sum(), whole)
    shapes = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "argument" not in line]
    assert "f32[2,2,24,128]" in shapes, "the same, of both layers"
    assert "f32[2,32,128]" not in shapes
