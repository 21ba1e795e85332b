"""Trainings that several processes share, for `parity/ladder/test_zero.py`.

`python -m parity.workers.torch_processes CASES OUTPUT` is one of the processes.

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

import torchtrain.checkpoint
import torchtrain.loss
import torchtrain.model
import torchtrain.trainer
from coretrain.adapters.targets import with_adapter
from coretrain.base.errors import exit_now
from coretrain.checkpoint.fragments import write_fragments
from coretrain.checkpoint.interchange import load_interchange
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import initial_parameters, parameter_table
from coretrain.contract.randomness import normal_rows
from coretrain.contract.sampling import Sampling
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.data.batch import Batch, windows
from coretrain.processes.world import World
from parity.forms import GPT2_FORM, LLAMA_FORM
from parity.probes.alignment import alignment_batch
from torchtrain.checkpoint import load_native
from torchtrain.parallel.choose import make_trainer
from torchtrain.parallel.processes import join
from torchtrain.parallel.zero import Zero
from torchtrain.parallel.zero_trainer import ZeroTrainer
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


def batches(config: RunConfig) -> list[Batch]:
    """Four batches; the first rows' last label is ignored, so that shares are unequal; two have weights. Of alignment
    those of its probe."""
    if config.train.objective != "cross_entropy":
        return [alignment_batch(config, seed) for seed in range(4)]
    rng = np.random.default_rng(0)
    shape = (4, config.train.batch_size, config.model.context + 1)
    made = rng.integers(0, config.model.vocabulary, shape, dtype=np.int32)
    made[:, :2, -1] = -100
    factors = rng.uniform(0, 2, (2, *made.shape[1:-1], config.model.context)).astype(np.float32)
    plain = [windows(rows) for rows in made]
    weighted = [dataclasses.replace(batch, weights=w) for batch, w in zip(plain[::2], factors, strict=True)]
    return [weighted[0], plain[1], weighted[1], plain[3]]


def train(case: Case, world: World, save: Path | None) -> dict[str, Any]:
    """Train a case; losses, norms, evaluation, a sample, and which updates were applied."""
    from parity.workers.process_bugs import planted  # torch's pipelines take 2 s to import

    config = case.config()
    with planted(case.bug, world):
        trainer = make_trainer(config, weights(config))
        applied = max(0, case.start - 1)
        if case.load:
            trainer.evaluate(batches(config)[1])  # of which nothing may stay
            folder = Path(case.load)
            native = (folder / "state").is_dir()
            if native:
                trainer.load(folder, applied)
            else:
                trainer.adopt(load_interchange(folder).groups, applied)
        seen: list[tuple[float, float]] = []
        figures: list[list[float]] = []
        data, last = batches(config), world.rank == world.size - 1
        for update in range(case.start, case.updates):
            batch = data[update % 4]
            with one_nan(trainer) if update == case.bad and last else contextlib.nullcontext():
                loss, norm = trainer.gradients(batch, update, 1.0)
            figures.append(list(trainer.more))
            if math.isfinite(norm):
                trainer.apply(learning_rate(config, update), clip_factor(norm, config.optimizer.clip), applied)
                applied += 1
            seen.append((loss, norm))
        value = trainer.evaluate(data[0].rows(slice(3)))
        text = trainer.generate([[1, 2, 3]], 4, GREEDY, ())
        said = [repr(x) for x in ((seen, figures), value, text)]
        result = {"seen": seen, "figures": figures, "applied": applied, "value": value, "text": text}
        result["agree"] = [len(set(world.gather(words))) == 1 for words in said]
        if save is not None:
            world.on_rank0(lambda: save.mkdir(parents=True, exist_ok=True))
            with written_late():
                saving = trainer.save(save)
                trainer.gradients(data[0], case.updates, 1.0)
                trainer.apply(1.0, 1.0, applied)  # which must not be in what is written
                world.ended(saving)
        if isinstance(trainer, ZeroTrainer) and isinstance(trainer.zero, Zero):
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
    ranks: list[subprocess.Popen[bytes]] = []
    for number in range(processes):
        words = {name: str(value) for name, value in (facts | {"RANK": number, "LOCAL_RANK": number}).items()}
        with open(folder / f"rank{number}.txt", "w") as output:
            command = [
                sys.executable,
                "-m",
                "parity.workers.torch_processes",
                str(folder / "cases.json"),
                str(folder),
            ]
            environment = os.environ | {"MASTER_ADDR": "127.0.0.1"} | words
            ranks.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        time.sleep(0.1)
    time.sleep(1)  # the first that fails may have had its reason from another
    for rank in ranks:
        rank.kill()
    codes = [rank.wait() for rank in ranks]
    words_of = "\n".join((folder / f"rank{number}.txt").read_text()[-3000:] for number in range(processes))
    assert not any(codes), f"exit codes by rank {codes}\n{words_of}"
    results: dict[str, dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return results


def state_of(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """A checkpoint's tensors, all read."""
    return {group: dict(tensors) for group, tensors in load_native(folder).items()}


def main() -> None:
    """Train all cases of a file."""
    torch.set_num_threads(1)
    cases = [Case(**raw) for raw in json.loads(Path(sys.argv[1]).read_text())]
    folder = Path(sys.argv[2])
    world = join(cases[0].config())
    results = {case.name: train(case, world, folder / case.name) for case in cases}
    if world.first:
        (folder / "results.json").write_text(json.dumps(results))
    world.shutdown()
    exit_now(0)  # as a run does: FSDP2 keeps the group's threads, which may abort an interpreter that ends


if __name__ == "__main__":
    main()
