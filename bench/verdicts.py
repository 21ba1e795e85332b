"""How often the localizer is right about two runs: pairs of correct ones, and pairs of which one has a planted bug.

Usage: python -m bench.verdicts [--pairs 100] [--seed 0] [--first 0] [--only correct|bugs] [--to FILE]

A pair is drawn by its seed: form, optimizer, rate (high ones make spikes), precision, length, checkpoints, a resume,
the two stacks or two ways to compute in one. The bug is one of parity/bugs, drawn too. In every
second pair with a bug the code that judges has it; in the others only the code that made the run had it. A bug that
changes nothing of the run, bit for bit, isn't taken, and another is drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import jaxtrain.choices
from coretrain.base.errors import UserError
from coretrain.training.runner import run
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.bugs import MUTANTS
from parity.localize.replay import localize_runs
from parity.localize.runs import compare_runs
from parity.localize.show import Report
from parity.localize.weigh import OTHER_CODE
from parity.mutants import BIASED, GPT, LLAMA, Mutant, in_step
from parity.pair import GPT2, SMALL
from parity.pair import LLAMA as LLAMA_FIELDS
from parity.probes.sides import SIDES
from torchtrain.trainer import Trainer as TorchTrainer

TRAINERS: dict[str, Any] = {"torch": TorchTrainer, "jax": JaxTrainer}
FORMS: dict[str, dict[str, Any]] = {
    GPT: {key: value for key, value in GPT2.items() if key.startswith("model.")},
    LLAMA: dict(LLAMA_FIELDS),
    BIASED: dict(LLAMA_FIELDS) | {"model.bias": "true", "model.tied": "true", "optimizer.name": "muon"},
}
FORWARD = {"model", "loss", "dropout", "init", "kernels", "scan", "dtypes"}
"""Areas of bugs that show in a loss or a gradient."""
UPDATE = {"optimizer", "clip", "schedule", "checkpoint"}
"""Areas of bugs that show in what an update makes of gradients."""
NOT_IN_A_RUN = {"generation", "sampling", "adapters", "layout", "x64", "equivalent", "budgets", "chat", "quantized"}
"""Areas of bugs that no training of text in these precisions runs into."""
BLAMELESS = {"same", "rounding or kernel"}


@dataclass
class Plan:
    """A pair to be made."""

    number: int
    form: str
    stacks: tuple[str, str]
    updates: int
    precision: str
    optimizer: str
    fields: dict[str, Any]
    ways: tuple[dict[str, Any], dict[str, Any]]
    threads: tuple[int, int]
    resumed: int
    """The update at which both are gone on with; 0: neither is."""
    bug: str = ""
    area: str = ""
    wrong: int = 0
    """The run that has the bug."""
    in_code: bool = False
    """Whether the code that judges has it too."""


@dataclass
class Outcome:
    """What was said of a pair."""

    plan: dict[str, Any]
    curve: str
    kind: str
    tap: str
    right: bool
    seconds: float
    spike: float
    """The largest gradient norm over the median."""
    sentence: str = field(repr=False, default="")


def drawn(rng: random.Random, number: int, bug: Mutant | None) -> Plan:
    """A pair; with a bug it has the form that the bug is looked at with, and the bug's stack."""
    form = bug.variant if bug and bug.variant in FORMS else rng.choice(list(FORMS))
    if bug and bug.variant not in FORMS:
        form = GPT if bug.variant.startswith("gpt2") else LLAMA
    side = bug.side if bug else rng.choice(["torch", "jax"])
    other = rng.choice([side, {"torch": "jax", "jax": "torch"}[side]])
    wrong = rng.randrange(2)
    stacks = (side, other) if wrong == 0 else (other, side)
    updates = rng.choice([8, 12, 16, 24, 40, 60, 120])
    precision = rng.choice(["float32"] * 3 + ["bfloat16", "float64"])
    health = bool(bug and bug.area == "health")
    high = health or rng.random() < 0.4
    resumed = updates // 2 if (bug and (bug.area == "checkpoint" or "resume" in bug.name)) or rng.random() < 0.2 else 0
    optimizer = FORMS[form].get("optimizer.name", rng.choice(["adamw", "adamw", "adam"]))
    fields = {
        "model.layers": 2, "model.width": 32, "model.heads": 4, "model.context": 24, "model.vocab": 260,
        "data.tokenizer": "bytes", "data.validation_fraction": 0.1, "data.prepare_processes": 1,
        "train.updates": updates, "train.batch_size": 4, "train.accumulation": rng.choice([1, 2]),
        "train.eval_interval": max(4, updates // 3),
        "train.eval_batches": 1, "train.sample_tokens": 0, "train.seed": rng.randrange(1000),
        "schedule.warmup_updates": rng.choice([0, 3, 10]) % updates, "schedule.min_lr": 1e-5,
        "schedule.kind": rng.choice(["cosine", "linear", "wsd", "constant"]),
        "optimizer.lr": rng.choice([1e-2, 3e-2]) if high else rng.choice([1e-3, 3e-3]),
        "optimizer.clip": rng.choice([0.2, 1.0]), "optimizer.name": optimizer,
        "precision.compute": precision, "execution.device": "cpu", "execution.compile": "off",
        "journal.tensorboard": "false",
        "checkpoint.interval": max(3, updates // rng.choice([1, 2, 3])), "checkpoint.keep": 100,
        **{key: value for key, value in FORMS[form].items() if key != "optimizer.name"},
    }  # fmt: skip
    if form == GPT and rng.random() < 0.5:
        fields |= {"model.residual_dropout": 0.0, "model.embedding_dropout": 0.0}
    if (bug and bug.area == "dropout") or (bug and "split" in bug.probe):
        fields |= {"model.residual_dropout": 0.1, "model.embedding_dropout": 0.1}
    if (bug and bug.name in ("mean of means", "gradients summed for averaged")) or (bug and "micro" in bug.name):
        fields["train.accumulation"] = 2
    if health:
        fields |= {"health.spike": "skip", "health.spike_sigma": 1.5, "health.window": 8}
    ways: list[dict[str, Any]] = [{}, {}]
    threads = (1, 1)
    if stacks[0] == stacks[1]:  # two ways to compute the same
        ways[1 - wrong] = {"execution.loss_chunk": 37}
        if rng.random() < 0.5 and bug is None:
            ways[1] |= {"execution.attention": "plain"}
        if stacks[0] == "torch" and updates <= 24:  # two threads for so little work wait for each other
            threads = rng.choice([(1, 2), (2, 1)])
        elif bug is None:
            ways[0] |= {"execution.scan_layers": "true"}
    if bug and bug.area == "scan":
        ways = [way | {"execution.scan_layers": "true"} for way in ways]
    return Plan(
        number, form, stacks, updates, precision, optimizer, fields, (ways[0], ways[1]), threads, resumed,
        bug.id if bug else "", bug.area if bug else "", wrong, bool(bug) and number % 2 == 0,
    )  # fmt: skip


def trained(plan: Plan, side: int, place: Path, shared: dict[str, Any]) -> Path:
    """One run of the pair, in a folder of its own."""
    stack = plan.stacks[side]
    fields = plan.fields | plan.ways[side] | shared
    torch.set_num_threads(plan.threads[side])
    words = [f"--{key}={value}" for key, value in fields.items()]
    with quiet(), at_x64(plan.precision == "float64"):
        if plan.resumed:
            half = _Stopped(TRAINERS[stack], plan.resumed)
            run([*words, f"--output={place}"], stack, half)
            run(["--resume", str(place)], stack, TRAINERS[stack])
        else:
            run([*words, f"--output={place}"], stack, TRAINERS[stack])
    return place


class _Stopped:
    """A stack that gets a SIGTERM after so many updates."""

    def __init__(self, make: Any, after: int) -> None:
        self.make, self.after = make, after

    def __call__(self, config: Any, tensors: Any = None) -> Any:
        stack = self.make(config, tensors)
        update, count = stack.update, []

        def counted(*args: Any) -> Any:
            count.append(0)
            if len(count) == self.after:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(*args)

        stack.update = counted
        return stack


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what a run prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def at_x64(on: bool) -> Iterator[None]:
    """JAX as a process of its own would have it."""
    import jax

    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]  # JAX makes its settings at run time
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def changes_nothing(wrong: Path, clean: Path) -> bool:
    """Whether the bug left the run as it would have been, bit for bit."""
    try:
        return compare_runs(wrong, clean).verdict.kind == "same"
    except UserError:
        return False


def right(plan: Plan, report: Report) -> bool:
    """Whether the verdict is right: a correct run is not blamed; of a bug its kind is named, and its tap or its run."""
    verdict, said = report.verdict, report.verdict.sentence
    if not plan.bug:
        return verdict.kind in BLAMELESS
    if plan.area == "data":
        return verdict.kind == "data"
    if plan.area == "health":
        return verdict.kind in ("health", "algorithm", "data")
    if verdict.kind in BLAMELESS or verdict.kind in ("unconfirmed", "config"):
        return plan.area == "checkpoint" and verdict.kind == "data"
    names = ("first", "second")
    bad, good = names[plan.wrong], names[1 - plan.wrong]
    if verdict.kind == OTHER_CODE:
        return not plan.in_code and verdict.tap == f"bits of the {bad} run"
    if not plan.in_code and f"the {good} run isn't" in said:
        return False
    if not plan.in_code and f"the {bad} run isn't" in said:
        return True
    update = ("step of", "first moment", "second moment", "momentum", "learning rate", "clip factor", "parameter ")
    late = verdict.tap.startswith(update)
    if f"the {bad} run" in verdict.tap or f"the {good} run" in verdict.tap:
        return True
    if plan.area in UPDATE:
        return late or not verdict.tap.startswith(("blocks", "embed", "cotangent", "gradient of"))
    return not late


def judged(plan: Plan, bug: Mutant | None, work: Path, shared: dict[str, Any]) -> Outcome | None:
    """Make the pair and judge it; None for a bug that changes nothing."""
    begun = time.perf_counter()
    runs = [work / "one", work / "two"]
    with pytest.MonkeyPatch.context() as judging:
        if bug is None:
            for side in (0, 1):
                trained(plan, side, runs[side], shared)
        else:
            trained(plan, 1 - plan.wrong, runs[1 - plan.wrong], shared)
            if bug.area != "health":  # most bugs lie in what a whole update is made of, where it is no one program
                in_step(judging, SIDES[bug.side])
            clean = trained(plan, plan.wrong, work / "clean", shared)
            with pytest.MonkeyPatch.context() as patch:
                bug.plant(patch, SIDES[bug.side])
                try:
                    trained(plan, plan.wrong, runs[plan.wrong], shared)
                except (UserError, RuntimeError, TypeError, ValueError, AssertionError, StopIteration) as error:
                    print(f"  {bug.id}: no run ({type(error).__name__}: {str(error)[:80]})", file=sys.stderr)
                    return None
            if not (runs[plan.wrong] / "metrics.jsonl").exists() or changes_nothing(runs[plan.wrong], clean):
                return None
            if plan.in_code:
                bug.plant(judging, SIDES[bug.side])
        torch.set_num_threads(1)
        report = localize_runs(*runs)
        curve = compare_runs(*runs).verdict.kind
    rows = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    norms = sorted(row["grad_norm"] or 0.0 for row in rows if "loss" in row)
    spike = norms[-1] / norms[len(norms) // 2] if norms[len(norms) // 2] else 0.0
    verdict, seconds = report.verdict, time.perf_counter() - begun
    return Outcome(
        asdict(plan), curve, verdict.kind, verdict.tap, right(plan, report), seconds, spike, verdict.sentence
    )


def candidates() -> list[Mutant]:
    """The bugs that a training of text can run into."""
    return [bug for bug in MUTANTS if bug.gate is not None and bug.area not in NOT_IN_A_RUN]


def measured(args: argparse.Namespace, to: io.TextIOBase) -> list[Outcome]:
    """All pairs, one after the other; each is written as it comes."""
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtrain.choices, "COMPILE_CACHE_AFTER", 0.0)
        patch.setattr(os, "fsync", lambda _: None)  # these runs needn't outlast a power cut
        corpus = Path(place) / "corpus"
        corpus.mkdir()
        rng = random.Random(args.seed)
        for n in range(60):
            (corpus / f"{n}.txt").write_text(" ".join(rng.choices(["def", "return", "self", "index", "None"], k=80)))
        shared = {"data.source": corpus, "data.cache": args.cache or Path(place) / "cache"}
        patch.setitem(SMALL, "data.cache", str(shared["data.cache"]))
        for kind in ("correct", "bugs"):
            if args.only not in (None, kind):
                continue
            for number in range(args.first, args.first + args.pairs):
                rng = random.Random(f"{args.seed} {kind} {number}")
                outcome, work = None, Path(place) / "pair"
                while outcome is None:
                    bug = rng.choice(candidates()) if kind == "bugs" else None
                    shutil.rmtree(work, ignore_errors=True)
                    work.mkdir()
                    outcome = judged(drawn(rng, number, bug), bug, work, shared)
                found.append(outcome)
                to.write(json.dumps(asdict(outcome)) + "\n")
                to.flush()
                said = outcome.plan["bug"] or "correct"
                mark = "right" if outcome.right else "WRONG"
                print(
                    f"{number:3} {mark} {outcome.seconds:5.1f}s {'+'.join(outcome.plan['stacks']):12} "
                    f"{outcome.plan['precision']:9} {outcome.plan['updates']:3} {said:50} {outcome.curve} -> "
                    f"{outcome.kind}, {outcome.tap}",
                    flush=True,
                )
    return found


def table(found: Sequence[Outcome]) -> str:
    """The table, as Markdown."""
    correct = [one for one in found if not one.plan["bug"]]
    bugs = [one for one in found if one.plan["bug"]]
    lines = ["| pairs | how many | right | said of the others |", "|---|---:|---:|---|"]

    def line(name: str, some: Sequence[Outcome]) -> None:
        if some:
            kinds = Counter(one.kind for one in some if not one.right)
            others = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            lines.append(f"| {name} | {len(some)} | {sum(one.right for one in some)} | {others} |")

    line("**correct runs**", correct)
    for stacks in sorted({tuple(sorted(one.plan["stacks"])) for one in correct}):
        line(" and ".join(stacks), [one for one in correct if tuple(sorted(one.plan["stacks"])) == stacks])
    line("with a spike (norm over 5 medians)", [one for one in correct if one.spike > 5])
    line("figures alone would be unconfirmed", [one for one in correct if one.curve not in BLAMELESS])
    line("**one run has a bug**", bugs)
    line("the code that judges has it", [one for one in bugs if one.plan["in_code"]])
    line("it was in other code", [one for one in bugs if not one.plan["in_code"]])
    for area in sorted({one.plan["area"] for one in bugs}):
        line(area, [one for one in bugs if one.plan["area"] == area])
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.verdicts", description=(__doc__ or "").split("\n")[0])
    number = functools.partial(parser.add_argument, type=int, metavar="N")
    number("--pairs", default=100, help="how many of each kind (default: 100)")
    number("--seed", default=0, help="of all draws (default: 0)")
    number("--first", default=0, help="number of the first pair (default: 0)")
    parser.add_argument("--only", choices=["correct", "bugs"], help="one kind of pairs (default: both)")
    file = Path("verdicts.jsonl")
    parser.add_argument("--to", type=Path, default=file, metavar="FILE", help=f"one outcome a line (default: {file})")
    parser.add_argument("--scratch", metavar="FOLDER", help="for the runs, best in memory (default: a temporary one)")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="prepared data, kept (default: it isn't)")
    args = parser.parse_args()
    with open(args.to, "a", encoding="utf-8") as to:
        found = measured(args, to)
    print(table(found))


if __name__ == "__main__":
    main()
