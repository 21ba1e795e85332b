"""Session set-up of the judge, and its ladder: every gate with its worst figure, its cap and what did not run."""

import importlib.util

import jax
import pytest
import torch

from parity import compare, pair


@pytest.fixture(scope="session", autouse=True)
def float64_is_really_on(tmp_path_factory):
    """float64 in JAX can be off without a word; and nothing that is compiled here may outlast the session."""
    assert jax.numpy.zeros(1).dtype == "float64", "jax_enable_x64 came too late: an array was made before it"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pair.SMALL, "data.cache", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """The models are so small that threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def not_run() -> list[tuple[str, str]]:
    """What this machine or this suite can't judge, with the reason."""
    cuda = "no CUDA device here" if not torch.cuda.is_available() else "a device is here, but this suite judges on CPU"
    mps = "no MPS device here" if not torch.backends.mps.is_available() else "no float64 on MPS; this suite is on CPU"
    tpu = f"needs a TPU, JAX has {jax.default_backend()} here; interpreted above"
    flash = "flash-attn is not installed" if importlib.util.find_spec("flash_attn") is None else cuda
    return [
        ("CUDA: sdpa, cudnn, float32 and bfloat16", cuda),
        ("CUDA: flash_attn, sdpa_fa3, sdpa_fa4 kernels", f"{flash}; only the call is checked"),
        ("MPS: float32", mps),
        ("TPU: compiled splash kernel", tpu),
    ]


def pytest_terminal_summary(terminalreporter) -> None:
    """The ladder."""
    if not compare.worst:
        return
    lines = terminalreporter
    lines.section("parity: worst figure and cap of every gate (float64 unless stated)")
    for gate in compare.GATES:
        if gate.name in compare.worst:
            error, where = compare.worst[gate.name]
            mark = "ok  " if error <= gate.cap else "FAIL"
            lines.write_line(f"{mark} {gate.name:<46} {error:8.1e}  cap {gate.cap:7.0e}  {where}")
        else:
            lines.write_line(f"not run  {gate.name} (its test was not selected)")
    for name, killer in compare.killed.items():
        lines.write_line(f"{'kill' if killer else 'LIVES'} planted bug: {name:<58} {killer or ''}")
    for name, reason in not_run():
        lines.write_line(f"not run  {name} ({reason})")
