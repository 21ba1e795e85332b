"""The wheel: what is in it, and that an environment which has nothing else of the repository runs by it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.whole_runs import arguments, rows

pytestmark = pytest.mark.whole
PACKAGES = ("coretrain", "jaxtrain", "parity", "torchtrain", "twintrain")
CONFIGS = ROOT / "configs"
PRESETS = {f"coretrain/config/presets/{path.relative_to(CONFIGS).as_posix()}" for path in CONFIGS.rglob("*.toml")}


def sources() -> Iterator[str]:
    """Every file of the packages, by its name in the repository."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build leaves folders behind, and takes up what an older one left."""
    copy = tmp_path_factory.mktemp("sources")
    for name in (*PACKAGES, "bench", "configs", "docs", "scripts", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "LICENSE", "pyproject.toml", "README.md", "setup.py"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (copy / "out").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function: a program of an environment that has the wheel, and from here only what the wheel depends on."""
    place, empty = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("empty")
    venv.create(place, with_pip=False)
    command = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--no-deps", wheel]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (site,) = place.glob("lib/python*/site-packages")
    # after the environment's own; the .pth files in these folders, of an editable install, aren't read
    specs = [importlib.util.find_spec(name) for name in ("numpy", "torch", "jax", "pydantic", "pytest", "xdist")]
    (site / "needed.pth").write_text("".join(f"{f}\n" for f in {Path(s.origin).parent.parent for s in specs}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}

    def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(place / "bin" / program), *words]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=400)

    run.site, run.folder = site, empty
    return run


def test_the_wheel_has_the_packages_and_the_presets_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    assert names == PRESETS | set(sources())
    kinds = {Path(name).suffix for name in names}
    assert {".py", ".css", ".html", ".js", ".jsonl", ".tiktoken", ".toml", ".typed"} == kinds
    assert len(PRESETS) > 10


def test_it_is_the_wheel_that_runs(installed):
    code = """
import importlib, json
from coretrain.config.load import PRESETS, load_config, presets
from coretrain.tokenizers.registry import bytes_tokenizer
print(json.dumps({name: importlib.import_module(name).__file__ for name in %r}))
print(json.dumps([str(PRESETS), [load_config(name).name for name in presets()]]))
"""
    done = installed("python", "-c", code % (PACKAGES,))
    assert done.returncode == 0, done.stderr
    files, (folder, names) = map(json.loads, done.stdout.splitlines())
    assert files == {name: str(installed.site / name / "__init__.py") for name in PACKAGES}
    assert folder == str(installed.site / "coretrain" / "config" / "presets")
    assert names == sorted(path.stem for path in CONFIGS.glob("*.toml"))


def test_its_version_and_a_mistake(installed, wheel):
    assert installed("twintrain", "--version").stdout == f"twintrain {wheel.name.split('-')[1]}\n"
    done = installed("twintrain", "train", "tony")
    assert (done.returncode, done.stderr) == (2, "error: no config named tony: did you mean tiny?\n")


def test_it_trains_and_goes_on(installed, corpus):
    small = arguments(corpus, "--train.updates", "4", "--model.layers", "1", "--execution.device", "cpu")
    done = installed("twintrain", "train", *small, "--output", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    done = installed("python", "-m", "torchtrain.run", "--resume", "run", "--train.updates", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["update"] for row in rows(installed.folder / "run") if "loss" in row] == [0, 1, 2, 3, 4]
    assert "<style>" in (installed.folder / "run" / "report.html").read_text()


def test_it_judges(installed):
    """In processes of pytest-xdist, the first of which tells and writes; whatever project it is called in."""
    (installed.folder / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (installed.folder / "conftest.py").write_text("raise SystemExit('not the judge's')\n")
    done = installed("twintrain", "parity", "-n", "1", "-k", "test_exact and decay", "--results", "results.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "parity: worst figure and cap of every gate" in done.stdout
    results = json.loads((installed.folder / "results.json").read_text())
    assert results["failures"] == []
    held = [row for row in results["gates"] if row["status"] == "ok"]
    assert [row["name"] for row in held] == ["weight decay, tensors treated wrongly"]
    assert installed("twintrain", "parity", "--width", "3").stderr.startswith("ERROR: ")
