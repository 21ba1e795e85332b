"""What `precision.compute = auto` takes: the rule on speeds, and how these are measured."""

from __future__ import annotations

import pytest

from coretrain.contract import compute
from coretrain.contract.compute import Speeds, measure


@pytest.mark.parametrize(
    ("float32", "bfloat16", "name"),
    [(100.0, 149.0, "float32"), (100.0, 150.0, "bfloat16"), (200.0, 0.3, "float32"), (60e3, 900e3, "bfloat16")],
)
def test_the_rule(float32, bfloat16, name):
    choice = Speeds(512, float32, bfloat16).choice()
    assert choice.name == name
    for figure in (f"{float32:,.1f}", f"{bfloat16:,.1f}", "1.5"):
        assert figure in choice.reason


@pytest.mark.parametrize(
    ("gflops", "last"),
    [
        ({"float32": 100.0, "bfloat16": 400.0}, 2048),
        ({"float32": 100.0, "bfloat16": 0.3}, 256),  # a reference path: no size that takes minutes
        ({"float32": 50e3, "bfloat16": 900e3}, 4096),
    ],
)
def test_sizes_grow_while_the_next_fits_the_budget(gflops, last, monkeypatch):
    now, calls = [0.0], []

    def multiplier(dtype: str, size: int):
        def multiply() -> None:
            first = not any(call == (dtype, size) for call in calls)
            calls.append((dtype, size))
            # the first is slow, since it is compiled, and now and then the machine is busy
            now[0] += 2 * size**3 / gflops[dtype] / 1e9 * (30 if first else 1 + len(calls) % 3)

        return multiply

    monkeypatch.setattr(compute.time, "perf_counter", lambda: now[0])
    found = measure(multiplier)
    assert found.size == last
    assert {"float32": found.float32, "bfloat16": found.bfloat16} == pytest.approx(gflops)
    of_last = [dtype for dtype, size in calls if size == last]
    assert of_last == ["float32", "bfloat16"] * (compute.TIMES + 1), "in turns"
