"""Our side of `bench.alignment`: python -m bench.alignment_ours PART TASK; TASK is JSON: see `bench/alignment.py`.

A trainer lives from turn to turn. A turn is as many updates as TRL's: prompts, answers, rewards, scores and updates, as
the training loop asks for them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

from bench.corpus_turns import Facts, Part, peak_memory, serve, spent
from coretrain.contract.update import Limits, Orders, Standing
from coretrain.processes.world import World
from coretrain.training.command_line import parse
from coretrain.training.feeds import open_feed
from coretrain.training.presets import with_presets
from coretrain.training.resolve import completed, resolve


def turns(task: dict[str, Any]) -> Part:
    """The updates of a stack, so many a turn."""
    stack_name = task["stack"]
    make = importlib.import_module(f"{stack_name}train.parallel.choose").make_trainer
    command = completed(with_presets(parse(task["words"], "bench", "Measure."), stack_name, lambda preset: 0))
    world = World()
    ready = resolve(command, world, stack_name)
    trainer = make(ready.config, ready.start)
    feed = open_feed(ready.config, ready.data, trainer, make, None, ready.start, world, lambda place: None)
    orders = Orders(task["lr"], Limits(math.inf, math.inf), 1.0, Standing(0, 0, False), alone=True)
    each, rows = task["each"], task["updates"] * task["each"]
    batches = enumerate(feed.source.batches(0, 2**31))

    def part() -> Facts:
        clock, cpu, rewards = time.perf_counter(), spent(), []
        for _ in range(rows):
            index, batch = next(batches)
            standing = replace(orders, standing=Standing(index, 0, False))
            told = trainer.update(batch, index, standing, lambda: None)()
            rewards.append(feed.source.figures().get("reward", told.more[0]))
        facts = {"clock": time.perf_counter() - clock, "cpu": spent() - cpu, "memory": peak_memory()}
        return facts | {"reward": statistics.fmean(rewards[-each:])}

    return part


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # what is prepared tells of it, and must not get among the answers
        part = turns(json.loads(sys.argv[2]))
    serve(part)
