"""The engine's command line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from coretrain.base.errors import Options, UserError
from coretrain.base.files import typed_path
from coretrain.base.numbers import whole_number
from parity.mutation import known, score
from parity.mutation.judging import Judge, Verdict
from parity.mutation.operators import OPERATORS, UNASKED
from parity.mutation.places import Place
from parity.mutation.recording import record
from parity.mutation.sample import CORE_FILES, all_places, in_turn
from parity.mutation.seen import PACKAGES, Seen, files_of_tests, load
from parity.mutation.session import Session, alive
from parity.mutation.worker import Worker

ROOMS = (
    "torchtrain", "jaxtrain", "coretrain/contract", "coretrain/data", "coretrain/config", "coretrain/training",
    "coretrain/checkpoint", "coretrain/adapters",
)  # fmt: skip
"""The stacks and the contract; other rooms of coretrain are judged where they are asked for."""
NAMES = sorted({*OPERATORS, *UNASKED, "nudge"})
RESULTS, LINES, COMPILED = (Path("runs/parity") / name for name in ("mutants.json", "lines", "compiled"))


def parser() -> Options:
    """The options."""
    made = Options(prog="python -m parity.mutation", description="Mutants of the source: which edits does no test see?")
    made.add_argument("--seed", type=whole_number(0, 2**63), default=13, metavar="N", help="of the sample")
    made.add_argument(
        "--sample", type=whole_number(1, 10**6), default=200, metavar="N", help="of so many (default: 200)"
    )
    made.add_argument("--minutes", type=whole_number(1, 10**4), default=10_000, metavar="N", help="stop after so many")
    made.add_argument(
        "--rooms",
        nargs="+",
        default=ROOMS,
        metavar="ROOM",
        help="folders or files; core: those of attention, loss, optimizer, schedule, data order "
        "(default: both stacks and most of the contract)",
    )
    made.add_argument(
        "--operators", nargs="+", default=(), metavar="NAME", help=f"of {', '.join(NAMES)} (default: all but ulp)"
    )
    made.add_argument(
        "--against", choices=("parity", "tests", "all"), default="all", help="which tests judge (default: all)"
    )
    made.add_argument(
        "--limit",
        type=whole_number(1, 10**5),
        default=120,
        metavar="S",
        help="seconds of tests that a mutant is worth, as they were recorded (default: 120)",
    )
    made.add_argument("--workers", type=whole_number(1, 64), default=1, metavar="N", help="processes (default: 1)")
    made.add_argument("--again", action="store_true", help="judge survivors of earlier calls again")
    made.add_argument("--results", type=typed_path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS}")
    made.add_argument(
        "--lines", type=typed_path, default=LINES, metavar="FOLDER", help=f"what tests execute (default: {LINES})"
    )
    made.add_argument(
        "--record",
        nargs="*",
        metavar="TESTS",
        help="record which test executes which line, of these files or folders of tests (default: all), and end",
    )
    made.add_argument(
        "-m", dest="expression", default="", metavar="MARKS", help="with --record: only tests with these marks"
    )
    made.add_argument("--show", metavar="ID", help="print a mutant's diff, and the tests that may see it")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Run it; 1 where a mutant lives in the files of which none may, unless it is known."""
    options = parser().parse_args(words)
    root = Path.cwd()
    console = Console(emoji=False)  # ":100:" in an id is no emoji
    if options.record is not None:
        return _record(root, options, console)
    _check(root, options)
    if options.show:
        return _show(root, options, console)
    rooms = [room for word in options.rooms for room in (sorted(CORE_FILES) if word == "core" else [word])]
    found = all_places(root, rooms, options.operators)
    seen = load(root, options.lines)
    session = Session(
        root, options.results, Judge(seen, known.load(), options.against, options.limit),
        in_turn(found, options.seed)[: options.sample],
        {name: vars(options)[name] for name in ("seed", "against", "sample")} | {"places": len(found), "rooms": rooms},
        options.minutes, lambda verdict: _tell(console, verdict),
    )  # fmt: skip
    begun = time.monotonic()
    taken = session.resume(options.again)
    console.print(f"{len(found):,} places, {len(session.turn)} in the sample, {taken} of them judged before")
    with ExitStack() as stack:
        count = min(options.workers, max(1, len(session.turn) - taken))
        session.run([stack.enter_context(Worker(root, COMPILED)) for _ in range(count)])
    verdicts = list(session.in_order())
    for table in score.tables(verdicts):
        console.print(table)
    for one in verdicts:
        if one.status == "survived":
            console.print(f"\nsurvives {one.id}  {one.about}  ({one.tests} tests)\n{one.diff}", markup=False)
        elif one.status == "killed" and one.reason:
            console.print(f"{one.id}  {one.about}: {one.reason}", markup=False)
    for test in session.control:
        how = "failed once without a mutant, and not again" if test in session.unsteady else "fails without a mutant"
        console.print(f"control: {test} {how}; what it has killed doesn't count", markup=False)
    lost = alive(verdicts, CORE_FILES)
    console.print(f"{len(verdicts)} judged in {(time.monotonic() - begun) / 60:.1f} minutes; {options.results}")
    return 1 if lost or set(session.control) - set(session.unsteady) else 0


def _record(root: Path, options: Any, console: Console) -> int:
    files = files_of_tests(root, options.record)
    if not files:
        raise UserError(
            "parity/mutation-no-tests",
            f"--record {' '.join(options.record)}: no file of tests there; name some under tests or parity/ladder",
        )
    for file, how in record(root, options.lines, files, options.expression, COMPILED):
        console.print(f"{file}: {how}", markup=False, highlight=False)
    return 0


def _check(root: Path, options: Any) -> None:
    for room in options.rooms:
        inside = room.split("/")[0] in PACKAGES and ".." not in room and (root / room).exists()
        if room != "core" and not inside:
            raise UserError(
                "parity/mutation-room-unknown",
                f"--rooms {room}: no folder or file of {', '.join(PACKAGES)}; core, {', '.join(ROOMS)} are some",
            )
    for name in options.operators:
        if name not in NAMES:
            raise UserError("parity/mutation-operator-unknown", f"--operators {name}: none of {', '.join(NAMES)}")


def _show(root: Path, options: Any, console: Console) -> int:
    file = options.show.partition(":")[0]
    found: list[Place] = []
    if file.split("/")[0] in PACKAGES and (root / file).is_file():
        found = [one for one in all_places(root, [file], NAMES) if one.id == options.show]
    if not found:
        raise UserError(
            "parity/mutation-id-unknown",
            f"--show {options.show}: the sources have no such mutant now; take an id from {options.results}",
        )
    place = found[0]
    seen: Seen = load(root, options.lines)
    judge = Judge(seen, known.load(), options.against, options.limit)
    source = (root / file).read_bytes()
    console.print(f"{place.about}, in {place.function or 'what runs at import'}\n{place.diff(source)}", markup=False)
    if noted := judge.known.of(place):
        console.print(f"{noted[0]}: {noted[1]}", markup=False)
    for groups in judge.plan(place):
        for words, tests in zip(("executes it", "may share what it makes"), groups, strict=False):
            for test in tests:
                console.print(f"{seen.seconds[test]:8.2f} s  {words}  {test}", markup=False, highlight=False)
    return 0


def _tell(console: Console, one: Verdict) -> None:
    who = (
        f"by {one.killed_by} ({one.kind})"
        if one.killed_by
        else f"{one.tests} tests" + (f", {one.left} left" if one.left else "")
    )
    console.print(
        f"{one.status:<10} {one.id}  {one.about}  {who}  {one.seconds:.1f} s",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
