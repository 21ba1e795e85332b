"""`precision.compute = auto`, settled where a run begins: measured once for a machine, and kept in the cache.

The stack that begins the run decides. What it chose is in the run's config.json, so that a resume keeps it, in either
stack and on any machine.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from dataclasses import asdict
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import read_json, short_hash, write_atomically
from coretrain.checkpoint.translate import MODULES
from coretrain.config.run import RunConfig
from coretrain.contract.choices import Choice
from coretrain.contract.compute import Matmuls, Speeds, measure
from coretrain.data.cache import cache_folder
from coretrain.processes.world import World

RULE = 1
"""Changed with how is measured: what was kept before is measured again."""


def with_compute(config: RunConfig, stack_name: str, world: World) -> tuple[RunConfig, Choice | None]:
    """The run with its dtype, and the choice where `auto` was asked for. The first process measures for all."""
    if config.precision.compute != "auto":
        return config, None

    found = list[Choice]()

    def measuring() -> None:
        matmuls: Matmuls = importlib.import_module(f"{MODULES[stack_name]}.choices").matmuls(config)
        found.append(choose(config, matmuls))

    world.on_rank0(measuring)
    choice = Choice(**json.loads(world.broadcast(json.dumps(asdict(found[0])) if found else "")))
    return config.changed(precision__compute=choice.name), choice


def choose(config: RunConfig, matmuls: Matmuls) -> Choice:
    """The dtype for this machine, by speeds that were kept or are measured now."""
    path = None
    with contextlib.suppress(UserError, OSError):  # of a cache that can't be written the data will tell
        folder = cache_folder(config.data) / "matmuls"
        folder.mkdir(exist_ok=True)
        path = folder / f"{short_hash(RULE, sorted(matmuls.machine.items()))}.json"
    speeds = kept(path, matmuls) if path else None
    if speeds is None:
        speeds = measure(matmuls.multiplier)
        if path:
            with contextlib.suppress(OSError):
                write_atomically(path, json.dumps({"machine": dict(matmuls.machine), "speeds": asdict(speeds)}) + "\n")
    choice = speeds.choice()
    return Choice(
        choice.name,
        choice.reason + (f"; kept in {path}, without which it is measured again" if path and path.is_file() else ""),
    )


def kept(path: Path, matmuls: Matmuls) -> Speeds | None:
    """What was measured on this machine before; None where there is nothing, or it is damaged or another machine's."""
    try:
        found = read_json(path, "speeds of matmuls")
        if found["machine"] != dict(matmuls.machine):
            return None
        size, *both = (found["speeds"][name] for name in ("size", "float32", "bfloat16"))
    except (UserError, OSError, KeyError, TypeError):
        return None
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < 1e9 for one in (size, *both))
    return Speeds(int(size), *map(float, both)) if numbers else None
