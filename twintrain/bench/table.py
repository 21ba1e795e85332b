"""The table of a bench: as Markdown, and on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twintrain.bench.contenders import MAKERS, PEERS

if TYPE_CHECKING:
    from rich.console import Console

Result = Mapping[str, Any]
RATIO = "times as fast as"


def facing(result: Result) -> list[str]:
    """The peers that ours are compared with, in their order."""
    there = {row["maker"] for row in result["rows"] if row["status"] == "ok"}
    return [maker for maker in PEERS if maker in there]


def against(row: Mapping[str, Any], result: Result, maker: str) -> dict[str, float] | None:
    """A row's ratio to a peer in the form in which that is fastest, compiled or not."""
    speeds = {
        one["name"]: one["tokens_per_second"]
        for one in result["rows"]
        if one["maker"] == maker and one["name"] in row["ratios"]
    }
    return row["ratios"][max(speeds, key=lambda name: speeds[name])] if speeds else None


def cells(row: Mapping[str, Any], result: Result, spread: str, unit: str = "") -> list[str]:
    """One row as text; `spread` puts a ratio's lowest and highest beside or below its median."""
    share = row["share_of_peak"]
    found = [f"{row['tokens_per_second']:,.0f}"]
    if result["part"] == "training":
        found.append("" if share is None else f"{share:.0%}")
    found.append(f"{row['peak_memory_bytes'] / 2**30:.2f}{unit}")
    for maker in facing(result):
        of = against(row, result, maker)
        found.append(spread.format(**of) if of else "")
    return found


def shape_line(result: Result) -> str:
    """The shape, and what was measured."""
    s = result["shape"]
    model = f"{s['layers']} layers x {s['width']}, vocabulary {s['vocab']:,}"
    turns = f"{result['rounds']} round{'s' * (result['rounds'] > 1)} of {result['steps_of_a_turn']}"
    if result["part"] == "training":
        return f"Training, {model}; updates of {s['batch']} x {s['context']} tokens, {turns} in turns."
    return f"Generation, {model}; greedy, one text of {s['new']} tokens after {s['prompt']}, {turns} in turns."


def machine_line(result: Result) -> str:
    """The processor and the versions."""
    m = dict(result["machine"])
    cpu, cores, system = m.pop("cpu"), m.pop("cores"), m.pop("system")
    return f"{cpu}, {cores} cores, {system}; " + ", ".join(f"{name} {version}" for name, version in m.items()) + "."


def peaks_line(result: Result) -> str:
    """The matmul peaks; nothing where none were measured."""
    found = ", ".join(f"{key} {peak['gflops']:,.1f}" for key, peak in result["peaks"].items())
    return f"Matmul peak in GFLOP/s: {found}." if found else ""


def notes(result: Result) -> list[str]:
    """What a reader must know of the figures, and what isn't among them."""
    host = all(row["memory_of"] == "host" for row in result["rows"])
    found = ["Peak memory is the process's" + (", as the system counts it." if host else ", or its GPU's (JSON says).")]
    if result["load_before"] > result["machine"]["cores"] / 2:
        found.append(
            f"Other programs kept the machine busy: before the first round its load was {result['load_before']:.1f}."
        )
    if facing(result):
        half = "; in bfloat16 peers train by torch.autocast" if result["part"] == "training" else ""
        found.append(
            "Under a peer's name: how many times as fast ours is as its fastest form in that dtype, taken within a "
            f"round; the median, the lowest and the highest{half}."
        )
    return [*found, *(f"{line}." for line in (*result["unlike"], *result["not_run"]))]


def markdown(result: Result) -> str:
    """The table for a page."""
    headings = ["", "dtype", "tokens/s", *_share(result, "of matmul peak"), "peak memory"]
    headings += [f"{RATIO} {MAKERS[maker].title}" for maker in facing(result)]
    lines: list[Sequence[str]] = [headings, ["---", "---", *["---:"] * (len(headings) - 2)]]
    for row in result["rows"]:
        if row["status"] == "ok":
            ratio = "{median:.2f} ({lowest:.2f} to {highest:.2f})"
            lines.append([_title(row), row["dtype"], *cells(row, result, ratio, " GiB")])
    head = [line for line in (shape_line(result), machine_line(result), peaks_line(result)) if line]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join(["\n".join(head), table, "\n".join(f"- {line}" for line in notes(result))]) + "\n"


def _share(result: Result, heading: str) -> list[str]:
    """The column of shares of the matmul peak, which generation has not: it is no matter of matmuls."""
    return [heading] if result["part"] == "training" else []


def _title(row: Mapping[str, Any]) -> str:
    return row["label"] if row["maker"] in PEERS else f"twintrain, {row['label']}"


def show(result: Result, console: Console) -> None:
    """The table on a terminal, or as plain lines into a pipe."""
    from rich.table import Table
    from rich.text import Text

    for line in (shape_line(result), machine_line(result), peaks_line(result)):
        if line:
            console.print(line, markup=False, soft_wrap=not console.is_terminal)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    for name in (
        "tokens/s",
        *_share(result, "of\npeak"),
        "memory,\nGiB",
        *(MAKERS[maker].title for maker in facing(result)),
    ):
        table.add_column(name, justify="right", vertical="top")
    dtype = ""
    for row in result["rows"]:
        if row["status"] != "ok":
            continue
        if row["dtype"] != dtype:
            dtype = row["dtype"]
            table.add_row(Text(f"\n{dtype}", style="bold"))
        ours = row["maker"] not in PEERS
        label = Text(f"  {row['label']}", style="" if ours else "dim")
        table.add_row(label, *map(Text, cells(row, result, "{median:.2f}\n{lowest:.2f}-{highest:.2f}")))
    console.print()
    console.print(table)
    console.print()
    for line in notes(result):
        console.print(line, markup=False, soft_wrap=not console.is_terminal)
