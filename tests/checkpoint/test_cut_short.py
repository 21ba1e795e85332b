"""A kill, a limit or a full disk leaves the earlier checkpoints whole."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from coretrain.base.safetensors import TensorWriter
from coretrain.checkpoint import manifest
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import load_interchange, save_interchange
from coretrain.checkpoint.manifest import seal
from jaxtrain.checkpoint import save_native
from tests.support.checkpoints import CONFIG, PROGRESS, groups, native, updates
from tests.support.commands import ROOT, environment

FILL = """
import resource, signal, sys
from pathlib import Path
from tests.support.checkpoints import CONFIG, PROGRESS, groups
from coretrain.checkpoint.interchange import save_interchange
from coretrain.base.errors import exits_cleanly
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    save_interchange(Path(sys.argv[1]), CONFIG, groups(), PROGRESS, "torch")
except OSError as error:
    print(error.errno)
"""


@pytest.mark.whole
def test_a_write_cut_off_by_the_system_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILL, str(tmp_path / "i")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert result.stdout.strip() == str(errno.EFBIG), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_the_same_error_in_jax(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """tensorstore has a ValueError of many words for it, and Orbax's threads print where each of them was."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = {"parameters": {name: jax.random.normal(jax.random.key(0), (100, 100)) for name in "abcd"}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_native(tmp_path, state).result()
        gc.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Traceback" not in caplog.text + capfd.readouterr().err


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "i"
    save_interchange(target, CONFIG, groups(), PROGRESS, "torch")
    real = TensorWriter.add

    def full(self: TensorWriter, name: str, value: np.ndarray) -> None:
        if self.filled > 20_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        real(self, name, value)

    monkeypatch.setattr(TensorWriter, "add", full)
    with pytest.raises(OSError, match="No space left"):
        save_interchange(target, CONFIG, groups(), replace(PROGRESS, update=8), "torch")
    assert [path.name for path in tmp_path.iterdir()] == ["i"]
    assert load_interchange(target).progress == PROGRESS


def test_a_full_disk_while_sealing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    native(folder, 100)
    temporary = folder.begin(200)
    (temporary / "state.pt").write_bytes(b"x")

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(manifest, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        seal(temporary, PROGRESS, CONFIG, "torch")
    assert updates(folder) == ["update-00000100"]
    folder.abandon(temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["update-00000100"]


SAVE_FOREVER = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.support.checkpoints import CONFIG, PROGRESS, groups
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import save_interchange
saved = groups()
folder = CheckpointFolder(Path(sys.argv[1]))
for update in range(1, 100_000):
    save_interchange(folder.final(update), CONFIG, saved, replace(PROGRESS, update=update), "torch", 20_000)
    folder.prune(2)
    if update == 3:
        print("ready", flush=True)
"""


@pytest.mark.whole
def test_killed_at_any_moment_the_newest_complete_one_is_whole(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for trial in range(4):
        place = tmp_path / str(trial)
        command = [sys.executable, "-c", SAVE_FOREVER, str(place)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(float(draw.uniform(0, 0.2)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        folder = CheckpointFolder(place)
        said: list[str] = []
        path, loaded = folder.first_that_loads(lambda path, progress: load_interchange(path), said.append)
        assert said == []
        assert path == folder.final(loaded.progress.update)
        for name, value in groups()["parameters"].items():
            assert loaded.groups["parameters"][name].tobytes() == value.tobytes()
        folder.begin(99_999).rmdir()
        assert not list(place.glob(".tmp-*")), "the next save removes what the killed one left"
