"""`scripts/doctor.py` names everything, also where a framework is missing; the measurement keeps to its budget."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib

import pytest

from tests.support.commands import ROOT

SCRIPTS = ROOT / "scripts"
BLOCKED = """
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ImportError(f"no {{name}} here")
sys.meta_path.insert(0, Block())
sys.argv = ["doctor.py", "--no-peaks"]
runpy.run_path({script!r}, run_name="__main__")
"""


def doctor(package: str) -> str:
    code = BLOCKED.format(package=package, script=str(SCRIPTS / "doctor.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(name: str, monkeypatch):
    return importlib.import_module(f"twintrain.{name}")


@pytest.mark.whole
@pytest.mark.parametrize(("missing", "there"), [("torch", "jaxtrain device"), ("jax", "torchtrain device")])
def test_it_works_without_a_framework(missing, there):
    out = doctor(missing)
    assert f"{missing} can't be imported: no {missing} here" in out
    assert re.search(rf"{missing}train +can't run here", out)
    assert there in out
    assert "\x1b" not in out
    for name in ("python", "torch", "jax", "flax", "optax", "orbax-checkpoint", "grain", "tiktoken", "MPS", "TPU"):
        assert re.search(rf"^ +{name}\b", out, re.MULTILINE), name
    for name in ("deepspeed", "flash-attn", "wandb", "datasets", "libtpu", "jax-cuda13-plugin", "transformers"):
        assert re.search(rf"^ +{name}  +(\d|not installed: pip install 'twintrain\[\w+\]'$)", out, re.MULTILINE), name


def test_every_optional_package_has_an_install_line_that_exists(monkeypatch):
    module = load("doctor", monkeypatch)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(module.OPTIONAL.values()) == extras.keys() - {"test"}
    monkeypatch.setattr(module, "version", lambda package: None)
    for (name, text), extra in zip(module.optional(), module.OPTIONAL.values(), strict=True):
        assert text == f"not installed: pip install 'twintrain[{extra}]'", name


def test_brackets_survive_a_terminal(monkeypatch, capsys):
    import io

    from rich.console import Console

    module = load("doctor", monkeypatch)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    module.show(console, "Optional", [("wandb", "not installed: pip install 'twintrain[wandb]'")])
    assert "twintrain[wandb]" in console.file.getvalue()


def test_a_measurement_that_fails_or_hangs_is_one_line(monkeypatch):
    module = load("doctor", monkeypatch)

    def slow(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("matmul_peak", 60)

    monkeypatch.setattr(module.subprocess, "run", slow)
    assert module.peaks() == [
        (f"{framework} {dtype}", "could not be measured")
        for framework in ("torch", "jax")
        for dtype in ("float32", "bfloat16")
    ]


def test_peaks_say_what_auto_would_take(monkeypatch):
    module, found = load("doctor", monkeypatch), {"torch bfloat16": 300.0, "jax bfloat16": 80.0}

    def told(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        gflops = found.get(" ".join(command[-2:]), 100.0)
        return subprocess.CompletedProcess(command, 0, json.dumps({"size": 512, "gflops": gflops}))

    monkeypatch.setattr(module.subprocess, "run", told)
    rows = dict(module.peaks())
    assert rows["torch bfloat16"] == "300.0 GFLOP/s (512 x 512)"
    assert rows["torch auto"] == "precision.compute = auto would take bfloat16"
    assert rows["jax auto"] == "precision.compute = auto would take float32"


def test_the_size_grows_only_while_the_next_one_fits_the_budget(monkeypatch):
    module = load("matmul_peak", monkeypatch)
    now, sizes = [0.0], []

    def multiplier(framework: str, dtype: str, size: int):
        sizes.append(size)

        def multiply() -> None:
            now[0] += 2 * size**3 / 0.3e9  # 0.3 GFLOP/s, as bfloat16 in torch on a CPU without units for it

        return multiply

    monkeypatch.setattr(module, "multiplier", multiplier)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    found = module.measure("torch", "bfloat16")
    assert found["gflops"] == pytest.approx(0.3)
    assert sizes == [128, 256, 512]
    assert now[0] < 3 * module.BUDGET
