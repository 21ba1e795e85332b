"""Trainings that several processes share, for `parity/test_zero.py`: `python -m parity.processes CASES OUTPUT`.

Each process trains every case of a JSON file in turn and saves it natively; the first writes losses, norms and whether
all processes saw the same bits. A case may plant a bug, patched at run time, which the test must see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import torchtrain.checkpoint
import torchtrain.loss
import torchtrain.model
import torchtrain.pipeline
import torchtrain.trainer
from coretrain.adapters import with_adapter
from coretrain.checkpoint import load_interchange
from coretrain.config import RunConfig, load_config
from coretrain.layout import rows_of
from coretrain.parameters import initial_parameters, parameter_table
from coretrain.randomness import normal_rows
from coretrain.sampling import Sampling
from coretrain.schedule import clip_factor, learning_rate
from coretrain.world import World
from parity.forms import GPT2_FORM, LLAMA_FORM
from torchtrain.checkpoint import load_native, write_fragments
from torchtrain.parallel import Axis, Place, join
from torchtrain.trainer import Trainer

UPDATES = 20
FIELDS = {
    "precision.compute": "float64",
    "execution.device": "cpu",
    "execution.attention": "plain",
    "execution.compile": "off",
    "execution.loss_chunk": 50,
    "model.layers": 2,
    "model.width": 32,
    "model.heads": 4,
    "model.context": 16,
    "model.vocab": 101,
    **GPT2_FORM,
    "model.residual_dropout": 0.1,
    "model.embedding_dropout": 0.1,
    "train.batch_size": 8,
    "train.accumulation": 2,
    "train.updates": 200,
    "schedule.warmup_updates": 10,
    "optimizer.clip": 0.5,
}
"""Small, with micro-batches, a clip that binds, dropout and a tied head. (parity.pair has another one, and JAX.)"""
LLAMA = {**LLAMA_FORM, "model.kv_heads": 2}


@dataclasses.dataclass(frozen=True)
class Case:
    """One training: fields of the config on top of the shape, and what happens in it."""

    name: str
    fields: Mapping[str, Any]
    updates: int = UPDATES
    start: int = 0
    """With `load`: the first update. One was skipped before."""
    bad: int = -1
    """An update in which one activation of the last process is no number."""
    load: str = ""
    """A native checkpoint, or an interchange one, to go on from."""
    bug: str = ""

    def config(self) -> RunConfig:
        """The run's config."""
        fields = FIELDS | dict(self.fields)
        return load_config("tiny", [(key, str(value)) for key, value in fields.items()])


def weights(config: RunConfig) -> dict[str, np.ndarray]:
    """Weights that hide nothing: biases and gains away from 0 and 1, matrices larger than at the start."""
    made: dict[str, np.ndarray] = {**initial_parameters(config.model, config.train.seed)}
    for row in parameter_table(config.model):
        noise = normal_rows(1, f"weights/{row.name}", (*row.shape, 1), 0.3)[..., 0]
        made[row.name] = 4 * made[row.name] if row.init == "normal" else made[row.name] + noise
    return dict(with_adapter(config, made))


def batches(config: RunConfig) -> list[np.ndarray]:
    """Four batches of token rows [B, T + 1]; the first rows' last label is ignored, so that shares are unequal."""
    rng = np.random.default_rng(0)
    shape = (4, config.train.batch_size, config.model.context + 1)
    made = rng.integers(0, config.model.vocabulary, shape, dtype=np.int32)
    made[:, :2, -1] = -100
    return list(made)


def train(case: Case, world: World, save: Path | None) -> dict[str, Any]:
    """Train a case; losses, norms, evaluation, a sample, and which updates were applied."""
    config = case.config()
    with planted(case.bug, world):
        trainer = Trainer(config, weights(config))
        applied = max(0, case.start - 1)
        if case.load:
            folder = Path(case.load)
            native = (folder / "state").is_dir()
            if native:
                trainer.load(folder, applied)
            else:
                trainer.adopt(load_interchange(folder).groups, applied)
        seen: list[tuple[float, float]] = []
        data, last = batches(config), world.rank == world.size - 1
        for update in range(case.start, case.updates):
            batch = data[update % 4]
            with one_nan(trainer) if update == case.bad and last else contextlib.nullcontext():
                loss, norm = trainer.gradients(batch, update, 1.0)
            if math.isfinite(norm):
                trainer.apply(learning_rate(config, update), clip_factor(norm, config.optimizer.clip), applied)
                applied += 1
            seen.append((loss, norm))
        value = trainer.evaluate(data[0][:3])
        text = trainer.generate([[1, 2, 3]], 4, GREEDY, ())
        said = [repr(x) for x in (seen, value, text)]
        result = {"seen": seen, "applied": applied, "value": value, "text": text}
        result["agree"] = [len(set(world.gather(words))) == 1 for words in said]
        if save is not None:
            world.by_first(lambda: save.mkdir(parents=True, exist_ok=True))
            with written_late():
                saving = trainer.save(save)
                trainer.gradients(data[0], case.updates, 1.0)
                trainer.apply(1.0, 1.0, applied)  # which must not be in what is written
                world.ended(saving)
        if trainer.zero:
            trainer.zero.engine.destroy()
    return result


@contextlib.contextmanager
def one_nan(trainer: Trainer) -> Iterator[None]:
    """Within, a single number in the first block of this process is none, in the forward pass."""

    def spoil(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        spoilt = torch.ones_like(output)
        spoilt.view(-1)[0] = math.nan
        return output * spoilt

    norm = next(module for name, module in trainer.model.named_modules() if name.endswith("norm1"))
    handle = norm.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def written_late() -> Iterator[None]:
    """Within, a save takes its time before it writes."""

    def late(*inputs: Any) -> None:
        time.sleep(0.3)
        write_fragments(*inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchtrain.checkpoint, "write_fragments", late)
        yield


GREEDY = Sampling(0.0, 0, 1.0, 0)


def alone(case: Case, save: Path) -> dict[str, Any]:
    """The case in this process alone, whatever its layout."""
    free = {name: value for name, value in case.fields.items() if not name.startswith("parallel.")}
    return train(dataclasses.replace(case, fields=free), World(), save)


def together(cases: Sequence[Case], processes: int, folder: Path) -> dict[str, dict[str, Any]]:
    """All cases in turn in a group of processes; results by name, their checkpoints in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    facts = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    ranks = []
    for rank in range(processes):
        words = {name: str(value) for name, value in (facts | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        with open(folder / f"rank{rank}.txt", "w") as output:
            command = [sys.executable, "-m", "parity.processes", str(folder / "cases.json"), str(folder)]
            environment = os.environ | {"MASTER_ADDR": "127.0.0.1"} | words
            ranks.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        time.sleep(0.1)
    time.sleep(1)  # the first that fails may have had its reason from another
    for rank in ranks:
        rank.kill()
    codes = [rank.wait() for rank in ranks]
    words_of = "\n".join((folder / f"rank{rank}.txt").read_text()[-3000:] for rank in range(processes))
    assert not any(codes), f"exit codes by rank {codes}\n{words_of}"
    results: dict[str, dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return results


def state_of(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """A checkpoint's tensors, all read."""
    return {group: dict(tensors) for group, tensors in load_native(folder).items()}


@contextlib.contextmanager
def planted(bug: str, world: World) -> Iterator[None]:
    """Within, a bug of `BUGS` is in the program of this process."""
    with pytest.MonkeyPatch.context() as patch:
        if bug:
            BUGS[bug](patch, world)
        yield


def _mean(patch: pytest.MonkeyPatch, world: World) -> None:
    """Gradients that are averaged, though the loss is divided already."""
    plain = Place.sum_gradients

    def sum_gradients(self, gradients):
        plain(self, gradients)
        for gradient in gradients:
            gradient.div_(self.data.size)

    patch.setattr(Place, "sum_gradients", sum_gradients)


def _mean_by_deepspeed(patch: pytest.MonkeyPatch, world: World) -> None:
    """DeepSpeed's average, left as it is."""
    import torchtrain.zero

    def backward(self, loss, last):
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

    patch.setattr(torchtrain.zero.Zero, "backward", backward)


def _norm_of_shard(patch: pytest.MonkeyPatch, world: World) -> None:
    """Each process clips by its own shard's norm."""
    plain = Place.table

    def table(self, *values):
        whole = plain(self, *values)
        if len(values) == 3:
            whole[..., 1:] = 0
            whole[0, 0, 0, 1:] = torch.stack([value.to(whole.dtype) for value in values[1:]])
        return whole

    patch.setattr(Place, "table", table)


def _loss_of_rank(patch: pytest.MonkeyPatch, world: World) -> None:
    """Each process reports its own part of the loss."""
    plain = Place.table

    def table(self, *values):
        whole = plain(self, *values)
        if len(values) == 3:
            whole[..., 0] = values[0] / self.data.size
        return whole

    patch.setattr(Place, "table", table)


def _same_rows(patch: pytest.MonkeyPatch, world: World) -> None:
    """All processes take the first one's rows."""
    patch.setattr(torchtrain.trainer, "rows_of", lambda config, layout, place: rows_of(config, layout, 0))


def _local_masks(patch: pytest.MonkeyPatch, world: World) -> None:
    """Dropout masks of rows counted within the process."""
    plain = torchtrain.trainer.Trainer._dropout

    def dropout(self, update, rows):
        made = plain(self, update, rows)
        if made is not None:
            made.rows = made.rows % (self.config.micro_batch // self.place.layout.sharing_rows)
        return made

    patch.setattr(torchtrain.trainer.Trainer, "_dropout", dropout)


def _untied(patch: pytest.MonkeyPatch, world: World) -> None:
    """The embedding's share of a tied weight's gradient is lost."""
    plain = F.embedding
    patch.setattr(F, "embedding", lambda tokens, weight, sparse=False: plain(tokens, weight.detach()))


def _swapped_shards(patch: pytest.MonkeyPatch, world: World) -> None:
    """A process takes its neighbour's shard of what is loaded."""
    import torchtrain.zero

    plain = torchtrain.zero._pieces

    def pieces(inner, stage, names, place):
        other = dataclasses.replace(place.data, index=place.data.size - 1 - place.data.index)
        return plain(inner, stage, names, dataclasses.replace(place, data=other))

    patch.setattr(torchtrain.zero, "_pieces", pieces)


def _no_sum_backward(patch: pytest.MonkeyPatch, world: World) -> None:
    """A column-parallel layer's input gets its own process's gradient only."""
    patch.setattr(torchtrain.model, "enter", lambda x, axis: x)


def _replicated_twice(patch: pytest.MonkeyPatch, world: World) -> None:
    """The norm counts what all processes of the tensor axis hold once for each of them."""
    patch.setattr(torchtrain.trainer, "replicated_names", lambda config: frozenset())


def _bias_each(patch: pytest.MonkeyPatch, world: World) -> None:
    """A row-parallel layer adds its bias on each process before the sum."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return torchtrain.model.leave(F.linear(x, self.weight.to(x.dtype), bias), self.summed)

    patch.setattr(torchtrain.model.Linear, "forward", forward)


def _own_softmax(patch: pytest.MonkeyPatch, world: World) -> None:
    """Each process's softmax is over its own part of the vocabulary."""
    patch.setattr(Axis, "largest", lambda self, x: x)


def _tied_apart(patch: pytest.MonkeyPatch, world: World) -> None:
    """The first and the last stage each keep their own gradient of a tied weight."""
    patch.setattr(torchtrain.pipeline.Pipeline, "_sum_tied", lambda self: None)


BUGS = {
    "tied weight's gradients apart": _tied_apart,
    "gradients averaged": _mean,
    "gradients averaged by DeepSpeed": _mean_by_deepspeed,
    "norm of the shard": _norm_of_shard,
    "loss of the rank": _loss_of_rank,
    "rows of another": _same_rows,
    "masks by local row": _local_masks,
    "tied weight untied": _untied,
    "shards swapped": _swapped_shards,
    "no sum in the backward pass": _no_sum_backward,
    "replicated counted twice": _replicated_twice,
    "bias on each": _bias_each,
    "peak of the shard": _own_softmax,
}


def main() -> None:
    """Train all cases of a file."""
    torch.set_num_threads(1)
    cases = [Case(**raw) for raw in json.loads(Path(sys.argv[1]).read_text())]
    folder = Path(sys.argv[2])
    world = join(cases[0].config())
    results = {case.name: train(case, world, folder / case.name) for case in cases}
    if world.first:
        (folder / "results.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
