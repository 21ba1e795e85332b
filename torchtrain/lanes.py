"""Rows of a key/value cache that come and go one by one, for requests that are answered together."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from coretrain.base.arrays import Array
from coretrain.base.malloc import keep_freed_memory
from coretrain.config.run import RunConfig
from coretrain.contract.lanes import furthest
from torchtrain.adapters import Adapters
from torchtrain.decode import cast_once
from torchtrain.layers import Cache
from torchtrain.model import GPT


class Lanes:
    """As `coretrain.contract.lanes.Lanes` says. One thread at a time may use it."""

    def __init__(self, config: RunConfig, model: GPT, rows: int, slots: int) -> None:
        """`config` is the model's run, which says how its weights are held; `slots` at most its context."""
        self.config, self.model, self.rows, self.slots = config, model, rows, slots
        m, self.device = model.config, next(model.parameters()).device
        if self.device.type == "cpu":
            keep_freed_memory()
        # a head's slots lie together, so that a product over them needs no copy; one slot more is for rows at rest
        shape = (m.layers, rows + 1, model.kv_heads, slots + 1, m.head)
        self.keys, self.values = (torch.zeros(shape, dtype=model.dtype, device=self.device) for _ in range(2))
        self.bank: Adapters | None = None
        self._cast, self._head = contextlib.ExitStack(), torch.empty(0)
        self._prepare()

    def _prepare(self) -> None:
        with torch.no_grad():
            self._head = self._cast.enter_context(cast_once(self.model))

    def _cache(self, rows: slice) -> Cache:
        """These rows, [L, B, S, K, C] as the model takes them: the same memory."""
        return Cache(self.keys[:, rows].transpose(2, 3), self.values[:, rows].transpose(2, 3))

    def piece(self, left: int, most: int) -> int:
        """How many tokens of a prompt to put in next."""
        return min(left, most)

    @torch.no_grad()
    def prefill(self, row: int, ids: Sequence[int], at: int, every: bool = False) -> np.ndarray:
        """Put `ids` into slots `at` and on of a row: logits [V] after the last of them, or [T, V] after each."""
        tokens = torch.tensor([ids], device=self.device)
        positions = torch.arange(at, at + len(ids), device=self.device)
        mask = torch.arange(at + len(ids), device=self.device) <= positions[:, None]
        hidden, _ = self.model.decode(tokens, positions[None], mask[None], self._cache(slice(row, row + 1)), at)
        return self.model.logits(hidden[0] if every else hidden[0, -1], self._head).cpu().numpy()

    @torch.no_grad()
    def step(self, tokens: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Put token b into slot at[b] of row b, for the first B rows: logits [B, V] after them."""
        if len(at) == 1:  # as `generate` steps, by views alone
            return self.prefill(0, tokens.tolist(), int(at[0]))[None]
        slots = torch.from_numpy(at).to(self.device).long()
        mask = torch.arange(furthest(at, self.slots), device=self.device) <= slots[:, None, None]
        positions = slots.clamp_max(self.model.config.context - 1)[:, None]
        given = torch.from_numpy(tokens).to(self.device)[:, None]
        hidden, _ = self.model.decode(given, positions, mask, self._cache(slice(len(at))), slots)
        return self.model.logits(hidden[:, -1], self._head).cpu().numpy()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of one row to another."""
        for part in (self.keys, self.values):
            part[:, target, :, :length] = part[:, source, :, :length]

    def keep(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """A copy of the first `length` slots of a row: keys and values [L, K, S, C]."""
        return self.keys[:, row, :, :length].clone(), self.values[:, row, :, :length].clone()

    def restore(self, row: int, kept: tuple[Tensor, Tensor], length: int) -> None:
        """Put the first `length` slots of what `keep` gave into a row."""
        for part, old in zip((self.keys, self.values), kept, strict=True):
            part[:, row, :, :length] = old[:, :, :length]

    def add(self, config: RunConfig, tensors: Mapping[str, Array]) -> None:
        """Keep an adapter by its name."""
        if self.bank is None:
            self.close()
            self.bank = Adapters(self.config, self.model)
            self.bank.switch(None)  # what the model has of an adapter itself is taken off
            self._prepare()
        self.bank.add(config, tensors)

    def use(self, name: str | None) -> None:
        """Compute with that adapter from here on, or with none."""
        if self.bank is None or name == self.bank.active:
            return
        self.close()
        self.bank.switch(name)
        self._prepare()

    def close(self) -> None:
        """Leave the weights in the dtype in which they were found."""
        self._cast.close()
