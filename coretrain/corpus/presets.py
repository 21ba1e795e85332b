"""The recipes that ship with twintrain. Importing this is quick: the help needs it."""

from __future__ import annotations

from coretrain.config.load import PRESETS as CONFIGS

PRESETS = CONFIGS / "data"
"""Their folder."""


def presets() -> list[str]:
    """Their names."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))
