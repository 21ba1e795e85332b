"""Results of the judge that few expect: shown, or refused in a sentence."""

from __future__ import annotations

import json

from parity.report import MUTANTS, MUTATION_RESULTS, write_report
from parity.results import read, read_mutants
from tests.support.fuzzing import damaged, ends_well, fuzzed
from tests.support.judged import gate, results, score

BUG = {
    "name": "a bug", "side": "jax", "area": "model", "about": "x", "declared": "logits", "killed_by": ["logits"],
    "equivalent": False, "expected_tap": "embed", "localized_tap": "embed",
}  # fmt: skip
CURVE = dict.fromkeys(("difference", "yardstick", "loss_torch", "loss_jax"), (1e-7, 0.0, 2.0))
ROW = {"stack": "jax", "site": "mlp", "variant": "a", "dtypes": ["float32"], "error": 0.5, "ok": True}


@fuzzed(4)
def test_results_of_the_judge(tmp_path_factory, random):
    folder = tmp_path_factory.mktemp("results")
    session = results(
        [gate(), gate("equal", 0, 0, 0), gate("none", None)], mutants=[BUG], trajectory={"a": CURVE}, dtypes=[ROW, ROW],
        kernels=[ROW], reduced_matmuls=[ROW], date="2026-01-01", seconds=3.0, variants=["a"],
    )  # fmt: skip
    paths = [folder / name for name in ("results.json", MUTATION_RESULTS, MUTANTS)]
    for path, value in zip(paths, (session, session, score()), strict=True):
        path.write_text(json.dumps(value))
    path = random.choice(paths)
    path.write_bytes(damaged(random, path))

    def show() -> None:
        write_report(read(paths[0]), folder / "page.html", read(paths[1]), read_mutants(paths[2]))

    ends_well(path.name, show)
