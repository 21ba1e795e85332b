"""A mistake of a user, as a test expects it: by its code, and by the names that its sentence must hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from coretrain.base.errors import UserError


@contextlib.contextmanager
def refused(code: str, *names: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect a `UserError` of this code, whose sentence holds all of `names`.

    The sentence itself stands in `tests/structure/error_sentences.txt`; `names` are what is filled in.
    """
    with pytest.raises(UserError) as caught:
        yield caught
    assert caught.value.code == code, f"{caught.value.code}: {caught.value}"
    assert [name for name in names if name not in str(caught.value)] == [], str(caught.value)
