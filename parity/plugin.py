"""The judge's options and settings, for every session of pytest that runs its tests, in a checkout or installed.

One process, one setting: float64 is on in JAX for every test, before the first array is made. Runs of the product have
it off; parity/ladder/test_invariance.py shows that float32 work comes out the same bits either way.
The root conftest.py and `twintrain parity` load this before any test is collected; conftest.py beside it has what only
the judge's own tests need.
"""

import atexit
import gc
import os

import jax
import pytest

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.base.numbers import whole_number
from parity.machine import ONE_PIECE, xla_flags
from parity.marks import left_out

# Models here are so small that threads cost more than they give. And those of OpenMP spin until all are there: where
# others want the cores too, a run of 4 s takes 6 to 80. Here before torch is imported, and for processes of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch and other processes
os.environ["XLA_FLAGS"] = xla_flags(unless_set=ONE_PIECE)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")
# Nothing compiled here may outlast the session; and on a CPU, compiling for the disk cache takes 1.7 times as long.
jax.config.update("jax_enable_compilation_cache", False)
# JAX frees its arrays at each garbage collection. One that begins while the interpreter ends finds JAX's modules empty,
# and Python complains of an ignored exception in _xla_gc_callback after the session's last line.
atexit.register(gc.callbacks.clear)

MARKERS = (
    "whole: whole trainings, whole commands in processes of their own, the ladder's long rungs; -m 'not whole' is the "
    "inner loop",
    "slow: a sweep that is run once, its figures recorded in docs/",
    "mutation: every planted bug (a few of them run by default)",
    "one_side: with mutation: every planted bug in one of the stacks, torch and JAX in turns",
    "scale: many devices and processes against one (in the whole of pytest; pytest parity -m scale)",
    "tpu_compiler: compiles for TPUs with libtpu, which needs no TPU",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where to judge, what to judge, and where the results go."""
    group = parser.getgroup("parity", "the judge (pytest parity)")
    group.addoption(
        "--device",
        action="append",
        choices=("cpu", "cuda", "mps", "tpu"),
        help="device for everything below float64, in torch and in JAX where each has it; may be repeated "
        "(default: every one present). Float64 is always judged on the CPU.",
    )
    group.addoption(
        "--config",
        metavar="NAME_OR_TOML",
        help="send this preset or TOML file through the whole ladder too: its model, its optimizer, its kind of "
        "schedule; the vocabulary and the rows stay small",
    )
    group.addoption(
        "--layers",
        type=whole_number(1, 10_000),
        metavar="N",
        help="with --config: so many layers instead of the config's",
    )
    group.addoption(
        "--width",
        type=whole_number(1, 65_536),
        metavar="N",
        help="with --config: this width; heads and MLP shrink with it",
    )
    group.addoption(
        "--results",
        type=typed_path,
        default=None,
        metavar="FILE",
        help="where the session's figures go, as JSON (default, in runs/parity: results.json; with -m mutation "
        "mutation.json; where only a part of the tests is picked partial.json)",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Folders are run in a process for each core; `-n 0` is for one, where a debugger can get in."""
    from parity.workers.scheduler import count

    return count(str(word) for word in config.args)


def pytest_configure(config: pytest.Config) -> None:
    """Settle what the judge was asked for before any test is collected; a wrong wish is one sentence."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
    wishes = [config.getoption(f"--{name}") for name in ("device", "config", "layers", "width")]
    if any(wish is not None for wish in wishes):
        from parity.pair import settle

        try:
            settle(*wishes)
        except UserError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long runs where it is asked for; parity/marks.py says what asks for it."""
    expression, words = config.option.markexpr or "", [str(word) for word in config.args]
    left = [item for item in items if left_out({mark.name for mark in item.iter_markers()}, expression, words)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]
    if hasattr(config, "workerinput"):  # one of several processes
        from parity.workers.scheduler import rank

        items.sort(key=lambda item: rank(item.nodeid))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported lives to the end: the garbage collector needn't walk through it each time (5% of a session)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
