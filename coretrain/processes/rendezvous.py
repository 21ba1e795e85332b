"""The processes of a run wait for each other before their framework does, and say in a sentence who did not come.

JAX's own client ends the process in C++ where somebody is missing, and torch names nobody. Rank 0 listens at the port
which they take once all are there, so that no other one need be open.
"""

from __future__ import annotations

import contextlib
import socket
import time

from coretrain.base.errors import UserError

GREETING = "twintrain"
READ_WITHIN = 5.0
"""Seconds that somebody who has connected gets to say who it is: anybody may connect to a port."""


def meet(address: str, count: int, rank: int, timeout: float, bound: str | None = None) -> None:
    """Wait until all `count` processes are at `address` (HOST:PORT), for at most `timeout` seconds.

    `bound` has the port that rank 0 listens at, on all addresses of its machine, if it isn't the one that others see.
    Raises `UserError` on every process that came, saying who didn't; and where the port is taken, the processes were
    told different counts, or one has a rank beyond them.
    """
    if count == 1:
        return
    host, _, port = ((bound if rank == 0 else None) or address).rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 2**16):
        raise UserError(
            "processes/coordinator-not-an-address",
            f"parallel.coordinator = {address} is no address: give it as ADDRESS:PORT",
        )
    ours = (int(port), count, timeout)
    if fault := _expect(*ours) if rank == 0 else _visit(host, rank, *ours):
        raise UserError(
            "processes/rendezvous-failed",
            f"{fault}: start all processes alike, with one address to meet at (here {address}, for parallel.timeout = "
            f"{timeout:.0f} s)",
        )


def _expect(port: int, count: int, timeout: float) -> str:
    """As rank 0, wait for the others; what is wrong, told to all who came."""
    until, both = time.monotonic() + timeout, socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with contextlib.ExitStack() as opened:
        try:
            listener = socket.create_server(("", port), family=family, backlog=count, dualstack_ipv6=both)
        except OSError as error:
            raise UserError(
                "processes/port-not-available",
                f"rank 0 can't listen on port {port}, where the processes meet ({error.strerror}): give another one "
                "(in parallel.coordinator, in MASTER_PORT, or as torchrun's --master-port)",
            ) from None
        opened.enter_context(listener)
        here: dict[int, socket.socket] = {}
        fault = ""
        while len(here) < count - 1 and not fault:
            listener.settimeout(max(0.001, until - time.monotonic()))
            try:
                visitor = opened.enter_context(listener.accept()[0])
            except TimeoutError:
                late = [str(rank) for rank in range(1, count) if rank not in here]
                fault = f"rank {', '.join(late)} of {count} did not come"
                break
            rank, told = _who(visitor)
            if rank:
                here[rank] = visitor
                if told != count:
                    fault = f"rank 0 is one of {count} processes, rank {rank} one of {told}"
                elif rank >= count:
                    fault = f"rank {rank} is not one of {count}, which count from 0"
        for visitor in here.values():
            with contextlib.suppress(OSError):
                visitor.sendall(f"{GREETING} {fault}\n".encode())
        for visitor in here.values():
            _read(visitor, READ_WITHIN)  # who connected closes first, so that the port is free at once
        return fault


def _visit(host: str, rank: int, port: int, count: int, timeout: float) -> str:
    """As another rank, be counted by rank 0; what it finds wrong."""
    until = time.monotonic() + timeout
    while (left := until - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), port), timeout=left) as connection:
                connection.sendall(f"{GREETING} {rank} {count}\n".encode())
                name, _, fault = _read(connection, left + READ_WITHIN).partition(" ")
        except OSError:  # nobody listens yet, or nobody has that name yet
            name = ""
        if name == GREETING:
            return fault
        time.sleep(0.2)
    return f"rank {rank} of {count} did not find rank 0"


def _who(visitor: socket.socket) -> tuple[int, int]:
    """Rank and count that a visitor says; rank 0 stands for one that is none of ours."""
    name, *numbers = _read(visitor, READ_WITHIN).split(" ")
    ours = name == GREETING and len(numbers) == 2 and all(word.isdecimal() for word in numbers)
    return (int(numbers[0]), int(numbers[1])) if ours else (0, 0)


def _read(connection: socket.socket, within: float) -> str:
    """A line without its end; nothing where none comes."""
    connection.settimeout(within)
    try:
        with connection.makefile("r", encoding="utf-8", errors="replace") as lines:
            return lines.readline(2000).removesuffix("\n")
    except OSError:
        return ""
