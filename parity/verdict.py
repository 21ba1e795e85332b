"""What two computations' taps say: rows of errors, the first that parts, a verdict, a table, a picture, a npz."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parity.compare import nrel
from parity.recorders import LOSS, Record

# Floors: the worst of a correct pair over the variants and weight states of parity/test_localize.py, x86 CPU, torch
# 2.13.0, jax 0.10.2, float64. Each cap lies under the smallest bug that the tests plant, a GELU constant wrong in its
# 11th digit (3e-11 at its tap).
FORWARD, FORWARD_FLOOR = 1e-13, 9e-16
COTANGENT, COTANGENT_FLOOR = 1e-13, 5e-15
GRADIENT, GRADIENT_FLOOR = 1e-13, 2e-14
STATE, STATE_FLOOR = 1e-12, 5e-14
SCALAR, SCALAR_FLOOR = 1e-13, 1e-15
NOISE = 1e-12
"""A gradient this much smaller than the largest one, in both stacks, is zero in exact arithmetic: not compared."""

WORDS = {
    "cotangent": "cotangent of ",
    "gradient": "gradient of ",
    "accumulated": "accumulated gradient of ",
    "first_moment": "first moment of ",
    "second_moment": "second moment of ",
    "momentum": "momentum of ",
    "parameter": "step of ",
    "parameters": "parameter ",
}
"""How a name is read, by stage."""

PANELS = {
    "forward": "Values",
    "cotangent": "Cotangents, last to first",
    "loss": "Loss, update by update",
    "norm": "Gradient norm, update by update",
}
"""Stages that are drawn as lines of their own."""

TRAPS = {
    "embed": "ids off by one or out of range, positions that start at 1, dropout whose scale or stream differs",
    "norm": "epsilon, variance over n or n - 1, E[x^2] - E[x]^2, gain or bias left out, low precision",
    "q": "weight not transposed (Conv1D, Linear), order of q, k, v in a joint matrix, heads split another way, a bias",
    "k": "weight not transposed (Conv1D, Linear), order of q, k, v in a joint matrix, heads split another way, a bias",
    "v": "weight not transposed (Conv1D, Linear), order of q, k, v in a joint matrix, heads split another way, a bias",
    "rotated": "RoPE interleaved against half-split, its base or scaling, positions off by one, low precision",
    "attention": "scale 1/sqrt(C), the mask's alignment or a finite mask value, which query heads a key head serves, "
    "softmax below float32, attention dropout",
    "out": "weight not transposed, bias left out, heads joined in another order",
    "residual": "post-norm against pre-norm, a branch scaled or dropped, residual dropout's scale or stream",
    "up": "weight not transposed, bias left out, gate and up exchanged",
    "gate": "weight not transposed, bias left out, gate and up exchanged",
    "activation": "GELU tanh against erf, a constant with too few digits, SiLU on the wrong half",
    "down": "weight not transposed, bias left out",
    "logits": "head tied or not, padding of the vocabulary, a head bias, a final scale",
    "loss": "labels shifted twice or not at all, ignored labels that count, padding among the classes, sum for mean, "
    "a mean of means over micro-batches",
    "training loss": "a mean of means over micro-batches, dropout rows counted in a micro-batch, labels",
    "gradient": "a bias or a gain broadcast and not summed back, a tied weight whose second gradient is lost",
    "accumulated": "sum for mean over micro-batches, a tied weight whose second gradient is lost, "
    "a weight frozen by mistake",
    "gradient norm": "norm after the clip, loss scale left in, a tied weight counted twice, sum for mean",
    "clip factor": "epsilon of the clip, clip by value, clip of each tensor alone",
    "learning rate": "first update at 0, warm-up off by one, cosine over N or N - 1, counted in micro-batches",
    "first_moment": "beta1, the clip factor left out or used twice, a count that is off by one",
    "second_moment": "beta2, the square taken before the clip",
    "momentum": "Nesterov or not, momentum's (1 - beta)",
    "parameter": "epsilon inside the root or before the bias correction, decay on biases and gains, decay on the "
    "updated parameter, decay not times the rate, no bias correction, the sign",
}
"""The usual reasons, by kind of tap; met by somebody each."""

ALIASES = {
    "ln": "norm", "layernorm": "norm", "rmsnorm": "norm", "f": "norm", "qkv": "q", "attn": "q", "query": "q",
    "key": "k", "value": "v", "rope": "rotated", "scores": "attention", "proj": "out", "o": "out", "fc": "up",
    "act": "activation", "gelu": "activation", "silu": "activation", "wte": "embed", "embeddings": "embed",
    "head": "logits",
}  # fmt: skip
"""Last parts of names that other models give to the same things."""


@dataclass(frozen=True)
class Row:
    """One compared quantity: its error with both on their own, and seated (None where there's no such thing)."""

    stage: str
    name: str
    free: float | None
    seated: float | None
    cap: float
    floor: float
    parents: tuple[str, ...] = ()
    note: str = ""

    @property
    def error(self) -> float:
        """The error that decides: seated where it is known."""
        error = self.seated if self.seated is not None else self.free
        return float("inf") if error is None else error

    @property
    def load(self) -> float:
        """Share of the cap that the error takes."""
        return self.error / self.cap if self.cap else 0.0 if self.error == 0 else float("inf")

    @property
    def parts(self) -> bool:
        """Whether the stacks part here."""
        return not self.error <= self.cap

    @property
    def title(self) -> str:
        """The name in words."""
        return WORDS.get(self.stage, "") + self.name


@dataclass(frozen=True)
class Verdict:
    """What it is, and why that is known."""

    kind: str
    """same, algorithm, rounding or kernel, data, schedule, dtype policy."""
    sentence: str
    tap: str = ""
    error: float = 0.0
    floor: float = 0.0
    predecessor: str = ""
    predecessor_error: float = 0.0
    traps: str = ""


@dataclass
class Report:
    """Everything that was compared, with what can be shown and kept of it."""

    title: str
    rows: list[Row]
    verdict: Verdict
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """What reproduces it: the inputs, and what both sides make of the first tap that parts."""
    reproduce: str = ""

    def show(self, console: Console | None = None) -> None:
        """The table and the verdict, on a terminal."""
        console = console or Console()
        values, cotangents = ({row.name: row for row in self.rows if row.stage == s} for s in ("forward", "cotangent"))
        if values:
            table = Table(title=self.title, title_style="bold", title_justify="left", header_style="dim")
            for heading in ("tap", "value, free", "seated", "cotangent, free", "seated"):
                table.add_column(heading, justify="left" if heading == "tap" else "right")
            for name, row in values.items():
                back = cotangents.get(name)
                first = self.verdict.tap in (row.title, back.title if back else "")
                table.add_row(
                    f"[bold]{escape(name)}[/]" if first else escape(name),
                    *(_figure(e, row.cap) for e in (row.free, row.seated)),
                    *(_figure(e, back.cap) for e in (back.free, back.seated)) if back else ("", ""),
                )
            console.print(table)
        if rest := self.rest():
            table = Table(title="" if values else self.title, title_style="bold", header_style="dim")
            for heading in ("worst of its kind", "error", "cap"):
                table.add_column(heading, justify="left" if heading.startswith("worst") else "right")
            for row in rest:
                name = escape(f"{row.title} ({row.note})" if row.note else row.title)
                name = f"[bold]{name}[/]" if row.title == self.verdict.tap else name
                table.add_row(name, _figure(row.error, row.cap), f"{row.cap:.0e}" if np.isfinite(row.cap) else "")
            console.print(table)
        colour = "green" if self.verdict.kind == "same" else "red"
        console.print(f"[bold {colour}]{self.verdict.kind}[/]: {escape(self.verdict.sentence)}", soft_wrap=True)
        if self.verdict.traps:
            console.print(f"usual reasons: {escape(self.verdict.traps)}", soft_wrap=True)
        if self.reproduce:
            console.print(f"reproduce: {escape(self.reproduce)}", soft_wrap=True)

    def rest(self) -> list[Row]:
        """What isn't a tap: of each kind the first rows that part (4 at most), or else the worst."""
        found = []
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.stage not in ("forward", "cotangent"):
                groups.setdefault(row.name if row.stage == "scalar" else row.stage, []).append(row)
        for group in groups.values():
            found += [row for row in group if row.parts][:4] or [max(group, key=lambda row: (row.load, row.error))]
        return found

    def save(self, folder: Path) -> None:
        """`localize.png`, `localize.txt` and `localize.npz` (read with allow_pickle=False)."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / "localize.npz", allow_pickle=False, **self.arrays)
        with open(folder / "localize.txt", "w", encoding="utf-8") as file:
            self.show(Console(file=file, width=120))
        self.picture(folder / "localize.png")

    def picture(self, path: Path) -> None:
        """Tap by tap on a log scale, free and seated, forward above and cotangents below."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        stages = [s for s in dict.fromkeys(row.stage for row in self.rows) if s in PANELS]
        rest = [row for row in self.rest() if row.stage not in stages]
        panels = [[row for row in self.rows if row.stage == stage] for stage in stages] + ([rest] if rest else [])
        titles = [PANELS[s] for s in stages]
        titles += ["The rest, the worst of each kind"] * bool(rest)
        longest = max(map(len, panels), default=1)
        # constrained, so that long names of taps never run into the panel below
        figure = Figure(figsize=(min(22, max(9, 2.5 + 0.3 * longest)), 0.9 + 3.5 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(max(len(panels), 1), 1, squeeze=False)[:, 0]
        for axis, rows, title in zip(axes, panels, titles, strict=False):
            _panel(axis, rows, title, self.verdict.tap)
        figure.suptitle(f"{self.title}: {self.verdict.kind}", x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.savefig(path, dpi=130)


def _panel(axis, rows: Sequence[Row], title: str, first: str) -> None:
    lowest, highest = 1e-17, 1e2
    spots = np.arange(len(rows))

    def clipped(values: Iterable[float | None]) -> np.ndarray:
        # an error of 0 is drawn at the lower edge, one that is no number at the upper
        made = [np.nan if v is None else highest if np.isnan(v) else v for v in values]
        return np.clip(np.array(made, float), lowest, highest)

    free, seated = clipped(row.free for row in rows), clipped(row.seated for row in rows)
    edges = np.arange(len(rows) + 1) - 0.5
    floors, caps = clipped(row.floor for row in rows), clipped(row.cap for row in rows)
    axis.stairs(floors, edges, baseline=lowest, fill=True, color="#dfe7ee", lw=0, label="floor of a correct pair")
    axis.stairs(caps, edges, baseline=None, color="#8a949e", lw=1, ls="--", label="cap")
    joined = "-" if rows[0].stage in PANELS else ""
    if np.isfinite(free).any():
        axis.plot(spots, free, ls=joined, marker="o", ms=3.5, lw=1.2, color="#3b75af", label="free")
    if np.isfinite(seated).any():
        axis.plot(spots, seated, ls=joined, marker="D", ms=4, lw=1.2, color="#e08214", label="seated", zorder=3)
    parted = [i for i, row in enumerate(rows) if row.parts]
    errors = clipped(row.error for row in rows)
    if parted:
        axis.plot(
            parted,
            errors[parted],
            ls="",
            marker="o",
            ms=11,
            mfc="none",
            mec="#c0392b",
            mew=1.8,
            zorder=4,
            label="parts",
        )
    for i, row in enumerate(rows):
        if row.title == first:
            right = i < len(rows) * 0.7
            axis.annotate(
                f"{row.title}\n{row.error:.1e}", (i, errors[i]), (14 if right else -14, 6), textcoords="offset points",
                ha="left" if right else "right", va="bottom", color="#c0392b", fontsize=9, fontweight="bold",
            )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(lowest / 2, max(1e-10, min(highest, 1e3 * np.nanmax(np.concatenate([free, seated, [0]])))))
    axis.set_xlim(-0.6, len(rows) - 0.4)
    if rows[0].stage in ("loss", "norm"):
        every = max(1, len(rows) // 20)
        axis.set_xticks(spots[::every], [row.name.rsplit(" ", 1)[-1] for row in rows[::every]], fontsize=8)
        axis.set_xlabel("update", fontsize=9)
    elif joined:
        axis.set_xticks(
            spots, [row.name for row in rows], rotation=45, ha="right", rotation_mode="anchor", fontsize=7.5
        )
    else:
        labels = [
            (WORDS[row.stage] + row.name).replace(" of ", " of\n") if row.stage in WORDS else row.name for row in rows
        ]
        axis.set_xticks(spots, labels, rotation=25, ha="right", rotation_mode="anchor", fontsize=7.5)
    axis.grid(axis="y", color="#eceff1", lw=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_ylabel("relative error", fontsize=9)
    axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1), fontsize=8, frameon=False)


def _figure(error: float | None, cap: float) -> str:
    text = "" if error is None else "0" if error == 0 else f"{error:.1e}"
    return f"[bold red]{text}[/]" if error is not None and not error <= cap else text


def distance(a: np.ndarray | None, b: np.ndarray | None) -> float:
    """nrel; infinite where one is missing or of another shape, and where a NaN, or an infinity of one alone, is met.

    Infinities that both have at the same places (masked scores) are equal; the rest is compared.
    """
    if a is None or b is None or a.shape != b.shape:
        return float("inf")
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        if not np.array_equal(a[~finite], b[~finite]):
            return float("inf")
        a, b = a[finite], b[finite]
    return nrel(a, b)


def tap_rows(torch: Record, free: Record | None, seated: Record | None) -> list[Row]:
    """Rows of the taps of torch and JAX: values in order, then cotangents from the last to the first."""
    names = _merged(torch.values, (free or seated or Record()).values)

    def error(ours: Mapping[str, np.ndarray], record: Record | None, part: str, name: str) -> float | None:
        return None if record is None else distance(getattr(record, part).get(name), ours.get(name))

    rows = [
        Row(
            "forward", name, error(torch.values, free, "values", name), error(torch.values, seated, "values", name),
            FORWARD, FORWARD_FLOOR, torch.parents.get(name, ()),
        )
        for name in names
    ]  # fmt: skip
    children: dict[str, list[str]] = {}
    for name, parents in torch.parents.items():
        for parent in parents:
            children.setdefault(parent, []).append(name)
    for name in reversed([name for name in names if name in torch.cotangents]):
        if name == LOSS:
            continue  # 1 by definition
        ours = torch.cotangents
        rows.append(
            Row(
                "cotangent", name, error(ours, free, "cotangents", name), error(ours, seated, "cotangents", name),
                COTANGENT, COTANGENT_FLOOR, tuple(children.get(name, ())),
            )
        )  # fmt: skip
    return rows


def _merged(ours: Iterable[str], theirs: Iterable[str]) -> list[str]:
    """Names of both in torch's order; those that only JAX has follow the name before them."""
    merged, last = list(ours), ""
    for name in theirs:
        if name not in merged:
            merged.insert(merged.index(last) + 1 if last in merged else 0, name)
        last = name
    return merged


def tensor_rows(
    stage: str,
    torch: Mapping[str, np.ndarray],
    jax: Mapping[str, np.ndarray],
    cap: float,
    floor: float,
    apart: Iterable[str] = (),
    seated: bool = True,
) -> list[Row]:
    """Rows of named tensors but those `apart` and those that are noise; `seated`: both were made of the same."""
    sizes = {name: float(np.linalg.norm(value)) for name, value in torch.items()}
    others = {name: float(np.linalg.norm(value)) for name, value in jax.items()}
    largest = max(sizes.values(), default=0.0)
    rows = []
    for name in _merged(torch, jax):
        noise = sizes.get(name, np.inf) < NOISE * largest and others.get(name, np.inf) < NOISE * largest
        if name in apart or (noise and sizes[name] > 0):
            continue
        error = distance(jax.get(name), torch.get(name))
        rows.append(Row(stage, name, None if seated else error, error if seated else None, cap, floor))
    return rows


def traps_of(row: Row) -> str:
    """The usual reasons for that kind of row; of a cotangent, those of the taps that it comes from."""
    if row.stage not in ("forward", "cotangent"):
        return TRAPS.get(row.name if row.stage == "scalar" else row.stage, "")
    names = row.parents if row.stage == "cotangent" else (row.name,)
    kinds = (re.sub(r"\d+$", "", re.sub(r"_\d+$", "", name)).split(".")[-1].split("_")[-1] for name in names)
    known = (ALIASES.get(kind, kind) for kind in kinds)
    return "; ".join(dict.fromkeys(TRAPS[kind] for kind in known if kind in TRAPS))


def size_hint(error: float) -> str:
    """What an error of this size is the mark of, where it is one."""
    for low, high, what in (
        (5e-4, 5e-3, "bfloat16's rounding (2e-3): look for a cast to bfloat16"),
        (5e-5, 5e-4, "float16's or TF32's rounding (2e-4): look for a cast, or a reduced-precision matmul"),
        (1e-8, 2e-7, "float32's rounding (3e-8): look for a float32 constant or cast"),
    ):
        if low <= error < high:
            return f"The error has the size of {what}. "
    return ""


def judge(rows: Sequence[Row], precision: str = "float64") -> Verdict:
    """The verdict on rows in the order of search; the first that parts is named."""
    first = next((row for row in rows if row.parts), None)
    if first is None:
        if not rows:
            return Verdict("same", "nothing was compared")
        worst = max(rows, key=lambda row: row.load)
        return Verdict(
            "same",
            f"nothing parts in {precision}: the worst of {len(rows)} figures is {worst.title} with "
            f"{worst.error:.1e} (cap {worst.cap:.0e})",
        )
    before = _predecessor(first, rows)
    others = [row.title for row in rows if row.parts and row is not first and row.stage == first.stage]
    note = f" ({first.note})" if first.note else ""
    sentence = (
        f"{first.title}{note} parts in {precision}: error {first.error:.1e}, floor of a correct pair {first.floor:.0e}"
    )
    if before is not None:
        relation = "what it is made of" if before.name in first.parents else "what comes before it"
        sentence += f"; {relation}, {before.title}, agrees ({before.error:.1e})"
    if first.stage == "cotangent":
        sentence += "; the values agree: the fault is in the backward pass between the two"
    sentence += ". "
    if first.seated is not None and others and first.stage in ("forward", "cotangent"):
        sentence += f"The same seated error in {', '.join(others[:4])}{' and others' if len(others) > 4 else ''}. "
    kind = "schedule" if first.name == "learning rate" else "data" if first.stage == "data" else "algorithm"
    error = first.error if np.isfinite(first.error) else float("inf")
    hint = size_hint(error) if precision == "float64" and kind == "algorithm" else ""
    if not np.isfinite(error):
        hint = "Missing on one side, of another shape, or not a number. "
    return Verdict(
        kind, (sentence + hint).strip(), first.title, error, first.floor,
        before.title if before else "", before.error if before else 0.0, traps_of(first),
    )  # fmt: skip


def _predecessor(first: Row, rows: Sequence[Row]) -> Row | None:
    """The worst of what the row is made of (for a cotangent: of those it comes from), or else the row before it."""
    parents = [row for row in rows if row.stage == first.stage and row.name in first.parents and not row.parts]
    if parents:
        return max(parents, key=lambda row: row.error)
    at = rows.index(first)
    return rows[at - 1] if at and not rows[at - 1].parts else None
