"""Task functions for tests of the engine: they write, fail, die or wait as they are told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError

HERE = "tests.support.corpus_tasks"


def doubled(arguments: Mapping[str, Any], inputs: list[Path], outputs: list[Path]) -> dict[str, Any]:
    """Write all inputs and the text, twice; note the call in `arguments["calls"]`."""
    if "calls" in arguments:
        with open(arguments["calls"], "a", encoding="utf-8") as file:
            file.write("x")
    time.sleep(arguments.get("seconds", 0))
    text = "".join(path.read_text() for path in inputs) + arguments.get("text", "")
    for path in outputs:
        path.write_text(text * 2)
    return {"length": len(text)}


def dies(arguments: Mapping[str, Any], inputs: list[Path], outputs: list[Path]) -> dict[str, Any]:
    """Be killed in the first `times` calls."""
    count = Path(arguments["calls"])
    with open(count, "a", encoding="utf-8") as file:
        file.write("x")
    if len(count.read_text()) <= arguments["times"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return doubled({"text": "at last"}, inputs, outputs)


def waits(arguments: Mapping[str, Any], inputs: list[Path], outputs: list[Path]) -> dict[str, Any]:
    """Say which process this is, and take a minute."""
    Path(arguments["pid"]).write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def fails(arguments: Mapping[str, Any], inputs: list[Path], outputs: list[Path]) -> dict[str, Any]:
    """Raise what `arguments["how"]` names, with a half-written output."""
    outputs[0].write_text("half")
    if arguments["how"] == "user":
        raise UserError("corpus/test", "the file x is no y: give another")
    if arguments["how"] == "disk":
        raise OSError(28, "No space left on device", "/full/disk")
    if arguments["how"] == "memory":
        raise MemoryError("asked for too much")
    raise ZeroDivisionError("a fault of ours")
