"""Convert checkpoints: out of a run into a Hugging Face folder or an interchange checkpoint, from Hugging Face in, or
an adapter merged into its base.

Usage: python scripts/convert.py export RUN_OR_CHECKPOINT FOLDER [--format huggingface|interchange]
       python scripts/convert.py import HUGGINGFACE_FOLDER RUN_FOLDER [CONFIG] [--section.field VALUE ...]
       python scripts/convert.py merge ADAPTER_RUN RUN_FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that isn't installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from coretrain.adapter_runs import merge_run
from coretrain.command import parse
from coretrain.convert import export_run, import_run
from coretrain.errors import exits_cleanly


def main() -> int:
    """Convert, then say what was written and how to use it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="a run's newest interchange checkpoint, in another form")
    out.add_argument("source", type=Path, help="folder of a run, or of an interchange checkpoint")
    out.add_argument("folder", type=Path, help="folder to write; must not exist, or be empty")
    out.add_argument("--format", choices=("huggingface", "interchange"), default="huggingface")
    into = commands.add_parser("import", help="a GPT-2 or Llama folder of Hugging Face, as a run to go on training")
    into.add_argument("source", type=Path, help="folder with config.json and *.safetensors")
    into.add_argument("folder", type=Path, help="folder of the new run; must not exist, or be empty")
    into.epilog = "CONFIG and --section.field VALUE as the trainers take them: the data, the learning rate, the length"
    one = commands.add_parser("merge", help="the adapter that a run trained, in its base's weights, as a run")
    one.add_argument("source", type=Path, help="folder of the adapter's run")
    one.add_argument("folder", type=Path, help="folder of the new run; must not exist, or be empty")
    given, rest = parser.parse_known_args()
    if rest and given.command != "import":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if given.command == "export":
        lines = export_run(given.source, given.folder, given.format)
    elif given.command == "merge":
        lines = merge_run(given.source, given.folder)
    else:
        command = parse(rest, "scripts/convert.py import", "")
        lines = import_run(given.source, given.folder, command.config, command.overrides)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    exits_cleanly(main)()
