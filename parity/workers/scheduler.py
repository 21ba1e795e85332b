"""The judge's session over several processes of pytest-xdist: how many, which tests go together, one table at the end.

Nearly all of a session's time is JAX's compiler, one function at a time, so that a process for each core is what makes
it quick. What one process has compiled no other has: tests that take the same pair go to the same process.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xdist.scheduler import LoadScopeScheduling

from parity import gates, mutants, outcomes
from parity.pair import VARIANTS

MOST = 4
"""Processes beyond which the ladder gets no quicker: a rung of one variant is the shortest piece of it."""


def count(words: Iterable[str]) -> int:
    """Processes for a session of the folders that `words` name on the command line; 0 where they name single files.

    Those start quicker without, and a debugger can get in. A TPU belongs to one process, which must be this one.
    """
    folders = not any("::" in word or word.endswith(".py") for word in words)
    return min(MOST, os.cpu_count() or 1) if folders and not _on_tpu() else 0


def _on_tpu() -> bool:
    devices = (Path(path) for path in ("/dev/accel0", "/dev/vfio/0"))
    return importlib.util.find_spec("libtpu") is not None and any(device.exists() for device in devices)


def group(test: str) -> str:
    """What a test's id is kept together by: its pair and its precision, else its file; a mutant's is its probe."""
    path, _, given = test.partition("[")
    given = given.removesuffix("]")
    if (mutant := _mutants().get(given)) is not None:
        return f"{mutant.probe}, {mutant.variant}"
    variants = [variant for variant in VARIANTS if given.endswith(variant) or given.startswith(variant)]
    if not variants or "test_dtypes" in path:  # which compiles no pair
        return path.partition("::")[0]
    dtype = next((word for word in given.split("-") if word in ("float32", "bfloat16", "float16")), "float64")
    return f"{max(variants, key=len)}, {'float32' if 'test_trajectory' in path else dtype}"


LONGEST = ("test_mesh", "test_zero", "test_faults", "test_jax_runs", "test_spawn", "float32", "bfloat16", "float64")
"""What the groups that take longest have in their names, the longest first."""


def rank(test: str) -> int:
    """Place of a test's group in a session of several processes: a long one that begins last leaves the others idle.

    (xdist begins with the groups of most tests, and those are the quickest here.)
    """
    name = group(test)
    return next((place for place, part in enumerate(LONGEST) if part in name), len(LONGEST))


@functools.cache
def _mutants() -> dict[str, mutants.Mutant]:
    importlib.import_module("parity.bugs")  # they register themselves
    return {mutant.id: mutant for mutant in mutants.MUTANTS}


class Scheduler(LoadScopeScheduling):
    """What shares a pair runs in one process. (xdist's own groups by marker need a pytest below 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def report() -> str:
    """What this process has seen, as JSON, for `merge` in the one that speaks."""
    seen = [(vars(gate), *outcomes.worst[gate.name]) for gate in outcomes.held]
    return json.dumps(
        {"gates": seen, "facts": outcomes.facts, "matrix": mutants.MATRIX, "located": mutants.LOCATED}, default=float
    )


def merge(text: str) -> None:
    """Add what another process has seen."""
    seen: dict[str, Any] = json.loads(text)
    for gate, error, where in seen["gates"]:
        outcomes.note(gates.Gate(**gate), error, where)
    for name, found in seen["facts"].items():
        outcomes.facts[name] = _joined(outcomes.facts[name], found)
    mutants.LOCATED.update({bug: tuple(taps) for bug, taps in seen["located"].items()})
    mutants.MATRIX.extend(seen["matrix"])
    for row in mutants.MATRIX:  # a bug may be planted in one process and located in another
        row["localized_tap"] = mutants.LOCATED.get(f"{row['side']}: {row['name']}", (row["localized_tap"],))[0]


def _joined(ours: Any, theirs: Any) -> Any:
    order = list(VARIANTS)
    if isinstance(ours, dict):
        return dict(sorted((ours | theirs).items(), key=lambda item: order.index(item[0])))
    return sorted(ours + theirs, key=lambda row: order.index(row["variant"]) if "variant" in row else -1)
