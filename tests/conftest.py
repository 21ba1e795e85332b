"""Fixtures that several test files share. The root conftest.py has float64 on in JAX: tests say their dtypes."""

import pytest

from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from tests.support.whole_runs import write_corpus

SMALL = {
    "model.layers": 2,
    "model.width": 32,
    "model.heads": 4,
    "model.context": 24,
    "model.vocab": 101,
    "train.batch_size": 4,
    "train.updates": 8,
    "schedule.warmup_updates": 2,
    "execution.device": "cpu",
    "execution.attention": "plain",
    "execution.compile": "off",
    "model.norm": "layernorm",
    "model.position": "learned",
    "model.mlp": "gelu",
    "model.bias": "true",
    "model.tied": "true",
}


@pytest.fixture
def small_config(tmp_path):
    """A function: the smallest useful float32 config, with `section__field=value` on top."""

    def make(**more: object) -> RunConfig:
        fields = SMALL | {"data.cache": tmp_path} | {key.replace("__", "."): value for key, value in more.items()}
        return load_config("tiny", [(key, str(value)) for key, value in fields.items()])

    return make


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The folder of a few hundred small made-up documents."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))
