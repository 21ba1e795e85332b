"""What a contender's own process does: updates, texts, or matmuls, so many in a turn.

`python -m twintrain.bench.contest --child TASK`, where `rounds.py` is its parent.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintrain.bench.contenders import Contender, Shape
from twintrain.bench.turns import Turn, serve, updates_of, wait_for_gpu

LR = 1e-4
"""Learning rate of every contender: it changes nothing about speed."""
Rows = NDArray[np.int32]


def ours(one: Contender, shape: Shape) -> tuple[Callable[[Rows, int], float], Any]:
    """One update of a stack, through its own Trainer as `coretrain.training.loop` drives it; and the trainer."""
    from coretrain.data.batch import windows

    config = shape.config(one.dtype, one.compiled)
    trainer = importlib.import_module(f"{one.framework}train.trainer").Trainer(config)

    one_more = updates_of(trainer, LR)

    def update(rows: Rows, n: int) -> float:
        loss = one_more(windows(rows), n)
        if one.framework == "torch":
            wait_for_gpu()
        return loss

    return update, trainer


def parameters_of(shape: Shape) -> int:
    """Parameters of the stacks' model."""
    from coretrain.contract.parameters import parameter_table

    return sum(row.size for row in parameter_table(shape.config().model))


def training(one: Contender, shape: Shape, nanogpt: Path | None) -> Turn:
    """Updates; the facts are the parameters' number and the first update's loss."""
    rng, counter = np.random.default_rng(0), itertools.count()
    facts = dict[str, Any]()
    update: Callable[[Rows, int], float]
    if one.peer:
        update, parameters = importlib.import_module("twintrain.bench.peers").training(one, shape, nanogpt, LR)
    else:
        (update, _), parameters = ours(one, shape), parameters_of(shape)

    def step() -> None:
        # all batches of all turns would be too many; making one is nothing against an update
        rows = rng.integers(0, shape.vocab, (shape.batch, shape.context + 1)).astype(np.int32)
        loss = update(rows, next(counter))
        facts.setdefault("first_loss", loss)

    facts["parameters"] = parameters
    return Turn(step, facts)


def generation(one: Contender, shape: Shape, nanogpt: Path | None) -> Turn:
    """Greedy texts after a prompt that changes each time; the fact is the parameters' number."""
    rng = np.random.default_rng(0)
    if one.peer:
        text, parameters = importlib.import_module("twintrain.bench.peers").generating(one, shape, nanogpt)
    else:
        from coretrain.contract.sampling import Sampling

        (_, trainer), parameters, greedy = ours(one, shape), parameters_of(shape), Sampling(0.0, 0, 1.0, 0)

        def text(ids: Rows) -> object:
            return trainer.generate([ids[0].tolist()], shape.new, greedy, ())

    return Turn(
        lambda: text(rng.integers(0, shape.vocab, (1, shape.prompt)).astype(np.int32)), {"parameters": parameters}
    )


def contender(task: dict[str, Any]) -> Turn:
    """What is asked of this process."""
    if "size" in task:
        multiplier = importlib.import_module("twintrain.matmul_peak").multiplier
        return Turn(multiplier(task["framework"], task["dtype"], task["size"]))
    one, shape = Contender(**task["contender"]), Shape(**task["shape"])
    nanogpt = Path(task["nanogpt"]) if task["nanogpt"] else None
    return {"training": training, "generation": generation}[task["part"]](one, shape, nanogpt)


if __name__ == "__main__":
    serve(json.loads(sys.argv[sys.argv.index("--child") + 1]), contender)
