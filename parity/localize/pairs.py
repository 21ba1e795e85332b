"""Any torch function beside any JAX function: where the two part. The whole way is in `parity.pairs`."""

from __future__ import annotations

from dataclasses import replace

from coretrain.base.arrays import Tensors
from coretrain.base.errors import UserError
from parity.localize.judge import judge
from parity.localize.recorders import Record
from parity.localize.rounding import evidence_of
from parity.localize.rows import FORWARD, tap_rows
from parity.localize.show import Report
from parity.page.film import film
from parity.pairs.judging import localize, localize_module

__all__ = ["compare", "localize", "localize_module"]


def compare(torch_tensors: Tensors, jax_tensors: Tensors, cap: float = FORWARD, title: str = "compare") -> Report:
    """The verdict on tensors recorded by any means, by name in the order of the computation."""
    if not torch_tensors and not jax_tensors:
        raise UserError("parity/nothing-to-compare", "compare has no tensors on either side: record some first")
    rows = [replace(row, cap=cap) for row in tap_rows(Record(dict(torch_tensors)), Record(dict(jax_tensors)), None)]
    verdict = judge(rows)
    ours, theirs = Record(dict(torch_tensors)), Record(dict(jax_tensors))
    return Report(title, rows, verdict, evidence_of(verdict, ours, theirs), frames=film(ours, theirs, None))
