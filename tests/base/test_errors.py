"""Errors that are the user's to mend are one sentence with a way out; all others are tracebacks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from coretrain.base.errors import RESUME, exits_cleanly
from tests.support.commands import environment

NAMES = ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENAMETOOLONG", "EISDIR", "ENOENT", "ELOOP")


@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_takes_nothing(capsys, name):
    def main():
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number), "some/place")

    for wrapped, way_out in ((exits_cleanly(main), "run the same again"), (exits_cleanly(main, RESUME), "--resume")):
        with pytest.raises(SystemExit) as left:
            wrapped()
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {os.strerror(getattr(errno, name))} at some/place: free or change the place")
        assert said.count("\n") == 1
        assert way_out in said
        assert ("--resume" in said) == (way_out == "--resume")


@pytest.mark.parametrize(("name", "place"), [("EIO", None), ("ENOENT", "no-such-program"), ("ENOENT", "/no-such-file")])
def test_what_is_not_the_users(name, place):
    def main():
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)), place)

    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        exits_cleanly(main)()


OTHERS = """
import torchtrain
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("cleaned up")
"""


def test_ctrl_c_stays_with_other_peoples_programs_that_import_us(tmp_path):
    """`python -m theirs` looks as ours do while its package is imported."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text(OTHERS)
    (tmp_path / "theirs" / "__main__.py").write_text("")
    command = [sys.executable, "-m", "theirs"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "cleaned up\n"), done.stderr


PROGRAM = """
import sys
from coretrain.base.errors import exits_cleanly

def main():
    print("caf\\u00e9 \\U0001f680 \\udcff")
    if len(sys.argv) > 1:
        raise KeyboardInterrupt

exits_cleanly(main)()
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "gbk", "utf-8"])
def test_a_terminal_shows_what_its_encoding_has(encoding):
    told = environment(PYTHONIOENCODING=encoding)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, env=told)
    said = "caf\u00e9 \U0001f680 \udcff\n".encode(encoding, "replace")
    assert (done.returncode, done.stdout, done.stderr) == (0, said, b"")


def test_ctrl_c_and_an_output_that_is_closed_are_no_tracebacks():
    done = subprocess.run([sys.executable, "-c", PROGRAM, "interrupt"], capture_output=True, env=environment())
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")
    line = f"{sys.executable} -c '{PROGRAM}' >&-"
    closed = subprocess.run(line, shell=True, stderr=subprocess.PIPE, env=environment())
    assert (closed.returncode, closed.stderr) == (0, b"")
