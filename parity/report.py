"""One self-contained page of what the judge found: machine, ladder, mutants, planted bugs, and what was not run.

Usage: python -m parity.report [RESULTS.json] [--output PAGE.html]

It shows what the newest session of `pytest parity` has left, of the whole ladder or of a part of it (-k, -m), and adds
the kill matrix of the newest `pytest parity -m mutation` and the score of `python -m parity.mutation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coretrain.base.errors import Options, UserError, exits_cleanly
from coretrain.base.files import typed_path, write_atomically
from coretrain.journal.chart import Line, chart
from parity.gates import YARDSTICK
from parity.page import facts, ladder, mutants, planted
from parity.page.render import figure, render
from parity.results import read, read_mutants

FOLDER = Path("runs/parity")
SESSIONS = ("results.json", "partial.json", "scale.json")
"""What sessions leave there: the whole ladder, a part of it that somebody has picked, many devices against one."""
MUTATION_RESULTS = "mutation.json"
"""Beside the results: those of the newest `pytest parity -m mutation`."""
MUTANTS = "mutants.json"
"""Beside the results: those of the newest `python -m parity.mutation`."""
PARTS = {
    "machine": "machine", "nearest": "nearest to their caps", "ladder": "ladder", "trajectory": "trajectory",
    "mutation": "mutants", "planted": "planted bugs", "not-run": "not run",
}  # fmt: skip
"""Places of the page that its head links to."""
Results = Mapping[str, Any]


def write_report(
    results: Results, page: Path, mutation: Results | None = None, score: Mapping[str, Any] | None = None
) -> None:
    """Write the page of a session's `results`, with the kill matrix of `mutation` where that is another session.

    `score` is what `python -m parity.mutation` has left.
    """
    bugs = (mutation or results).get("mutants") or []
    gates = results["gates"]
    held = [gate for gate in gates if gate["status"] != "not run"]
    failed = [gate for gate in held if gate["status"] != "ok"]
    missing = len(gates) - len(held)
    survivors = planted.score(bugs)["lives"] or len((mutation or {}).get("failures", ()))
    good = not failed and not results["failures"] and not missing and not survivors
    verdict = (
        "the stacks differ" if failed or results["failures"]
        else f"no verdict: {len(held)} of {len(gates)} gates judged" if missing
        else "the stacks agree, and the judge has let planted bugs through" if survivors
        else "the stacks agree"
    )  # fmt: skip
    shown = mutants.shown(score) if score else None
    charts = list(_charts(results.get("trajectory") or {}))
    not_run, nearest = facts.not_run(results), ladder.nearest(held)
    empty = {"trajectory": charts, "not-run": not_run, "nearest": nearest}
    text = render(
        "report.html",
        ("report.css",),
        (),
        title="Parity",
        verdict=verdict,
        look="finished" if good else "stopped",
        parts=[(place, words) for place, words in PARTS.items() if empty.get(place, True)],
        cards=[*_cards(results, len(held) - len(failed), bugs, shown)],
        failures=results["failures"],
        machine=facts.machine(results),
        nearest=nearest,
        rungs=ladder.rungs(gates),
        charts=charts,
        yardstick=YARDSTICK,
        mutants=shown,
        areas=planted.areas(bugs),
        session=planted.session(mutation),
        operations=facts.operations(results.get("dtypes") or []),
        kernels=results.get("kernels") or [],
        reduced=results.get("reduced_matmuls") or [],
        not_run=not_run,
        columns=facts.columns,
        said=facts.said,
    )
    write_atomically(page, text)


def _cards(results: Results, good: int, bugs: Any, shown: Mapping[str, Any] | None) -> Iterable[tuple[str, str]]:
    """Figures of the page's head, each with its words."""
    yield f"{good} of {len(results['gates'])}", "gates under their caps"
    by_name = {gate["name"]: gate for gate in results["gates"] if gate["error"] is not None}
    for name, words in (("logits", "logits, float64"), ("every gradient", "worst gradient, float64")):
        if name in by_name:
            yield figure(by_name[name]["error"]), words
    score = planted.score(bugs)
    if score["planted"]:
        yield f"{score['dead']} of {score['planted']}", "planted bugs killed"
    if score["sought"]:
        yield f"{score['right']} of {score['sought']}", "model bugs found at their tap"
    if shown and shown["judged"]:
        yield f"{100 * shown['killed'] / shown['judged']:.1f}%", "mutants of the source killed"
    yield ", ".join(device["name"] for device in results["devices"]), "devices judged"


def _charts(curves: Mapping[str, Any]) -> Iterable[str]:
    for variant, given in curves.items():
        of = {name: [math.nan if value is None else value for value in values] for name, values in given.items()}
        tail, updates = f", {variant}", list(range(len(of["difference"])))
        lines = [Line("between the stacks", of["difference"]), Line("1 ULP", of["yardstick"], "faint")]
        yield chart(f"How far apart{tail}", "loss, nats", updates, lines, log=True)
        lines = [Line("PyTorch", of["loss_torch"], "faint"), Line("JAX", of["loss_jax"])]
        yield chart(f"Loss{tail}", "nats a token", updates, lines)


def newest(folder: Path) -> Path:
    """The results of the newest session that has left some; of the whole ladder where there are none, to be missed."""
    there = [path for name in SESSIONS if (path := folder / name).is_file()]
    return max(there, key=lambda path: path.stat().st_mtime, default=folder / SESSIONS[0])


def main() -> int:
    """Write the page, and say where it is."""
    parser = Options(prog="python -m parity.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "results", nargs="?", type=typed_path, help=f"the newest of {', '.join(SESSIONS)} in {FOLDER} by default"
    )
    parser.add_argument("--output", type=typed_path, help="the page (default: beside the results)")
    given = parser.parse_args()
    source = given.results or newest(FOLDER)
    results = read(source)
    if source.name in SESSIONS[1:]:
        print(f"{source} is of a part of the ladder: the gates that no test of it held are listed as not run")
    other = source.with_name(MUTATION_RESULTS)
    mutation = read(other) if other.is_file() else None
    if mutation and (stale := planted.other_versions(results, mutation)):
        print(f"{other} is left out, it is of other versions ({stale}): run pytest parity -m mutation again")
        mutation = None
    edited = source.with_name(MUTANTS)
    score = read_mutants(edited) if edited.is_file() else None
    # a part doesn't take the place of the whole ladder's page
    own = f"report-{source.stem}.html" if source.name in SESSIONS[1:] else "report.html"
    page = given.output or source.with_name(own)
    if page.is_dir() or not all(parent.is_dir() for parent in page.parents if parent.exists()):
        raise UserError(
            "parity/output-not-a-file",
            f"--output {page} is a folder, or lies in a file: give a path like report.html",
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_report(results, page, mutation, score)
    print(page)
    return 0


if __name__ == "__main__":
    exits_cleanly(main)()
