"""Mistakes of sharing a run over a mesh of JAX devices."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain.loss
import jaxtrain.model
import jaxtrain.optimizer
import jaxtrain.parallel.sharding
import jaxtrain.parallel.step
import jaxtrain.programs
import jaxtrain.wide
from coretrain.data.batch import IGNORED
from jaxtrain.parallel.sharding import Sharding

Patch = pytest.MonkeyPatch


# Bugs, each as somebody would make it.


def averaged_twice(patch: Patch) -> None:
    """Gradients of a loss that is already over all rows, averaged over the devices again."""
    original = jaxtrain.parallel.step.sharded_gradients

    def gradients(*args: Any) -> Any:
        loss, norm, grads = original(*args)
        places = args[-1]
        mesh = jax.tree.leaves(places)[0].mesh
        size = mesh.shape["data"] * mesh.shape["fsdp"]
        return loss, norm / size, jax.tree.map(lambda g: g / size, grads)

    patch.setattr(jaxtrain.programs, "sharded_gradients", gradients)


def norm_per_shard(patch: Patch) -> None:
    """The norm of what one device holds of the gradients, not summed over those that share them."""
    original = jaxtrain.parallel.step.sharded_gradients

    def gradients(*args: Any) -> Any:
        loss, _, grads = original(*args)
        places = args[-1]
        specs = jax.tree.map(lambda place: place.spec, places)
        mesh = jax.tree.leaves(places)[0].mesh
        local = jax.shard_map(
            lambda g: jaxtrain.optimizer.global_norm(jax.tree.leaves(g)),
            mesh=mesh,
            in_specs=(specs,),
            out_specs=jax.P(),
            check_vma=False,
        )
        return loss, local(grads), grads

    patch.setattr(jaxtrain.programs, "sharded_gradients", gradients)


def mean_of_means(patch: Patch) -> None:
    """Each device divides its loss by its own number of targets."""
    original = jaxtrain.loss._over_chunks

    def over_chunks(hidden: Any, head: Any, labels: Any, vocab: int, chunk: int, scale: Any, *rest: Any) -> Any:
        if not rest[2:]:  # on one device
            return original(hidden, head, labels, vocab, chunk, scale, *rest)
        own = (labels != IGNORED).sum()
        rows = ("data", "fsdp", "context")
        mean = jax.lax.psum(own, rows) / jax.lax.psum(1, rows)
        return original(hidden, head, labels, vocab, chunk, scale * mean / own, *rest)

    patch.setattr(jaxtrain.loss, "_over_chunks", over_chunks)


def another_devices_rows(patch: Patch) -> None:
    """Every device takes the first one's rows."""

    def put(self: Sharding, host: np.ndarray, *axes: str | None) -> Any:
        def rows(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return host[tuple(slice(0, i.stop - i.start) if i.start else i for i in index)]

        return jax.make_array_from_callback(host.shape, self.named(*axes), rows)

    patch.setattr(Sharding, "put", put)


def rows_counted_per_device(patch: Patch) -> None:
    """Dropout by a row's place on its device: every device draws the same masks."""
    original = Sharding.put

    def put(self: Sharding, host: np.ndarray, *axes: str | None) -> Any:
        if host.ndim == 2:  # [A, B / A]: the rows' numbers
            host = host % (host.shape[1] // self.size("data", "fsdp"))
        return original(self, host, *axes)

    patch.setattr(Sharding, "put", put)


def shards_swapped(patch: Patch) -> None:
    """Devices along an axis numbered from the other end."""
    original = jax.lax.axis_index

    def axis_index(names: Any) -> Any:
        return jax.lax.psum(1, names) - 1 - original(names)

    patch.setattr(jax.lax, "axis_index", axis_index)


def untied(patch: Patch) -> None:
    """A tied head whose gradient doesn't reach the embedding."""
    original = vars(jaxtrain.model.GPT)["head_weight"].fget
    patch.setattr(jaxtrain.model.GPT, "head_weight", property(lambda self: jax.lax.stop_gradient(original(self))))


def hidden_gradient_not_summed(patch: Patch) -> None:
    """Each device's share of the vocabulary gives its own gradient of the hidden states; the sum is left out."""
    original = jax.lax.psum

    def psum(x: Any, names: Any, **more: Any) -> Any:
        left_out = names == ("tensor",) and not isinstance(x, tuple) and jnp.ndim(x) == 3
        in_the_loss = sys._getframe(1).f_globals["__name__"] == "jaxtrain.loss"
        return x if left_out and in_the_loss else original(x, names, **more)

    patch.setattr(jax.lax, "psum", psum)


def rounded_before_the_sum(patch: Patch) -> None:
    """JAX's own rule for x @ w.astype(x.dtype): each device rounds its gradient to bfloat16, then those are summed."""
    original = jaxtrain.wide.over_tokens

    def over_tokens(x: Any, y: Any, dtype: Any) -> Any:
        return original(x, y, x.dtype).astype(dtype)

    patch.setattr(jaxtrain.wide, "over_tokens", over_tokens)


BUGS: dict[str, Callable[[Patch], None]] = {
    bug.__name__.replace("_", " "): bug
    for bug in (
        averaged_twice,
        norm_per_shard,
        mean_of_means,
        another_devices_rows,
        rows_counted_per_device,
        shards_swapped,
        untied,
        hidden_gradient_not_summed,
        rounded_before_the_sum,
    )
}


@contextlib.contextmanager
def planted(bug: str | None, torus: bool = False) -> Iterator[None]:
    """Within, jaxtrain has the bug; with `torus`, the 8 devices of fsdp lie along three axes of a torus."""
    with pytest.MonkeyPatch.context() as patch:
        if torus:
            patch.setattr(jaxtrain.parallel.sharding, "torus_split", lambda line: (2, 2, 2))
        if bug:
            BUGS[bug](patch)
        yield
