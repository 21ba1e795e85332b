"""`precision.compute = auto`: measured where a run begins, once for a machine, and then the run's own."""

from __future__ import annotations

import importlib
import json

import pytest

from coretrain.checkpoint.interchange import interchange_of, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.config.load import load_config
from coretrain.contract.compute import Matmuls, Speeds
from coretrain.contract.parameters import initial_parameters
from coretrain.processes.world import World
from coretrain.runs.convert import import_run
from coretrain.runs.folder import open_run
from coretrain.tokenizers.registry import bytes_tokenizer
from coretrain.training import compute, runner
from coretrain.training.command_line import parse
from coretrain.training.compute import choose, with_compute
from coretrain.training.resolve import resolve
from tests.support.refusal import refused
from tests.support.whole_runs import arguments
from twintrain.command import main
from twintrain.plan import make_plan

ALONE = World()
AUTO = ("--precision.compute", "auto")


@pytest.fixture
def measured(monkeypatch):
    """A list with a place for each measurement; what is measured is in its first place."""
    found = [Speeds(64, 10.0, 40.0)]

    def measure(multiplier: object) -> Speeds:
        found.append(multiplier)
        return found[0]

    monkeypatch.setattr(compute, "measure", measure)
    return found


@pytest.fixture
def run(corpus, tmp_path):
    """A run at its start, which computes in bfloat16."""
    folder = tmp_path / "run"
    config = parse(arguments(corpus), "run", "").config.with_vocab(257).changed(precision__compute="bfloat16")
    weights = initial_parameters(config.model, 3)
    save_interchange(interchange_of(folder, "update-00000000"), config, {"parameters": weights}, Progress(), "import")
    bytes_tokenizer().save(folder)
    (folder / "config.json").write_text(config.to_json())
    return folder


def matmuls(**more: object) -> Matmuls:
    return Matmuls({"library": "torch 2", "device": "cpu, A", "threads": 2} | more, lambda dtype, size: lambda: None)


def cached(tmp_path):
    return load_config("tiny", [("data.cache", str(tmp_path / "cache")), ("precision.compute", "auto")])


def test_a_machine_is_measured_once(measured, tmp_path):
    config = cached(tmp_path)
    first = choose(config, matmuls())
    assert first.name == "bfloat16"
    (path,) = (tmp_path / "cache" / "matmuls").iterdir()
    assert str(path) in first.reason
    measured[0] = Speeds(64, 10.0, 10.0)
    assert choose(config, matmuls()) == first
    assert len(measured) == 2
    for other in ({"threads": 1}, {"library": "torch 3"}, {"device": "cpu, B"}):
        assert choose(config, matmuls(**other)).name == "float32", other
    assert len(measured) == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:-9],
        lambda text: b"[1]",
        lambda text: text.replace(b"40.0", b'"40"'),
        lambda text: text.replace(b"40.0", b"0"),
        lambda text: text.replace(b"40.0", b"true"),
        lambda text: text.replace(b"40.0", b"1e999"),
        lambda text: text.replace(b"bfloat16", b"float8"),
        lambda text: text.replace(b"cpu, A", b"cpu, B"),
        lambda text: b"\xff" + text,
    ],
)
def test_a_broken_file_is_measured_again(damage, measured, tmp_path):
    config = cached(tmp_path)
    choose(config, matmuls())
    (path,) = (tmp_path / "cache" / "matmuls").iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    assert choose(config, matmuls()).name == "bfloat16"
    assert len(measured) == 3
    assert path.read_bytes() == whole


def test_without_a_cache_it_is_measured_each_time(measured, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    for _ in range(2):
        assert "kept" not in choose(cached(tmp_path), matmuls()).reason
    assert len(measured) == 3


@pytest.mark.parametrize("stack", ["torch", "jax"])
def test_a_stack_multiplies_in_both_dtypes(stack, tmp_path):
    found = importlib.import_module(f"{stack}train.choices").matmuls(cached(tmp_path))
    assert stack in found.machine["library"]
    json.dumps(dict(found.machine))
    for dtype in ("float32", "bfloat16"):
        found.multiplier(dtype, 8)()


def test_only_the_first_process_measures(measured):
    config = load_config("tiny", [("precision.compute", "auto")])

    class Other(World):
        rank, size = 1, 2

        def on_rank0(self, do):
            assert not self.first

        def gather(self, text):
            assert text == ""
            return [json.dumps({"name": "bfloat16", "reason": "so"}), text]

    settled, choice = with_compute(config, "torch", Other())
    assert (settled.precision.compute, choice.reason) == ("bfloat16", "so")
    assert len(measured) == 1
    assert with_compute(settled, "torch", Other()) == (settled, None), "what is given is left as it is"


def test_a_run_keeps_what_it_began_with(measured, corpus, run, tmp_path):
    ready = resolve(parse([*arguments(corpus), *AUTO, "--output", str(tmp_path / "new")], "", ""), ALONE, "torch")
    assert ready.config.precision.compute == "bfloat16"
    assert runner.chosen_compute(ready.compute)[0][1].startswith("bfloat16 (matmuls here run at 40.0 GFLOP/s")
    measured[0] = Speeds(64, 10.0, 1.0)
    resumed = resolve(parse(["--resume", str(run)], "", ""), ALONE, "jax")
    assert (resumed.config.precision.compute, resumed.compute) == ("bfloat16", None)
    assert runner.chosen_compute(None) == []
    again = resolve(parse(["--resume", str(run), *AUTO], "", ""), ALONE, "jax")
    assert again.config.precision.compute == "float32", "where it is asked for again, it is chosen again"


def test_where_it_means_nothing_it_is_refused(run, tmp_path, monkeypatch):
    (run / "config.json").write_text(open_run(run).changed(precision__compute="auto").to_json())
    with refused("runs/compute-not-chosen", str(run)):
        open_run(run)
    with refused("runs/import-compute-auto"):
        import_run(tmp_path / "x.gguf", tmp_path / "new", load_config("tiny", [("precision.compute", "auto")]))
    with refused("parity/compute-not-chosen"):
        main(["localize", "tiny", *AUTO])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("machine", "dtype"), [("h100", "bfloat16"), ("v5e:2x2", "bfloat16"), ("t4", "float32")])
def test_a_plan_takes_what_the_table_says(machine, dtype):
    plan, _ = make_plan(["tiny", "--on", machine, *AUTO, "--model.vocab", "300", "--no-compile"])
    assert plan.best.config.precision.compute == dtype
