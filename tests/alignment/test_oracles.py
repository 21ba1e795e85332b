"""The numbers of reinforcement learning and the losses of alignment, equal to those of other projects in float64.

They need an environment of their own, E, and some of them a folder there, since two versions of one are compared and
their own requirements go beyond what is imported here:

    python -m venv E && E/bin/pip install torch transformers datasets accelerate peft pandas numpy
    E/bin/pip install --no-deps verl==0.9.1 ray tensordict omegaconf hydra-core codetiming pyvers orjson jsonschema \\
        jsonschema-specifications referencing rpds-py attrs antlr4-python3-runtime==4.9.3
    E/bin/pip install --no-deps --target E/trl-1.12.0 trl==1.12.0
    E/bin/pip install --no-deps --target E/trl-1.16.0 trl==1.16.0
    E/bin/pip install --no-deps --target E/openrlhf-0.11.2 openrlhf==0.11.2
    E/bin/pip install jax==0.10.2 flax==0.12.8 && E/bin/pip install --no-deps --target E/tunix-0.1.7 \\
        google-tunix==0.1.7 google-metrax clu wrapt qwix ml_collections tensorboardX sentencepiece numba llvmlite \\
        keras namex optree h5py perfetto protobuf grain array_record tensorflow-datasets

Then `TWINTRAIN_ORACLE_PYTHON=E/bin/python pytest -m slow tests/alignment/test_oracles.py`. A folder that isn't there is
skipped by name. docs/alignment-objectives.md has the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coretrain.alignment.figures import FIGURES
from tests.support import alignment_oracle
from tests.support.oracle_cases import LOSSES, NUMBERS, SEQUENCE, Given
from tests.support.oracle_numbers import Numbers

PYTHON = os.environ.get("TWINTRAIN_ORACLE_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="TWINTRAIN_ORACLE_PYTHON names no interpreter that has TRL, verl, ..."),
]
FOLDERS = {
    "trl 1.12": "trl-1.12.0",
    "trl 1.16": "trl-1.16.0",
    "openrlhf": "openrlhf-0.11.2",
    "verl": "lib",
    "tunix": "tunix-0.1.7",
}


@pytest.fixture(scope="module")
def numbers():
    return Numbers()


@pytest.fixture(scope="module")
def asked(numbers, tmp_path_factory):
    """Asks a project all about it, once."""
    kept: dict[str, Given] = {}
    folder = tmp_path_factory.mktemp("asked")
    np.savez(folder / "numbers.npz", **numbers.asked())

    def ask(project: str) -> Given:
        place = Path(PYTHON).parent.parent / FOLDERS[project]
        if not place.is_dir():
            pytest.skip(f"{place} isn't there")
        if project not in kept:
            cases = {name: [one.theirs, one.settings] for name, (whose, one) in LOSSES.items() if project in whose}
            cases |= {name: list(row[1:3]) for name, row in NUMBERS.items() if row[0] == project}
            (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
            files = [str(folder / name) for name in ("cases.json", "numbers.npz", "found.npz")]
            path = "" if project == "verl" else str(place)
            environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
            subprocess.run([PYTHON, alignment_oracle.__file__, *files], check=True, timeout=600, env=environment)
            with np.load(folder / "found.npz") as found:
                kept[project] = dict(found)
        return kept[project]

    return ask


def away(found: Any, wanted: Any) -> float:
    """The largest difference, as a part of the largest number."""
    return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(("project", "name"), [(whose, name) for name, (all_, _) in LOSSES.items() for whose in all_])
def test_a_loss_and_its_gradient_are_theirs(project, name, numbers, asked):
    case, found = LOSSES[name][1], asked(project)
    told, gradient = numbers.ours(case.ours, case.align, case.margin, case.corrected, "even" in case.settings)
    loss, wanted = numbers.theirs(found, name)
    if case.without:
        told[0] -= told[case.without]
        gradient = gradient - numbers.gradient(numbers.chosen_nll())
    errors = away(told[0], loss), away(gradient, wanted)
    print(f"{project}: {name}: loss {errors[0]:.1e}, gradient {errors[1]:.1e}")
    assert max(errors) <= case.limit


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_theirs(name, numbers, asked):
    project, _, _, find, limit = NUMBERS[name]
    wanted, given = asked(project)[name], numbers.asked()
    error = away(find(given, numbers.mask), wanted)
    print(f"{name}: {error:.1e}")
    assert error <= limit


@pytest.mark.parametrize(("objective", "align"), [("grpo", {}), ("grpo", SEQUENCE), ("ppo", {"value_clip": 0.3})])
def test_every_clip_holds_for_some_tokens_and_not_for_others(objective, align, numbers):
    """Else a loss that forgets it would be as near."""
    told, _ = numbers.ours(objective, align, with_margin=False, corrected=False, even=False)
    name = "value_clip_fraction" if objective == "ppo" else "clip_fraction"
    assert 0.05 < told[1 + FIGURES[objective].index(name)] < 0.95
