"""Who holds a folder, and what becomes of it when that process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from coretrain.base.locks import held, locked
from tests.support.holding import FORKED, busy
from tests.support.refusal import refused


def test_a_folder_that_is_held_is_refused_until_its_holder_is_gone(tmp_path: Path) -> None:
    with busy(tmp_path) as process:
        for _ in range(2):  # to be refused changes nothing
            with refused("base/folder-in-use", str(tmp_path), f"process {process.pid} "), held(tmp_path, pytest.fail):
                pass
        process.kill()
    with held(tmp_path, pytest.fail):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    with held(tmp_path, pytest.fail):
        pass


def test_a_worker_that_outlives_the_holder_does_not_hold_on(tmp_path: Path) -> None:
    with busy(tmp_path, FORKED) as process:
        with refused("base/folder-in-use", f"process {process.pid} "), held(tmp_path, pytest.fail):
            pass
        process.kill()
        process.wait()
        with held(tmp_path, pytest.fail):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        assert process.stdout.read() == "the worker ends\n", "it was alive all the time"


def test_without_locks_it_is_said_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    monkeypatch.setattr(fcntl, "flock", none)
    said: list[str] = []
    with held(tmp_path, said.append), locked(tmp_path / "other"):
        pass
    assert len(said) == 1
    assert str(tmp_path) in said[0]


def test_who_waits_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    with open(tmp_path / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def wait() -> None:
            said.append("waiting")
            fcntl.flock(file, fcntl.LOCK_UN)

        with locked(tmp_path / "lock", wait):
            assert said == ["waiting"]
    with locked(tmp_path / "lock", wait):
        assert said == ["waiting"]
