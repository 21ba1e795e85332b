"""What an update takes on TPUs that aren't here, by their own compiler: memory, traffic and the seconds of compiling.

Usage: python -m bench.tpu [--only WORD] [--gradient-sum master|compute] [--peer FILE] [--json FILE] [--markdown]

One row of tokens on a device, everything recomputed, fsdp over the whole slice: the shape at which MaxText's own
`train_compile` says what it takes. Its figures come from FILE, as this writes its own: {"case": {"memory": bytes,
"gradients": bytes sent for them, "seconds": of compiling}}. Each case takes minutes of a CPU; libtpu must be there.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from coretrain.base.errors import exits_cleanly
from coretrain.base.files import read_json, typed_path, write_atomically
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.planning.accelerators import machine
from coretrain.planning.show import compiled_bytes
from twintrain.plan import compile_for

LLAMA_8B = {
    "model.width": 4096,
    "model.layers": 32,
    "model.heads": 32,
    "model.kv_heads": 8,
    "model.mlp_width": 14336,
    "model.vocab": 128256,
    "execution.loss_chunk": 1024,
}
"""Llama 3.1's; no preset has this shape. Of so many ids a chunk of the default 2,048 tokens takes 525 MB."""
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-7b, v5e:16x16, 2048": ("llama-7b", "v5e:16x16", {"model.context": 2048}),
    "llama3.1-8b, v5e:16x16, 4096": ("llama-7b", "v5e:16x16", LLAMA_8B | {"model.context": 4096}),
    "llama3.1-8b, v6e:16x16, 4096": ("llama-7b", "v6e:16x16", LLAMA_8B | {"model.context": 4096}),
    "llama-70b, v5p:4x8x8, 4096": ("llama-70b", "v5p:4x8x8", {"model.context": 4096}),
}
"""By name: a preset, a slice, and what differs from the preset. The number is the tokens of a row."""


def config_of(name: str, gradient_sum: str) -> tuple[RunConfig, str]:
    """The run of a case, with a row on each device of its slice, and the slice."""
    preset, topology, fields = CASES[name]
    devices = machine(topology).devices
    fields = fields | {"parallel.fsdp": devices, "train.batch_size": devices, "train.accumulation": 1}
    fields |= {"execution.checkpoint_activations": "full", "parallel.gradient_sum": gradient_sum}
    return load_config(preset, [(key, str(value)) for key, value in fields.items()]), topology


def measured(config: RunConfig, topology: str) -> dict[str, Any]:
    """Bytes of a device at the peak, bytes that it sends, by kind, and seconds of compiling."""
    found = compile_for(config, topology)
    if not found["fits"]:
        return {"reason": found["reason"]}
    sent = found["update"]["sent"]
    return {
        "memory": compiled_bytes(found),
        "heap": found["update"]["scratch"],
        "gradients": sent.get("all-reduce", 0.0) + sent.get("reduce-scatter", 0.0),
        "sent": sent,
        "seconds": found["update"]["seconds"],
        "libtpu": found["libtpu"],
    }


def row(name: str, ours: dict[str, Any], peer: dict[str, Any] | None) -> list[str]:
    """Cells of the table; beside a figure, in brackets, how many of the peer's it is."""
    if "reason" in ours:
        return [name, ours["reason"], "", "", "", ""]

    def cell(kind: str, scale: float, places: int) -> str:
        text = f"{ours[kind] / scale:.{places}f}"
        return f"{text} ({ours[kind] / peer[kind]:.2f}x)" if peer and peer.get(kind) else text

    whole = ours["sent"].get("all-reduce", 0.0) / ours["gradients"] if ours["gradients"] else 0.0
    heap = f"{ours['heap'] / 1e6:.0f}"
    return [name, cell("memory", 1e6, 0), heap, cell("gradients", 1e9, 1), f"{whole:.0%}", cell("seconds", 1, 0)]


@exits_cleanly
def main() -> int:
    """Compile the cases, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name holds it")
    parser.add_argument("--gradient-sum", choices=("master", "compute"), default="master")
    parser.add_argument("--peer", type=typed_path, metavar="FILE", help="another program's figures, as --json writes")
    parser.add_argument("--json", type=typed_path, metavar="FILE", help="write all figures")
    parser.add_argument("--markdown", action="store_true", help="a table for docs/LOG.md")
    given = parser.parse_args()
    peers = read_json(given.peer, "the peer's figures", "write it as --json does") if given.peer else {}
    found: dict[str, dict[str, Any]] = {}
    names = ["case", "memory MB", "heap MB", "for gradients, GB", "of it all-reduced", "compiling, s"]
    table = Table(*names, title=f"libtpu, gradients summed in the {given.gradient_sum} dtype")
    for name in (name for name in CASES if given.only in name):
        found[name] = measured(*config_of(name, given.gradient_sum))
        cells = row(name, found[name], peers.get(name))
        table.add_row(*cells)
        print(f"{name}: done", flush=True, file=sys.stderr)
        if given.json:
            write_atomically(given.json, json.dumps(found, indent=1))
    if given.markdown:
        print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
        for name in found:
            print("| " + " | ".join(row(name, found[name], peers.get(name))) + " |")
    else:
        Console().print(table)
    return 0


if __name__ == "__main__":
    main()
