"""A stage of a pipeline: some of the layers, fed with the update's micro-batches by torch's own 1F1B schedule.

The first stage embeds, the last one has the final norm, the head and the loss. A tied head is a copy of the embedding
on the last stage: both sum their gradients, and so stay the same.

This file has no twin: jaxtrain/parallel/pipeline.py does it in one program.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from torchtrain.layers import Block, Cache, Dropout, drop
from torchtrain.loss import cross_entropy
from torchtrain.model import GPT, checkpointed
from torchtrain.parallel.axes import Axis
from torchtrain.parallel.processes import ProcessGrid


class Stage(GPT):
    """This process's layers of the decoder, under their canonical names. What other stages have is None here."""

    blocks: nn.ModuleDict  # type: ignore[assignment]  # some of the layers under their numbers, where GPT lists all

    def __init__(self, config: RunConfig, kernel: str, tensor: Axis, pipeline: Axis) -> None:
        super().__init__(config, kernel, tensor)
        m, share = config.model, config.model.layers // pipeline.size
        mine = range(pipeline.index * share, (pipeline.index + 1) * share)
        self.pipeline, self.first, self.last = pipeline, pipeline.index == 0, pipeline.index == pipeline.size - 1
        whole: Any = self.blocks  # GPT's list
        self.blocks = nn.ModuleDict({str(i): block for i, block in enumerate(whole) if i in mine})
        self.sparse = False  # there is no dense gradient of a tied head to add a sparse one into
        self.keys: Tensor | None = None
        if not self.first:
            self.embed.position = None
        if not self.first and not (m.tied and self.last):
            self.embed.register_parameter("token", None)
        if not self.last:
            self.register_module("norm", None)
            self.head = self.score = None

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:  # type: ignore[override]  # torch's schedule
        """Hidden states [B, T, D] after this stage, for token ids [B, T] or the hidden states before it.

        A stage takes the place of a GPT in a trainer, but is called by its schedule alone.
        """
        dropout = None
        if self.keys is not None:
            assert rows is not None, "a pipeline with dropout is fed with its rows"
            dropout = Dropout(self.keys, rows)
        T = x.shape[1]
        if self.first:
            x = self._embed(x, None if self.embed.position is None else self.embed.position[:T])
            x = drop(x, self.config.embedding_dropout, dropout, 0)
        rotary = (self.cos[:T], self.sin[:T]) if self.config.position == "rope" else None
        for block in self.blocks.values():
            x = checkpointed(block, self.policy)(x, rotary, dropout)
        return self.norm(x) if self.last else x

    def passed(self, x: Tensor) -> Tensor:
        """What the stage before sends, of the form of `x`; on the first stage `x`. Without gradients."""
        if not self.first:
            dist.recv(x, group=self.pipeline.group, group_src=self.pipeline.index - 1)
        return x

    def on(self, x: Tensor) -> Tensor:
        """Send `x` to the stage after this one, if any."""
        if not self.last:
            dist.send(x.contiguous(), group=self.pipeline.group, group_dst=self.pipeline.index + 1)
        return x

    def decode(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache, at: int | Tensor
    ) -> tuple[Tensor, Cache]:
        """Decode as `GPT.decode` does, from stage to stage; hidden states are whole on the last one."""
        if self.first:
            learned = self.embed.position
            x = self._embed(tokens, None if learned is None else nn.functional.embedding(positions, learned))
        else:
            x = torch.empty(*tokens.shape, self.config.width, dtype=self.dtype, device=tokens.device)
        x = self.passed(x)
        rotary = (self.cos[positions], self.sin[positions]) if self.config.position == "rope" else None
        for name, block in self.blocks.items():
            i, block = int(name), cast("Block", block)
            x, _, _ = block.decode(x, rotary, mask, cache.keys[i], cache.values[i], at)  # into the cache itself
        self.on(x)
        return self.norm(x) if self.last else x, cache

    @property
    def head_weight(self) -> Tensor:
        """The output head [V, D], on the last stage; no rows of it on the others."""
        return super().head_weight if self.last else torch.empty(0, self.config.width)

    def logits(self, hidden: Tensor, head: Tensor | None = None) -> Tensor:
        """Logits [..., V], the last stage's, on all stages; `head` as in `GPT.logits`."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        shape = (*hidden.shape[:-1], self.config.vocabulary)
        made = super().logits(hidden, head).contiguous() if self.last else hidden.new_empty(shape, dtype=wide)
        dist.broadcast(made, group=self.pipeline.group, group_src=self.pipeline.size - 1)
        return made


class Pipeline:
    """The schedule of a stage: gradients of a whole update, and losses without gradients."""

    def __init__(self, config: RunConfig, stage: Stage, grid: ProcessGrid) -> None:
        self.config, self.stage, self.grid = config, stage, grid
        m, device = config.model, next(stage.parameters()).device
        rows = config.micro_batch // grid.layout.sharing_rows
        hidden = torch.empty(rows, m.context, m.width, dtype=stage.dtype, device=device)
        ids = torch.empty(rows, m.context, dtype=torch.long, device=device)
        self.unit = PipelineStage(
            stage,
            grid.pipeline.index,
            grid.pipeline.size,
            device,
            input_args=(ids if stage.first else hidden.clone().requires_grad_(),),
            output_args=(hidden.requires_grad_(),),
            group=grid.pipeline.group,
        )
        # kept: a new one asks the other stages, and waits for their answer, before its first step
        self.schedule = Schedule1F1B(self.unit, config.train.accumulation, self._loss, scale_grads=False)
        self.scale: Tensor | None = None
        self.weights: Iterator[Tensor] = iter(())
        """Of each micro-batch's targets, in the order in which the last stage asks for losses: the schedule hands on
        one tensor of targets, the labels."""
        assert config.train.objective == "cross_entropy", "the last stage has hidden states, not the whole model"

    def gradients(self, batch: Batch, scale: Tensor, dropout: Dropout | None) -> Tensor:
        """Add the gradients of this process's rows, micro-batch after micro-batch; their loss (0 before the last)."""
        self.stage.keys, self.scale = None if dropout is None else dropout.keys, scale
        if batch.weights is not None:
            self.weights = iter(batch.weights.chunk(self.config.train.accumulation))
        losses: list[Tensor] = []
        more: dict[str, Any] = {} if dropout is None else {"rows": dropout.rows}
        end: dict[str, Any] = {"target": batch.labels, "losses": losses} if self.stage.last else {}
        self.schedule.step(*([batch.tokens] if self.stage.first else []), return_outputs=False, **more, **end)
        self._sum_tied()
        return torch.stack([loss.detach() for loss in losses]).sum() if self.stage.last else torch.zeros_like(scale)

    def evaluate(self, batch: Batch, scale: Tensor) -> Tensor:
        """The loss of one micro-batch without dropout or gradients (0 before the last stage)."""
        self.stage.keys, self.scale = None, scale
        if batch.weights is not None:
            self.weights = iter([batch.weights])
        wanted = (*batch.tokens.shape, self.config.model.width)
        before = torch.empty(wanted, dtype=self.stage.dtype, device=batch.tokens.device)
        x = self.stage.on(self.stage(batch.tokens if self.stage.first else self.stage.passed(before)))
        return self._loss(x, batch.labels) if self.stage.last else torch.zeros_like(scale)

    def _loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        m, chunk = self.config.model, self.config.execution.loss_chunk
        head, tensor = self.stage.head_weight, self.grid.tensor
        assert self.scale is not None, "set before the schedule asks for a loss"
        return cross_entropy(hidden, head, labels, m.vocabulary, chunk, self.scale, next(self.weights, None), tensor)

    def _sum_tied(self) -> None:
        if self.config.model.tied and (self.stage.first or self.stage.last):
            dist.all_reduce(self.stage.embed.token.grad, group=self.grid.ends)
