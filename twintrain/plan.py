"""What a run needs, takes and costs on a machine, and the setting to choose.

Usage: twintrain plan [CONFIG] --on MACHINE [--section.field VALUE ...]
       twintrain plan gpt2-1558m --on 4090x8 --price 2.5USD
       twintrain plan llama-7b --on v5e:16x16

MACHINE is an accelerator and how many of them, or a TPU slice by its topology,
which the TPU's own compiler is asked about too, with no TPU. CONFIG and the
fields are as in twintrain train --help.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coretrain.base.errors import Options, UserError, meant
from coretrain.base.files import check_picture, typed_path
from coretrain.base.help import Fitted
from coretrain.base.numbers import real_number
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.contract.compute import PAYS_AT
from coretrain.planning.accelerators import TABLE, Machine, accelerators, machine
from coretrain.planning.prices import Price, read_price

if TYPE_CHECKING:
    from coretrain.planning.planner import Setting
    from coretrain.planning.show import Plan

PROGRAM = "twintrain plan"
VOCABULARIES = {"gpt2": 50257, "cl100k_base": 100277, "o200k_base": 200019, "bytes": 257}
"""Of tokenizers that need no data, specials included."""
COMPILED_WITHIN = 7200
"""Seconds that the TPU's compiler may take."""
NO_COMPILER = "the TPU's compiler was not asked: pip install 'twintrain[tpu]' brings it, and needs no TPU"


def planned(config: RunConfig, tokens: float | None) -> RunConfig:
    """The run with its vocabulary, and as many updates as `tokens` takes."""
    if config.model.vocab is None:
        name = config.data.tokenizer
        size = config.data.tokenizer_vocab if name == "trained" else VOCABULARIES.get(name)
        if size is None:
            raise UserError(
                "command/plan-needs-vocab",
                f"data.tokenizer = {name} is not read here: {meant(name, VOCABULARIES)}Give --model.vocab N",
            )
        config = config.with_vocab(size)
    if tokens is None:
        return config
    if tokens < config.tokens_per_update:
        raise UserError(
            "command/tokens-below-one-update",
            f"--tokens {tokens:g} is less than one update's {config.tokens_per_update:,}",
        )
    updates = round(tokens / config.tokens_per_update)
    return config.changed(train__updates=updates)


def with_table_dtype(config: RunConfig, on: Machine) -> RunConfig:
    """What precision.compute = auto would take on a machine that isn't here, by the peaks of the table."""
    if config.precision.compute != "auto":
        return config
    a = on.accelerator
    return config.changed(
        precision__compute="bfloat16" if a.bfloat16 and a.tflops >= PAYS_AT * a.tflops32 else "float32"
    )


def priced(on: Machine, whole: str | None, device: str | None) -> Price:
    """What an hour of the machine costs: as `--price` or `--device-price` says, or else as the table does."""
    if whole is not None and device is not None:
        raise UserError("command/two-prices", "--price and --device-price are given: leave one of them out")
    if whole is None and device is None:
        return on.price
    option, text, times = ("price", whole, 1) if whole is not None else ("device-price", device, on.devices)
    figure, currency = read_price(option, text or "", on.price.currency)
    return Price(figure * times, on.devices, currency, f"as --{option} says")


def command_line(best: Setting, on: Machine, name: str, overrides: tuple[tuple[str, str], ...]) -> str:
    """The line that starts the run as chosen."""
    c, layout, given = best.config, best.layout, load_config(name, overrides)
    fields = dict(overrides)
    if c.train.updates != given.train.updates:
        fields["train.updates"] = str(c.train.updates)
    wanted: dict[str, Any] = {"train.accumulation": c.train.accumulation}
    wanted |= {"execution.checkpoint_activations": c.execution.checkpoint_activations}
    wanted |= {f"parallel.{axis}": getattr(layout, axis) for axis in ("fsdp", "tensor", "context", "pipeline")}
    wanted |= {"parallel.zero": c.parallel.zero, "parallel.offload": c.parallel.offload}
    for key, value in wanted.items():
        section, field = key.split(".")
        if getattr(getattr(given, section), field) != value:
            fields[key] = str(value)
    words = [name, *(word for key, value in fields.items() for word in (f"--{key}", value))]
    if best.stack == "jax":
        return shlex.join(["python", "-m", "jaxtrain.run", *words])
    if on.devices == 1:
        return shlex.join(["python", "-m", "torchtrain.run", *words])
    start = ["torchrun", "--nproc-per-node", str(on.devices // on.nodes)]
    if on.nodes > 1:
        start += ["--nnodes", str(on.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "FIRST_HOST:29500"]
    return shlex.join([*start, "-m", "torchtrain.run", *words])


def compile_for(config: RunConfig, topology: str, table: Path = TABLE) -> dict[str, Any]:
    """What the TPU's compiler says of the real step, in a process of its own.

    An installed libtpu makes JAX look for a TPU and ask Google's metadata server: there it is told not to.
    """
    code = [sys.executable, "-m", "jaxtrain.aot.tpu"]
    told = {
        "TPU_SKIP_MDS_QUERY": "1",
        "PYTHONIOENCODING": "utf-8",
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    paths = [str(Path(__file__).resolve().parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    asked = json.dumps({"config": config.to_json(), "topology": topology, "accelerators": str(table.resolve())})
    leave = "(--no-compile leaves it out)"
    # what the compiler writes beside its answer goes with the folder, also where the process is ended
    with tempfile.TemporaryDirectory(prefix="twintrain-plan-") as folder:
        told |= {"TMPDIR": folder, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        try:
            done = subprocess.run(
                code,
                input=asked,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=os.environ | told,
                timeout=COMPILED_WITHIN,
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                "command/tpu-compiler-timeout",
                f"the TPU's compiler took more than {COMPILED_WITHIN / 60:.0f} minutes {leave}",
            ) from None
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]  # libtpu logs there too
    if done.returncode == 2 and said:
        raise UserError("command/tpu-program-refused", said[-1].removeprefix("error: "))
    if done.returncode:
        words = done.stderr.strip().splitlines()
        reason = words[-1] if words else f"it ended with code {done.returncode} and without a word"
        if done.returncode < 0:
            reason = f"signal {-done.returncode} ended it, as where memory is short"
        raise UserError("command/tpu-compiler-failed", f"the TPU's compiler failed: {reason} {leave}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def options(program: str = PROGRAM) -> Options:
    """All but the fields of a config."""
    text, known = (__doc__ or "").replace(PROGRAM, program), ", ".join(accelerators())
    parser = Options(prog=program, description=text, formatter_class=Fitted)
    parser.add_argument("--on", required=True, metavar="MACHINE", help=f"h100, 4090x8, v5e:16x16; known are {known}")
    parser.add_argument(
        "--accelerators", type=typed_path, default=TABLE, metavar="FILE", help=f"instead of {TABLE.name}"
    )
    parser.add_argument(
        "--price",
        metavar="AMOUNT",
        help="of the whole machine for an hour: 20, 20USD, 140CNY (default: the table's; a bare number is in its "
        "currency)",
    )
    parser.add_argument("--device-price", metavar="AMOUNT", help="the same, of one device for an hour")
    parser.add_argument("--tokens", type=real_number(most=1e18), help="tokens of the run (default: the config's)")
    parser.add_argument(
        "--served", type=real_number(most=1e18), default=1e12, help="tokens that the model will serve (default: 1e12)"
    )
    parser.add_argument("--no-compile", action="store_true", help="TPU: leave the compiler out")
    parser.add_argument("--plot", type=typed_path, metavar="FILE.png", help="draw the settings")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def make_plan(argv: Sequence[str], program: str = PROGRAM) -> tuple[Plan, argparse.Namespace]:
    """Read the command line and plan. Raises `UserError`."""
    given, rest = options(program).parse_known_args(argv)
    if given.plot:
        check_picture(given.plot, "--plot")
    from coretrain.planning.planner import Assumptions, recommend, settings
    from coretrain.planning.show import Plan
    from coretrain.training.command_line import parse

    asked = parse(rest, program, "")
    name = rest[0] if rest and not rest[0].startswith("--") else "tiny"
    on = machine(given.on, given.accelerators)
    config = with_table_dtype(planned(asked.config, given.tokens), on)
    stack = "jax" if on.accelerator.tpu else "torch"
    assumed = Assumptions()
    fixed = frozenset(key for key, _ in asked.overrides)
    found = settings(config, on, "jax" if stack == "jax" else "torch", assumed, fixed)
    best = recommend(found, on)
    compiled, remark = None, ""
    if stack == "jax" and not given.no_compile:
        if not on.topology:
            remark = f"give the slice's topology, as in --on {on.accelerator.name}:4x4, to ask the TPU's compiler too"
        elif importlib.util.find_spec("libtpu") is None:
            remark = NO_COMPILER
        else:
            compiled = compile_for(best.config, str(on), given.accelerators)
    price = priced(on, given.price, given.device_price)
    line = command_line(best, on, name, asked.overrides)
    return Plan(config.name, on, found, best, price, given.served, line, assumed, compiled, remark), given


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Plan, then show it."""
    plan, given = make_plan(sys.argv[1:] if argv is None else argv, program)
    from rich.console import Console

    from coretrain.planning.show import as_object, picture, show

    if given.plot:
        picture(plan, given.plot)
    if given.json:
        print(json.dumps(as_object(plan), indent=1))
    else:
        show(plan, Console(highlight=False))
    return 0
