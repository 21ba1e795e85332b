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
MICRO = 2
WIDE = {"model__heads": 8, "model__vocab": 128, "train__batch_size": 128}
TASKS = {
    "dropout": {"fields": DROPOUT},
    "Muon": {"fields": {"optimizer__name": "muon"}},
    "LoRA": {"fields": HALF | {"adapter__kind": "lora"}},
    "compiled": {"fields": LLAMA | DROPOUT, "compiled": True},
    "data 64": {"fields": WIDE, "processes": 64, "rank": 63},
    "data 2, tensor 4": {"fields": WIDE | HALF | {"parallel__tensor": 4}, "processes": 8, "rank": 1},
    "data 8, tensor 8": {
        "fields": WIDE | LLAMA | {"parallel__tensor": 8, "model__kv_heads": 8},
        "processes": 64,
        "rank": 21,
    },
}


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
    """Compiled with fullgraph, once for both micro-batches."""
    assert {name: found["graphs"] for name, found in traced.items() if found["graphs"]} == {"compiled": 1}


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.get("processes")])
def test_what_is_sent_is_what_was_planned(traced, name):
    """In rings. Beside it: three sums a target over a vocabulary that is cut, and three scalars of each process."""
    planned, calls = traced[name]["planned"], [tuple(call) for call in traced[name]["calls"]]
    config = TASKS[name]["fields"]
    over = config.get("parallel__tensor", 1)
    sent = {"gradients": 0.0, "tensor": 0.0}
    small = Counter()
    tokens = 128 * 24 // MICRO // (TASKS[name]["processes"] // over)
    for kind, axis, size, count in calls:
        of = {"data": "gradients", "tensor": "tensor"}.get(axis)
        if kind != "all_reduce" or (of == "tensor" and count <= 8 * tokens):
            small[kind, axis, size, count] += 1
        else:
            sent[of] += 2 * (size - 1) / size * count
    assert {kind: total for kind, total in sent.items() if total} == pytest.approx(planned, rel=1e-12)
    expected = {("all_gather", "all", TASKS[name]["processes"], 3 * 8): 1}
    if over > 1:
        expected |= {("all_reduce", "tensor", over, n * 4 * tokens): MICRO for n in (1, 2)}
    assert small == expected
