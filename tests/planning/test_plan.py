"""The planner against figures worked out by hand, its refusals, its command lines, and the TPU's compiler."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import bench.memory as bench_memory
import twintrain.plan as script
from coretrain.adapters.targets import adapter_table
from coretrain.base.errors import UserError
from coretrain.config.load import load_config, presets
from coretrain.planning.accelerators import accelerators, machine
from coretrain.planning.hlo import collectives
from coretrain.planning.memory import blockwise, footprint, kv_cache
from coretrain.planning.planner import HEADROOM, estimate
from coretrain.planning.scaling_laws import (
    advice,
    cheapest_equal,
    loss,
    optimal_tokens,
)
from coretrain.planning.show import (
    as_object,
    compiled_bytes,
    picture,
    tables,
)
from coretrain.planning.traffic import traffic
from coretrain.processes.layout import Layout, layout_of
from coretrain.processes.supported import check_combination
from coretrain.training.command_line import parse

ROOT = Path(__file__).resolve().parents[2]


def made(name: str = "gpt2-124m", **more: object):
    fields = {key.replace("__", "."): str(value) for key, value in more.items()}
    return script.planned(load_config(name, list(fields.items())), None)


def planned(*argv: object):
    return script.make_plan([*map(str, argv), "--no-compile"])[0]


def refused(*argv: object) -> str:
    with pytest.raises(UserError) as caught:
        planned(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- accelerators


def test_machines_by_name():
    four = machine("4090x8")
    assert (four.devices, four.nodes, four.flops) == (8, 1, 8 * 165e12)
    pod = machine("V5E:16x16")
    assert (pod.devices, pod.topology, str(pod)) == (256, "16x16", "v5e:16x16")
    assert machine("h100").devices == 1
    assert machine("h100x16").link == 50e9  # past one node the network is the ring's slowest part
    assert machine("h100x8").link == 450e9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h10", "did you mean h100"),
        ("4090:2x4", "write 4090x8"),
        ("h100x0", "at least one"),
        ("h100x12", "12 don't fill whole ones: take 8 or 16"),
        ("v5e:32x32", "largest slice of v5e has 256"),
    ],
)
def test_machines_that_cannot_be(text, words):
    with pytest.raises(UserError, match=words):
        machine(text)


def test_a_table_of_ones_own(tmp_path):
    mine = tmp_path / "mine.toml"
    row = (ROOT / "coretrain" / "planning" / "accelerators.toml").read_text().split("[h100]")[1].split("[")[
        0
    ] + '["H100"]\n'
    mine.write_text("[fast]" + row)
    assert machine("fastx2", mine).flops == 2 * 989e12
    mine.write_text("[fast]" + row.replace("tflops = 989", "tflops = -1"))
    with pytest.raises(UserError, match="tflops"):
        accelerators(tmp_path / "mine.toml") if accelerators.cache_clear() is None else None
    mine.write_text("not toml")
    accelerators.cache_clear()
    with pytest.raises(UserError, match="not valid TOML"):
        accelerators(mine)
    with pytest.raises(UserError, match="can't be read"):
        accelerators(tmp_path / "none.toml")


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("stack", ["torch", "jax"])
def test_memory_is_what_a_real_update_takes(stack):
    # Floor: torch +0.8 to +2.8% on this case in three runs, JAX +5.0%; at most 8.9% over the cases of docs/planning.md.
    # It catches a second copy of the weights (+12%), a block that isn't recomputed (+150%), a whole set of logits kept.
    found = bench_memory.measure(stack, "Llama form, full")
    assert abs(found.error) < 0.10, found


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["torch", "jax"])
@pytest.mark.parametrize("case", bench_memory.CASES)
def test_memory_of_every_case(stack, case):
    if stack == "jax" and "bfloat16" in case:
        pytest.skip("XLA's CPU compiler computes bfloat16 in float32")
    assert abs(bench_memory.measure(stack, case).error) < 0.10


def test_zero_shards_by_stage_and_offload_empties_the_device():
    c = made()
    whole = footprint(c).kinds

    def stage(zero: int, offload: str = "none"):
        p = c.parallel.model_copy(update={"zero": zero, "offload": offload})
        return footprint(c.model_copy(update={"parallel": p}), Layout(data=8))

    n = whole["weights"]
    assert stage(0).kinds["weights"] == n
    assert stage(1).kinds["moments"] == stage(2).kinds["moments"] == whole["moments"] / 8
    assert stage(2).kinds["weights"] == n + n / 8  # DeepSpeed's clone of its partition
    assert stage(3).kinds["weights"] == n / 4
    assert stage(1).kinds["gradients"] > stage(2).kinds["gradients"]
    assert stage(3, "optimizer").kinds["moments"] == 0
    assert stage(3, "all").kinds["weights"] == 0
    assert stage(3, "all").host > stage(3, "optimizer").host > stage(3).host


def test_the_host_has_room_for_what_is_offloaded_or_for_a_saves_copy():
    c = made("llama-7b", train__accumulation=8)
    n = footprint(c).kinds["weights"]
    assert footprint(c, Layout(data=8)).host == 3 * n / 8, "copies of the model take turns"
    assert footprint(c, Layout(fsdp=8), "jax").host == 3 * n / 8
    assert footprint(c, Layout(data=2, fsdp=4), "jax").host == 3 * n / 4
    assert "61 GiB of 58 on its host" in refused("llama-13b", "--on", "4090x4")


def test_axes_divide_what_they_share():
    c = made("llama-7b", train__accumulation=8)
    one = footprint(c, stack="jax")
    eight = footprint(c, Layout(fsdp=8), "jax")
    assert eight.kinds["moments"] == one.kinds["moments"] / 8
    assert eight.kinds["activations"] == pytest.approx(one.kinds["activations"] / 8)
    halves = footprint(c, Layout(tensor=2), "jax")
    assert halves.kinds["moments"] == pytest.approx(one.kinds["moments"] / 2, rel=1e-3)  # norms aren't split
    # but the block at work has the keys and values of whole rows: two kinds of 32 heads x 128 numbers of 2 bytes
    gathered = c.micro_batch * 2048 * 2 * 32 * 128 * 2
    assert footprint(c, Layout(context=2), "jax").kinds["activations"] == one.kinds["activations"] / 2 + gathered


def test_where_all_scores_are_made_they_are_counted():
    """The footprint's rule for a TPU is the kernel table's."""
    from jaxtrain.attention import KERNELS

    tpu = type("Device", (), {"platform": "tpu"})()
    for head, context, parts in ((64, 256, 1), (128, 256, 2), (256, 128, 1), (64, 128, 2), (96, 256, 1), (64, 200, 1)):
        shape = {"model__head_width": head, "model__context": context, "parallel__context": parts}
        c, layout = made("tiny", model__vocab=320, **shape), Layout(context=parts)
        for kernel in ("plain", "xla"):
            assert not blockwise(made("tiny", model__vocab=320, execution__attention=kernel, **shape), layout)
        assert blockwise(c, layout) is (KERNELS["splash"].obstacle(c, tpu) is None), shape
        plain, kept = (footprint(c, layout, "jax", scores=all_).kinds["activations"] for all_ in (False, True))
        assert footprint(c, layout, "jax").kinds["activations"] == (plain if blockwise(c, layout) else kept)
        form = c.micro_batch * c.model.heads * context // parts * context * 4
        assert head % 128 or kept - plain >= 2 * form * c.model.layers


def test_a_frozen_heads_gradient_is_not_there():
    """It is the largest tensor there is, of a small model with a large vocabulary."""
    fields = {"model__vocab": 32000, "train__accumulation": 8, "execution__checkpoint_activations": "full"}
    lora = {"adapter__kind": "lora", "model__tied": "false"}
    head = 32000 * made("tiny", **fields).model.width * 4
    blocks = footprint(made("tiny", **fields, **lora)).kinds["gradients"]
    both = made("tiny", **fields, **lora, adapter__targets='["blocks.*", "head.weight"]')
    assert blocks < 0.1 * head < head < footprint(both).kinds["gradients"]


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_an_adapters_base_is_cut_but_its_bytes_are_not(quantize):
    """A base's matrices are shared over fsdp and tensor; an adapter, and a base in few bits, are whole everywhere."""
    c = made("llama-7b", adapter__kind="lora", adapter__quantize=quantize)
    whole = footprint(c, stack="jax").kinds["weights"]
    adapter = 4 * sum(row.size for row in adapter_table(c))
    embeddings = 4 * 2 * 32000 * 4096
    for layout in (Layout(tensor=2), Layout(fsdp=4), Layout(tensor=4), Layout(data=2, fsdp=2, tensor=2)):
        kinds, parts = footprint(c, layout, "jax").kinds, layout.fsdp * layout.tensor
        assert min(kinds.values()) >= 0
        cut = embeddings if quantize == "nf4" else whole - adapter
        assert kinds["weights"] == pytest.approx(whole - cut + cut / parts, rel=1e-3)
        assert kinds["gradients"] < 2.1 * adapter


def test_an_adapters_update_takes_its_own_time():
    fields = {"--on": "v5e:2x2", "--parallel.fsdp": 4}
    words = [word for pair in fields.items() for word in pair]
    whole, lora = planned("llama-1b", *words), planned("llama-1b", *words, "--adapter.kind", "lora")
    assert lora.best.seconds["update"] < 0.1 * whole.best.seconds["update"]


def test_a_pipelines_first_stage_holds_a_micro_batch_for_each_stage():
    c = made("gpt2-124m", train__accumulation=8)
    one, four = footprint(c), footprint(c, Layout(pipeline=4))
    assert four.kinds["activations"] == pytest.approx(one.kinds["activations"], rel=0.1)
    assert four.kinds["moments"] < 0.6 * one.kinds["moments"]


def test_kv_cache_by_hand():
    m = made("llama-1b")
    assert kv_cache(m, 3, 100) == 2 * 16 * 3 * 100 * 8 * 64 * 2


# ---------------------------------------------------------------- traffic


def test_bytes_sent_by_hand():
    c = made("gpt2-124m", train__accumulation=4)
    n = footprint(c).kinds["weights"] / 4

    def sent(zero: int):
        p = c.parallel.model_copy(update={"zero": zero})
        return sum(traffic(c.model_copy(update={"parallel": p}), Layout(data=8)).values()) / (n * 4 * 7 / 8)

    assert (sent(0), sent(1), sent(2), sent(3)) == pytest.approx((2, 3, 9, 12))
    assert traffic(c, Layout()) == {}


def test_tensor_parallel_sends_four_all_reduces_a_block_and_two_at_the_ends():
    c = made("gpt2-124m", execution__checkpoint_activations="matmuls")
    tokens, d = 512 * 1024, 768
    assert traffic(c, Layout(tensor=4)) == {"tensor": (12 * 4 + 2) * (2 * 3 / 4) * tokens * d * 2}


def test_stages_pass_on_activations_and_sum_a_tied_head():
    c = made("gpt2-124m", train__accumulation=8)
    head, tokens = 50304 * 768 * 4, 512 * 1024 * 768 * 2
    assert traffic(c, Layout(pipeline=2)) == {"gradients": head, "pipeline": tokens}
    assert traffic(c, Layout(pipeline=4)) == {"gradients": head, "pipeline": 2 * tokens}, "between, both ways"
    assert traffic(c, Layout(pipeline=4), "jax")["pipeline"] == 2 * tokens * (8 + 3) / 8, "in every tick"


def test_devices_that_share_tokens_sum_their_gradients():
    c = made("gpt2-124m")
    shared = traffic(c, Layout(context=4), "jax")
    assert shared["gradients"] == traffic(c, Layout(data=4), "jax")["gradients"]
    assert shared["context"] > 0


# ---------------------------------------------------------------- choosing


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


def test_the_program_ends_with_two_on_a_mistake():
    command = [sys.executable, ROOT / "scripts" / "plan.py", "tiny", "--on", "h10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --on h10")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("width", [100, 140])
def test_tables_and_picture(width, tmp_path):
    plan = planned("gpt2-1558m", "--on", "4090x8", "--price", 2.5)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables(plan))
    text = console.export_text()
    for word in ("ZeRO 0", "ZeRO 3", "> ZeRO", "torchrun --nproc-per-node 8", "Chinchilla", "bound"):
        assert word in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    picture(plan, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(as_object(plan)))["chosen"]["fits"]


# ---------------------------------------------------------------- tokens


def test_the_law_is_about_twenty_tokens_a_parameter_at_chinchillas_size():
    assert optimal_tokens(70e9) / 70e9 == pytest.approx(20, rel=0.15)
    smaller, longer = cheapest_equal(7e9, optimal_tokens(7e9))
    assert (smaller, longer) == pytest.approx((7e9, optimal_tokens(7e9)), rel=1e-3)


def test_the_optimum_is_one():
    n = 1e9
    d = optimal_tokens(n)
    for factor in (0.9, 1.1):  # the same FLOPs otherwise spent
        assert loss(n * factor, d / factor) > loss(n, d)


def test_serving_wants_longer_training():
    assert optimal_tokens(1e9, 1e12) > 2 * optimal_tokens(1e9)
    assert "too few" in dict(advice(10**9, 1e9, 0))["this run"]
    assert "cheapest to train" in dict(advice(10**9, optimal_tokens(1e9), 0))["this run"]


# ---------------------------------------------------------------- the TPU's compiler


HLO = """\
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %g = bf16[64,4]{1,0} all-gather(%x), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  %again = bf16[64,4]{1,0} all-gather(%x), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
}

%last (p: f32[8,4]) -> f32[8,4] {
  %g2 = bf16[64,4]{1,0} all-gather(%x), replica_groups=[1,8]<=[8], dimensions={0}
}

%outer (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %w = (s32[], f32[8,4]) while(%t), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %s = f32[2,4]{1,0} reduce-scatter(%y), replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}, to_apply=%add
}

%until (p: (s32[], f32[8,4])) -> pred[] {
  %n = s32[]{:T(128)} constant(2)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %w2 = (s32[], f32[8,4]) while(%t), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %r = (f32[10]{0}, f32[6]{0}) all-reduce(%a, %b), replica_groups={{0,1}}, to_apply=%add
  %st = (f32[4]{0}, f32[16]{0}) all-gather-start(%a), replica_groups={{0,1,2,3}}
  %d = f32[16]{0} all-gather-done(%st)
  %w4 = (s32[], f32[8,4]) while(%t), condition=%until, body=%last
  ROOT %w3 = f32[8,4] while(%t), condition=%c, body=%none
}
"""


def test_one_channel_is_one_collective_but_on_a_cpu():
    both = collectives(HLO, channels=False).calls["all-gather"]
    assert both - collectives(HLO).calls["all-gather"] == 5 * 3, "%again, in each turn of both loops"


def test_collectives_of_loops_are_counted_as_often_as_they_run():
    found = collectives(HLO)
    assert dict(found.calls) == {"all-gather": 18, "reduce-scatter": 5, "all-reduce": 1}
    assert found.sent["all-gather"] == 17 * 64 * 4 * 2 * 7 / 8 + 16 * 4 * 3 / 4
    assert found.sent["reduce-scatter"] == 5 * 2 * 4 * 4 * 3
    assert found.sent["all-reduce"] == 2 * 16 * 4 / 2
    assert found.loops_without_count == 1


def test_without_the_compiler_the_plan_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    plan, _ = script.make_plan(["llama-7b", "--on", "v5e:16x16"])
    assert plan.compiled is None
    assert "twintrain[tpu]" in plan.remark


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9 ended it"),
        ("raise SystemExit(3)", "it ended with code 3 and without a word"),
        ("raise ValueError('as it says')", "ValueError: as it says"),
        ("import time; time.sleep(60)", "took more than 0 minutes"),
    ],
)
def test_a_compiler_that_ends_or_hangs_is_one_sentence(code, words, monkeypatch):
    real = subprocess.run
    monkeypatch.setattr(script, "COMPILED_WITHIN", 0.5 if "sleep" in code else 60)
    monkeypatch.setattr(script.subprocess, "run", lambda _, **more: real([sys.executable, "-c", code], **more))
    with pytest.raises(UserError, match=words) as caught:
        script.compile_for(made("llama-1b"), "v5e:2x2")
    assert "--no-compile" in str(caught.value)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is missing: pip install 'twintrain[tpu]'"
)
SLICES = {"v5e": ("v5e:2x2", 1), "v5p": ("v5p:2x2x1", 1), "v6e": ("v6e:2x2", 1)}
"""Of each kind of TPU the smallest slice, and its tensor axis; the rest is fsdp."""
LARGER_SLICES = {
    ("gpt2-1558m", "v5e"): ("v5e:2x4", 1),
    ("llama-70b", "v5e"): ("v5e:4x4", 8),
    ("llama-70b", "v6e"): ("v6e:2x4", 4),
    ("llama-405b", "v5e"): ("v5e:16x16", 8),
    ("llama-405b", "v5p"): ("v5p:2x2x2", 4),
    ("llama-405b", "v6e"): ("v6e:4x8", 8),
    ("llama-7b whole", "v5e"): ("v5e:16x16", 1),
}
TWO_LAYERS = ("llama-7b", "llama-13b", "llama-70b", "llama-405b")
"""Of these: the others are compiled whole."""
NO_CASES = {("llama-7b whole", "v6e")}
CASES = [
    (name, kind)
    for name in (*(n for n in presets() if n not in ("tiny", "smollm2-lora")), "llama-7b whole")
    for kind in SLICES
    if (name, kind) not in NO_CASES
]


def on_a_slice(name: str, kind: str):
    """(config, layout, slice) of a preset, with two chunks of logits on a device, or one row of tokens."""
    topology, tensor = LARGER_SLICES.get((name, kind), SLICES[kind])
    layout = Layout(fsdp=machine(topology).devices // tensor, tensor=tensor)
    fields = {"parallel__fsdp": layout.fsdp, "parallel__tensor": tensor}
    fields |= {"model__layers": 2} if name in TWO_LAYERS else {}
    c = made(name.removesuffix(" whole"))
    rows = max(1, 2 * c.execution.loss_chunk // c.model.context) * layout.fsdp
    fields |= {"train__accumulation": c.train.batch_size // rows}
    return made(name.removesuffix(" whole"), **fields), layout, topology


@pytest.mark.tpu_compiler
@needs_libtpu
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_preset_compiles_and_takes_what_is_computed(name, kind):
    c, layout, topology = on_a_slice(name, kind)
    found = script.compile_for(c, topology)
    assert found["fits"], found
    # Floor: -13.5 to +13.4% (docs/planning.md). It catches weights gathered and kept, an embedding's whole gradient.
    assert footprint(c, layout, "jax").total == pytest.approx(compiled_bytes(c, found), rel=0.15)


@pytest.mark.tpu_compiler
@needs_libtpu
def test_a_topology_that_the_compiler_does_not_know():
    with pytest.raises(UserError, match="knows no topology"):
        script.compile_for(made("llama-1b", model__layers=2), "v5e:3x5")
