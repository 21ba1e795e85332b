"""Generation as a user meets it: limits, bad prompts, streaming. (The tokens themselves are compared in parity/.)"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxtrain.decode
import jaxtrain.generate
import jaxtrain.layers
import jaxtrain.model
import torchtrain.decode
import torchtrain.generate
import torchtrain.layers
import torchtrain.model
from coretrain.base.errors import UserError
from coretrain.contract.sampling import Sampling
from jaxtrain.decode import cache_slots
from jaxtrain.trainer import Trainer as JaxTrainer
from torchtrain.few_row_linear import linear
from torchtrain.trainer import Trainer as TorchTrainer


@pytest.fixture(params=[TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def trainer(request, small_config):
    return request.param(small_config())


@pytest.mark.parametrize(
    ("prompts", "tokens", "word"),
    [
        ([[]], 3, "a prompt is empty"),
        ([], 3, "a prompt is empty"),
        ([[1], []], 3, "a prompt is empty"),
        ([[101]], 3, "outside the vocabulary of 101"),
        ([[3, -1]], 3, "outside the vocabulary of 101"),
        ([[1] * 20], 5, "don't fit in model.context = 24: ask for at most 4 tokens"),
    ],
)
def test_bad_prompts_are_refused_in_a_sentence(trainer, prompts, tokens, word):
    with pytest.raises(UserError, match=word):
        trainer.generate(prompts, tokens, Sampling(), ())


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_bad_sampling_is_refused(fields):
    with pytest.raises(UserError):
        Sampling(**fields)


def test_up_to_the_last_slot_of_the_context_and_streamed(trainer):
    steps = []
    found = trainer.generate([[1] * 20, [2]], 4, Sampling(), (), steps.append)
    assert [len(row) for row in found] == [4, 4]
    assert np.array_equal(np.array(steps).T, found)
    assert all(0 <= token < 101 for row in found for token in row), "never a padding row of the vocabulary"


def test_a_process_that_only_generates_keeps_freed_memory(trainer, monkeypatch):
    """It was given back while the model was loaded, and no update comes that would end that."""
    asked, module = [], {"torch": torchtrain.decode, "jax": jaxtrain.decode}[trainer.name]
    monkeypatch.setattr(module, "keep_freed_memory", lambda: asked.append(True))
    trainer.generate([[1]], 1, Sampling(), ())
    assert asked == [True]


@pytest.mark.parametrize("width", [48, 101])
def test_a_product_of_few_rows_is_that_of_all_threads_parts(monkeypatch, width):
    """101 rows of a weight can't be cut into as many parts as there are threads. Floor 3e-16."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((2, 2, 32), (width, 32), (width,)))
    with torch.no_grad():
        for given in (None, bias):
            ours, plain = linear(x, weight, given), torch.nn.functional.linear(x, weight, given)
            assert torch.linalg.norm(ours - plain) < 1e-14 * torch.linalg.norm(plain)


def test_no_tokens_asked_for(trainer):
    assert trainer.generate([[1]], 0, Sampling(), ()) == [[]]


@pytest.mark.parametrize("kind", ["none", "lora", "dora"])
@pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def test_what_is_cast_once_is_what_each_step_would_cast(make, kind, small_config):
    """Bit for bit; DoRA's matrices stay as they are, and so do the model's own."""
    more = {} if kind == "none" else {"adapter__kind": kind, "adapter__targets": "blocks.*.attention.q.weight"}
    stack = make(small_config(precision__compute="bfloat16", **more))
    tokens, positions, mask = (
        np.array([[5, 9, 2]], np.int32),
        np.array([[0, 1, 2]], np.int32),
        np.tri(3, dtype=bool)[None],
    )
    if make is TorchTrainer:
        inputs, model = [torch.from_numpy(x) for x in (tokens, positions, mask)], stack.model
        q, k = model.blocks[0].attention.q, model.blocks[0].attention.k

        def logits(head=None):
            cache = torchtrain.layers.Cache(*torch.zeros(2, 2, 1, 3, model.kv_heads, 8, dtype=torch.bfloat16))
            return model.logits(model.decode(*inputs, cache, 0)[0], head).float().numpy()

        with torch.no_grad():
            wanted = logits()
            with torchtrain.decode.cast_once(model) as head:
                found = logits(head)
                assert (k.weight.dtype, head.dtype) == (torch.bfloat16, torch.bfloat16)
                assert q.weight.dtype == (torch.float32 if kind == "dora" else torch.bfloat16)
        assert q.weight.dtype == k.weight.dtype == (torch.bfloat16 if kind == "lora" else torch.float32), "as before"
    else:
        graph, whole = nnx.split(stack.whole_model())

        def logits(state, head=None):
            cache = jaxtrain.layers.Cache(*jnp.zeros((2, 2, 1, 3, stack.config.model.kv, 8), jnp.bfloat16))
            of = nnx.merge(graph, state)
            return np.asarray(of.logits(of.decode(tokens, positions, mask, cache, 0)[0], head))

        state, head = jaxtrain.decode.cast_once(stack.whole_model())
        wanted, found = logits(whole), logits(state, head)
        flat = {".".join(path): leaf for path, leaf in nnx.to_flat_state(state)}
        assert (flat["blocks.attention.k.kernel"].dtype, head.dtype) == (jnp.bfloat16, jnp.bfloat16)
        assert flat["blocks.attention.q.kernel"].dtype == (jnp.float32 if kind == "dora" else jnp.bfloat16)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("needed", "slots"), [(1, 256), (256, 256), (257, 512), (3000, 4096), (5000, 8192), (8192, 8192)]
)
def test_slots_of_the_cache(needed, slots):
    assert cache_slots(needed, 8192) == slots
    assert cache_slots(min(needed, 96), 96) == 96
    of_many = {257: 512, 256: 256, 1: 32}
    assert [cache_slots(one, 8192, rows=8) for one in of_many] == list(of_many.values())


@pytest.mark.parametrize("module", [torchtrain, jaxtrain], ids=["torch", "jax"])
def test_the_cache_of_rows_that_stay(module):
    """Whichever they are; torch moves them within the same memory."""
    keys = np.arange(2 * 5 * 3 * 2, dtype=np.float32).reshape(2, 5, 3, 1, 2)
    for places in ([0, 1, 2, 3], [1, 2, 4], [0, 3], [4], [0]):
        arrays = [torch.from_numpy(x.copy()) if module is torchtrain else jnp.array(x) for x in (keys, -keys)]
        kept = module.decode.keep_rows(module.layers.Cache(*arrays), np.array(places))
        np.testing.assert_array_equal(np.stack([kept.keys, kept.values]), np.stack([keys, -keys])[:, :, places])
        if module is torchtrain:
            assert kept.keys.data_ptr() == arrays[0].data_ptr()


def test_rows_that_jax_goes_on_with(small_config, monkeypatch):
    """Powers of two, where that spares enough: of a small model nothing is worth a second of compiling."""
    model = JaxTrainer(small_config()).whole_model()
    numbers = sum(array.size for array in jax.tree.leaves(nnx.state(model)))
    decoder = jaxtrain.decode.Decoder(model)
    assert [decoder.rows_for(n, 32, 200) for n in (1, 16, 32)] == [32, 32, 32]
    monkeypatch.setitem(jaxtrain.decode.WORTH, "cpu", 20 * 100 * numbers)
    decoder = jaxtrain.decode.Decoder(model)
    assert [decoder.rows_for(9, 36, left) for left in (99, 100)] == [36, 16]
    monkeypatch.setitem(jaxtrain.decode.WORTH, "cpu", 1)
    decoder = jaxtrain.decode.Decoder(model)
    assert [decoder.rows_for(n, 33, 1) for n in (1, 2, 3, 4, 5, 17, 32, 33)] == [1, 2, 4, 4, 8, 32, 32, 33]


def test_layers_are_views_of_the_weights(small_config):
    """A layer of 32 x 32 numbers begins at a multiple of 64 bytes: nothing is copied, and nothing exchanged."""
    model = JaxTrainer(small_config()).whole_model()
    decoder = jaxtrain.decode.Decoder(model)
    whole = dict(nnx.to_flat_state(nnx.state(model.blocks)))
    assert len(decoder.layers) == 2
    for index, layer in enumerate(decoder.layers):
        found = dict(nnx.to_flat_state(layer))
        assert found.keys() == whole.keys()
        for path, leaf in found.items():
            part = np.asarray(whole[path][...])[index]
            np.testing.assert_array_equal(leaf[...], part)
            assert part.nbytes % 64 or leaf[...].unsafe_buffer_pointer() == part.ctypes.data
