"""A plugin of pytest that records which test executes which line: `pytest -p parity.mutation.recorder`.

coverage.py does the work, each test a context of its own; programs that tests start are recorded too. The folder is
`MUTANTS_LINES` (default: runs/parity/lines); a session replaces what another of the same name (`MUTANTS_PART`) left.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest
from coverage.data import CoverageData
from coverage.exceptions import DataError

from coretrain.base.files import write_atomically
from parity.mutation.seen import PACKAGES, fingerprints

STARTUP = "import coverage\ncoverage.process_startup()\n"
SETTINGS = """[run]
source_pkgs = {packages}
data_file = {data}
parallel = true
context = ${{PYTEST_CURRENT_TEST}}
"""


class Recorder:
    """Records one session, in one process."""

    def __init__(self, root: Path, folder: Path, part: str, expression: str) -> None:
        self.root, self.folder, self.part, self.expression = root, folder, part, expression
        self.tests: dict[str, list[Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.parts = folder / f"programs-{part}"
        shutil.rmtree(self.parts, ignore_errors=True)
        self.parts.mkdir()
        (self.parts / "sitecustomize.py").write_text(STARTUP)
        settings = self.parts / "settings"
        settings.write_text(SETTINGS.format(packages=", ".join(PACKAGES), data=self.parts / "program"))
        os.environ["COVERAGE_PROCESS_START"] = str(settings)
        paths = [str(self.parts), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        self.data = folder / f"{part}.coverage"
        self.data.unlink(missing_ok=True)
        self.coverage = coverage.Coverage(
            data_file=str(self.data), source_pkgs=list(PACKAGES), config_file=False, messages=False
        )
        self.coverage.start()

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Set-up, test and end of `item` are its context."""
        self.coverage.switch_context(item.nodeid)
        yield
        self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Seconds and outcome of a test."""
        row = self.tests.setdefault(report.nodeid, [0.0, "passed"])
        row[0] = round(row[0] + report.duration, 3)
        if report.outcome != "passed":
            row[1] = report.outcome

    def pytest_unconfigure(self) -> None:
        """Write it all."""
        self.coverage.stop()
        self.coverage.save()
        whole = CoverageData(str(self.data))
        for program in sorted(self.parts.glob("program.*")):
            data = CoverageData(str(program))
            try:
                data.read()
            except DataError:  # a program that a test killed while it wrote this
                continue
            whole.update(data)
        shutil.rmtree(self.parts, ignore_errors=True)
        facts: dict[str, Any] = {"root": str(self.root), "marks": self.expression, "tests": self.tests}
        facts |= {"sources": fingerprints(self.root)}
        write_atomically(self.folder / f"{self.part}.json", json.dumps(facts))


def pytest_configure(config: pytest.Config) -> None:
    """Record, unless pytest-xdist's other processes do."""
    workers = getattr(config, "workerinput", None)
    if workers is None and config.getoption("numprocesses", None):
        return
    part = os.environ.get("MUTANTS_PART", "session") + (f"-{workers['workerid']}" if workers else "")
    folder = Path(os.environ.get("MUTANTS_LINES", "runs/parity/lines")).resolve()
    config.pluginmanager.register(
        Recorder(config.rootpath, folder, part, config.option.markexpr or ""), "lines of each test"
    )
