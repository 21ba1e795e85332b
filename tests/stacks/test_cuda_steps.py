"""torch's update on a device that isn't there: nothing of it is read, the loss is one graph, what is sent is planned.

`tests/support/stand_in_device.py` is the program that traces it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

pytestmark = pytest.mark.whole

LLAMA = {
    "model__norm": "rmsnorm", "model__mlp": "swiglu", "model__position": "rope", "model__kv_heads": 2,
    "model__bias": "false", "model__tied": "false", "precision__compute": "bfloat16",
}  # fmt: skip
HALF = {"precision__compute": "bfloat16"}
DROPOUT = {"model__residual_dropout": 0.1, "model__embedding_dropout": 0.1}
COMPILED = {"execution__compile": "on"}
FULL = {"execution__checkpoint_activations": "full"}
FSDP2 = {"parallel__zero_engine": "fsdp2"}
MICRO = 2
WIDE = {"model__heads": 8, "model__vocab": 128, "train__batch_size": 128}
TASKS = {
    "dropout": {"fields": DROPOUT},
    "Muon": {"fields": {"optimizer__name": "muon"}},
    "LoRA": {"fields": HALF | {"adapter__kind": "lora"}},
    "compiled": {"fields": LLAMA | DROPOUT | COMPILED},
    "recomputed": {"fields": HALF | FULL},
    "recomputed, compiled": {"fields": LLAMA | FULL | COMPILED},
    "matmuls kept": {"fields": HALF | {"execution__checkpoint_activations": "matmuls"}},
    "data 64": {"fields": WIDE, "processes": 64, "rank": 63},
    "data 2, tensor 4": {"fields": WIDE | HALF | {"parallel__tensor": 4}, "processes": 8, "rank": 1},
    "data 8, tensor 8": {
        "fields": WIDE | LLAMA | {"parallel__tensor": 8, "model__kv_heads": 8},
        "processes": 64,
        "rank": 21,
    },
    "tensor 2, recomputed": {"fields": FULL | {"parallel__tensor": 2}, "processes": 2},
    "tensor 2, recomputed with dropout": {"fields": FULL | DROPOUT | {"parallel__tensor": 2}, "processes": 2},
    "tensor 2, matmuls kept": {
        "fields": {"execution__checkpoint_activations": "matmuls", "parallel__tensor": 2},
        "processes": 2,
    },
    "pipeline 2": {"fields": HALF | {"parallel__pipeline": 2}, "processes": 2},
    "pipeline 2, recomputed": {"fields": LLAMA | FULL | {"parallel__pipeline": 2}, "processes": 2, "rank": 1},
    "pipeline 2, data 4": {"fields": WIDE | {"parallel__pipeline": 2}, "processes": 8},
    "FSDP2 1": {"fields": WIDE | FSDP2 | {"parallel__zero": 1}, "processes": 8},
    "FSDP2 2, tensor 4": {
        "fields": WIDE | HALF | FSDP2 | {"parallel__zero": 2, "parallel__tensor": 4},
        "processes": 8,
        "rank": 3,
    },
    "FSDP2 3, recomputed": {"fields": WIDE | FSDP2 | FULL | {"parallel__zero": 3}, "processes": 8, "rank": 7},
    "FSDP2 3, compiled": {
        "fields": WIDE
        | LLAMA
        | FSDP2
        | COMPILED
        | {"parallel__zero": 3, "model__layers": 3, "model__kv_heads": 8, "model__width": 128},
        "processes": 64,
        "rank": 63,
    },
}


WIDTHS = {"parallel__tensor": 1, "parallel__pipeline": 1, "train__batch_size": 4}
SENDS = {
    ("all_reduce", "data"): ("gradients", 2),
    ("all_reduce", "all"): ("gradients", 2),  # a tied head's, by both ends of a pipeline
    ("reduce_scatter_single", "data"): ("gradients", 1),
    ("all_gather_single", "data"): ("weights", 1),
    ("all_reduce", "tensor"): ("tensor", 2),
    ("isend", "pipeline"): ("pipeline", 0),
}
"""What a collective of an axis sends, and how often a ring would pass its buffer on (0: it is sent as it is)."""


@pytest.fixture(scope="module")
def traced():
    """What each task's update does, from one program."""
    tasks = [task | {"fields": task["fields"] | {"train__accumulation": MICRO}} for task in TASKS.values()]
    command = [sys.executable, "-m", "tests.support.stand_in_device", json.dumps(tasks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    return {name: json.loads(line) for name, line in zip(TASKS, done.stdout.splitlines(), strict=True)}


def test_nothing_is_read_from_the_device(traced):
    """From the batch to the optimizer's step, with any optimizer and adapter: a read would have ended the program."""
    for name, found in traced.items():
        assert found["refused"] == ["item", "cpu", "tolist", "__bool__"], name


def test_the_compiled_loss_is_one_graph(traced):
    """Compiled with fullgraph, once for both micro-batches; with FSDP2 a block, once for all layers."""
    found = {name: found["graphs"] for name, found in traced.items()}
    assert found == {name: int("compiled" in name) for name in TASKS}


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.get("processes")])
def test_what_is_sent_is_what_was_planned(traced, name):
    """In rings. Beside it: three sums a target over a vocabulary that is cut, and three scalars of each process."""
    found, fields = traced[name], WIDTHS | TASKS[name]["fields"]
    over, processes = fields["parallel__tensor"], TASKS[name]["processes"]
    tokens = fields["train__batch_size"] * 24 // MICRO // (processes // over // fields["parallel__pipeline"])
    sent, small = Counter(), Counter()
    for kind, axis, size, count in map(tuple, found["calls"]):
        of, rings = SENDS.get((kind, axis), ("", 0))
        if not of or (of == "tensor" and count <= 8 * tokens):
            small[kind, axis, size, count] += kind != "irecv"
        else:
            sent[of] += (rings * (size - 1) / size if rings else 1) * count
    planned = found["planned"]
    if "data" in name and fields["parallel__pipeline"] > 1:  # planned as if a stage had positions and the final norm
        assert 0.99 * planned["gradients"] < sent.pop("gradients") < planned.pop("gradients")
    assert sent == pytest.approx(planned, rel=1e-12)
    expected = {("all_gather", "all", processes, 3 * 8): 1}
    if over > 1:
        expected |= {("all_reduce", "tensor", over, n * 4 * tokens): MICRO for n in (1, 2)}
    assert +small == expected
