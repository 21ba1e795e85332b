"""The server of one worker: a process that has imported the frameworks and nothing of ours, and forks for each mutant.

A script, started in a copy of the tree by `worker.py`; it knows only the standard library and what others have made.
It reads a job a line from its standard input, as JSON, and writes a verdict a line. A job has `tests` (ids for pytest),
`file` and `text` (the mutated file; none for the tree as it is), `seconds` (of wall time), `cpu` (of one process),
`options` for pytest and an `environment`.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from pathlib import Path

PRELOADED = (
    "numpy", "torch", "torch.nn.functional", "torch.utils.data", "torch.distributed", "jax", "jax.numpy", "jax.export",
    "jax.experimental.shard_map", "flax.nnx", "optax", "orbax.checkpoint", "grain", "pydantic", "rich.console",
    "rich.table", "safetensors.numpy", "tokenizers", "tiktoken", "jaxtyping", "chex", "jinja2", "pyarrow",
    "pyarrow.parquet", "pytest", "_pytest.assertion.rewrite", "xdist.plugin", "matplotlib.figure", "hypothesis",
    "tensorboard.summary.writer.event_file_writer", "transformers", "zstandard", "gguf", "onnx", "psutil", "coverage",
)  # fmt: skip
PARENT = os.getppid()
MEMORY = 12 * 2**30
"""Bytes of private memory that a mutant may take."""


class Watcher:
    """A plugin of pytest's that tells the server what fails, and with which exception."""

    def __init__(self, say):
        self.say, self.passed, self.kinds = say, 0, {}

    def pytest_sessionstart(self, session):
        """What JAX has compiled is kept: a mutant in torch compiles nothing of it anew."""
        if folder := os.environ.get("MUTANTS_COMPILED"):
            import jax

            jax.config.update("jax_compilation_cache_dir", folder)
            jax.config.update("jax_enable_compilation_cache", True)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    def pytest_runtest_makereport(self, item, call):
        """The exception's name, for the report that follows."""
        if call.excinfo is not None:
            self.kinds[item.nodeid] = call.excinfo.typename, str(call.excinfo.value)[:300]

    def pytest_collectreport(self, report):
        """A file that can't be imported."""
        if report.failed:
            text = str(report.longrepr)
            kind = text.strip().splitlines()[-1].lstrip("E ").partition(":")[0] if text.strip() else ""
            self.say({"failed": report.nodeid, "kind": kind, "words": text[-300:], "at": "import"})

    def pytest_runtest_logreport(self, report):
        """A test's end."""
        self.passed += report.when == "call" and report.passed
        if report.failed:
            kind, words = self.kinds.get(report.nodeid, ("", ""))
            self.say({"failed": report.nodeid, "kind": kind, "words": words, "at": report.when})


def child(job, pipe, log):
    """Run the tests of a job; never returns."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(job.get("environment", {}))
    with open(os.devnull) as nothing, open(log, "wb") as out:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu"], job["cpu"] + 5))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))

    def say(verdict):
        with contextlib.suppress(OSError):
            os.write(pipe, (json.dumps(verdict) + "\n").encode())

    code = 99
    try:
        import pytest

        watcher = Watcher(say)
        words = ["-n", "0", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line", *job.get("options", ())]
        code = int(pytest.main([*words, *job["tests"]], plugins=[watcher]))
        say({"done": watcher.passed, "code": code})
    except BaseException as error:  # whatever it is, it is the mutant's
        say({"failed": "", "kind": type(error).__name__, "words": str(error)[:300], "at": "session"})
    finally:
        os._exit(code)


def judged(job, log):
    """The verdict on a job: the first failure, or how many tests passed; `limit` where the time was up."""
    reading, writing = os.pipe()
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(job, writing, log)
    os.close(writing)
    try:
        return followed(job, pid, reading, begun)
    except BaseException:  # Ctrl-C, or whoever asked ends: the tests are a session of their own, and would go on
        killed(pid)
        raise


def killed(pid):
    """End the session of a child, with all that its tests have started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def followed(job, pid, reading, begun):
    """What the child says, until it has ended."""
    text, late = b"", False
    while True:
        left = begun + job["seconds"] - time.monotonic()
        ready = select.select([reading], [], [], max(0, min(left, 1)))[0]
        if os.getppid() != PARENT:  # whoever asked is gone
            killed(pid)
            shutil.rmtree(Path.cwd(), ignore_errors=True)
            sys.exit(1)
        if not ready and left > 0:
            continue
        if not ready:
            late = True
            break
        piece = os.read(reading, 65536)
        if not piece:
            break
        text += piece
        if (b'"done"' in text or (b'"failed"' in text and "-x" in job["options"])) and text.endswith(b"\n"):
            break  # the first failure is enough
    os.close(reading)
    if late or b'"done"' not in text:
        killed(pid)
    _, status, used = os.wait4(pid, 0)
    killed(pid)  # what its tests have started
    verdicts = [json.loads(line) for line in text.decode().splitlines()]
    verdict = next((one for one in verdicts if "failed" in one), None) or (verdicts[-1] if verdicts else {})
    if not verdict:
        signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        late = late or signalled == signal.SIGXCPU
        verdict = {"failed": "", "kind": "time limit" if late else f"signal {signalled}", "words": "", "at": "call"}
    return verdict | {"wall": time.monotonic() - begun, "cpu": used.ru_utime + used.ru_stime}


def main():
    """Answer jobs until there are no more."""
    root = Path.cwd()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in os.environ["MUTANTS_PRELOADED"].split() if "MUTANTS_PRELOADED" in os.environ else PRELOADED:
        with contextlib.suppress(Exception):  # an extra that isn't installed, or can't be imported here
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for number, line in enumerate(sys.stdin):
        job = json.loads(line)
        file = root / job["file"] if job.get("file") else None
        before = (file.read_bytes(), file.stat().st_mtime_ns) if file else None
        try:
            if file:
                file.write_text(job["text"], encoding="utf-8")
                os.utime(file, (2_000_000_000 + number,) * 2)  # no compiled form of another text is taken for its own
            verdict = judged(job, root / ".mutant.log")
        finally:
            if file and before:
                file.write_bytes(before[0])
                os.utime(file, ns=(before[1], before[1]))
        print(json.dumps(verdict), file=answers, flush=True)


if __name__ == "__main__":
    main()
