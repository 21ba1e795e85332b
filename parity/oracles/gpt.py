"""The GPT: logits, loss and the gradient of every parameter, from canonical tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coretrain.config.model import ModelConfig
from coretrain.contract.randomness import dropout_key, dropout_mask
from coretrain.data.batch import IGNORED, Batch

Array = NDArray[np.float64]
Back = Callable[[Array], Array]
"""From the cotangent of a value to that of its input; gradients of parameters are added up on the way."""


class Exact(NamedTuple):
    """What one update's batch gives."""

    logits: Array
    """[B, T, V]."""
    loss: float
    """Mean over targets, by their weights."""
    gradients: dict[str, Array]
    norm: float
    """2-norm of all gradients together."""


class Pass:
    """One forward pass, which remembers the way back."""

    def __init__(self, model: ModelConfig, weights: Mapping[str, Any], masks: Callable[[int], Any] | None) -> None:
        self.model, self.masks = model, masks
        self.weights = {name: np.asarray(w, np.float64) for name, w in weights.items()}
        self.gradients = {name: np.zeros_like(w) for name, w in self.weights.items()}

    def linear(self, x: Array, name: str) -> tuple[Array, Back]:
        """x W^T + b."""
        weight, bias = self.weights[f"{name}.weight"], f"{name}.bias" in self.weights
        y = x @ weight.T
        if bias:
            y = y + self.weights[f"{name}.bias"]

        def back(dy: Array) -> Array:
            flat = dy.reshape(-1, dy.shape[-1])
            self.gradients[f"{name}.weight"] += flat.T @ x.reshape(-1, x.shape[-1])
            if bias:
                self.gradients[f"{name}.bias"] += flat.sum(0)
            return dy @ weight

        return y, back

    def norm(self, x: Array, name: str) -> tuple[Array, Back]:
        """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019), the epsilon inside of the root."""
        centred = self.model.norm == "layernorm"
        gain, biased = self.weights[f"{name}.weight"], f"{name}.bias" in self.weights
        around = x - x.mean(-1, keepdims=True) if centred else x
        spread = np.sqrt((around * around).mean(-1, keepdims=True) + self.model.norm_eps)
        unit = around / spread
        y = unit * gain
        if biased:
            y = y + self.weights[f"{name}.bias"]

        def back(dy: Array) -> Array:
            axes = tuple(range(dy.ndim - 1))
            self.gradients[f"{name}.weight"] += (dy * unit).sum(axes)
            if biased:
                self.gradients[f"{name}.bias"] += dy.sum(axes)
            d_unit = dy * gain
            dx = d_unit - unit * (d_unit * unit).mean(-1, keepdims=True)
            if centred:
                dx = dx - d_unit.mean(-1, keepdims=True)
            return dx / spread

        return y, back

    def dropped(self, x: Array, rate: float, site: int) -> tuple[Array, Back]:
        """What the mask of a site keeps, over 1 - rate (Srivastava et al. 2014, inverted)."""
        if rate == 0 or self.masks is None:
            return x, lambda dy: dy
        kept = self.masks(site)(rate) / (1 - rate)
        return x * kept, lambda dy: dy * kept

    def attention(self, x: Array, name: str, angles: Array | None, seen: NDArray[np.bool_]) -> tuple[Array, Back]:
        """The sublayer; `seen` [B, T, T] is True where a query looks."""
        m, (B, T, _) = self.model, x.shape
        parts, backs = zip(*(self.linear(x, f"{name}.{part}") for part in "qkv"), strict=True)
        q, k, v = (p.reshape(B, T, -1, m.head).transpose(0, 2, 1, 3) for p in parts)
        if angles is not None:
            q, k = turned(q, angles), turned(k, angles)
        mixed, back_attend = attend(q, k, v, seen)
        y, back_out = self.linear(mixed.transpose(0, 2, 1, 3).reshape(B, T, -1), f"{name}.out")

        def back(dy: Array) -> Array:
            d_q, d_k, d_v = back_attend(back_out(dy).reshape(B, T, m.heads, m.head).transpose(0, 2, 1, 3))
            if angles is not None:
                d_q, d_k = turned(d_q, -angles), turned(d_k, -angles)
            joined = (d.transpose(0, 2, 1, 3).reshape(B, T, -1) for d in (d_q, d_k, d_v))
            return sum((b(d) for b, d in zip(backs, joined, strict=True)), np.zeros_like(x))

        return y, back

    def mlp(self, x: Array, name: str) -> tuple[Array, Back]:
        """GELU in its tanh form (Hendrycks and Gimpel 2016), or SwiGLU (Shazeer 2020)."""
        up, back_up = self.linear(x, f"{name}.up")
        if self.model.mlp == "gelu":
            inner = np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)
            hidden = 0.5 * up * (1 + np.tanh(inner))
            slope = 0.5 * (1 + np.tanh(inner)) + 0.5 * up * (1 - np.tanh(inner) ** 2) * np.sqrt(2 / np.pi) * (
                1 + 3 * 0.044715 * up**2
            )
            y, back_down = self.linear(hidden, f"{name}.down")
            return y, lambda dy: back_up(back_down(dy) * slope)
        gate, back_gate = self.linear(x, f"{name}.gate")
        share = 1 / (1 + np.exp(-gate))
        y, back_down = self.linear(gate * share * up, f"{name}.down")

        def back(dy: Array) -> Array:
            d_hidden = back_down(dy)
            return back_up(d_hidden * gate * share) + back_gate(d_hidden * up * share * (1 + gate * (1 - share)))

        return y, back


def exact(model: ModelConfig, weights: Mapping[str, Any], batch: Batch, seed: int = 0, update: int | None = None):
    """`Exact` of a batch at canonical `weights`, with the dropout of `update` (None: without), rows counted from 0."""
    tokens, labels = np.asarray(batch.tokens), np.asarray(batch.labels)
    B, T = tokens.shape

    def masks(site: int) -> Callable[[float], Any]:
        assert update is not None
        key = dropout_key(seed, update, site)
        return lambda rate: dropout_mask(key, np.arange(B), T, model.width, rate)

    p = Pass(model, weights, None if update is None else masks)
    places = np.broadcast_to(np.arange(T), (B, T)) if batch.positions is None else np.asarray(batch.positions)
    seen = samples(places)

    x = p.weights["embed.token"][tokens]
    angles = None
    if model.position == "learned":
        x = x + p.weights["embed.position"][places]
    else:
        angles = (places[..., None] * frequencies(model))[:, None]
    x, back = p.dropped(x, model.embedding_dropout, 0)
    backs = [back]
    for layer in range(model.layers):
        at, rate = f"blocks.{layer}", model.residual_dropout
        x, back = sublayer(p, x, f"{at}.norm1", rate, 1 + 2 * layer, f"{at}.attention", (angles, seen))
        backs.append(back)
        x, back = sublayer(p, x, f"{at}.norm2", rate, 2 + 2 * layer, f"{at}.mlp", None)
        backs.append(back)
    hidden, back_norm = p.norm(x, "norm")

    name = "embed.token" if model.tied else "head.weight"
    logits = hidden @ p.weights[name].T
    loss, d_logits = cross_entropy(logits, labels, batch.weights)
    p.gradients[name] += d_logits.reshape(-1, d_logits.shape[-1]).T @ hidden.reshape(-1, hidden.shape[-1])
    dx = back_norm(d_logits @ p.weights[name])
    for back in reversed(backs):
        dx = back(dx)
    np.add.at(p.gradients["embed.token"], tokens, dx)
    if model.position == "learned":
        np.add.at(p.gradients["embed.position"], places, dx)
    norm = float(np.sqrt(sum(float((g * g).sum()) for g in p.gradients.values())))
    return Exact(logits, loss, p.gradients, norm)


def attend(q: Array, k: Array, v: Array, seen: NDArray[np.bool_]) -> tuple[Array, Callable[[Array], Any]]:
    """softmax(q k^T / sqrt(C)) v (Vaswani et al. 2017) of q [B, H, T, C], k and v [B, K, S, C], where `seen` [B, T, S].

    Query head h looks at key head h // (H / K) (Ainslie et al. 2023). The way back gives dq, dk and dv.
    """
    served, root = np.arange(q.shape[1]) // (q.shape[1] // k.shape[1]), np.sqrt(q.shape[-1])
    keys, values = k[:, served], v[:, served]
    scores = np.where(seen[:, None], q @ keys.swapaxes(2, 3) / root, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)

    def back(dy: Array) -> Any:
        d_values, d_shares = shares.swapaxes(2, 3) @ dy, dy @ values.swapaxes(2, 3)
        d_scores = shares * (d_shares - (d_shares * shares).sum(-1, keepdims=True)) / root
        d_q, d_keys = d_scores @ keys, d_scores.swapaxes(2, 3) @ q
        d_k, d_v = np.zeros_like(k), np.zeros_like(v)
        for head, key_head in enumerate(served):
            d_k[:, key_head] += d_keys[:, head]
            d_v[:, key_head] += d_values[:, head]
        return d_q, d_k, d_v

    return shares @ values, back


def samples(positions: NDArray[Any], prefix: int = 0) -> NDArray[np.bool_]:
    """[B, T, P + T], True where a token of packed rows looks: at its own sample up to itself, and at a prefix."""
    B, T = positions.shape
    sample = np.cumsum(positions == 0, 1)
    own = (sample[:, :, None] == sample[:, None, :]) & np.tri(T, dtype=bool)
    return np.concatenate([np.ones((B, T, prefix), bool), own], 2)


def sublayer(p: Pass, x: Array, norm: str, rate: float, site: int, name: str, looks: Any) -> tuple[Array, Back]:
    """x + dropout(f(norm(x))): the pre-norm residual stream (Radford et al. 2019)."""
    normed, back_norm = p.norm(x, norm)
    y, back_y = p.mlp(normed, name) if looks is None else p.attention(normed, name, *looks)
    y, back_drop = p.dropped(y, rate, site)
    return x + y, lambda dy: dy + back_norm(back_y(back_drop(dy)))


def turned(x: Array, angles: Array) -> Array:
    """Each pair (x_i, x_i + C/2) of the last axis turned by its angle (Su et al. 2021, in halves)."""
    first, second = np.split(x, 2, -1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


def frequencies(model: ModelConfig) -> Array:
    """Angle of each pair [C/2] from one place to the next, theta^(-2i/C), as `rope_scaling` has changed it.

    llama3 by wavelengths, as Llama 3.1's own code has it: short ones stay, long ones grow by the factor.
    """
    result = np.array([model.rope_theta ** (-2 * i / model.head) for i in range(model.head // 2)])
    s = model.rope_scaling
    if s is None:
        return result
    if s.type == "linear":
        return result / s.factor
    for i, frequency in enumerate(result):
        wave = 2 * np.pi / frequency
        if wave > s.original_context / s.low_freq_factor:
            result[i] = frequency / s.factor
        elif wave >= s.original_context / s.high_freq_factor:
            share = (s.original_context / wave - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
            result[i] = (1 - share) * frequency / s.factor + share * frequency
    return result


def cross_entropy(logits: Array, labels: NDArray[Any], weights: Any = None) -> tuple[float, Array]:
    """Mean of -log softmax at the labels that aren't ignored, by their weights, and its gradient for `logits`."""
    counts = (labels != IGNORED) * (1.0 if weights is None else np.asarray(weights, np.float64))
    each, shares = losses(logits, labels)
    hits = np.zeros_like(logits)
    np.put_along_axis(hits, np.maximum(labels, 0)[..., None], 1, -1)
    total = counts.sum() or 1.0
    return float((each * counts).sum() / total), (shares - hits) * (counts / total)[..., None]


def losses(logits: Array, labels: NDArray[Any]) -> tuple[Array, Array]:
    """-log softmax at each label, 0 where it is ignored, and the softmax."""
    shifted = logits - logits.max(-1, keepdims=True)
    sums = np.exp(shifted).sum(-1, keepdims=True)
    at = np.take_along_axis(shifted, np.maximum(labels, 0)[..., None], -1)
    return np.where(labels != IGNORED, (np.log(sums) - at)[..., 0], 0), np.exp(shifted) / sums
