"""How the processes of a run find each other, and which settings each stack refuses."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import coretrain.training.runner as runner
import torchtrain.parallel.processes
from coretrain.base.errors import UserError
from coretrain.config.load import load_config
from coretrain.processes.launch import environment_alone, free_port
from coretrain.processes.layout import Layout
from coretrain.processes.rendezvous import meet
from coretrain.processes.supported import check_combination
from coretrain.processes.world import World
from tests.support.commands import ROOT
from tests.support.refusal import refused

JOIN = """
import sys
from coretrain.config.load import load_config
from jaxtrain.parallel.processes import join
world = join(load_config("tiny", [tuple(word.split("=")) for word in sys.argv[1:]]))
print("rank", world.rank, "of", world.size, world.gather(f"hello from {world.rank}"))
"""
HELLO = "['hello from 0', 'hello from 1']"


def config(**fields):
    return load_config("tiny", [(name.replace("__", "."), str(value)) for name, value in fields.items()])


def started(environment: dict[str, object], more: list[str]) -> subprocess.Popen:
    """A process that joins."""
    facts = environment_alone() | {"PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in environment.items()}
    command, pipe = [sys.executable, "-c", JOIN, "execution.device=cpu", *more], subprocess.PIPE
    return subprocess.Popen(command, env=facts, stdout=pipe, stderr=pipe, text=True)


def joined(environments: list[dict[str, object]], words: list[list[str]]) -> list[str]:
    """What each process says once it has joined the others."""
    both = [started(environment, more) for environment, more in zip(environments, words, strict=True)]
    said = [process.communicate(timeout=120) for process in both]
    assert all(process.returncode == 0 for process in both), said
    return [out.strip() for out, _ in said]


@pytest.mark.whole
def test_slurm_tells_who_is_there():
    slurm = {"SLURM_JOB_ID": 4321, "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": 2}
    each = [
        slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "JAX_COORDINATOR_PORT": free_port()} for rank in (0, 1)
    ]
    each[1]["JAX_COORDINATOR_PORT"] = each[0]["JAX_COORDINATOR_PORT"]
    assert joined(each, [[], []]) == [f"rank 0 of 2 {HELLO}", f"rank 1 of 2 {HELLO}"]
    assert joined(each[:1], [["parallel.hosts=1"]]) == ["rank 0 of 1 ['hello from 0']"]


@pytest.mark.whole
def test_hosts_may_be_told_by_hand():
    place = f"parallel.coordinator=127.0.0.1:{free_port()}"
    words = [[place, "parallel.hosts=2", f"parallel.host={rank}"] for rank in (0, 1)]
    assert joined([{}, {}], words) == [f"rank 0 of 2 {HELLO}", f"rank 1 of 2 {HELLO}"]


@pytest.mark.whole
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
    environment = environment_alone() | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run([*command, str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout.count(HELLO) == 2


def test_who_does_not_come_is_named():
    """By all who did, in a sentence: JAX's client would end them in C++."""
    port = free_port()
    place = f"127.0.0.1:{port}"
    with ThreadPoolExecutor() as pool:

        def met(*ranks: int) -> list[str]:
            return [str(future.exception()) for future in [pool.submit(meet, place, 3, r, 2) for r in ranks]]

        assert all(said.startswith("rank 1 of 3 did not come: ") for said in met(0, 2))
        assert all(said.startswith("rank 1, 2 of 3 did not come: ") for said in met(0))
        assert all(said.startswith(f"rank {1 + i} of 3 did not find rank 0: ") for i, said in enumerate(met(1, 2)))
        strangers = pool.submit(meet, place, 4, 3, 2)
        assert all(said.startswith("rank 0 is one of 3 processes, rank 3 one of 4: ") for said in met(0))
        assert str(strangers.exception()).startswith("rank 0 is one of 3 processes, rank 3 one of 4: ")
        assert all(said.startswith("rank 3 is not one of 3, which count from 0: ") for said in met(0, 3))
        with socket.create_server(("", port)):
            assert all("can't listen on port" in said for said in met(0))
        first = pool.submit(meet, place, 3, 0, 20)
        visit(port)
        assert met(1, 2) == ["None"] * 2
        assert first.exception() is None, "the port is free again, and a stranger's visit is no matter"


def visit(port: int) -> None:
    """As any program on the network may."""
    for _ in range(1000):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
        except ConnectionRefusedError:
            time.sleep(0.01)


@pytest.mark.whole
def test_a_lone_host_ends_with_a_sentence():
    """Whichever it is: here both, each waiting at a place of its own."""
    lone = []
    for rank in (0, 1):
        place = f"127.0.0.1:{free_port()}"
        words = [f"parallel.coordinator={place}", "parallel.hosts=2", f"parallel.host={rank}", "parallel.timeout=5"]
        lone.append(started({}, words))
    for process, what in zip(lone, ("come", "find rank 0"), strict=True):
        err = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert f"UserError: rank 1 of 2 did not {what}: start all" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("rank", "said"), [(0, "rank 1 of 2 did not come: "), (1, "rank 1 of 2 did not find rank 0: ")]
)
def test_a_lone_process_of_torch_is_told_too(rank, said, monkeypatch):
    short = config(parallel__data=2).changed(parallel__timeout=1)
    facts = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in facts.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(UserError, match=said):
        torchtrain.parallel.processes.join(short)
    monkeypatch.delenv("MASTER_PORT")
    with refused("torch/process-not-joined", "expect", "but", "set"):
        torchtrain.parallel.processes.join(short)


def test_a_folder_that_not_all_see(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "SHARED_WITHIN", 1)
    other = World()
    other.rank = 1
    with refused("training/output-not-shared"):
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
        ("jax", {"zero_engine": "fsdp2"}, None, "parallel.zero_engine = fsdp2 is for torch: in JAX leave it"),
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
