"""Conversations packed into rows: their batches, and logits, gradients and updates, against one sample a row too."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flax import nnx

import torchtrain.objective
import torchtrain.trainer
from coretrain.config.run import RunConfig
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.data.batch import Batch, batch_hash
from coretrain.data.open import open_data
from coretrain.data.splits import Data
from parity.compiling import quick_jit
from parity.errors import largest_error, nrel, worst_tensor
from parity.gates import (
    GRADIENTS,
    LOGITS,
    LOSS,
    NORM,
    PACKED,
    ROWS,
    UPDATE,
    Gate,
)
from parity.pair import (
    GPT2,
    LLAMA,
    make_config,
    noise_only,
)
from parity.probes.sides import (
    TORCH,
    Seen,
    Side,
    gradients_of,
    make,
    weights_of,
)

# Without dropout: its masks go by the place in the row, which packing changes.
CHATTING = {
    "gpt2-like": GPT2 | {"model.residual_dropout": 0.0, "model.embedding_dropout": 0.0},
    "llama-like": LLAMA | {"execution.checkpoint_activations": "full"},
    "llama-like, prefix": LLAMA | {"adapter.kind": "prefix", "adapter.virtual_tokens": 3},
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}>{{ m.content }}{{ eos_token if m.role == 'assistant' else '.' }}"
    "{% endfor %}{% if add_generation_prompt %}a>{% endif %}"
)
UPDATES = 16


def conversations() -> list[dict[str, Any]]:
    """Short ones of many lengths: one turn and two, in both forms, and what looks like a special token and is none."""
    rows: list[dict[str, Any]] = []
    for n in range(24):
        rows.append({"prompt": "ask"[: 1 + n % 3], "completion": f"{n}" * (1 + n % 4)})
        asked = {"role": "user", "content": "q" * (n % 5)}
        said = {"role": "assistant", "content": f"is {n}"}
        rows.append({"messages": [asked, said, {"role": "user", "content": "é?"}, said]})
    return [*rows, {"prompt": "<|endoftext|>", "completion": "no special"}]


@functools.cache
def talk(variant: str) -> tuple[RunConfig, Data]:
    """The config of a run on conversations, and its data."""
    folder = Path(tempfile.mkdtemp(prefix="parity-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations()))
    (folder / "chat.jinja").write_text(TEMPLATE)
    more = {
        "data.source": folder / "rows.jsonl", "data.format": "chat", "data.chat_template": folder / "chat.jinja",
        "data.cache": folder / "cache", "data.tokenizer": "bytes", "data.prepare_processes": 1,
        "train.updates": UPDATES,
    }  # fmt: skip
    config = make_config(CHATTING[variant] | more)
    return config, open_data(config, lambda _: None)


def unpacked(batch: Batch) -> Batch:
    """The samples of packed rows, one a row, nothing after them a target."""
    tokens, labels, positions = batch.tokens, batch.labels, batch.positions
    begins = [*(int(at) for at in np.flatnonzero(positions.ravel() == 0)), tokens.size]
    rows = []
    for start, stop in itertools.pairwise(begins):
        own = labels.ravel()[start:stop]
        if (own >= 0).any():
            row = np.stack([np.zeros(tokens.shape[1], np.int64), np.full(tokens.shape[1], -100)])
            row[:, : stop - start] = tokens.ravel()[start:stop], own
            rows.append(row)
    return Batch(*np.stack(rows, 1))


@functools.cache
def alone(variant: str, state: str) -> Seen:
    """What torch sees of the first batch's samples, one a row, in the way of all text: no positions, no packing."""
    config, data = talk(variant)
    stack = torchtrain.trainer.Trainer(config, weights_of(config, state))
    batch = unpacked(next(stack.batches(data, 0, 1))).map(torch.from_numpy)
    scale = 1 / (batch.labels >= 0).sum().double()
    loss = torchtrain.objective.cross_entropy_loss(stack.model, stack.config, batch, scale)
    loss.backward()
    return {"loss": loss.item(), "gradients": gradients_of(TORCH, stack)}


def packed_logits(s: Side, stack: Any, batch: Batch) -> np.ndarray:
    """Logits [B, T, V] of packed rows; of the padding, which nothing is learnt from, too."""
    tokens, positions = batch.tokens, batch.positions
    if s is TORCH:
        ids, at = (torch.from_numpy(np.ascontiguousarray(part)).long() for part in (tokens, positions))
        with torch.no_grad():
            return stack.model.logits(stack.model(ids, None, at)).numpy()

    def forward(params: Any, tokens: Any, positions: Any) -> Any:
        model = nnx.merge(graph, params)
        return model.logits(model(tokens, None, positions))

    graph, params = nnx.split(stack.whole_model())
    return np.asarray(quick_jit(forward)(params, tokens, positions))


def run_rows(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Hashes of a run's batches, from its beginning and from the middle."""
    config, data = talk(variant)
    assert data.train.windows(config.model.context) < UPDATES * config.train.batch_size, "it must go beyond an epoch"
    return {start: [batch_hash(batch) for batch in s.trainer.train_batches(data, config, start)] for start in (0, 7)}


def judge_rows(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    pairs = itertools.chain(*(itertools.zip_longest(ours[start], theirs[start]) for start in theirs))
    return {ROWS: sum(a != b for a, b in pairs)}


def run_gradients(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config, data = talk(variant)
    stack = make(s, config, weights_of(config, state), shared)
    batch = next(stack.batches(data, 0, 1))
    loss, norm = stack.gradients(batch, 0, 1.0)
    return {"loss": loss, "norm": norm, "gradients": gradients_of(s, stack), "logits": packed_logits(s, stack, batch)}


def judge_gradients(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    apart, lone = noise_only(talk(variant)[0]), alone(variant, state)
    return {
        LOGITS: nrel(ours["logits"], theirs["logits"]),
        LOSS: abs(ours["loss"] - theirs["loss"]),
        NORM: abs(ours["norm"] - theirs["norm"]) / theirs["norm"],
        GRADIENTS: worst_tensor(ours["gradients"], theirs["gradients"], apart)[0],
        PACKED: max(abs(ours["loss"] - lone["loss"]), worst_tensor(ours["gradients"], lone["gradients"], apart)[0]),
    }


def run_updates(s: Side, variant: str, state: str, shared: frozenset[str], updates: int = 3) -> Seen:
    config, data = talk(variant)
    stack = make(s, config, weights_of(config, state), shared)
    for update, batch in enumerate(stack.batches(data, 0, updates)):
        _, norm = stack.gradients(batch, update, 1.0)
        stack.apply(learning_rate(config, update), clip_factor(norm, config.optimizer.clip), update)
    return {"state": stack.export()}


def judge_updates(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    config = talk(variant)[0]
    return {UPDATE: largest_error((ours["state"], theirs["state"]), weights_of(config, state), noise_only(config))[0]}
