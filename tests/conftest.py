"""Fixtures that several test files share. The root conftest.py has float64 on in JAX: tests say their dtypes."""

import signal
import threading

import jax
import pytest

from coretrain.config.run import RunConfig
from parity.compiling import quick_flags
from tests.support import configs, corpora

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # a session in the background of a shell ignores Ctrl-C, and so would the programs that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def programs_compile_quickly():
    """Runs of JAX in processes of their own: here their host logic is judged, and their arithmetic in parity/."""
    jax.block_until_ready(jax.jit(lambda x: x + 1)(0))  # this process has read its own XLA_FLAGS
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", quick_flags())
        yield


@pytest.fixture
def small_config(tmp_path):
    """A function: the smallest useful float32 config, with `section__field=value` on top."""

    def make(**more: object) -> RunConfig:
        return configs.small_config(tmp_path, **more)

    return make


@pytest.fixture
def chat_config(tmp_path, small_config):
    """A function: the config of a run on these rows of conversations."""

    def make(rows, **more):
        source = corpora.write_rows(tmp_path / "rows.jsonl", rows)
        fields = {"data__source": source, "data__tokenizer": "bytes", "model__context": 96}
        vocab = {"model__vocab": 257, "data__format": "chat", "data__prepare_processes": 1}
        return small_config(**fields | vocab | more)

    return make


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The folder of a few hundred small made-up documents."""
    return corpora.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def float64_oracle(monkeypatch):
    """transformers' Llama in real float64: only the precision of the oracle is changed, not its algorithm."""
    from tests.support.transformers_oracle import Float64Norm, Float64Rotary, llama

    monkeypatch.setattr(llama, "LlamaRMSNorm", Float64Norm)
    monkeypatch.setattr(llama, "LlamaRotaryEmbedding", Float64Rotary)
