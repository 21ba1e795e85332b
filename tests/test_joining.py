"""How the processes of a run find each other, and which settings each stack refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

import coretrain.runner as runner
from coretrain.combinations import check_combination
from coretrain.config import load_config
from coretrain.errors import UserError
from coretrain.layout import Layout
from coretrain.spawn import environment_alone, free_port
from coretrain.world import World

JOIN = """
import sys
from coretrain.config import load_config
from jaxtrain.parallel import join
world = join(load_config("tiny", [tuple(word.split("=")) for word in sys.argv[1:]]))
print("rank", world.rank, "of", world.size, world.gather(f"hello from {world.rank}"))
"""
HELLO = "['hello from 0', 'hello from 1']"


def config(**fields):
    return load_config("tiny", [(name.replace("__", "."), str(value)) for name, value in fields.items()])


def joined(environments: list[dict[str, object]], words: list[list[str]]) -> list[str]:
    """What each process says once it has joined the others."""
    root = str(Path(__file__).resolve().parent.parent)
    started = []
    for environment, more in zip(environments, words, strict=True):
        facts = environment_alone() | {"PYTHONPATH": root} | {name: str(value) for name, value in environment.items()}
        command = [sys.executable, "-c", JOIN, "execution.device=cpu", *more]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=facts, stdout=pipe, stderr=pipe, text=True))
    said = [process.communicate(timeout=120) for process in started]
    assert all(process.returncode == 0 for process in started), said
    return [out.strip() for out, _ in said]


def test_slurm_tells_who_is_there():
    slurm = {"SLURM_JOB_ID": 4321, "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": 2}
    each = [
        slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "JAX_COORDINATOR_PORT": free_port()} for rank in (0, 1)
    ]
    each[1]["JAX_COORDINATOR_PORT"] = each[0]["JAX_COORDINATOR_PORT"]
    assert joined(each, [[], []]) == [f"rank 0 of 2 {HELLO}", f"rank 1 of 2 {HELLO}"]
    assert joined(each[:1], [["parallel.hosts=1"]]) == ["rank 0 of 1 ['hello from 0']"]


def test_hosts_may_be_told_by_hand():
    """They have the rest of the config in common: `parallel.host` is no part of it."""
    place = f"parallel.coordinator=127.0.0.1:{free_port()}"
    words = [[place, "parallel.hosts=2", f"parallel.host={rank}"] for rank in (0, 1)]
    assert joined([{}, {}], words) == [f"rank 0 of 2 {HELLO}", f"rank 1 of 2 {HELLO}"]
    first, second = (runner._common(config(parallel__hosts=2, parallel__host=rank)) for rank in (0, 1))
    assert first == second


def test_torchrun_starts_jax_too(tmp_path):
    """Its own store listens on the port that it tells."""
    script = tmp_path / "joins.py"
    script.write_text(JOIN)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    environment = environment_alone() | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    out = subprocess.run([*command, str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout.count(HELLO) == 2


def test_a_folder_that_not_all_see(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "SHARED_WITHIN", 1)
    other = World()
    other.rank = 1
    with pytest.raises(UserError, match="on a file system that all hosts share"):
        runner.check_shared(tmp_path / "run", config(), other)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config().to_json())
    runner.check_shared(tmp_path / "run", config(), other)


@pytest.mark.parametrize(
    ("stack", "fields", "layout", "words"),
    [
        (
            "torch",
            {"zero": 3, "tensor": 2},
            Layout(tensor=2),
            "parallel.zero = 3 shards over data, and tensor 2 leaves",
        ),
        ("torch", {"zero": 1, "pipeline": 2}, None, "parallel.zero = 1 hooks into a backward pass of its own"),
        ("torch", {"fsdp": 2}, None, "parallel.fsdp = 2 is for JAX: in torch set parallel.zero = 3"),
        ("torch", {"hosts": 2}, None, "parallel.hosts is for JAX"),
        ("torch", {"offload": "all", "zero": 2}, None, "needs parallel.zero = 3, not 2"),
        ("jax", {"zero": 3}, None, "parallel.zero = 3 is for torch: in JAX set parallel.fsdp"),
        ("jax", {"offload": "optimizer"}, None, "parallel.offload = optimizer is for torch"),
    ],
)
def test_what_does_not_go_together(stack, fields, layout, words):
    with pytest.raises(UserError, match=words):
        check_combination(config(**{f"parallel__{name}": value for name, value in fields.items()}), stack, layout)


def test_what_does():
    check_combination(config(parallel__zero=3, parallel__tensor=2), "torch", Layout(data=2, tensor=2))
    check_combination(config(parallel__zero=3, parallel__offload="all"), "torch", Layout())
    check_combination(config(parallel__fsdp=2, parallel__tensor=2, parallel__pipeline=2), "jax")
