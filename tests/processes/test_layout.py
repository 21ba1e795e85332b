"""Layouts: what the axes must multiply to and divide, and which rows a device takes."""

from __future__ import annotations

import pytest

from coretrain.base.errors import UserError
from coretrain.config.load import load_config
from coretrain.processes.layout import Layout, layout_of, rows_of
from coretrain.processes.supported import check_combination


def config_of(**fields):
    base = {
        "model.layers": 4, "model.width": 48, "model.heads": 4, "model.kv_heads": 2, "model.mlp_width": 96,
        "model.context": 16, "model.vocab": 300, "train.batch_size": 16, "train.accumulation": 2,
    }  # fmt: skip
    given = {key.replace("__", "."): value for key, value in fields.items()}
    return load_config("tiny", [(key, str(value)) for key, value in (base | given).items()])


def test_data_takes_what_is_left():
    assert layout_of(config_of(parallel__tensor=2), 8) == Layout(data=4, tensor=2)
    assert str(layout_of(config_of(parallel__tensor=2), 8)) == "data 4 x tensor 2"
    assert str(layout_of(config_of(), 1)) == "1 device"


@pytest.mark.parametrize(
    ("fields", "devices", "sentence"),
    [
        ({"parallel__tensor": 2}, 3, r"parallel: tensor 2 = 2 does not divide the 3 devices"),
        ({"parallel__data": 2, "parallel__tensor": 2}, 8, "data 2 x tensor 2 = 4 devices, but there are 8"),
        ({"parallel__data": 16}, 16, "parallel.data x fsdp = 16 does not divide a micro-batch's rows .* = 8"),
        ({"parallel__tensor": 4}, 4, r"parallel.tensor = 4 does not divide the key/value heads .* = 2: 2 does"),
        ({"parallel__tensor": 2, "model__mlp_width": 97}, 2, "does not divide the MLP's hidden width"),
        ({"parallel__context": 3}, 3, "parallel.context = 3 does not divide model.context = 16: 2 does"),
        ({"parallel__pipeline": 3, "train__accumulation": 4}, 3, "parallel.pipeline = 3 does not divide model.layers"),
        ({"parallel__pipeline": 4}, 4, "train.accumulation = 2 is below parallel.pipeline = 4"),
        ({"parallel__fsdp": 5, "train__batch_size": 10}, 5, "parallel.fsdp = 5 does not divide model.width = 48"),
    ],
)
def test_refused_in_one_sentence(fields, devices, sentence):
    with pytest.raises(UserError, match=sentence):
        layout_of(config_of(**fields), devices)


def test_rows_of_all_places_are_the_batch():
    """Every row of each micro-batch once, in order of the places."""
    config, layout = config_of(), Layout(data=2, fsdp=2)
    rows = list(range(16))
    parts = [[rows[part] for part in rows_of(config, layout, place)] for place in range(4)]
    assert parts[0] == [[0, 1], [8, 9]]
    assert sorted(row for place in parts for part in place for row in part) == rows


@pytest.mark.parametrize(
    ("stack", "fields", "sentence"),
    [
        (
            "torch",
            {"parallel__zero": 3},
            r"parallel\.zero = 3 doesn't go with adapter\.kind = lora in torch: use paral",
        ),
        ("torch", {"parallel__tensor": 2}, r"parallel\.tensor = 2 doesn't go with adapter\.kind = lora in torch"),
        ("jax", {"parallel__pipeline": 2}, r"parallel\.pipeline = 2 doesn't go with adapter\.kind = lora in jax"),
        (
            "jax",
            {"parallel__context": 2, "adapter__kind": "prefix"},
            r"parallel\.context = 2 doesn't go with adapter\.k",
        ),
    ],
)
def test_axes_that_an_adapter_does_not_take(stack, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        check_combination(config_of(**{"adapter__kind": "lora"} | fields), stack)


def test_axes_that_an_adapter_takes():
    lora = {"adapter__kind": "lora"}
    check_combination(config_of(**lora, parallel__data=2), "torch")
    check_combination(config_of(**lora, parallel__data=2, parallel__fsdp=2, parallel__tensor=2), "jax")
    check_combination(config_of(parallel__zero=3), "torch")
