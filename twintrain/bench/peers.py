"""Other people's models in the loop that their users write, called by their public functions alone.

Imported in a contender's own process. Each model has the stacks' shape as far as it can: GPT-2's, biases included, a
tied head, no dropout.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coretrain.config.training import OptimizerConfig
from twintrain.bench.contenders import Contender, Shape
from twintrain.bench.turns import wait_for_gpu

Loss = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of a model, ids and labels [B, T]: the mean over all labels."""


@dataclass(frozen=True)
class Peer:
    """A peer's model, what its loss is and how it writes text."""

    model: torch.nn.Module
    loss: Loss
    generate: Callable[[torch.Tensor, int], object]
    """Greedy: so many new ids after ids [1, T]."""
    optimizer: Callable[[float, OptimizerConfig], torch.optim.Optimizer]


def device() -> str:
    """Where torch computes here."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def transformers(shape: Shape) -> Peer:
    """GPT-2 of Hugging Face, with the fused AdamW that its Trainer takes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.context, n_embd=shape.width, n_layer=shape.layers,
        n_head=shape.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)

    def loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # its own shift of the labels would leave out each row's last one
        found: torch.Tensor = model(input_ids=ids, labels=labels, shift_labels=labels, use_cache=False).loss
        return found

    def generate(ids: torch.Tensor, new: int) -> object:
        mask = torch.ones_like(ids)
        return model.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )

    return Peer(model, loss, generate, lambda lr, o: _adamw(model, lr, o, fused=True))


def nanogpt(shape: Shape, folder: Path) -> Peer:
    """The model of a checkout of nanoGPT, with the optimizer that it configures."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=shape.context, vocab_size=shape.vocab, n_layer=shape.layers, n_head=shape.heads,
        n_embd=shape.width, dropout=0.0, bias=True,
    )  # fmt: skip
    model = module.GPT(config)

    def optimizer(lr: float, o: OptimizerConfig) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = model.configure_optimizers(o.weight_decay, lr, (o.beta1, o.beta2), device())
        return found

    return Peer(
        model,
        lambda model, ids, labels: model(ids, labels)[1],
        lambda ids, new: model.generate(ids, new, top_k=1),
        optimizer,
    )


def litgpt(shape: Shape) -> Peer:
    """litgpt's GPT in GPT-2's form, with rotary positions, since it has no learned ones."""
    from litgpt.config import Config
    from litgpt.generate.base import generate
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=shape.context, n_layer=shape.layers, n_embd=shape.width, n_head=shape.heads,
        vocab_size=shape.vocab, padded_vocab_size=shape.vocab, parallel_residual=False, rotary_percentage=1.0,
        bias=True, attn_bias=True, gelu_approximate="tanh", intermediate_size=4 * shape.width,
    )  # fmt: skip
    model = GPT(config)
    model.transformer.wte.weight = model.lm_head.weight  # as its pretraining does with tie_embeddings

    def text(ids: torch.Tensor, new: int) -> object:
        length = ids.shape[1] + new
        model.clear_kv_cache()
        model.set_kv_cache(1, length, device=ids.device, dtype=next(model.parameters()).dtype)
        return generate(model, ids[0], length, temperature=0.0, top_p=0.0)

    def loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = chunked_cross_entropy(model(ids), labels)
        return found

    return Peer(model, loss, text, lambda lr, o: _adamw(model, lr, o, fused=device() == "cuda"))


def _adamw(model: torch.nn.Module, lr: float, o: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    betas = (o.beta1, o.beta2)
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, weight_decay=o.weight_decay, fused=fused)


def made(one: Contender, shape: Shape, folder: Path | None) -> Peer:
    """A contender's peer. `folder` is nanoGPT's checkout."""
    if one.maker == "nanogpt":
        assert folder is not None
        return nanogpt(shape, folder)
    return {"transformers": transformers, "litgpt": litgpt}[one.maker](shape)


def training(one: Contender, shape: Shape, folder: Path | None, lr: float) -> tuple[Callable[[Any, int], float], int]:
    """A function of ids [B, T + 1] that does one update and returns its loss; and the parameters' number."""
    peer, place, o = made(one, shape, folder), device(), shape.config().optimizer
    model = peer.model.to(place).train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = peer.optimizer(lr, o)
    ready = torch.compile(model) if one.compiled else model
    half = one.dtype == "bfloat16"

    def update(rows: Any, n: int) -> float:
        ids, labels = (torch.from_numpy(part).to(place, torch.long) for part in (rows[:, :-1], rows[:, 1:]))
        with torch.autocast(place, torch.bfloat16) if half else contextlib.nullcontext():
            loss = peer.loss(ready, ids, labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait_for_gpu()
        return loss.item()

    return update, parameters


def generating(one: Contender, shape: Shape, folder: Path | None) -> tuple[Callable[[Any], object], int]:
    """A function of ids [1, T] that writes one text; and the parameters' number."""
    peer, place = made(one, shape, folder), device()
    model = peer.model.to(place, getattr(torch, one.dtype)).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())

    @torch.inference_mode()
    def text(ids: Any) -> object:
        found = peer.generate(torch.from_numpy(ids).to(place, torch.long), shape.new)
        wait_for_gpu()
        return found

    return text, parameters
