"""Where do a torch and a JAX computation part, and why: `python -m parity.localize CONFIG`, or two runs' folders.

    python -m parity.localize                        # the preset `tiny`, shrunk
    python -m parity.localize gpt2-124m --layers 3 --optimizer.beta2 0.999
    python -m parity.localize tiny --inputs FOLDER/localize.npz   # saved inputs
    python -m parity.localize runs/torch runs/jax    # two runs, trained again

A table and a verdict on the terminal; a page that plays both tap by tap, the picture, the text and the inputs in
`--output` (default runs/localize-TIME).

For a pair that isn't ours, `localize` takes any torch function and any JAX function of the same named numpy arrays that
call `tap("name", value)` (`coretrain.contract.taps`) under the same names; `localize_module` takes a torch module as it
is, and `hooked` taps one that is part of something else. `compare` takes what was recorded by other means. `example.py`
beside this file is an example.

    report = localize(torch_function, jax_function, {"x": x, "weight": weight})
    report.show()
    report.save(Path("runs/mine"))

Both are run in float64, which decides whether there's a bug, on their own (free) and with JAX teacher-forced
on torch's values, where only the segment that makes an error shows it; then backward the same way; and where nothing
parts, in float32 against the noise of the other framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.localize.pairs import compare, localize, localize_module
    from parity.localize.recorders import hooked, record_torch
    from parity.localize.search import jax_recorder, localize_config, localized_tap, search

__all__ = [
    "compare",
    "hooked",
    "jax_recorder",
    "localize",
    "localize_config",
    "localize_module",
    "localized_tap",
    "record_torch",
    "search",
]
_HOMES = {
    "pairs": ("compare", "localize", "localize_module"),
    "recorders": ("hooked", "record_torch"),
    "search": ("jax_recorder", "localize_config", "localized_tap", "search"),
}


def __getattr__(name: str) -> Any:
    """What is asked for, imported then: other people's pairs need no trainer."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"parity.localize.{home}"), name)
    raise AttributeError(name)
