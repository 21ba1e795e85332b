"""The chunked head and cross-entropy of each stack against its framework's own, and its claim about memory."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import jaxtrain.loss
import torchtrain.loss
from tests.support.threads import on_threads

B, T, D, V, ROWS = 3, 11, 8, 37, 48
CHUNKS = pytest.mark.parametrize("chunk", [1, 7, 33, 1000])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


# Floors 6e-8 and 4e-16: sums over 37 logits and 8 features. A shifted label or a leaking padding row is above 1e-2.
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}


def problem(dtype):
    """Hidden states, a head whose padding rows would win every softmax, labels of which some are ignored."""
    rng = np.random.default_rng(0)
    hidden, head = rng.standard_normal((B, T, D)), rng.standard_normal((ROWS, D))
    head[V:] = 100 * np.sign(hidden[0, 0])
    labels = rng.integers(0, V, (B, T))
    labels[0, :4] = labels[2, -1] = -100
    return hidden.astype(dtype), head.astype(dtype), labels


@DTYPES
@CHUNKS
def test_torch_against_torchs_own(dtype, chunk):
    hidden, head, labels = map(torch.from_numpy, problem(dtype))
    ours = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    scale = 1 / torchtrain.loss.count_targets(labels).to(hidden.dtype)
    loss = torchtrain.loss.cross_entropy(*ours, labels, V, chunk, scale)
    expected = F.cross_entropy((theirs[0] @ theirs[1][:V].T).flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=TOLERANCE[dtype], atol=0)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=TOLERANCE[dtype])
    assert not ours[1].grad[V:].any(), "padding rows have no gradient"


@DTYPES
@CHUNKS
def test_jax_against_optax(dtype, chunk):
    hidden, head, labels = problem(dtype)
    valid = labels != -100
    scale = np.dtype(dtype).type(1 / valid.sum())

    def ours(hidden, head):
        return jaxtrain.loss.cross_entropy(hidden, head, jnp.asarray(labels), V, chunk, scale)

    def theirs(hidden, head):
        each = optax.softmax_cross_entropy_with_integer_labels(hidden @ head[:V].T, np.where(valid, labels, 0))
        return jnp.where(valid, each, 0).sum() * scale

    loss, gradients = jax.value_and_grad(ours, (0, 1))(hidden, head)
    expected, wanted = jax.value_and_grad(theirs, (0, 1))(hidden, head)
    chex.assert_trees_all_close(loss, expected, rtol=TOLERANCE[dtype])
    chex.assert_trees_all_close(gradients, wanted, rtol=0, atol=TOLERANCE[dtype])
    chex.assert_trees_all_equal_dtypes(gradients, (hidden, head))
    assert not np.any(gradients[1][V:]), "padding rows have no gradient"


@DTYPES
def test_what_is_upstream_scales_the_gradients(dtype):
    hidden, head, labels = problem(dtype)
    h = torch.from_numpy(hidden).requires_grad_()
    (
        3 * torchtrain.loss.cross_entropy(h, torch.from_numpy(head), torch.from_numpy(labels), V, 7, h.new_ones(()))
    ).backward()
    one = np.dtype(dtype).type(1)
    theirs = jax.grad(lambda x: 3 * jaxtrain.loss.cross_entropy(x, head, jnp.asarray(labels), V, 7, one))(hidden)
    # floors 2e-6 and 4e-15: gradients of a sum, tens of times those of a mean
    np.testing.assert_allclose(h.grad.numpy(), theirs, rtol=0, atol=10 * TOLERANCE[dtype])


def test_a_batch_without_targets_is_zero_and_not_nan():
    hidden, head, _ = problem("float32")
    labels = np.full((B, T), -100)
    h = torch.from_numpy(hidden).requires_grad_()
    loss = torchtrain.loss.cross_entropy(h, torch.from_numpy(head), torch.from_numpy(labels), V, 7, torch.tensor(1.0))
    loss.backward()
    assert loss.item() == 0
    assert not h.grad.any()
    loss, gradient = jax.value_and_grad(jaxtrain.loss.cross_entropy)(
        hidden, head, jnp.asarray(labels), V, 7, np.float32(1)
    )
    assert loss == 0
    assert not np.any(gradient)


def test_large_logits_do_not_overflow():
    hidden, head, labels = problem("float32")
    hidden = hidden * 1e4
    ours = torchtrain.loss.cross_entropy(*map(torch.from_numpy, (hidden, head, labels)), V, 7, torch.tensor(1.0))
    theirs = jaxtrain.loss.cross_entropy(hidden, head, jnp.asarray(labels), V, 7, np.float32(1))
    assert np.isfinite(ours.item())
    np.testing.assert_allclose(ours.item(), theirs, rtol=1e-6)  # floor 0; an overflow is inf


class Shapes(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def jaxpr_sizes(jaxpr):
    """Elements of every value in a jaxpr and the jaxprs inside it."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape))
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from jaxpr_sizes(inner)


@pytest.mark.parametrize("of", ["loss", "log-probabilities"])
def test_no_more_than_a_chunk_of_logits_exists_at_once(of):
    """256 tokens over 500 words, in chunks of 16: no value may be near 128,000 elements, on the way back neither."""
    tokens, vocab, width, chunk = 256, 500, 8, 16
    largest_allowed = max(chunk * vocab, vocab * width, tokens * width)
    hidden, head = np.ones((2, tokens // 2, width), np.float32), np.ones((vocab, width), np.float32)
    labels = np.ones((2, tokens // 2), int)
    h, w = (torch.from_numpy(x).requires_grad_() for x in (hidden, head))
    ids = torch.from_numpy(labels)

    def ours():
        if of == "loss":
            return torchtrain.loss.cross_entropy(h, w, ids, vocab, chunk, torch.tensor(1.0))
        return torchtrain.loss.token_logprobs(h, w, ids, vocab, chunk).sum()

    def theirs(hidden, head):
        if of == "loss":
            return jaxtrain.loss.cross_entropy(hidden, head, jnp.asarray(labels), vocab, chunk, np.float32(1))
        return jaxtrain.loss.token_logprobs(hidden, head, jnp.asarray(labels), vocab, chunk).sum()

    with Shapes() as seen:
        ours().backward()
    assert chunk * vocab <= seen.largest <= largest_allowed
    jaxpr = jax.make_jaxpr(jax.grad(theirs, (0, 1)))(hidden, head)
    assert chunk * vocab <= max(jaxpr_sizes(jaxpr.jaxpr)) <= largest_allowed


def test_a_frozen_head_has_no_gradient_made():
    """Below an adapter: a third of the head's products, and a tensor of its size."""
    hidden, head, labels = problem("float64")
    one, h = torch.tensor(1.0, dtype=torch.float64), torch.from_numpy(hidden).requires_grad_()
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
        loss = torchtrain.loss.cross_entropy(h, torch.from_numpy(head), torch.from_numpy(labels), V, 7, one)
    loss.backward()
    assert sizes == [hidden.size]
    both = [torch.from_numpy(x.copy()).requires_grad_() for x in (hidden, head)]
    torchtrain.loss.cross_entropy(*both, torch.from_numpy(labels), V, 7, one).backward()
    assert torch.equal(h.grad, both[0].grad)

    def products(*wanted: int) -> int:
        gradient = jax.grad(lambda h, w: jaxtrain.loss.cross_entropy(h, w, jnp.asarray(labels), V, 7, 1.0), wanted)
        return jax.jit(gradient).lower(hidden, head).compile().as_text().count(" dot(")

    assert (products(0), products(0, 1)) == (2, 3)


@DTYPES
@pytest.mark.parametrize(("parts", "vocab"), [(2, V), (3, V), (4, V), (2, 20)])
def test_torchs_head_cut_over_processes(dtype, parts, vocab):
    """Each part of the rows by itself: a vocabulary that ends within the last part, before it, or in the first."""
    hidden, head, labels = map(torch.from_numpy, problem(dtype))
    labels = labels.where(labels < vocab, -100)
    weights = torch.rand(B, T, generator=torch.Generator().manual_seed(1)).to(hidden.dtype)
    scale = torch.tensor(0.25, dtype=hidden.dtype)

    def run(rows, tensor):
        h, own = hidden.clone().requires_grad_(), rows.clone().requires_grad_()
        loss = torchtrain.loss.cross_entropy(h, own, labels, vocab, 7, scale, weights, tensor)
        each = torchtrain.loss.token_logprobs(h.detach(), own.detach(), labels, vocab, 7, tensor)
        loss.backward()
        return loss.detach(), each, h.grad, own.grad

    loss, each, d_hidden, d_head = run(head, torchtrain.loss.ALONE)
    found = on_threads(parts, lambda tensor: run(head.chunk(parts)[tensor.index], tensor))
    for one in found:
        # floors 4e-16 and 2e-7; a part's label taken for another's is above 1e-2
        torch.testing.assert_close(one[0], loss, rtol=TOLERANCE[dtype], atol=0)
        for a, b in zip(one[1:3], (each, d_hidden), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=5 * TOLERANCE[dtype])
    torch.testing.assert_close(torch.cat([one[3] for one in found]), d_head, rtol=0, atol=5 * TOLERANCE[dtype])
