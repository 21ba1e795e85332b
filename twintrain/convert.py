"""Convert: a pretrained model into a run (GGUF, Hugging Face, PEFT), and a run out (those, ONNX).

Usage: twintrain convert SOURCE RUN [CONFIG] [--section.field VALUE ...]
       twintrain convert RUN [TARGET] --to FORM [--quantize KIND] [--merge]
       twintrain convert merge ADAPTER_RUN RUN [--adapter.base BASE_RUN]

In: SOURCE is a .gguf file, a Hugging Face folder of the GPT-2 or Llama
architecture, or a folder of PEFT, which takes --adapter.base BASE_RUN; CONFIG
and --section.field are as in twintrain train --help.

Out: RUN is the folder of a run or of an interchange checkpoint.
`convert import SOURCE RUN` and `convert export RUN TARGET [--format FORM]` say
the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coretrain.base.errors import Options, UserError
from coretrain.base.files import typed_path
from coretrain.base.help import Fitted, fitted
from coretrain.config.load import fields

if TYPE_CHECKING:
    from coretrain.training.command_line import Command

PROGRAM = "twintrain convert"
FORMS = ("hf", "huggingface", "peft", "gguf", "onnx", "interchange")
QUANTIZATIONS = ("none", "f16", "q8_0", "q4_0")
"""As coretrain/formats/gguf/file.py has them, which needs more packages than a help may."""


def understood(words: list[str], program: str) -> Command:
    """The config and the fields that are given. Raises `UserError` for what only a trainer does."""
    from coretrain.training.command_line import FLAGS, PLACES, parse

    options = (word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--"))
    if option := next((option for option in options if option in (*PLACES, *FLAGS)), None):
        raise UserError(
            "command/option-only-for-training", f"--{option} is for the trainers: name the target after the source"
        )
    return parse(words, program, "")


def moved_base(words: list[str], program: str) -> Path | None:
    """The folder after --adapter.base, all that is understood on the way out."""
    command = understood(words, program)
    if other := next((key for key, _ in command.overrides if key != "adapter.base"), None):
        raise UserError("command/option-only-for-import", f"--{other} is for what is read in: leave it out")
    return None if command.config.adapter.base is None else typed_path(command.config.adapter.base)


def apart(words: list[str]) -> tuple[list[str], list[str]]:
    """The words for argparse, and each `--section.field VALUE`, whose VALUE it would take for SOURCE or RUN."""
    own, of_fields, rest = list[str](), list[str](), list(words)
    while rest:
        word = rest.pop(0)
        option, equals, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or ("." not in option and option not in fields()):
            own.append(word)
            continue
        of_fields.append(word)
        if not equals and rest and not rest[0].startswith("--"):
            of_fields.append(rest.pop(0))
    return own, of_fields


def options(program: str = PROGRAM) -> Options:
    """All but the fields of a config."""
    usage = fitted("usage: " + (__doc__ or "").partition("Usage: ")[2].replace(PROGRAM, program)).partition(" ")[2]
    parser = Options(prog=program, usage=usage, formatter_class=Fitted)
    parser.add_argument("source", type=typed_path, help="what is read: SOURCE, RUN or ADAPTER_RUN")
    parser.add_argument(
        "target", type=typed_path, nargs="?", help="what is written; out: in RUN/export where it is left out"
    )
    parser.add_argument("--to", "--format", choices=FORMS, metavar="FORM", help=f"write a run out: {', '.join(FORMS)}")
    parser.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        default="none",
        metavar="KIND",
        help=f"of what is written out: {', '.join(QUANTIZATIONS)} (default none)",
    )
    parser.add_argument(
        "--merge", action="store_true", help="write an adapter and its base as one model (--adapter.base: where it is)"
    )
    return parser


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Convert, then say what was written and how to use it."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words.pop(0) if words[:1] in (["import"], ["export"], ["merge"]) else ""
    parser = options(program)
    parser.set_defaults(to="hf" if verb == "export" else None)
    words, of_fields = apart(words)
    given, rest = parser.parse_known_intermixed_args(words)
    from coretrain.runs.adapted import merge_run
    from coretrain.runs.convert import export_run, exported_to, import_run

    rest += of_fields
    if verb == "merge":
        if given.target is None or given.to is not None or given.quantize != "none":
            parser.error("merge takes the adapter's run and the folder of the new run, and no form")
        print("\n".join(merge_run(given.source, given.target, moved_base(rest, program))))
        return 0
    if given.to is None or verb == "import":
        if given.target is None:
            parser.error("name the folder of the new run, or give --to FORM to write a run out")
        if given.quantize != "none" or given.merge:
            parser.error("--quantize and --merge are for what is written out: give --to FORM too, or leave them out")
        command = understood(rest, program)
        lines = import_run(given.source, given.target, command.config, command.overrides)
    else:
        base = moved_base(rest, program)
        form = "hf" if given.to == "huggingface" else given.to
        target = given.target or exported_to(given.source, form, given.quantize)
        if form == "onnx":
            from torchtrain.onnx_export import export_onnx

            lines = export_onnx(given.source, target, given.quantize, given.merge, base)
        else:
            lines = export_run(given.source, target, form, given.quantize, given.merge, base)
    print("\n".join(lines))
    return 0
