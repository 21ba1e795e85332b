"""A plan to look at: tables for a terminal, one object for machines, a picture of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from coretrain.config.run import RunConfig
from coretrain.data.blend import told_blend
from coretrain.planning.accelerators import GIB, Machine
from coretrain.planning.flops import convention, parameter_count, run_flops
from coretrain.planning.memory import in_gib, kv_cache
from coretrain.planning.planner import HEADROOM, Assumptions, Setting
from coretrain.planning.prices import Price, amount
from coretrain.planning.scaling_laws import advice

NARROW = 76
"""Columns of a terminal below which the table of settings has one column for all figures."""


@dataclass(frozen=True)
class Plan:
    """A machine, the ways to use it (fastest first), the one chosen and why, and what it costs."""

    name: str
    machine: Machine
    found: list[Setting]
    best: Setting
    price: Price
    served: float
    command: str
    assumed: Assumptions
    compiled: dict[str, Any] | None = None
    """What the TPU's compiler said."""
    remark: str = ""
    """Why it wasn't asked."""

    @property
    def config(self) -> RunConfig:
        """The run as chosen."""
        return self.best.config

    @property
    def hours(self) -> float:
        """Hours of the whole run as chosen."""
        return self.hours_of(self.best)

    def hours_of(self, setting: Setting) -> float:
        """Hours of the whole run."""
        return setting.update * setting.config.train.updates / 3600

    def cost_of(self, setting: Setting) -> float:
        """What the whole run costs, in the price's currency."""
        return self.hours_of(setting) * self.price.hour


def kinds_of(found: Sequence[Setting]) -> list[Setting]:
    """For each way of sharding, its fastest that fits, or its smallest where none does."""
    best: dict[tuple[Any, ...], Setting] = {}
    for setting in found:  # fastest first
        p, layout = setting.config.parallel, setting.layout
        key: tuple[Any, ...] = (layout.tensor > 1, layout.pipeline > 1, p.zero, p.offload)
        if setting.stack == "jax":
            key = (layout.data > 1, layout.fsdp > 1, layout.tensor > 1)
        old = best.get(key)
        smaller = old is not None and not old.fits and setting.memory.total < old.memory.total
        if old is None or (setting.fits and not old.fits) or (not setting.fits and smaller):
            best[key] = setting
    return [best[key] for key in sorted(best, key=str)]


def why(plan: Plan) -> str:
    """Why this setting, in a sentence."""
    best, fitting = plan.best, [setting for setting in plan.found if setting.fits]
    words = f"the fastest of {len(fitting)} that fit, of {len(plan.found)}"
    if best is not fitting[0]:
        words = f"within 2% of the fastest of {len(fitting)} that fit (of {len(plan.found)}), and the simplest of those"
    faster = [setting for setting in plan.found if not setting.fits and setting.update < 0.98 * best.update]
    if faster:
        nearest = min(faster, key=lambda setting: setting.memory.total)
        words += f"; {nearest} would be faster, but needs {nearest.memory.total / GIB:.1f} GiB"
    return words


def _length(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.1f} minutes"
    return f"{hours:,.1f} hours" + (f" ({hours / 24:,.1f} days)" if hours > 48 else "")


def _size(number: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def _pairs(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold cyan", show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _alternatives(plan: Plan, narrow: bool) -> RenderableType:
    ready = f"{plan.machine.accelerator.memory * (1 - HEADROOM):.1f} GiB of {plan.machine.accelerator.memory:g} to use"
    table = Table(title=f"Ways to share it ({ready})", title_justify="left", title_style="bold cyan")
    names = ("GiB", "host GiB", "s/update", "MFU", "hours", "cost")
    table.add_column("setting", overflow="fold", ratio=1)
    for name in () if narrow else names:
        table.add_column(name, justify="right", no_wrap=True)
    shown = kinds_of(plan.found)
    for setting in shown if any(c is plan.best for c in shown) else [plan.best, *shown]:
        best = setting is plan.best
        hours = plan.hours_of(setting)
        cells = [
            ("> " if best else "  ") + str(setting),
            f"{setting.memory.total / GIB:.1f}",
            f"{setting.memory.host / GIB:.0f}",
        ]
        if setting.fits:
            cells += [_figure(setting.update, 2), f"{setting.mfu(plan.machine):.0%}", _figure(hours, 1)]
            cells += [amount(plan.cost_of(setting), plan.price.currency)]
        else:
            cells += ["doesn't fit", "", "", ""]
        if narrow:  # one column for all
            figures = zip(names, cells[1:], strict=True)
            cells = [f"{cells[0]}:\n" + ", ".join(f"{name} {cell}" for name, cell in figures if cell)]
        table.add_row(*map(Text, cells), style="bold green" if best else "" if setting.fits else "dim")
    return table


def _figure(number: float, places: int) -> str:
    """So many places behind the point, or two digits of a number that is too small for them."""
    return f"{number:,.{places}f}" if number >= 10 ** (1 - places) or number == 0 else f"{number:.2g}"


def tables(plan: Plan, narrow: bool = False) -> RenderableType:
    """The plan but for its command, for a terminal; `narrow` where it has no room for a table of seven columns."""
    c, best, m = plan.config, plan.best, plan.machine
    tokens = c.tokens_per_update * c.train.updates
    count = parameter_count(c.model)
    run = [
        ("model", f"{plan.name}: {count:,} parameters, {run_flops(c):.3g} FLOPs ({convention(c)})"),
        ("tokens", f"{tokens:.4g} = {c.train.updates:,} updates of {c.tokens_per_update:,}"),
        *told_blend(c),
        ("machine", f"{m}: {m.devices} x {m.accelerator.tflops:g} TFLOP/s, {m.nodes} host{'s' * (m.nodes > 1)}"),
        ("price", str(plan.price)),
        ("assumed", str(plan.assumed)),
    ]
    memory = [(kind, in_gib(size)) for kind, size in best.memory.kinds.items() if size]
    memory += [("in all", f"{in_gib(best.memory.total)} at the peak, {best.memory.moment}")]
    what = "a save's copy of the state" if c.parallel.offload == "none" else "what is offloaded"
    memory += [("host", f"{in_gib(best.memory.host)} for each device: {what}")]
    memory += [
        ("KV cache", f"{in_gib(kv_cache(c, 1, c.model.context, best.layout.tensor))} a sequence, when generating")
    ]
    time = [(cause, f"{seconds:.3g} s") for cause, seconds in best.seconds.items() if seconds >= 5e-4]
    time += [(f"sent: {kind}", f"{_size(size)} a device and update") for kind, size in best.traffic.items()]
    cost = amount(plan.cost_of(best), plan.price.currency)
    time += [
        ("an update", f"{best.update:.3g} s, {c.tokens_per_update / best.update:,.0f} tokens/s"),
        ("MFU", f"at most {best.mfu(m):.0%} (a bound from the assumptions, not a measurement)"),
        ("the run", f"{_length(plan.hours)}, {cost} at {amount(plan.price.hour, plan.price.currency)} an hour"),
    ]
    parts: list[RenderableType] = [_pairs("The run", run), _alternatives(plan, narrow)]
    parts += [_pairs("Memory of one device as chosen", memory), _pairs("Time as chosen", time)]
    if plan.compiled:
        parts.append(_pairs("What the TPU's compiler says", compiled_rows(plan)))
    parts.append(_pairs("Tokens", advice(count, tokens, plan.served)))
    chosen = [("setting", str(best)), ("why", why(plan))]
    parts.append(_pairs("Choose", chosen + ([("note", plan.remark)] if plan.remark else [])))
    return Group(*(item for part in parts for item in (part, Text(""))))


def compiled_rows(plan: Plan) -> list[tuple[str, str]]:
    """What the compiler said, to show."""
    found = plan.compiled or {}
    rows = [("compiled for", f"{plan.machine} ({found['device']}), {found['layout']}, {found['kernel']} attention")]
    if not found["fits"]:
        return [*rows, ("fits", f"no: {found['reason']}")]
    total, update = compiled_bytes(found), found["update"]
    moments = update["moments"]
    rows += [
        ("fits", f"yes: {in_gib(total)} of {plan.machine.accelerator.memory:g} on a device"),
        ("arguments", f"{in_gib(update['arguments'] - moments)} (weights, batch), {in_gib(moments)} (moments)"),
        ("scratch", f"{in_gib(update['scratch'])} (activations, logits, gradients, gathered weights: the heap)"),
        ("analytic", f"{in_gib(plan.best.memory.total)}, {plan.best.memory.total / total - 1:+.0%} of that"),
    ]
    for shares, bound in found["bounds"].items():
        waited = ", ".join(f"{seconds:.3g} s {cause}" for cause, seconds in bound["seconds"].items())
        rows.append(
            (
                f"bound, {shares}",
                f"{bound['update_seconds']:.3g} s an update, MFU at most {bound['mfu']:.0%}: {waited} "
                f"(all collectives take {bound['sending']:.3g} s; what isn't hidden counts)",
            )
        )
    rows.append(("analytic time", f"{plan.best.update:.3g} s"))
    for kind, size in update["sent"].items():
        rows.append((kind, f"{update['calls'][kind]:,} an update, {_size(size)} sent by a device"))
    loops = "each loop's body counted as often as the text says it runs"
    if update["loops_without_count"]:
        loops += f" ({update['loops_without_count']} loops don't say, counted once)"
    rows.append(("counting", f"{loops}; {update['seconds']:.0f} s to compile"))
    return rows


def compiled_bytes(found: dict[str, Any]) -> float:
    """Peak bytes of a device in an update: arguments, what of the results isn't in their place, heap and code."""
    return float(sum(found["update"][part] for part in ("arguments", "results", "scratch", "code")))


def as_object(plan: Plan) -> dict[str, Any]:
    """The plan for machines."""

    def one(setting: Setting) -> dict[str, Any]:
        c = setting.config
        return {
            "setting": str(setting),
            "layout": asdict(setting.layout),
            "zero": c.parallel.zero,
            "offload": c.parallel.offload,
            "accumulation": c.train.accumulation,
            "checkpoint_activations": c.execution.checkpoint_activations,
            "fits": setting.fits,
            "memory": setting.memory.kinds,
            "memory_total": setting.memory.total,
            "host_memory": setting.memory.host,
            "sent": setting.traffic,
            "seconds": setting.seconds,
            "update_seconds": setting.update,
            "mfu": setting.mfu(plan.machine),
            "hours": plan.hours_of(setting),
            "cost": plan.cost_of(setting),
        }

    c = plan.config
    tokens = c.tokens_per_update * c.train.updates
    return {
        "name": plan.name,
        "machine": {"name": str(plan.machine), "devices": plan.machine.devices, "price": plan.price.hour},
        "currency": plan.price.currency,
        "price_source": plan.price.source,
        "parameters": parameter_count(c.model),
        "tokens": tokens,
        "flops": run_flops(c),
        "assumed": asdict(plan.assumed) | {"headroom": HEADROOM},
        "chosen": one(plan.best),
        "why": why(plan),
        "command": plan.command,
        "choices": [one(setting) for setting in kinds_of(plan.found)],
        "compiled": plan.compiled,
        "remark": plan.remark,
        "advice": dict(advice(parameter_count(c.model), tokens, plan.served)),
    }


def picture(plan: Plan, path: Path) -> None:
    """Memory against time of every setting, the one chosen marked, as a PNG (or what the name's ending says)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, ScalarFormatter

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    jax = plan.best.stack == "jax"
    groups: dict[str, list[Setting]] = {}
    for setting in plan.found:
        p = setting.config.parallel
        label = f"tensor {setting.layout.tensor}" if jax else f"ZeRO {p.zero}" + (", offload" * (p.offload != "none"))
        groups.setdefault(label, []).append(setting)
    for number, label in enumerate(sorted(groups)):
        chosen = groups[label]
        xs, ys = [setting.memory.total / GIB for setting in chosen], [setting.update for setting in chosen]
        axes.scatter(
            xs, ys, s=16, alpha=0.6, color=f"C{number}", marker="x" if "offload" in label else "o", label=label
        )
    usable = plan.machine.accelerator.memory * (1 - HEADROOM)
    axes.axvline(usable, color="0.3", linestyle="--", linewidth=1)
    axes.text(usable, 1.0, f" {usable:.1f} GiB to use ", va="top", ha="right", transform=axes.get_xaxis_transform())
    best = plan.best
    place = best.memory.total / GIB, best.update
    axes.scatter(*place, s=160, facecolors="none", edgecolors="black", linewidths=1.8, zorder=5, label="chosen")
    axes.set(xscale="log", yscale="log", xlabel="GiB on one device at the peak", ylabel="seconds of an update (bound)")
    for axis in (axes.xaxis, axes.yaxis):  # 20, not 2 x 10^1
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
    axes.set_title(f"{plan.name} on {plan.machine}\nchosen: {best}", fontsize=10, loc="left")
    axes.grid(which="both", alpha=0.2)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=130)


def show(plan: Plan, console: Console) -> None:
    """Print the tables, and the line that starts the run, whole, so that it can be copied."""
    console.print(tables(plan, console.width < NARROW))
    console.print(Text("Start it with", "bold cyan"))
    console.print(Text(plan.command), soft_wrap=True)
