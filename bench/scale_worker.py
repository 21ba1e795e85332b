"""What `bench/scale.py` measures, in processes of its own (`Children`): one JSON task as argument, answers on
stdout.

`train`: one process of those that share a run; for each number on stdin, so many updates. `compiled`: the collectives
of JAX's step on virtual devices. `loop`: the times of `coretrain.training.loop` around a stack.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from bench.memory import MMAP_THRESHOLD, resident
from coretrain.base.errors import UserError
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.data.batch import windows
from coretrain.processes.launch import environment_alone, free_port
from twintrain.bench.turns import peak_memory, updates_of

LR = 1e-4
"""Learning rate of all that is timed: it changes nothing about speed or bytes."""
BYTES_ACKED = 120
"""Offset of tcpi_bytes_acked in Linux's struct tcp_info: what the other side has taken of what this one sent."""


def sent_bytes() -> int | None:
    """Bytes that this process has sent over the TCP sockets that it has open; None where the system doesn't count them.

    The kernel counts them for each connection, so that neither what other processes say over the loopback device nor
    files are among them, and nothing is assumed about how a collective is done. Headers and resent bytes don't count.
    """
    if not sys.platform.startswith("linux"):
        return None
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("Q", info, BYTES_ACKED)[0]
        except OSError:  # closed meanwhile
            continue
    return total


def config_of(fields: dict[str, Any]) -> RunConfig:
    """The tiny preset with these fields."""
    return load_config("tiny", [(key, str(value)) for key, value in fields.items()])


def training(stack: str, config: RunConfig) -> Callable[[], None]:
    """A function that makes one more update, as the training loop would, of the run that this process takes part in."""
    importlib.import_module(f"{stack}train.parallel.processes").join(config)
    trainer = importlib.import_module(f"{stack}train.parallel.choose").make_trainer(config)
    rng, done, whole = np.random.default_rng(0), 0, updates_of(trainer, LR)

    def update() -> None:
        nonlocal done
        shape = (config.train.batch_size, config.model.context + 1)
        batch = rng.integers(0, config.model.vocabulary, shape).astype(np.int32)
        whole(windows(batch), done)
        done += 1

    return update


def train(task: dict[str, Any], answer: Callable[[Any], None]) -> None:
    """For each number on stdin: so many updates, then their seconds, the processor's seconds for all of them, the bytes
    that this process sent for them, and the most that it has held: with `tight` in them alone, and what is freed leaves
    the process at once, which takes time."""
    if task.get("tight"):
        import torchtrain.trainer as module

        module.keep_freed_memory = module.give_back_freed_memory = lambda: False
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 65536)
    update = training(task["stack"], config_of(task["fields"]))
    for line in sys.stdin:
        if task.get("tight"):
            Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        before, seconds, cpu = sent_bytes(), [], time.process_time()
        for _ in range(int(line)):
            begun = time.perf_counter()
            update()
            seconds.append(time.perf_counter() - begun)
        after = sent_bytes()
        sent = None if before is None or after is None else after - before
        peak = resident("VmHWM") if task.get("tight") else peak_memory()[0]
        answer({"seconds": seconds, "sent": sent, "peak": peak, "cpu": time.process_time() - cpu})


def compiled(task: dict[str, Any], answer: Callable[[Any], None]) -> None:
    """Bytes that one of the virtual devices sends in an update, by kind of collective, and how often each runs."""
    import jax

    from coretrain.planning.hlo.collectives import collectives
    from jaxtrain.aot.step import abstract_step

    config = config_of(task["fields"])
    jax.config.update("jax_default_matmul_precision", "highest")  # as the trainer does in float32
    step = abstract_step(config, jax.devices())
    found = collectives(step.program.lower(*step.program_inputs).compile().as_text())
    answer({"sent": dict(found.sent), "calls": dict(found.calls), "loops_without_count": found.loops_without_count})


def loop(task: dict[str, Any], answer: Callable[[Any], None]) -> None:
    """Seconds of each update of a run without evaluations and saves: in all, in the stack, and waiting for data."""
    from coretrain.checkpoint.manifest import Progress
    from coretrain.data.open import open_data
    from coretrain.journal.journal import Journal
    from coretrain.training.loop import Loop

    config = config_of(task["fields"])
    data = open_data(config)
    config = config.with_vocab(data.tokenizer.vocab)
    trainer = importlib.import_module(f"{task['stack']}train.trainer").Trainer(config)
    marks: list[tuple[str, float]] = []
    inside: list[float] = []
    owner, computing = (trainer, ("gradients", "apply"))
    if task["stack"] == "jax":
        owner, computing = trainer.programs, ("update",)
    for name in computing:
        object.__setattr__(owner, name, _timed(getattr(owner, name), inside, task["stack"]))
    with (
        tempfile.TemporaryDirectory() as place,
        Journal(Path(place), config, task["stack"], 0, trainer.device_name) as journal,
    ):
        run = Loop(config, trainer, data, Path(place), journal, Progress())
        run.at = lambda what: marks.append((what, time.perf_counter()))
        run.evaluate = lambda: 0.0  # type: ignore[method-assign]  # how often is the user's choice
        run.save = lambda *_, **__: None  # type: ignore[method-assign]  # nothing is saved here
        run.train()
    starts = [at for what, at in marks if what.startswith("the batch of")]
    got = [at for what, at in marks if what.startswith("the gradients of")]
    answer(
        {
            "seconds": [after - before for before, after in itertools.pairwise(starts)],
            "stack": [sum(parts) for parts in zip(*[iter(inside)] * len(computing), strict=True)][: len(starts) - 1],
            "data": [there - asked for asked, there in zip(starts[:-1], got, strict=False)],
        }
    )


def _timed(function: Callable[..., Any], into: list[float], stack: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        begun = time.perf_counter()
        result = function(*arguments)
        if stack == "jax":  # its calls return before they are done: what the host does meanwhile would look free
            importlib.import_module("jax").block_until_ready(result)
        into.append(time.perf_counter() - begun)
        return result

    return run


# ---------------------------------------------------------------- in the parent


class Children:
    """Processes that share a task, kept alive between their turns."""

    def __init__(self, task: dict[str, Any], count: int = 1, threads: int | None = None, devices: int = 1) -> None:
        """`threads` for each process, on cores of its own (None: all of them); `devices`: virtual ones."""
        environment = environment_alone()
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        if devices > 1:
            environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        shared = {
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        self.processes = []
        for rank in range(count):
            facts = shared | {"RANK": rank, "LOCAL_RANK": rank} if count > 1 else {}
            mine = task | {"cores": cores(rank, count, threads)}
            command = [sys.executable, "-m", "bench.scale_worker", json.dumps(mine)]
            pipe, null = subprocess.PIPE, subprocess.DEVNULL  # faults come back as answers
            env = environment | {name: str(value) for name, value in facts.items()}
            self.processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, text=True, env=env))

    def turn(self, updates: int) -> list[dict[str, Any]]:
        """Each process's answer to so many more updates. Raises `UserError` with what a process failed of."""
        for process in self.processes:
            try:
                print(updates, file=_pipe(process.stdin), flush=True)
            except BrokenPipeError:
                continue  # it has said why
        return self.answers()

    def answers(self) -> list[dict[str, Any]]:
        """The next answer of each process."""
        found = []
        for process in self.processes:
            line = _pipe(process.stdout).readline()
            found.append(json.loads(line) if line else {"error": f"its process ended with status {process.wait()}"})
        if failed := [answer["error"] for answer in found if "error" in answer]:
            raise UserError("bench/measurement-failed", f"a process of the measurement failed: {failed[0]}")
        return found

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            _pipe(process.stdin).close()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream
    return stream


def cores(rank: int, count: int, threads: int | None) -> list[int]:
    """Cores of a process's own, so that no library can use more; none where there are too few, or none can be given."""
    if threads is None or not hasattr(os, "sched_getaffinity"):
        return []
    present = sorted(os.sched_getaffinity(0))
    return present[rank * threads : (rank + 1) * threads] if len(present) >= count * threads else []


def main() -> int:
    """Do the task of the command line."""
    task = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    if task.get("cores"):
        os.sched_setaffinity(0, task["cores"])  # before any library counts the cores and starts its threads

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        {"train": train, "compiled": compiled, "loop": loop}[task["do"]](task, answer)
    except Exception as error:  # the parent's table has a row for it
        answer({"error": f"{type(error).__name__}: {error}"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
