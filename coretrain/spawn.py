"""`--spawn`: the processes of a run, started and watched on this machine, as torchrun does on each node of a cluster.

Ranks go by the names that torchrun and DeepSpeed use (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from coretrain.command import Command
from coretrain.errors import EXIT_USER_ERROR
from coretrain.watch import SAID

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells its processes, and a process of one's own must not inherit."""
GRACE = 20.0
"""Seconds that the others get to end by themselves once one has failed."""


PASSED_ON = {signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGINT, signal.SIGHUP: signal.SIGTERM}
"""Signals to this process, and what the ranks get; a terminal that closes asks them to save."""


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ


def environment_alone() -> dict[str, str]:
    """This environment without a launcher's words."""
    return {name: value for name, value in os.environ.items() if name not in LAUNCHED}


def processes_of(command: Command) -> int:
    """How many processes the axes of `parallel` take, one for each device."""
    p = command.config.parallel
    return (p.data or 1) * p.fsdp * p.tensor * p.context * p.pipeline


def spawn(module: str, argv: Sequence[str], command: Command) -> int:
    """Run `python -m module` once for each device; the exit code. SIGTERM, SIGINT and SIGHUP are passed on to all.

    When a process dies, the others get `GRACE` seconds, are killed, and its rank, its end and the line that goes on
    are said.
    """
    count = processes_of(command)
    words = [word for word in argv if word != "--spawn"]
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
        number: signal.signal(number, lambda n, _: _signal(ranks, PASSED_ON[signal.Signals(n)])) for number in PASSED_ON
    }
    try:
        return _watch(ranks, module, command)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signal(ranks, signal.SIGKILL)


def _watch(ranks: Sequence[subprocess.Popen[bytes]], module: str, command: Command) -> int:
    first_bad: int | None = None
    deadline = float("inf")
    while any(rank.poll() is None for rank in ranks):
        if first_bad is None:
            first_bad = next((i for i, rank in enumerate(ranks) if rank.poll()), None)
            deadline = time.monotonic() + GRACE if first_bad is not None else deadline
        if time.monotonic() > deadline:
            _signal(ranks, signal.SIGKILL)
        time.sleep(0.1)
    codes = [rank.returncode for rank in ranks]
    if not any(codes):
        return 0
    bad = first_bad if first_bad is not None else next(i for i, code in enumerate(codes) if code)
    code = codes[bad]
    if code == SAID or (code in (1, EXIT_USER_ERROR) and len({*codes}) == 1):
        return 1 if code == SAID else code  # the run has said why
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    place = command.resume or command.output
    print(
        f"rank {bad} of {len(ranks)} {how}; the others were ended. Go on with: python -m {module} --resume "
        f"{place or 'RUN (the folder named above)'} --spawn",
        file=sys.stderr,
    )
    return EXIT_USER_ERROR if code == EXIT_USER_ERROR else 1


def _signal(ranks: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def free_port() -> int:
    """A TCP port that nobody here listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
