"""`--spawn`: the processes of a run, started and watched on this machine, as torchrun does on each node of a cluster.

Ranks go by the names that torchrun and DeepSpeed use (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from coretrain.base.errors import EXIT_USER_ERROR, UserError
from coretrain.base.interrupts import INTERRUPTED
from coretrain.base.numbers import told_number
from coretrain.processes.heartbeat import SAID
from coretrain.processes.launch import free_port
from coretrain.processes.layout import layout_of
from coretrain.processes.world import World
from coretrain.training.command_line import Command
from coretrain.training.resolve import run_folder

MOST = 256
"""Processes that are started on one machine, which has a few cores for them."""
GRACE = 20.0
"""Seconds that the others get to end by themselves once one has failed."""
COLLECTED = 1.0
"""Seconds of ends that are looked at together, to tell which one came first: the others' may follow in no time."""
PASSED_ON = {signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGINT, signal.SIGHUP: signal.SIGTERM}
"""Signals to this process, and what the ranks get; a terminal that closes asks them to save. One that this process was
started to ignore, as by nohup, stays ignored."""


def processes_of(command: Command) -> int:
    """How many processes the axes of `parallel` take, one for each device."""
    p = command.config.parallel
    return (p.data or 1) * p.fsdp * p.tensor * p.context * p.pipeline


def line_that_goes_on(module: str, folder: Path, command: Command, world: World, program: str = "") -> str:
    """The command that goes on with the run in `folder`, started as this process was.

    `program` is what was typed where no launcher started it: by default `python -m module`.
    """
    words, told = f"--resume {shlex.quote(str(folder))}", os.environ
    if "TORCHELASTIC_RUN_ID" in told:
        nodes = told_number("GROUP_WORLD_SIZE", 1)
        more = f"--nnodes {nodes} " if nodes > 1 else ""
        line = f"torchrun {more}--nproc-per-node {told_number('LOCAL_WORLD_SIZE')} -m {module} {words}"
        return line + (" (on every node, its other options as before)" if nodes > 1 else "")
    if {"CROSS_SIZE", "LOCAL_SIZE"} <= told.keys():
        line = f"deepspeed --num_gpus {told['LOCAL_SIZE']} --module {module} {words}"
        return line + (" (its other options as before)" if told_number("CROSS_SIZE") > 1 else "")
    line = f"{program or f'python -m {module}'} {words}"
    if command.spawn:
        return f"{line} --spawn"
    if command.config.parallel.host is not None:
        return f"{line} --parallel.host I (on every host, with its own I)"
    return line + (" (every process as before)" if world.size > 1 else "")


def spawn(module: str, argv: Sequence[str], command: Command, program: str = "") -> int:
    """Run `python -m module` once for each device; the exit code. SIGTERM, SIGINT and SIGHUP are passed on to all.

    When a process dies, the others get `GRACE` seconds, are killed, and its rank, its end and the line that goes on
    are said. `program` is what was typed, as for `line_that_goes_on`.
    """
    count, folder = processes_of(command), run_folder(command)
    if count > MOST:
        raise UserError(
            "training/spawn-too-many",
            f"--spawn would start {count} processes here, one for each device of parallel: it is for {MOST} at most; "
            "choose smaller axes",
        )
    layout_of(command.config, count)  # a mistake that all would make is said before any starts
    words = [*argv, *([] if command.resume or command.output else [f"--output={folder}"])]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    port = free_port()
    ranks = []
    for rank in range(count):
        facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        facts |= {"MASTER_PORT": port}
        environment = {"OMP_NUM_THREADS": threads, **os.environ, "MASTER_ADDR": "127.0.0.1"} | {
            name: str(value) for name, value in facts.items()
        }
        ranks.append(subprocess.Popen([sys.executable, "-m", module, *words], env=environment, start_new_session=True))
    # A session of their own: a terminal's Ctrl-C would reach them twice, and twice means at once.
    before = {
        number: signal.signal(number, lambda n, _: _signal(ranks, PASSED_ON[signal.Signals(n)]))
        for number in PASSED_ON
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        again = f"Go on with: {line_that_goes_on(module, folder, command, World(), program)}"
        begun = folder / "config.json"
        return _watch(ranks, lambda: again if begun.exists() else "The run had not begun: start it again")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signal(ranks, signal.SIGKILL)


def _watch(ranks: Sequence[subprocess.Popen[bytes]], way_out: Callable[[], str]) -> int:
    ends: dict[int, int] = {}
    """Bad exit codes by rank, in the order in which they were seen, of the first and of what followed at once."""
    first = float("inf")
    while True:
        running, now = [rank for rank in ranks if rank.poll() is None], time.monotonic()
        for i, rank in enumerate(ranks):
            if rank.poll() and now < first + COLLECTED:
                ends.setdefault(i, rank.returncode)
                first = min(first, now)
        if not running:
            break
        if now > first + (COLLECTED if SAID in ends.values() else GRACE):  # then all is said, and nobody works
            _signal(ranks, signal.SIGKILL)
        time.sleep(0.1)
    if not ends:
        return 0
    if set(ends.values()) <= {INTERRUPTED, -signal.SIGINT}:
        return INTERRUPTED  # Ctrl-C before the run began
    bad = culprit(ends)
    code = ends[bad]
    if code == SAID or (code in (1, EXIT_USER_ERROR) and {rank.returncode for rank in ranks} == {code}):
        return 1 if code == SAID else code  # the run has said why
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    print(f"rank {bad} of {len(ranks)} {how}; the others were ended. {way_out()}", file=sys.stderr)
    return EXIT_USER_ERROR if code == EXIT_USER_ERROR else 1


def culprit(ends: Mapping[int, int]) -> int:
    """The rank that ended by itself, of bad exit codes by rank in the order in which they were seen.

    One that a signal ended, before those whose connections to it broke; SIGABRT is how JAX's client ends when another
    process is gone, and counts as a broken connection. Who has said why comes before both.
    """
    said = [rank for rank, code in ends.items() if code == SAID]
    killed = [rank for rank, code in ends.items() if code < 0 and code != -signal.SIGABRT]
    return next(iter([*said, *killed, *ends]))


def _signal(ranks: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)
