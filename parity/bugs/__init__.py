"""The bugs that people made, by subject: importing this registers all of them in `MUTANTS`."""

from __future__ import annotations

import importlib

from parity.mutants import MUTANTS

__all__ = ["FEW", "MUTANTS", "SUBJECTS"]

SUBJECTS = (
    "norms", "attention", "model", "loss", "initial", "dropout", "optimizer", "clip", "schedule", "data", "checkpoint",
    "generation", "sampler", "health", "dtypes", "contract", "budgets", "ways", "adapters", "adapter_kinds",
    "quantized", "chat", "policy", "preferences", "equivalents",
)  # fmt: skip
"""The modules of this package, in the order in which their bugs are registered."""

for subject in SUBJECTS:
    importlib.import_module(f"{__name__}.{subject}")

FEW = {
    "torch": (
        "gelu constant of ten digits",
        "norm epsilon in one layer only",
        "fast variance",
        "norm in the compute dtype",
        "window lost on resume",
        "mean of means",
        "gradients summed for averaged",
        "dropout stream reused across updates",
        "clip without epsilon",
        "decay on the updated parameter",
        "every epoch in the same order",
        "weights rounded to float32 on export",
        "finite mask value",
        "numbers keyed by the place in the batch",
        "the smaller of two losses",
        "lengths count one token more",
    ),
    "jax": (
        "attention scale off by a millionth",
        "init from another stream",
        "dropout of whole tokens",
        "softmax in the compute dtype",
        "no update at all",
        "decay on biases and gains",
        "cosine over one update less",
        "rows permuted inside a batch",
        "moments left out on adoption",
        "kept rows of the cache exchanged",
        "padding in the mean",
        "second pair of a row the wrong way round",
    ),
}
"""What `pytest parity` runs by default: of every area some, on both sides, chosen for what they cost to compile."""
