"""The documents of this room's tests: of many lengths, with characters of several bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.corpora import make_texts, write_texts


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The folder of 120 documents, a test's own: it may change them."""
    return write_texts(tmp_path / "corpus", make_texts(120))
