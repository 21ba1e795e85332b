"""Values of a config that pydantic would take for others, or that nothing could carry out: refused by their field."""

from __future__ import annotations

import datetime

import pytest

from coretrain.config.load import load_config
from coretrain.config.model import ModelConfig
from coretrain.contract.parameters import parameter_table
from coretrain.contract.sampling import Sampling, choose_tokens
from coretrain.data.files import json_rows
from tests.support.nested import DEEP
from tests.support.refusal import refused


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.max_documents", "99999999999999999999"),
        ("data.max_documents", str(2**53 + 1)),
        ("train.updates", "true"),
        ("optimizer.lr", "false"),
        ("parallel.zero", "true"),
        ("train.updates", "9" * 5000),
        ("train.updates", "0x" + "f" * 5000),
        ("optimizer.lr", "0x" + "f" * 5000),
        ("optimizer.lr", "nan"),
        ("optimizer.lr", "-inf"),
        ("optimizer.lr", "1e400"),
        ("train.updates", "\u0663"),
        ("train.updates", "5\nfoo = 3"),
        ("train.updates", ""),
        ("train.updates", "[5]"),
        ("train.updates", "5.5"),
        ("train.seed", "-1"),
        ("data.chat_date", "86400"),
        ("data.cache", '"a\\u0000b"'),
        ("train.batch_size", "10_000_000_000"),
        ("parallel.timeout", "1e15"),
        ("data.workers", "100000"),
    ],
)
def test_a_value_that_can_not_be_is_refused_by_its_field(key, text):
    with refused("config/value-wrong", f"--{key}") as caught:
        load_config(None, [(key, text)])
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_what_is_written_otherwise_is_taken():
    given = [("data.max_documents", str(2**53)), ("train.updates", "1_000"), ("model.bias", "true"), ("version", "1")]
    config = load_config(None, [*given, ("data.chat_date", "2025-01-02"), ("data.text_field", DEEP)])
    assert (config.data.max_documents, config.train.updates, config.model.bias) == (2**53, 1000, True)
    assert config.data.chat_date == datetime.date(2025, 1, 2)
    assert config.data.text_field == DEEP, "a text is a text"


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 2000 + "1" + "}" * 2000, "{a=" * 2000])
def test_what_is_nested_a_thousand_deep(text, tmp_path):
    with refused("config/value-nested-too-deep", "--data.mixture"):
        load_config(None, [("data.mixture", text)])
    (tmp_path / "x.toml").write_text(f"[data]\nmixture = {DEEP}\n")
    with refused("config/toml-invalid", "x.toml", "nested"):
        load_config(str(tmp_path / "x.toml"))
    (tmp_path / "x.jsonl").write_text('{"text": ' + DEEP + "}\n")
    with refused("data/line-nested-too-deep", "x.jsonl, line 1"):
        list(json_rows(tmp_path / "x.jsonl"))


def test_a_section_that_is_none_beside_an_override(tmp_path):
    (tmp_path / "x.toml").write_text("schedule = 3\n")
    with refused("config/value-wrong", "schedule = 3"):
        load_config(str(tmp_path / "x.toml"), [("train.updates", "5")])


def test_an_empty_name_is_not_the_default_run():
    with refused("config/unknown-config-name"):
        load_config("")


def test_a_model_that_no_machine_holds():
    for sizes in ({"width": 2**53, "heads": 1}, {"width": 64, "heads": 1, "head_width": 2**53}, {"mlp_width": 2**53}):
        with refused("contract/model-too-large", "blocks.0."):
            parameter_table(ModelConfig(**{"vocab": 300, "width": 192, **sizes}))
    with refused("contract/model-too-large", "embed.token"):
        parameter_table(ModelConfig(vocab=2**53))


def test_temperatures():
    for temperature in (float("nan"), float("inf")):
        with refused("contract/temperature-not-finite", str(temperature)):
            Sampling(temperature=temperature)
    with refused("contract/top-p-outside-range", "nan"):
        Sampling(top_p=float("nan"))
    for temperature in (1e-300, 5e-324):  # near 0 it is greedy, without a warning of numpy's
        assert choose_tokens([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]], Sampling(temperature), 0).tolist() == [1, 0]
