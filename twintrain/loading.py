"""Modules that are imported once they are asked for."""

from __future__ import annotations

import importlib
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.interrupts import loading_modules

OWN = ("coretrain", "torchtrain", "jaxtrain", "parity", "twintrain")


def loaded(module: str) -> Any:
    """The module. Raises `UserError` where a package isn't there that it needs."""
    try:
        with loading_modules():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", *OWN):
            raise
        raise UserError(
            "command/package-missing", f"{package} is not installed: pip install twintrain brings it"
        ) from None
