"""The options of `generate` and `chat`. Importing this is quick: their help needs no framework and reads no run."""

from __future__ import annotations

import argparse

from coretrain.base.errors import Options
from coretrain.base.files import typed_path
from coretrain.base.help import Fitted
from coretrain.base.numbers import real_number, whole_number

CHATS = """\
Answers of a trained run, by either stack: its chat template is used. Without a
question a conversation begins, in which /help says what there is. Of what is
piped in each line is a question, answered by itself."""


def options(program: str, chat: bool = False) -> argparse.ArgumentParser:
    """The options of `program`, where all prompts are questions if `chat`."""
    text = CHATS if chat else "Text from a trained run, by either stack."
    parser = Options(prog=program, description=text, formatter_class=Fitted)
    parser.add_argument("run", type=typed_path, help="folder of a run; its best checkpoint is used")
    if chat:
        parser.add_argument(
            "prompts", nargs="*", default=[], metavar="question", help="one or more (none: a conversation)"
        )
        parser.set_defaults(chat=True)
    else:
        parser.add_argument("prompts", nargs="*", default=[], help="one or more prompts (none: a fresh document)")
        parser.add_argument(
            "--chat",
            action="store_true",
            help="the prompts are questions, for the run's chat template (none: a conversation begins)",
        )
    parser.add_argument(
        "--history",
        type=typed_path,
        metavar="FILE",
        help="keep what is typed in a conversation in this file (default: nowhere)",
    )
    parser.add_argument(
        "--adapter",
        type=typed_path,
        metavar="RUN",
        action="append",
        default=[],
        help="folder of a run that trained an adapter on this one; given several times, each answers each prompt",
    )
    parser.add_argument(
        "--tokens",
        type=whole_number(),
        metavar="N",
        help="new tokens for each prompt (default: as many as fit, at most 200)",
    )
    parser.add_argument(
        "--temperature", type=real_number(), default=0.8, metavar="T", help="0 is greedy (default %(default)s)"
    )
    parser.add_argument(
        "--top-k",
        type=whole_number(),
        default=50,
        metavar="K",
        help="keep the k likeliest tokens, 0: all (default %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=real_number(most=1.0),
        default=1.0,
        metavar="P",
        help="keep this much probability (default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(-(2**63), 2**63 - 1),
        default=0,
        metavar="N",
        help="seed of the draws (default %(default)s)",
    )
    return parser
