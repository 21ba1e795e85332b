"""The planner's choices, its refusals, its command lines and its tables."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from coretrain.base.errors import UserError
from coretrain.planning.accelerators import GIB, machine
from coretrain.planning.planner import HEADROOM, estimate
from coretrain.planning.prices import amount
from coretrain.planning.show import as_object, picture, show, tables
from coretrain.processes.layout import Layout, layout_of
from coretrain.processes.supported import check_combination
from coretrain.training.command_line import parse
from tests.support.commands import ROOT
from tests.support.plans import made, planned, refused


@pytest.mark.parametrize("words", [("llama-7b", "4090x16"), ("llama-13b", "h100x64"), ("llama-1b", "4090x8", "muon")])
def test_what_is_recommended_can_be_run(words):
    """torch refuses a pipeline with ZeRO, and Muon with whatever cuts matrices."""
    name, machine, *optimizer = words
    plan = planned(name, "--on", machine, *(("--optimizer.name", *optimizer) if optimizer else ()))
    for choice in plan.found:
        check_combination(choice.config, "torch", choice.layout)


def test_the_choice_fits_and_nothing_that_fits_is_much_faster():
    plan = planned("gpt2-1558m", "--on", "4090x8")
    usable = plan.machine.memory * (1 - HEADROOM)
    assert plan.best.fits
    assert plan.best.memory.total <= usable
    fitting = [c for c in plan.found if c.memory.total <= usable]
    assert plan.best.update <= 1.02 * min(c.update for c in fitting)
    assert 0.2 < plan.best.mfu(plan.machine) <= plan.assumed.compute
    assert {c.config.parallel.zero for c in plan.found} == {0, 1, 2, 3}


def test_the_command_line_is_one_that_the_trainers_read():
    for argv in (["gpt2-1558m", "--on", "4090x8"], ["llama-7b", "--on", "v5e:16x16"], ["llama-1b", "--on", "4090"]):
        plan = planned(*argv)
        words = plan.command.split()
        read = parse(words[words.index("-m") + 2 :], "x", "").config
        assert read.train.accumulation == plan.config.train.accumulation
        assert read.execution.checkpoint_activations == plan.config.execution.checkpoint_activations
        assert (read.parallel.zero, read.parallel.offload) == (
            plan.config.parallel.zero,
            plan.config.parallel.offload,
        )
        assert layout_of(read, plan.machine.devices) == plan.best.layout


def test_what_the_user_sets_stays():
    plan = planned("gpt2-1558m", "--on", "4090x8", "--parallel.zero", 3, "--train.accumulation", 32)
    assert {(c.config.parallel.zero, c.config.train.accumulation) for c in plan.found} == {(3, 32)}


@pytest.mark.parametrize("axis", ["context", "pipeline"])
def test_axes_that_are_not_tried_are_taken_where_they_are_set(axis):
    plan = planned("llama-1b", "--on", "v5e:4x8", f"--parallel.{axis}", 2)
    assert {getattr(choice.layout, axis) for choice in plan.found} == {2}
    assert plan.best.layout.devices == 32
    assert f"--parallel.{axis} 2" in plan.command


def test_tokens_and_price():
    plan = planned("gpt2-124m", "--on", "h100x8", "--tokens", "2.5e9", "--price", 20)
    assert plan.config.train.updates == round(2.5e9 / (512 * 1024))
    found = as_object(plan)
    assert found["chosen"]["cost"] == pytest.approx(20 * plan.best.update * plan.config.train.updates / 3600)
    assert "--train.updates 4768" in plan.command


def test_an_adapters_update_takes_its_own_time():
    fields = {"--on": "v5e:2x2", "--parallel.fsdp": 4}
    words = [word for pair in fields.items() for word in pair]
    whole, lora = planned("llama-1b", *words), planned("llama-1b", *words, "--adapter.kind", "lora")
    assert lora.best.seconds["update"] < 0.1 * whole.best.seconds["update"]


def test_more_bandwidth_or_devices_are_never_slower():
    c = made("llama-7b", train__accumulation=16)
    fast, slow = machine("h100x8"), machine("4090x8")
    assert estimate(c, Layout(data=8), fast, "torch").update < estimate(c, Layout(data=8), slow, "torch").update


def test_refusals_are_one_sentence():
    assert "fits nowhere on 4090" in refused("llama-70b", "--on", "4090")
    assert "take more or larger devices" in refused("llama-70b", "--on", "4090")
    assert "can't be split over" in refused(
        "gpt2-124m", "--on", "h100x8", "--train.batch_size", 3, "--train.accumulation", 1
    )
    assert "parallel.fsdp = 8 is for JAX" in refused("llama-1b", "--on", "h100x8", "--parallel.fsdp", 8)
    assert "parallel.zero = 3 is for torch" in refused("llama-1b", "--on", "v5e:4x8", "--parallel.zero", 3)
    assert "has parallel.tensor = 3: choose axes" in refused("llama-1b", "--on", "v5e:4x8", "--parallel.tensor", 3)
    assert "context = 32 does not divide model.context" in refused(
        "llama-1b", "--on", "v5e:4x8", "--parallel.context", 32, "--model.context", 2000
    )
    assert "no such accelerator" in refused("tiny", "--on", "abacus")
    assert "did you mean 4090?" in refused("tiny", "--on", "rtx4090")
    together = refused(
        "llama-1b", "--on", "v5e:4x8", "--parallel.data", 4, "--parallel.fsdp", 8, "--parallel.tensor", 4
    )
    assert "(128 together)" in together
    assert "bfloat16" in refused("gpt2-124m", "--on", "t4x4")
    assert "float64" in refused("tiny", "--on", "h100", "--precision.compute", "float64")
    assert "less than one update" in refused("tiny", "--on", "h100", "--tokens", 10)


@pytest.mark.whole
def test_the_program_ends_with_two_on_a_mistake():
    command = [sys.executable, ROOT / "scripts" / "plan.py", "tiny", "--on", "h10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --on h10")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("width", [80, 140])
def test_tables_and_picture(width, tmp_path):
    plan = planned("gpt2-1558m", "--on", "4090x8", "--price", 2.5)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables(plan))
    text = console.export_text()
    for word in ("ZeRO 0", "ZeRO 3", "> ZeRO", "Chinchilla", "bound", "$2.50 an hour", "in USD: as --price says"):
        assert word in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    show(plan, console)
    assert console.export_text().splitlines()[-1] == plan.command, "it can be copied"
    assert plan.command.startswith("torchrun --nproc-per-node 8 ")
    narrow = Console(width=40, record=True, file=io.StringIO())
    show(plan, narrow)
    words = " ".join(narrow.export_text().replace("│", " ").split())
    assert "…" not in words
    cost = amount(plan.cost_of(plan.best), "USD")
    assert f"> {plan.best}: GiB {plan.best.memory.total / GIB:.1f}," in words
    assert f"cost {cost}" in words
    picture(plan, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(as_object(plan)))["chosen"]["fits"]


def test_what_is_read_in_which_stage_is_told():
    mixture = '[{source = "web/", weight = 4}, {source = "notes/", weight = 1}]'
    more = ("--data.mixture", mixture, "--data.replay", "old/", "--data.replay_fraction", 0.1)
    more += ("--data.validation", '["exam=exam.jsonl"]', "--train.updates", 1000, "--schedule.warmup_updates", 10)
    plan = planned("gpt2-124m", "--on", "4090x8", *more, "--data.stages", "[{update = 600, weights = [0, 1]}]")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables(plan))
    words = " ".join(console.export_text().split())
    assert "data 10.0% old/ (replay), 72.0% web/, 18.0% notes/" in words
    assert "from update 601 10.0% old/ (replay), 90.0% notes/" in words
    assert "up to 4 sets" in words
    never = planned("gpt2-124m", "--on", "4090x8", *more, "--data.stages", "[{peak_over = 1e4, weights = [0, 1]}]")
    with pytest.raises(UserError, match="waits for a rate"):
        tables(never)
