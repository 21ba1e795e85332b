"""The judge's session set-up, its ladder in the terminal and its results as a file; plugin.py has its options.

It lies above ladder/ because pytest-xdist's first process, which speaks and writes, collects no tests: it knows the
conftest.py of the folder that is named, and of none below it.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any

import jax
import pytest
import torch

from coretrain.base.files import write_atomically
from parity import machine, mutants, outcomes, pair
from parity.workers import scheduler

PACKAGES = ("torch", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain")
_outcome: dict[str, Any] = {"failures": [], "skipped": [], "started": time.time()}


def pytest_configure(config: pytest.Config) -> None:
    """Every device present, unless the options have chosen already (plugin.py has them)."""
    if not pair.DEVICES:
        pair.settle(None, None, None, None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `device` runs once on each of the session's devices."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", pair.DEVICES, ids=[device.name for device in pair.DEVICES])


@pytest.fixture(scope="session", autouse=True)
def float64_is_really_on(tmp_path_factory):
    """float64 in JAX can be off without a word; and nothing that is compiled here may outlast the session."""
    assert jax.numpy.zeros(1).dtype == "float64", "jax_enable_x64 came too late: an array was made before it"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pair.SMALL, "data.cache", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """The models are so small that threads cost more than they give; and what is on no device is on the CPU."""
    threads = torch.get_num_threads()
    default = jax.config.jax_default_device  # type: ignore[attr-defined]  # JAX makes its settings at run time
    torch.set_num_threads(machine.THREADS)
    jax.config.update("jax_default_device", jax.devices("cpu")[0])
    yield
    torch.set_num_threads(threads)
    jax.config.update("jax_default_device", default)


def not_run() -> list[tuple[str, str]]:
    """What this session did not judge, with the reason."""
    here = {device.name: device for device in pair.present_devices()}
    judged = {device.name for device in pair.DEVICES}
    rows = []
    for name, title in (("cuda", "CUDA"), ("mps", "MPS (torch)"), ("tpu", "TPU (JAX)")):
        what = f"{title}: float32, bfloat16, float16"
        if name not in here:
            rows.append((what, f"no {title.split()[0]} device here"))
        elif name not in judged:
            rows.append((what, "left out by --device"))
        elif name == "cuda":
            missing = [stack for stack in ("torch", "jax") if getattr(here[name], stack) is None]
            rows += [(f"{what} in {stack}", f"{stack} finds no CUDA device") for stack in missing]
    rows += [
        (f"kernel {row['stack']} {row['kernel']} on {row['device']}", row["reason"])
        for row in outcomes.facts["kernels"]
        if row["status"] == "not run"
    ]
    listed = {reason for _, reason in rows}
    rows += [(test.split("::")[-1], reason) for test, reason in _outcome["skipped"] if reason not in listed]
    return rows


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what failed, and what was skipped and why."""
    if not report.nodeid.startswith("parity/"):
        return
    if report.failed:
        _outcome["failures"].append(report.nodeid)
    elif report.skipped and isinstance(report.longrepr, tuple):
        _outcome["skipped"].append((report.nodeid, report.longrepr[2].removeprefix("Skipped: ")))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the results, also when tests failed; a session without any gate leaves the old file alone.

    Tests that somebody has picked go to partial.json: results.json is of whole sessions only. One of several processes
    gives what it has seen to the one that writes.
    """
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity"] = scheduler.report()
    elif outcomes.worst or mutants.MATRIX:
        option = session.config.option
        mark = (option.markexpr or "").strip()
        deeper = any("::" in word or word.endswith(".py") for word in map(str, session.config.args))
        picked = option.keyword or option.deselect or deeper or mark not in ("", "mutation")
        kind = "partial" if picked else mark or "results"
        _outcome["results"] = session.config.getoption("--results") or Path("runs/parity") / f"{kind}.json"
        write_results(_outcome["results"])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What shares a pair goes to one process; the order is that of plugin.py."""
    config.option.loadscopereorder = False
    return scheduler.Scheduler(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended; one that crashed has nothing to give, and its tests have failed."""
    if text := getattr(node, "workeroutput", {}).get("parity"):
        scheduler.merge(text)


def write_results(path: Path) -> None:
    """All figures of the session as JSON, whole or not at all."""
    rows = []
    for gate in outcomes.gates():
        if gate.rung == "scale" and gate.name not in outcomes.worst:
            continue  # of many devices, not of the ladder
        error, where = outcomes.worst.get(gate.name, (None, ""))
        status = "not run" if error is None else "ok" if error <= gate.cap else "FAIL"
        row = {"name": gate.name, "rung": gate.rung, "cap": gate.cap, "floor": gate.floor, "catches": gate.catches}
        rows.append(row | {"error": error, "where": where, "status": status})
    results = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": machine.facts(),
        "devices": [vars(device) for device in pair.DEVICES],
        "variants": list(pair.VARIANTS),
        "seconds": round(time.time() - _outcome["started"], 1),
        "gates": rows,
        "failures": _outcome["failures"],
        "not_run": [list(row) for row in not_run()],
        **outcomes.facts,
        "mutants": mutants.MATRIX,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(results, indent=1, default=str))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pytest_terminal_summary(terminalreporter) -> None:
    """The ladder."""
    if not outcomes.worst and not mutants.MATRIX:
        return
    lines = terminalreporter
    lines.section("parity: worst figure and cap of every gate (float64 unless stated)")
    for line in machine.lines():
        lines.write_line(line)
    rung = None
    for gate in outcomes.gates():
        if gate.name not in outcomes.worst:
            continue
        if gate.rung != rung:
            rung = gate.rung
            lines.write_line(rung)
        error, where = outcomes.worst[gate.name]
        mark = "ok  " if error <= gate.cap else "FAIL"
        lines.write_line(f"  {mark} {gate.name:<50} {error:8.1e}  cap {gate.cap:7.0e}  {where}")
    ladder = [gate for gate in outcomes.gates() if gate.rung != "scale"]
    if all(gate.name not in outcomes.worst for gate in outcomes.gates() if gate.rung == "scale"):
        lines.write_line("not run  scale, many devices against one (pytest parity -m scale, or the whole of pytest)")
    if left := sum(gate.name not in outcomes.worst for gate in ladder):
        lines.write_line(f"{left} gates were not held: their tests were not selected")
    for line in mutants.matrix_lines():
        lines.write_line(line)
    for name, reason in not_run():
        lines.write_line(f"not run  {name} ({reason})")
    if path := _outcome.get("results"):
        own = path.name == "mutation.json"  # which the page of another session shows
        lines.write_line(f"figures: {path}; as a page: python -m parity.report{'' if own else f' {path}'}")
