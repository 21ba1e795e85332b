"""All contenders in turns, and what their times say: speeds, and ratios within a round with their spread.

Of one dtype at a time, since only those are compared, and each holds a whole training's memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import sha256_of
from twintrain.bench.contenders import (
    MAKERS,
    MAXTEXT,
    SHORT,
    Contender,
    Shape,
    check_nanogpt,
    obstacle,
)
from twintrain.bench.turns import Child, machine
from twintrain.command import version

TURN = 2
"""Updates, or texts, of one turn."""
WARM_UP = 2
"""Those before the first timed one: compiling, and the moments' first allocation."""
MATMULS = 8
"""Multiplications of one turn of a matmul peak, of which the fastest counts."""
PEAK_LIMIT = 60.0
"""Seconds that finding one matmul peak may take."""
PACKAGES = ("torch", "jax", "transformers", "litgpt")
Peaks = dict[str, dict[str, float]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What is asked for."""

    part: str
    contenders: Mapping[str, Contender]
    shape: Shape
    rounds: int
    nanogpt: Path | None = None
    all: bool = True
    """Whether nothing was left out by `--only`."""


@dataclass
class Row:
    """Results of one contender; `status` is `ok`, or why there are none."""

    name: str
    label: str
    maker: str
    dtype: str
    compiled: bool
    status: str = "ok"
    tokens_per_second: float | None = None
    gflops: float | None = None
    share_of_peak: float | None = None
    peak_memory_bytes: int | None = None
    memory_of: str = "host"
    parameters: int | None = None
    first_loss: float | None = None
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    """Speed against each peer of its dtype: the median of the rounds' ratios, the lowest and the highest."""
    seconds: list[float] = field(default_factory=list)
    """Median step of each round."""


def measured_peak(framework: str, dtype: str) -> dict[str, float]:
    """Matmul GFLOP/s and the size it was measured at, by twintrain/matmul_peak.py; 0 where that took too long."""
    command = [sys.executable, "-m", "twintrain.matmul_peak", framework, dtype]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PEAK_LIMIT, check=True)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found
    except (subprocess.SubprocessError, ValueError, IndexError):
        return {"size": 0, "gflops": 0.0}


def needed_peaks(asked: Bench, say: Say) -> Peaks:
    """Those that shares, and the question whether there are bf16 units, need."""
    kinds = {(one.framework, one.dtype) for one in asked.contenders.values()}
    if asked.part == "generation":  # where speed is no matter of matmuls
        kinds = {(framework, dtype) for framework, dtype in kinds if dtype == "bfloat16"}
    kinds |= {(framework, "float32") for framework, _ in kinds}
    if kinds:
        say("matmul peaks")
    return {f"{framework} {dtype}": measured_peak(framework, dtype) for framework, dtype in sorted(kinds)}


def measured(asked: Bench, say: Say) -> dict[str, Any]:
    """Everything that JSON has. Raises `UserError` where no contender can be run here."""
    rows = {name: Row(name, one.label, one.maker, one.dtype, one.compiled) for name, one in asked.contenders.items()}
    busy = os.getloadavg()[0]
    facts = machine(PACKAGES) | {"twintrain": version()}
    if asked.nanogpt is not None:
        facts["nanogpt"] = f"model.py {sha256_of(check_nanogpt(asked.nanogpt))[:12]}"
    peaks = needed_peaks(asked, say)
    for name, one in asked.contenders.items():
        rows[name].status = obstacle(one, peaks, asked.nanogpt) or "ok"
    if not any(row.status == "ok" for row in rows.values()):
        first = next(iter(rows.values()))
        raise UserError(
            "bench/nothing-to-run", f"none of {', '.join(rows)} can be run here; {first.name}: {first.status}"
        )
    for dtype in SHORT:
        some = {n: one for n, one in asked.contenders.items() if one.dtype == dtype and rows[n].status == "ok"}
        if some:
            of_one_dtype(asked, some, rows, peaks, say)
    return {
        "part": asked.part,
        "machine": facts,
        "shape": asdict(asked.shape) | {"prompt": asked.shape.prompt, "new": asked.shape.new},
        "load_before": busy,
        "rounds": asked.rounds,
        "steps_of_a_turn": TURN,
        "peaks": peaks,
        "rows": [asdict(row) for row in rows.values()],
        "not_run": [*not_run(rows.values()), *([MAXTEXT] if asked.all else [])],
        "unlike": unlike(rows.values()),
    }


def of_one_dtype(asked: Bench, some: Mapping[str, Contender], rows: Mapping[str, Row], peaks: Peaks, say: Say) -> None:
    """Run these contenders in turns, and fill their rows."""
    found: list[dict[str, float]] = []
    with contextlib.ExitStack() as stack:
        children, matmuls = dict[str, Child](), dict[str, Child]()
        for name, one in some.items():
            task: dict[str, Any] = {"contender": asdict(one), "shape": asdict(asked.shape), "part": asked.part}
            task["nanogpt"] = str(asked.nanogpt) if asked.nanogpt else None
            children[name] = stack.enter_context(Child("twintrain.bench.contest", task))
            say(f"{name}: warm-up")
            children[name].turn(WARM_UP)
        if asked.part == "training":
            for key in sorted({f"{one.framework} {one.dtype}" for one in some.values()}):
                framework, dtype = key.split()
                task = {"framework": framework, "dtype": dtype, "size": int(peaks[key]["size"])}
                matmuls[key] = stack.enter_context(Child("twintrain.bench.contest", task))
        for index in range(asked.rounds):
            say(f"{dtype_of(some)}, round {index + 1} of {asked.rounds}")
            speeds = {key: _speed(peaks[key]["size"], child.turn(MATMULS)) for key, child in matmuls.items()}
            first = index % len(children)
            order = [*children, *children][first : first + len(children)]  # nobody always comes after the same one
            times = {name: children[name].turn(TURN) for name in order}
            found.append(speeds | {name: statistics.median(seconds) for name, seconds in times.items() if seconds})
    for key in matmuls:
        peaks[key]["gflops_in_rounds"] = statistics.median(each[key] for each in found)
    for name, child in children.items():
        row = rows[name]
        if child.error:
            row.status = f"failed: {child.error}"
            continue
        row.peak_memory_bytes, row.memory_of = child.memory, child.place
        row.parameters, row.first_loss = child.facts.get("parameters"), child.facts.get("first_loss")
        fill(row, some[name], asked, found)
    for name, one in some.items():
        others = [peer for peer in some if some[peer].peer and rows[peer].status == "ok"]
        if not one.peer and rows[name].status == "ok":
            rows[name].ratios = {peer: ratio(rows[name].seconds, rows[peer].seconds) for peer in others}


def dtype_of(some: Mapping[str, Contender]) -> str:
    """The one dtype that they all have."""
    return next(iter(some.values())).dtype


def _speed(size: float, seconds: Sequence[float]) -> float:
    return 2 * size**3 / min(seconds) / 1e9 if seconds else 0.0


def fill(row: Row, one: Contender, asked: Bench, found: Sequence[Mapping[str, float]]) -> None:
    """The figures of one contender, from all rounds."""
    row.seconds = [each[row.name] for each in found]
    middle, tokens = statistics.median(row.seconds), asked.shape.tokens(asked.part)
    row.tokens_per_second = tokens / middle
    if asked.part == "training":
        from coretrain.planning.flops import flops_per_token

        flops, key = tokens * flops_per_token(asked.shape.config().model), f"{one.framework} {one.dtype}"
        row.gflops = flops / middle / 1e9
        shares = [flops / each[row.name] / 1e9 / each[key] for each in found if each[key]]
        row.share_of_peak = statistics.median(shares) if shares else None


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times as fast ours is, by seconds of the same rounds."""
    each = [other / own for own, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}


def not_run(rows: Any) -> list[str]:
    """A sentence for each reason why something wasn't run, or failed."""
    reasons: dict[str, list[Row]] = {}
    for row in rows:
        if row.status != "ok":
            reasons.setdefault(row.status, []).append(row)
    told = []
    for reason, some in reasons.items():
        makers = {row.maker for row in some}
        whole = len(makers) == 1 and reason == MAKERS[some[0].maker].install
        names = MAKERS[some[0].maker].title if whole else ", ".join(row.name for row in some)
        told.append(
            f"{names} {'failed' if reason.startswith('failed: ') else 'not run'}: " + reason.removeprefix("failed: ")
        )
    return told


def unlike(rows: Any) -> list[str]:
    """A sentence for each peer whose model isn't quite the stacks'."""
    counts = {row.maker: row.parameters for row in rows if row.parameters is not None}
    own = next((count for maker, count in counts.items() if not MAKERS[maker].install), None)
    told = []
    for maker, count in counts.items():
        remark = MAKERS[maker].unlike
        if own is not None and count != own:
            remark = f"{remark or MAKERS[maker].title}: {count:,} parameters for our {own:,}"
        told += [remark] if remark else []
    return told
