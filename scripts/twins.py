"""Two runs of one config as a picture and a sentence: their losses, and how far apart they are.

Usage: python scripts/twins.py RUN_A RUN_B PICTURE.png
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that isn't installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from coretrain.errors import UserError, exits_cleanly


@dataclass
class Curve:
    """What one run's metrics.jsonl says."""

    label: str
    losses: dict[int, float]
    batches: dict[int, str]
    validation: dict[int, float]


def read(run: Path) -> Curve:
    """The curve of a run; `UserError` where there is none."""
    path, config = run / "metrics.jsonl", run / "config.json"
    if not path.is_file() or not config.is_file():
        raise UserError(f"{run}: no metrics.jsonl and config.json there; name the folder of a run")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    updates = [row for row in rows if "loss" in row]
    if not updates:
        raise UserError(f"{path}: it has no update yet; wait for the run to begin")
    validation = {row["update"]: row["val_loss"] for row in rows if "val_loss" in row}
    losses = {row["update"]: row["loss"] for row in updates}
    return Curve(run.name, losses, {row["update"]: row["batch_hash"] for row in updates}, validation)


def draw(a: Curve, b: Curve, picture: Path) -> None:
    """Losses above, their difference below on a log scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    both = sorted(a.losses.keys() & b.losses.keys())
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 5.6), sharex=True, height_ratios=[2.2, 1], layout="constrained"
    )
    for curve, color, width in ((a, "#d9480f", 2.6), (b, "#1864ab", 1.0)):
        top.plot(both, [curve.losses[u] for u in both], color=color, linewidth=width, label=f"{curve.label}, training")
        top.plot(
            curve.validation.keys(), curve.validation.values(), "o", color=color, markersize=11 - 4 * (curve is b),
            markerfacecolor="none" if curve is a else color, label=f"{curve.label}, validation",
        )  # fmt: skip
    top.set_ylabel("loss, nats a token")
    top.legend(frameon=False)
    smallest = 1e-8  # equal losses have no place on a log scale
    bottom.semilogy(both, [max(abs(a.losses[u] - b.losses[u]), smallest) for u in both], color="#495057", linewidth=0.9)
    bottom.set_ylabel("|difference|")
    bottom.set_xlabel("update")
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=130)


def sentence(a: Curve, b: Curve) -> str:
    """Batches, first losses, the largest difference and the last validation losses."""
    both = sorted(a.losses.keys() & b.losses.keys())
    gaps = [abs(a.losses[u] - b.losses[u]) for u in both]
    apart = [a.batches[u] != b.batches[u] for u in both]
    until = {cap: next((i for i, gap in enumerate(gaps) if gap > cap), len(gaps)) for cap in (1e-6, 1e-4)}
    lines = [
        f"{len(both)} updates of both; token ids differ at {sum(apart)}; first loss {a.losses[both[0]]:.6f} and"
        f" {b.losses[both[0]]:.6f}.",
        f"The losses of the first {until[1e-6]} updates are within 1e-6 ({sum(gap == 0 for gap in gaps)} are equal),"
        f" of the first {until[1e-4]} within 1e-4; the largest difference of all is {max(gaps):.4f}.",
    ]
    ends = sorted(a.validation.keys() & b.validation.keys())
    if ends:
        x, y = a.validation[ends[-1]], b.validation[ends[-1]]
        lines.append(f"Validation loss after {ends[-1]} updates: {x:.4f} and {y:.4f}, {abs(x - y) / y:.2%} apart.")
    return "\n".join(lines)


def main() -> int:
    """Draw, and say how far apart they are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("picture", type=Path, help="PNG to write")
    given = parser.parse_args()
    a, b = map(read, given.runs)
    draw(a, b, given.picture)
    print(sentence(a, b))
    return 0


if __name__ == "__main__":
    exits_cleanly(main)()
