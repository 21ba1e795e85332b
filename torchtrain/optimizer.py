"""AdamW, Adam and Muon as the contract has them; learning rate and count of applied updates come from outside.

`adamw` has no twin: it is torch's own, made here for one process and for ZeRO. `fragment`, `replicated` and
`replicated_names` say what each process holds and writes of a state, which in JAX the arrays' shardings know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coretrain.adapters.targets import trainable_parameters
from coretrain.base.lazy import LazyTensors
from coretrain.checkpoint.fragments import Fragment, size_of
from coretrain.config.run import RunConfig
from coretrain.contract.optimizer import NEWTON_SCHULZ, decay_rate, takes_muon
from coretrain.contract.parameters import Parameter
from torchtrain.model import (
    GPT,
    exported,
    local_shard,
    shard_bounds,
)
from torchtrain.parallel.axes import ALONE, Axis


def global_norm(gradients: Iterable[Tensor]) -> Tensor:
    """2-norm of all gradients together: a matrix' rows in at least float32, their sum in float64 (MPS: float32)."""
    gradients = list(gradients)
    # vector_norm adds up naively on the CPU: in float32 a tensor of a million elements comes out 3e-6 off. A matrix is
    # summed row by row in its own dtype, short enough for that, and the rest in float64: no copy of a matrix is made.
    wide = torch.float32 if gradients[0].device.type == "mps" else torch.float64
    rows = [
        torch.linalg.vector_norm(g, dim=-1, dtype=torch.promote_types(g.dtype, torch.float32)) if g.ndim > 1 else g
        for g in gradients
    ]
    norms = [torch.linalg.vector_norm(row, dtype=wide) for row in rows]
    return torch.linalg.vector_norm(torch.stack(norms))


def orthogonalize(matrix: Tensor) -> Tensor:
    """Muon's five Newton-Schulz steps on [..., rows, columns], in the matrix' own dtype: near U V^T of its SVD."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.mT if tall else x


def adamw(config: RunConfig, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """torch's AdamW over parameter groups with their own decay."""
    o = config.optimizer
    fused = all(p.device.type in ("cpu", "cuda", "mps") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=fused)


class Optimizer:
    """The update rule over a model's parameters, and its moments by canonical name.

    AdamW decays the parameter first, p (1 - lr x decay), then takes lr x m / (sqrt(v) + eps) with both moments
    bias-corrected (Loshchilov and Hutter 2019). Muon (match_rms_adamw scaling) takes the blocks' matrices.
    """

    def __init__(self, config: RunConfig, model: GPT, parameters: Mapping[str, nn.Parameter] | None = None) -> None:
        """`parameters`: what this process has of the model's, where it isn't the model's own."""
        self.config, self.tensor = config, model.tensor
        own = model.named_parameters() if parameters is None else parameters.items()
        self.parameters = {name: p for name, p in own if p.requires_grad}
        table = [row for row in trainable_parameters(config) if row.name in self.parameters]
        self.muon = [r.name for r in table if takes_muon(config, r)]
        self.momentum = {name: torch.zeros_like(self.parameters[name]) for name in self.muon}
        self.decay = decay_rate(config.optimizer)
        rest = [r for r in table if r.name not in self.momentum]
        groups = [
            {"params": [self.parameters[r.name] for r in rest if r.decay], "weight_decay": self.decay},
            {"params": [self.parameters[r.name] for r in rest if not r.decay], "weight_decay": 0.0},
        ]
        self.adam = adamw(config, groups)  # either may be empty: Muon has all of an adapter's matrices

    @torch.no_grad()
    def step(self, lr: float, factor: float | Tensor, fine: Tensor | None = None) -> None:
        """One update with the gradients in `.grad`, first multiplied by `factor` (clip and loss scale together).

        `fine` is a scalar on the device: where it is false, all but the gradients stays as it is.
        """
        gradients = [_gradient(p) for p in self.parameters.values()]
        if isinstance(factor, Tensor):
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        elif factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        for group in self.adam.param_groups:
            group["lr"] = lr
        # as torch's own GradScaler says that there is nothing to take; torch doesn't declare the attribute
        vars(self.adam)["found_inf"] = None if fine is None else (~fine).float()
        self.adam.step()
        beta = self.config.optimizer.muon_momentum
        for name in self.muon:
            parameter, buffer = self.parameters[name], self.momentum[name]
            gradient = _gradient(parameter)
            momentum = buffer.mul(beta).add_(gradient, alpha=1 - beta)
            direction = orthogonalize((1 - beta) * gradient + beta * momentum)
            moved = parameter.mul(1 - lr * self.decay).sub_(direction, alpha=lr * 0.2 * math.sqrt(max(parameter.shape)))
            for old, new in ((buffer, momentum), (parameter, moved)):
                old.copy_(new if fine is None else new.where(fine, old))

    def moments(self) -> dict[str, LazyTensors]:
        """Moments by group and canonical name, as the interchange checkpoint has them; each is read when asked for."""
        return {group: exported(self.config, tree) for group, tree in self._moments().items()}

    def fragments(self, copies: Axis = ALONE) -> Iterator[Fragment]:
        """What this process writes of the state, in the host's memory; `copies` of the model take turns, by tensor."""
        trees = {"parameters": self.parameters} | self._moments()
        for group, tree in trees.items():
            for number, (name, value) in enumerate(tree.items()):
                if number % copies.size == copies.index:
                    yield from fragment(self.config, self.tensor, group, name, value.detach().reshape(-1), 0)

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        trees: dict[str, dict[str, Tensor]] = {"first_moment": {}, "second_moment": {}}
        for name, parameter in self.parameters.items():
            if name not in self.momentum:
                state = self.adam.state.get(parameter, {})
                trees["first_moment"][name] = moment(state, "exp_avg", parameter)
                trees["second_moment"][name] = moment(state, "exp_avg_sq", parameter)
        if self.momentum:
            trees["momentum"] = self.momentum
        return trees

    @torch.no_grad()
    def load(self, moments: Mapping[str, Mapping[str, np.ndarray]], applied: int) -> None:
        """Take moments as `moments` gives them, after `applied` updates."""
        for row in trainable_parameters(self.config):
            if row.name not in self.parameters:
                continue
            parameter = self.parameters[row.name]

            if row.name in self.momentum:
                self.momentum[row.name].copy_(self.own(row, moments["momentum"][row.name]))
            else:
                self.adam.state[parameter] = {
                    "step": torch.tensor(float(applied), device=parameter.device),
                    "exp_avg": self.own(row, moments["first_moment"][row.name]),
                    "exp_avg_sq": self.own(row, moments["second_moment"][row.name]),
                }

    def own(self, row: Parameter, value: np.ndarray) -> Tensor:
        """What this process has of a whole canonical tensor, on its device."""
        part = local_shard(self.config, row, value, self.tensor)
        return torch.from_numpy(part).to(self.parameters[row.name])


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "an update comes after a backward pass, which reaches all that trains"
    return parameter.grad


def moment(state: Mapping[str, Tensor], key: str, parameter: Tensor) -> Tensor:
    """A moment of `parameter`; before the first update zeros of its shape, which take no memory."""
    return state[key] if key in state else torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)


def fragment(config: RunConfig, tensor: Axis, group: str, name: str, values: Tensor, start: int) -> Iterator[Fragment]:
    """Numbers [start, start + n) of this process's part of a tensor, for a checkpoint: none where they are padding,
    or where all of the tensor axis have them and this isn't the first. What lies in the host's memory is not copied.
    """
    row = next(row for row in trainable_parameters(config) if row.name == name)
    edges = shard_bounds(config, row, tensor)
    if tensor.index > 0 and replicated(row):
        return
    stop = min(start + values.numel(), size_of(edges))
    if start < stop:
        here = values[: stop - start].detach().cpu().numpy()
        yield Fragment(group, name, row.shape, edges, start, here)


def replicated_names(config: RunConfig) -> frozenset[str]:
    """The parameters that all processes of the tensor axis hold whole."""
    return frozenset(row.name for row in trainable_parameters(config) if replicated(row))


def replicated(row: Parameter) -> bool:
    """Whether all processes of the tensor axis hold the whole of a parameter."""
    return not set(row.axes) & {"vocab", "heads", "kv_heads", "hidden"}
