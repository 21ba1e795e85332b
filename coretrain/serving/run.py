"""From a command line to a server, and to its end."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.interrupts import in_main_thread
from coretrain.base.parse import read_bytes
from coretrain.checkpoint.translate import MODULES
from coretrain.runs.folder import open_run
from coretrain.serving.options import KEY, options
from coretrain.training.references import MakeStack

SLOTS = 4096
"""Where nobody says how many: a long context's cache may not fit in memory."""
SHORTEST_KEY = 8
LAST_SECONDS = 3
"""For running answers, once the server is told to end."""


def serve(argv: Sequence[str], stack_name: str, make_stack: MakeStack, program: str = "") -> int:
    """The whole of `python -m torchtrain.serve` or its twin, up to Ctrl-C or SIGTERM. Raises `UserError`."""
    program = program or f"python -m {MODULES[stack_name]}.serve"
    given = options(program).parse_args(argv)
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            "serving/packages-missing", f"serving needs {' and '.join(missing)}: pip install 'twintrain[serve]'"
        )
    key = read_key(given.api_key_file, os.environ)
    run = open_run(given.run)  # what is no run is said before a port is taken
    with bound(given.host, given.port) as listening:
        from coretrain.serving.app import Limits, Server
        from coretrain.serving.models import open_models

        if not (local := is_loopback(given.host)) and not key:
            print(
                f"warning: whoever reaches {given.host} may ask this server: give --api-key-file, or --host 127.0.0.1",
                file=sys.stderr,
            )
        slots = given.slots or min(SLOTS, run.model.context)
        engine, models = open_models(given.run, given.adapter, make_stack, given.rows, slots, given.waiting)
        with engine:
            server = Server(engine, models, Limits(answer=given.tokens, seconds=given.timeout), key, local)
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"http://{shown}:{port}: {', '.join(models)}; Ctrl-C ends", flush=True)
            listen(server.app, listening)
    return 0


def read_key(path: Path | None, environment: Mapping[str, str]) -> str:
    """The key of a file, else of the environment, else none. Raises `UserError` where it is unfit."""
    if path is None:
        key, place = environment.get(KEY, ""), KEY
        if not key:
            return ""
    else:
        place = str(path)
        try:
            key = read_bytes(path, 2**16).decode("ascii").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no short ASCII text"
            raise UserError(
                "serving/key-unreadable", f"--api-key-file {path} can't be read ({reason}): give a file with one line"
            ) from None
    if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            "serving/key-unfit",
            f"the key of {place} has to be one word of {SHORTEST_KEY} ASCII characters or more: put such a one there",
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at that place. Raises `UserError` where there is none to be had."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
    except OSError as error:
        raise UserError("serving/host-unknown", f"--host {host} is no address here ({error.strerror})") from None
    with listening:
        try:
            if os.name == "posix":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
        except OSError as error:
            raise UserError(
                "serving/port-taken",
                f"--port {port} of {host} can't be had ({error.strerror}): give another --port, or 0 for any",
            ) from None
        yield listening


def listen(app: Any, listening: socket.socket) -> None:
    """Answer at a socket until SIGTERM or Ctrl-C, after which what runs has some seconds to end."""
    import uvicorn

    logging.getLogger("twintrain.serving").addHandler(logging.StreamHandler())
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=LAST_SECONDS,
        timeout_keep_alive=30,
        ws="none",
    )
    serving = _ending_in_peace()(config)
    serving.run(sockets=[listening])


def _ending_in_peace() -> Any:
    """uvicorn's server, which raises the signal that ended it no second time."""
    import uvicorn

    class Serving(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            if not in_main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Serving
