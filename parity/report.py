"""One self-contained page of what the judge found: ladder, budgets, kill matrix, trajectories, dtypes, devices.

Usage: python -m parity.report [RESULTS.json] [--output PAGE.html]

It shows what the newest session of `pytest parity` has left, of the whole ladder or of a part of it (-k, -m), and adds
the kill matrix of the newest `pytest parity -m mutation`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import coretrain.journal.page
from coretrain.base.errors import Options, UserError, exits_cleanly
from coretrain.base.files import typed_path, write_atomically
from coretrain.journal.chart import Line, chart
from parity.gates import YARDSTICK
from parity.results import read

FOLDER = Path("runs/parity")
SESSIONS = ("results.json", "partial.json", "scale.json")
"""What sessions leave there: the whole ladder, a part of it that somebody has picked, many devices against one."""
MUTATION_RESULTS = "mutation.json"
"""Beside the results: those of the newest `pytest parity -m mutation`."""
MUST_MATCH = ("torch", "jax", "jaxlib", "flax", "optax", "numpy")
"""Packages whose versions must be alike, or the two sessions judged different programs."""
SMALLEST, LARGEST = 1e-18, 1.0
"""Ends of the bars' log scale."""
RUNGS = {
    "exact": "Equal to the last bit: names, first weights, token ids, dropout masks, checkpoints; rates to 1e-14.",
    "identity": "float64 on the CPU: a correct pair agrees to rounding, and almost no mistake hides below that.",
    "rounding": "Each stack in its training precision, on every device here, against float64 from the same weights.",
    "optimizer": "The same sequence of gradients into both optimizers: rounding of the model plays no part.",
    "trajectory": "200 updates in float32, against what a change of one unit in the last place does to one stack.",
    "dtypes": "The precision that each operation really computes in, against the policy.",
    "kernels": "Every attention kernel that runs here against the plain formula, forward and backward.",
    "generation": "Greedy and sampled tokens, with and without the key-value cache.",
    "invariance": "One stack against itself: micro-batches, recomputation, scan, compile, chunks.",
    "scale": "Many devices and processes against one.",
}
Results = Mapping[str, Any]


def write_report(results: Results, page: Path, mutation: Results | None = None) -> None:
    """Write the page of a session's `results`, with the kill matrix of `mutation` where that is another session."""
    mutants = (mutation or results).get("mutants") or []
    gates = results["gates"]
    held = [gate for gate in gates if gate["status"] != "not run"]
    failed = [gate for gate in held if gate["status"] != "ok"]
    missing = len(gates) - len(held)
    survivors = _survivors(mutants) or len((mutation or {}).get("failures", ()))
    good = not failed and not results["failures"] and not missing and not survivors
    verdict = (
        "the stacks differ" if failed or results["failures"]
        else f"no verdict: {len(held)} of {len(gates)} gates judged" if missing
        else "the stacks agree, and the judge has let planted bugs through" if survivors
        else "the stacks agree"
    )  # fmt: skip
    look = "finished" if good else "stopped"
    body = [
        f'<header><h1>Parity</h1><span class="status {look}">{verdict}</span></header>',
        '<p class="sub">torchtrain and jaxtrain carry out one contract. Here is how equal their training is, on which'
        " devices that was measured, what would have been noticed, and what was not run.</p>",
        '<div class="cards">' + "".join(_cards(results, held, failed, mutants)) + "</div>",
        _ladder(gates),
        _trajectory(results.get("trajectory") or {}),
        _kills(mutants, mutation),
        _dtypes(results.get("dtypes") or []),
        _kernels(results.get("kernels") or []),
        _reduced(results.get("reduced_matmuls") or []),
        _not_run(results["not_run"]),
        _setting(results),
        "<footer>Made by twintrain's judge from the figures that pytest parity measured.</footer>",
    ]
    here = Path(coretrain.journal.page.__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    own = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    write_atomically(
        page,
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>Parity - twintrain</title><style>{style}{own}</style></head><body>"
            + "\n".join(part for part in body if part)
            + f"<script>{script}</script></body></html>\n"
        ).encode(),
    )


def _cards(results: Results, held: Sequence[Any], failed: Sequence[Any], mutants: Sequence[Any]) -> Iterable[str]:
    yield _card(f"{len(held) - len(failed)} of {len(results['gates'])}", "gates under their caps")
    by_name = {gate["name"]: gate for gate in held}
    for name, words in (("logits", "logits, float64"), ("every gradient", "worst gradient, float64")):
        if name in by_name:
            yield _card(_figure(by_name[name]["error"]), words)
    planted = [mutant for mutant in mutants if not mutant["equivalent"]]
    if planted:
        dead = sum(mutant["declared"] in mutant["killed_by"] for mutant in planted)
        yield _card(f"{dead} of {len(planted)}", "planted bugs killed")
        sought = [mutant for mutant in planted if mutant.get("expected_tap")]
        if found := [mutant for mutant in sought if mutant.get("localized_tap") is not None]:
            right = sum(mutant["localized_tap"] == mutant["expected_tap"] for mutant in found)
            yield _card(f"{right} of {len(found)}", "model bugs traced to their place")
    yield _card(", ".join(device["name"] for device in results["devices"]), "devices judged")


def _card(value: str, words: str) -> str:
    return f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(words)}</span></div>'


def _ladder(gates: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        "<section><h2>The ladder</h2><p>Every gate has a cap, and the floor that a correct pair was measured at. The"
        " dot is this session's worst figure, the ring the floor, the tick the cap, on a log scale from 1e-18 to 1.</p>"
    ]
    for rung, words in RUNGS.items():
        rows = [gate for gate in gates if gate["rung"] == rung]
        if not rows:
            continue
        parts.append(f"<h3>{rung.capitalize()}</h3><p>{html.escape(words)}</p>")
        head = "".join(f"<th>{name}</th>" for name in ("gate", "", "worst", "cap", "", "would catch"))
        body = "".join(
            f"<tr><td>{html.escape(gate['name'])}<br><span class='why'>{html.escape(gate['where'])}</span></td>"
            f"<td>{_bar(gate)}</td><td class='num'>{_figure(gate['error'])}</td>"
            f"<td class='num'>{_figure(gate['cap'])}</td><td>{_mark(gate['status'])}</td>"
            f"<td class='why'>{html.escape(gate['catches'])}</td></tr>"
            for gate in rows
        )
        parts.append(f"<table class='ladder gates'><tr>{head}</tr>{body}</table>")
    return "".join(parts) + "</section>"


def _bar(gate: Mapping[str, Any]) -> str:
    if gate["cap"] == 0 and not gate["error"]:
        return ""  # equal: nothing to draw on a log scale

    def x(value: float) -> float:
        share = (math.log10(min(max(value, SMALLEST), LARGEST)) - math.log10(SMALLEST)) / -math.log10(SMALLEST)
        return 6 + 218 * share

    cap = x(gate["cap"])
    parts = ['<line class="track" x1="6" x2="224" y1="10" y2="10"/>']
    parts.append(f'<line class="room" x1="6" x2="{cap:.0f}" y1="10" y2="10"/>')
    parts.append(f'<circle class="floor" cx="{x(gate["floor"]):.0f}" cy="10" r="5"/>' if gate["floor"] else "")
    if gate["error"] is not None:
        look = "dot" if gate["status"] == "ok" else "over"
        parts.append(f'<circle class="{look}" cx="{x(gate["error"]):.0f}" cy="10" r="3.5"/>')
    parts.append(f'<line class="cap" x1="{cap:.0f}" x2="{cap:.0f}" y1="3" y2="17"/>')
    return f'<svg class="bar" viewBox="0 0 230 20" aria-hidden="true">{"".join(parts)}</svg>'


def _figure(value: float | None) -> str:
    if value is None:
        return "&ndash;"
    if value == 0 or (value >= 0.1 and value < 1000):
        return f"{value:g}" if value == round(value, 2) else f"{value:.2f}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e+")


def _mark(status: str) -> str:
    look = {"ok": "ok", "not run": "none"}.get(status, "fail")
    return f'<span class="{look} num">{html.escape(status)}</span>'


def _trajectory(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    figures = []
    for variant, curves in facts.items():
        tail, updates = f", {variant}", list(range(len(curves["difference"])))
        lines = [Line("between the stacks", curves["difference"]), Line("1 ULP", curves["yardstick"], "faint")]
        figures.append(chart(f"How far apart{tail}", "loss, nats", updates, lines, log=True))
        lines = [Line("PyTorch", curves["loss_torch"], "faint"), Line("JAX", curves["loss_jax"])]
        figures.append(chart(f"Loss{tail}", "nats a token", updates, lines))
    return (
        "<section><h2>float32 over 200 updates</h2><p>Rounding grows while a model trains, in one framework too. So"
        " each stack trains from the same weights and three times from weights moved by one unit in the last place."
        " The yardstick is how far one stack's own runs part, in the stack where they part less; against it stands the"
        f" pair of runs that parts least. A correct pair is up to {YARDSTICK.floor:g} times as far apart, and may be"
        f' {YARDSTICK.cap:g} times.</p><div class="grid2">{"".join(figures)}</div></section>'
    )


def _survivors(mutants: Sequence[Mapping[str, Any]]) -> int:
    """Bugs that their gate let through, and equivalents that a gate told apart."""
    return sum(bool(m["killed_by"]) if m["equivalent"] else m["declared"] not in m["killed_by"] for m in mutants)


def _kills(mutants: Sequence[Mapping[str, Any]], mutation: Results | None) -> str:
    if not mutants:
        return (
            "<section><h2>Planted bugs</h2><p>Not run in this session: pytest parity -m mutation plants each known bug"
            " and fills this table.</p></section>"
        )
    parts = []
    for area in dict.fromkeys(mutant["area"] for mutant in mutants):
        rows = "".join(_kill(mutant) for mutant in mutants if mutant["area"] == area)
        parts.append(f"<tr><th colspan='5'>{html.escape(area)}</th></tr>{rows}")
    head = "".join(f"<th>{name}</th>" for name in ("bug", "planted in", "must be killed by", "killed by", "traced to"))
    return (
        "<section><h2>Planted bugs</h2><p>A judge that has never convicted proves nothing. Each of these mistakes was"
        " planted in one stack while the other stayed as it is; the gate named beside it has to notice. Equivalents"
        f" change nothing that matters, and nothing may notice them.{html.escape(_session(mutation))}</p>"
        f"<table class='kills'><tr>{head}</tr>{''.join(parts)}</table></section>"
    )


def _session(mutation: Results | None) -> str:
    if mutation is None:
        return ""
    versions = ", ".join(f"{name} {mutation['versions'][name]}" for name in MUST_MATCH if name in mutation["versions"])
    failures = len(mutation["failures"])
    return f" Planted {mutation.get('date', 'at an unknown time')} with {versions}" + (
        f"; {failures} tests of that session failed." if failures else "."
    )


def _kill(mutant: Mapping[str, Any]) -> str:
    gates = mutant["killed_by"]
    declared = mutant.get("declared") or "nothing: equivalent"
    if mutant["equivalent"]:
        outcome = '<span class="fail">false alarm</span>' if gates else '<span class="ok">let through</span>'
    else:
        more = f" and {len(gates) - 1} more" if len(gates) > 1 else ""
        outcome = f'<span class="ok">killed</span>{more}' if declared in gates else '<span class="fail">LIVES</span>'
    tap, expected = mutant.get("localized_tap"), mutant.get("expected_tap")
    tap = "nowhere" if tap == "" else tap or ""
    wrong = f' <span class="fail">(expected {html.escape(expected)})</span>' if expected and tap != expected else ""
    return (
        f"<tr><td>{html.escape(mutant['name'])}<br><span class='why'>{html.escape(mutant['about'])}</span></td>"
        f"<td>{mutant['side']}</td><td class='why'>{html.escape(declared)}</td><td class='num'>{outcome}</td>"
        f"<td class='why'>{html.escape(tap)}{wrong if tap else ''}</td></tr>"
    )


def _rows_section(title: str, words: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td class='num'>{_cell(row.get(name))}</td>" for name in names) + "</tr>" for row in rows
    )
    return (
        f"<section><details><summary>{html.escape(title)}</summary><p>{html.escape(words)}</p>"
        f"<table class='ladder'><tr>{head}</tr>{body}</table></details></section>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return _figure(value)
    if isinstance(value, list):
        return html.escape(", ".join(map(str, value)))
    return _mark(value) if value in ("ok", "FAIL", "not run") else html.escape(str(value))


def _dtypes(rows: Sequence[Mapping[str, Any]]) -> str:
    return _rows_section(
        "Precision of every kind of operation",
        "Read from JAX's jaxpr and from torch's dispatcher, against the precision policy.",
        rows,
    )


def _kernels(rows: Sequence[Mapping[str, Any]]) -> str:
    return _rows_section("Attention kernels", "Those that can't run on this machine are listed, not counted.", rows)


def _reduced(rows: Sequence[Mapping[str, Any]]) -> str:
    return _rows_section(
        "What reduced-precision matmuls would cost",
        "They are off wherever parity is measured; here they were switched on, or emulated, to show what that does.",
        rows,
    )


def _not_run(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{html.escape(what)}</td><td class='why'>{html.escape(why)}</td></tr>" for what, why in rows
    )
    return (
        "<section><h2>Not run</h2><p>This machine can't judge these; they are not part of the verdict above.</p>"
        f"<table class='ladder'>{body}</table></section>"
    )


def _setting(results: Results) -> str:
    machine = [(key, str(value)) for key, value in results["machine"].items() if value is not None]
    versions = [(key, str(value)) for key, value in results["versions"].items() if value is not None]
    rest = [("variants", ", ".join(results.get("variants", []))), ("seconds", f"{results.get('seconds', 0):,.0f}")]
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>"
        for key, value in [*machine, *versions, *rest]
    )
    failures = "".join(f"<li>{html.escape(name)}</li>" for name in results["failures"])
    return (f"<section><h2>Failed tests</h2><ul>{failures}</ul></section>" if failures else "") + (
        f"<section><h2>Where this was measured</h2><table>{rows}</table></section>"
    )


def newest(folder: Path) -> Path:
    """The results of the newest session that has left some; of the whole ladder where there are none, to be missed."""
    there = [path for name in SESSIONS if (path := folder / name).is_file()]
    return max(there, key=lambda path: path.stat().st_mtime, default=folder / SESSIONS[0])


def _other_versions(results: Results, mutation: Results) -> str:
    pairs = {name: (results["versions"].get(name), mutation["versions"].get(name)) for name in MUST_MATCH}
    return ", ".join(f"{name} {theirs}, not {ours}" for name, (ours, theirs) in pairs.items() if ours != theirs)


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
    if mutation and (stale := _other_versions(results, mutation)):
        print(f"{other} is left out, it is of other versions ({stale}): run pytest parity -m mutation again")
        mutation = None
    # a part doesn't take the place of the whole ladder's page
    own = f"report-{source.stem}.html" if source.name in SESSIONS[1:] else "report.html"
    page = given.output or source.with_name(own)
    if page.is_dir() or not all(parent.is_dir() for parent in page.parents if parent.exists()):
        raise UserError(
            "parity/output-not-a-file",
            f"--output {page} is a folder, or lies in a file: give a path like report.html",
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_report(results, page, mutation)
    print(page)
    return 0


if __name__ == "__main__":
    exits_cleanly(main)()
