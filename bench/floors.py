"""Measured worst figure of every gate of the judge, for each instruction set that this processor can be limited to.

Usage: python -m bench.floors [--only SETTING ...] [--tests PATH ...] [--json FILE] [--markdown]

Each setting is a run of pytest in a process of its own: instructions by the variables that torch, its BLAS, oneDNN,
XLA and numpy read when they start, threads, or other first weights. Without --tests it runs what is judged below
float64. --json adds to what FILE already holds (of each gate the larger figure stays), so that a long list can be
measured in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError, exits_cleanly
from coretrain.base.files import write_atomically

NUMPY_V4 = ("X86_V4", "AVX512_ICL", "AVX512_SPR")
NUMPY_V3 = ("X86_V3", *NUMPY_V4)
"""numpy's groups of instructions above AVX2, and above SSE4.2."""


@dataclass(frozen=True)
class Setting:
    """How a session differs from this machine as it is."""

    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    seed: int | None = None
    """Of the first weights (None: the judge's own)."""


def held_to(aten: str, onednn: str, xla: str, mkl: str, numpy: Sequence[str] = (), **more: str) -> Setting:
    """Every library limited to some instructions, each by the variable that it reads."""
    return Setting(
        {
            "ATEN_CPU_CAPABILITY": aten,
            "DNNL_MAX_CPU_ISA": onednn,
            "XLA_FLAGS": f"--xla_cpu_max_isa={xla}",
            "MKL_ENABLE_INSTRUCTIONS": mkl,
            "NPY_DISABLE_CPU_FEATURES": " ".join(numpy),
            **more,
        }
    )


# MKL obeys MKL_ENABLE_INSTRUCTIONS on Intel's processors alone. MKL_CBWR=COMPATIBLE takes the kernels that it has for
# any x86 there is, without fused multiply-add, everywhere.
X86 = {
    "AVX512": held_to("avx512", "AVX512_CORE", "AVX512", "AVX512"),
    "AVX2": held_to("avx2", "AVX2", "AVX2", "AVX2", NUMPY_V4),
    "SSE4.2": held_to("default", "SSE41", "SSE4_2", "SSE4_2", NUMPY_V3, MKL_CBWR="COMPATIBLE"),
    "torch SSE4.2, JAX as it is": Setting(
        {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
    ),
}
SETTINGS = {
    "as it is": Setting(),
    **(X86 if platform.machine() in ("x86_64", "AMD64") else {}),
    "2 threads": Setting(threads=2),
    "seed 1": Setting(seed=1),
    "seed 2": Setting(seed=2),
}
LADDER = "parity/ladder"
BELOW_FLOAT64 = (
    f"{LADDER}/test_rounding.py",
    f"{LADDER}/test_kernels.py",
    f"{LADDER}/test_identity.py::test_optimizer_alone",
    f"{LADDER}/test_identity.py::test_decay_in_float32",
    f"{LADDER}/test_invariance.py::test_compiled_torch",
    f"{LADDER}/test_invariance.py::test_float32_is_the_same_with_x64_off",
    f"{LADDER}/test_trajectory.py",
)


def child(setting: Setting, tests: Sequence[str], results: Path) -> int:
    """A session of the judge in this process; pytest's status."""
    import pytest

    import parity.plugin  # noqa: F401  # before JAX makes an array
    from parity import machine, pair

    machine.THREADS = setting.threads
    if setting.seed is not None:
        pair.SMALL["train.seed"] = setting.seed
    return int(pytest.main(["-n", "0", "-p", "no:cacheprovider", f"--results={results}", "--tb=line", *tests]))


def measure(setting: Setting, tests: Sequence[str]) -> dict[str, Any]:
    """Machine, gates and failures of a session under `setting`; its output where it left no figures."""
    from parity.machine import LIMITS

    alone = {name: value for name, value in os.environ.items() if name not in LIMITS}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        task = json.dumps({"setting": asdict(setting), "tests": list(tests), "results": str(results)})
        command = [sys.executable, "-m", "bench.floors", "--child", task]
        environment = alone | {name: value for name, value in setting.environment.items() if value}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if not results.is_file():
            return {"status": f"failed: {(done.stdout + done.stderr)[-2000:]}"}
        found = json.loads(results.read_text(encoding="utf-8"))
    gates = [gate for gate in found["gates"] if gate["error"] is not None]
    kept = {name: found[name] for name in ("machine", "versions", "failures", "seconds")}
    return {"status": "ok", **kept, "gates": gates}


def joined(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """Two sessions of one setting as one: of each gate the larger figure, a NaN before any number."""
    if before is None or "ok" not in (before["status"], now["status"]) or before["status"] != now["status"]:
        return dict(now)
    gates = {gate["name"]: gate for gate in before["gates"]}
    for gate in now["gates"]:
        old = gates.get(gate["name"], gate)
        worse = old if gate["error"] < old["error"] or old["error"] != old["error"] else gate
        gates[gate["name"]] = {**gate, "error": worse["error"], "where": worse["where"]}  # the cap is today's
    failures = [*dict.fromkeys([*before["failures"], *now["failures"]])]
    return {**now, "gates": list(gates.values()), "failures": failures, "seconds": before["seconds"] + now["seconds"]}


def margin(cap: float, worst: float) -> str:
    """How many times the worst figure fits under the cap."""
    return (
        "equal" if cap == 0 and worst == 0 else "ABOVE" if not worst <= cap else f"{cap / worst:.1f}" if worst else ""
    )


def table(measured: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Heading and a row for each gate: its figure under each setting, its cap, and the cap over the worst of them."""
    names = [name for name in SETTINGS if measured.get(name, {}).get("status") == "ok"]
    by_gate: dict[str, dict[str, Any]] = {}
    for name in names:
        for gate in measured[name]["gates"]:
            by_gate.setdefault(gate["name"], {"cap": gate["cap"]})[name] = gate["error"]
    rows = [("gate", *names, "cap", "margin")]
    for gate, seen in by_gate.items():
        figures = [seen.get(name) for name in names]
        worst = max((figure for figure in figures if figure is not None), key=lambda x: (x != x, x))
        shown = ["" if figure is None else f"{figure:.2g}" for figure in figures]
        rows.append((gate, *shown, f"{seen['cap']:.2g}", margin(seen["cap"], worst)))
    return rows


def markdown(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The table for the docs."""
    heading, *rows = table(measured)
    lines = [heading, ("---", *["---:"] * (len(heading) - 1)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as aligned text."""
    lines = table(measured)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in lines
    )


def earlier(path: Path | None) -> dict[str, Any]:
    """What a file of figures holds already."""
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(isinstance(row, dict) and "status" in row for row in found.values()):
            raise ValueError("not a table of settings")
    except ValueError as error:
        raise UserError(
            "bench/floors-unreadable",
            f"--json {path}: not the figures of bench.floors ({error}); name another file, or remove it",
        ) from None
    return found


@exits_cleanly
def main() -> int:
    """Measure, then print one table; 1 where a correct pair was above a cap anywhere."""
    parser = argparse.ArgumentParser(prog="python -m bench.floors", description=(__doc__ or "").split("\n")[0])
    text = f"of {', '.join(SETTINGS)} (default: all)"
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING", help=text)
    parser.add_argument(
        "--tests",
        nargs="+",
        default=list(BELOW_FLOAT64),
        metavar="PATH",
        help="as pytest takes them (default: what is judged below float64)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return child(Setting(**given.child["setting"]), given.child["tests"], Path(given.child["results"]))
    measured = earlier(given.json)
    for name in given.only:
        print(f"floors: {name}", file=sys.stderr, flush=True)
        measured[name] = joined(measured.get(name), measure(SETTINGS[name], given.tests))
        if given.json:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(given.json, json.dumps(measured, indent=1) + "\n")
    print(markdown(measured) if given.markdown else show(measured))
    bad = {name: row.get("failures") or [row["status"]] for name, row in measured.items()}
    bad = {name: why for name, why in bad.items() if measured[name]["status"] != "ok" or measured[name]["failures"]}
    for name, why in bad.items():
        print(f"{name}: {'; '.join(why)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    main()
