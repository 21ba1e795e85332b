"""Files are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from coretrain.base.files import write_atomically


def test_write_atomically_takes_text(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", json.dumps({"ü": 1}))
    write_atomically(tmp_path / "a.json", '{"ü": 2}')
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ü": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
