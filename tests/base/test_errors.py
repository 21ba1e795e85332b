"""Errors that are the user's to mend are one sentence with a way out; all others are tracebacks."""

from __future__ import annotations

import errno
import os

import pytest

from coretrain.base.errors import RESUME, exits_cleanly

NAMES = ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENAMETOOLONG", "EISDIR")


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


def test_what_is_not_the_users():
    def main():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        exits_cleanly(main)()
