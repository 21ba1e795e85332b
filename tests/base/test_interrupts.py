"""Ctrl-C where others answer it: processes that were started for us never see it, and we do."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from coretrain.base.interrupts import ctrl_c_for_parent
from coretrain.data.encode import encode_in_order
from tests.support.blocked import Blocked

STRUCK = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('lives')"


def blocked() -> set[int]:
    """The signals that this thread doesn't get now."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_process_started_in_the_block_never_sees_ctrl_c() -> None:
    before = blocked()
    with ctrl_c_for_parent():
        started = subprocess.run([sys.executable, "-c", STRUCK], capture_output=True, text=True)
    assert (started.returncode, started.stdout) == (0, "lives\n")
    assert blocked() == before


def test_ctrl_c_during_the_block_comes_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    before = signal.signal(signal.SIGINT, lambda *_: steps.append("Ctrl-C"))
    try:
        with ctrl_c_for_parent():
            signal.raise_signal(signal.SIGINT)
            steps.append("the block ends")
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == ["the block ends", "Ctrl-C"]


def test_who_blocks_it_already_still_does() -> None:
    with ctrl_c_for_parent():
        with ctrl_c_for_parent():
            pass
        assert signal.SIGINT in blocked()


def test_processes_that_tokenize_never_see_ctrl_c() -> None:
    documents = [SimpleNamespace(text="x")]
    found = [ids for _, ids in encode_in_order(documents, Blocked(), 2, None)]
    assert np.array_equal(found, [[1, 0]]), "1 where it is blocked"
    assert signal.SIGINT not in blocked()
