"""The ladder that `pytest parity` prints at its end."""

from parity.compare import GATES, worst

NOT_RUN = {
    "CUDA": "kernels flash_attn, sdpa_fa3, sdpa_fa4 and cudnn, bf16 and fp16 speed",
    "MPS": "torch on a Mac's GPU",
    "TPU": "kernel splash, compiled",
}


def present() -> set[str]:
    """Which of the devices are here."""
    import jax
    import torch

    found = {"CUDA"} if torch.cuda.is_available() else set()
    found |= {"MPS"} if torch.backends.mps.is_available() else set()
    return found | ({"TPU"} if jax.default_backend() == "tpu" else set())


def pytest_terminal_summary(terminalreporter) -> None:
    """Each gate with its worst figure of this session; what couldn't be run, as not run."""
    if not worst:
        return
    write = terminalreporter.write_line
    write("")
    write(f"{'gate':<34} {'worst':>8} {'floor':>8} {'cap':>8}  where")
    for gate in GATES:
        if gate.name in worst:
            error, where = worst[gate.name]
            write(f"{gate.name:<34} {error:>8.1e} {gate.floor:>8.0e} {gate.cap:>8.0e}  {where}")
        else:
            write(f"{gate.name:<34}  not run")
    here = present()
    for device, what in NOT_RUN.items():
        write(
            f"{device:<34}  {'present, but not covered yet' if device in here else 'not run: no such device'} ({what})"
        )
