"""The options of `serve`. Importing this is quick: their help needs no framework and reads no run."""

from __future__ import annotations

import argparse

from coretrain.base.errors import Options
from coretrain.base.files import typed_path
from coretrain.base.help import Fitted
from coretrain.base.numbers import real_number, whole_number

KEY = "TWINTRAIN_API_KEY"
"""The environment variable of the key that clients have to give."""
SERVES = """\
A trained run as a server: OpenAI's endpoints under /v1, and a page to talk to it.
It answers this machine alone, unless --host says otherwise."""


def options(program: str) -> argparse.ArgumentParser:
    """The options of `program`."""
    parser = Options(prog=program, description=SERVES, formatter_class=Fitted)
    parser.add_argument("run", type=typed_path, help="folder of a run; its best checkpoint is used")
    parser.add_argument(
        "--adapter",
        type=typed_path,
        metavar="RUN",
        action="append",
        default=[],
        help="folder of a run that trained an adapter on this one, chosen by its name as the model",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default %(default)s)")
    parser.add_argument(
        "--port",
        type=whole_number(0, 65535),
        default=8000,
        metavar="N",
        help="0: any (default %(default)s)",
    )
    parser.add_argument(
        "--api-key-file",
        type=typed_path,
        metavar="FILE",
        help=f"clients have to give the key in this file (or in the environment's {KEY})",
    )
    parser.add_argument(
        "--rows", type=whole_number(1, 256), default=8, metavar="N", help="answers at once (default %(default)s)"
    )
    parser.add_argument(
        "--waiting",
        type=whole_number(0, 10000),
        default=64,
        metavar="N",
        help="requests that may wait for one of them; more are told to come again (default %(default)s)",
    )
    parser.add_argument(
        "--slots",
        type=whole_number(2),
        metavar="N",
        help="tokens of a prompt and its answer at most (default: the model's context, at most 4096)",
    )
    parser.add_argument(
        "--tokens",
        type=whole_number(1),
        default=1024,
        metavar="N",
        help="of a chat's answer that doesn't say how many (default %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=real_number(0.1),
        default=600.0,
        metavar="S",
        help="seconds of an answer at most (default %(default)g)",
    )
    return parser
