"""A small pair of somebody's own, for tests: attention over a window, fused and split, stacked and not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx
from torch import Tensor, nn

WIDTH, HEADS, WINDOW, LENGTH = 8, 2, 3, 6


def inputs() -> dict[str, np.ndarray]:
    """What both are called with."""
    return {"x": np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))}


class Block(nn.Module):
    """Torch's: a norm, a fused attention that sees `WINDOW` keys, a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to the same."""
        h, all_keys = self.norm(x), torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        hidden = all_keys.triu(1) | all_keys.tril(-WINDOW)
        return self.up(x + self.attn(h, h, h, attn_mask=hidden, need_weights=False)[0])


class Net(nn.Module):
    """Torch's whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, 5]."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class LinenBlock(linen.Module):
    """JAX's block; `window` keys are seen. `narrow`: its norm is computed in float32."""

    window: int = WINDOW
    narrow: bool = False

    @linen.compact
    def __call__(self, x: Any, _: Any = None) -> tuple[Any, None]:
        """[B, T, D] to the same, as a scan wants it."""
        given = x.astype(jnp.float32) if self.narrow else x
        h = linen.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(given).astype(x.dtype)
        at = jnp.arange(x.shape[1])
        seen = (at[:, None] >= at) & (at[:, None] - at < self.window)
        h = linen.MultiHeadDotProductAttention(HEADS, name="attn")(h, h, mask=seen[None, None])
        return linen.Dense(WIDTH, name="up")(x + h), None


class LinenNet(linen.Module):
    """JAX's whole: the blocks stacked, in a scan, rematerialised."""

    window: int = WINDOW
    narrow: bool = False

    @linen.compact
    def __call__(self, x: Any) -> Any:
        """[B, T, D] to [B, T, 5]."""
        stacked = linen.scan(
            linen.remat(LinenBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        x, _ = stacked(self.window, self.narrow, name="layers")(x)
        return linen.Dense(5, name="head")(x)


class TorchConvs(nn.Module):
    """Convolutions, a norm with statistics, a tied pair of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.back = nn.ConvTranspose2d(4, 2, 3, padding=1)
        self.square = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 6, 6, 3] to [B, 6, 6, 2]."""
        x = torch.relu(self.bn(self.conv(x.permute(0, 3, 1, 2))))
        return self.square(self.back(x)).permute(0, 2, 3, 1)


class NnxConvs(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.back = nnx.ConvTranspose(4, 2, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)
        self.square = nnx.Linear(6, 6, use_bias=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """[B, 6, 6, 3] to [B, 6, 6, 2]."""
        x = nnx.relu(self.bn(self.conv(x)))
        return jnp.moveaxis(self.square(jnp.moveaxis(self.back(x), 3, 1)), 1, 3)


def nnx_convs() -> NnxConvs:
    """One of them."""
    return NnxConvs(nnx.Rngs(0))


def converted(state: dict[str, Tensor]) -> dict[str, Any]:
    """A converter as people write them: torch's state dict of `Net` to the tree of `LinenNet`."""

    def stacked(name: str) -> np.ndarray:
        return np.stack([state[f"layers.{i}.{name}"].numpy() for i in range(2)])

    fused, biases = stacked("attn.in_proj_weight"), stacked("attn.in_proj_bias")
    shape = (2, WIDTH, HEADS, WIDTH // HEADS)
    attention = {
        name: {
            "kernel": fused[:, WIDTH * i : WIDTH * (i + 1)].transpose(0, 2, 1).reshape(shape),
            "bias": biases[:, WIDTH * i : WIDTH * (i + 1)].reshape(2, HEADS, -1),
        }
        for i, name in enumerate(("query", "key", "value"))
    }
    out = stacked("attn.out_proj.weight").transpose(0, 2, 1).reshape(2, HEADS, WIDTH // HEADS, WIDTH)
    return {
        "layers": {
            "norm": {"scale": stacked("norm.weight"), "bias": stacked("norm.bias")},
            "attn": {
                **attention,
                "out": {"kernel": jnp.asarray(out, jnp.float32), "bias": stacked("attn.out_proj.bias")},
            },
            "up": {"kernel": stacked("up.weight").transpose(0, 2, 1), "bias": stacked("up.bias")},
        },
        "head": {"kernel": state["head.weight"].T, "bias": state["head.bias"]},
    }


def torch_window(x: Tensor, w: Tensor) -> Tensor:
    """A plain function of arrays."""
    return torch.tanh(x @ w)


def jax_window(x: Any, w: Any) -> Any:
    """The same."""
    return jax.jit(lambda x, w: jnp.tanh(x @ w))(x, w)
