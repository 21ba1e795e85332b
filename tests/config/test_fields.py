"""Every field's default and limits as literals, and that just inside of a limit is taken and just outside refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from pydantic import ValidationError

from coretrain.config.load import load_config
from coretrain.config.model import ModelConfig
from tests.support.fields import GOLDEN, every_field, golden
from tests.support.refusal import refused

LINE = re.compile(r"([\w.]+) = (.*)  \((.*)\)")
WRITTEN = {match[1]: match[3] for match in map(LINE.fullmatch, GOLDEN.read_text().splitlines()) if match}
BOUNDS = {name: re.findall(r"(>=|<=|>|<) ([\d.e+-]+)", words) for name, words in WRITTEN.items()}
NUMBERS = [name for name, words in WRITTEN.items() if re.match(r"(int|float)\b", words)]
NEEDED = {"type": "llama3", "factor": 2.0, "source": "x", "weight": 1.0}


def faulty(name: str, value: Any) -> bool:
    """Whether the field itself, in its own section, refuses a value; that others may not go with it doesn't count."""
    section, leaf = every_field()[name]
    given = {needed: some for needed, some in NEEDED.items() if needed in section.model_fields} | {leaf: value}
    try:
        section.model_validate(given)
    except ValidationError as error:
        return any(fault["loc"][:1] == (leaf,) or fault["type"] == f"config/{leaf}-newer" for fault in error.errors())
    return False


def beside(bound: str, whole: bool, up: bool) -> int | float:
    """The nearest number above or below."""
    if whole:
        return int(bound) + (1 if up else -1)
    return math.nextafter(float(bound), math.inf if up else -math.inf)


def test_defaults_and_limits_are_those_of_the_golden_file():
    """After a change on purpose: python -m tests.support.fields."""
    assert golden() == GOLDEN.read_text()
    assert len(WRITTEN) == len(GOLDEN.read_text().splitlines()) > 90


@pytest.mark.parametrize("name", NUMBERS)
def test_just_inside_is_taken_and_just_outside_refused(name):
    whole = WRITTEN[name].startswith("int")
    for sign, bound in BOUNDS[name]:
        at, up = int(bound) if whole else float(bound), sign.startswith("<")
        inside, outside = (at, beside(bound, whole, up)) if "=" in sign else (beside(bound, whole, not up), at)
        assert not faulty(name, inside), f"{name} = {inside!r} is refused"
        assert faulty(name, outside), f"{name} = {outside!r} is taken"
    for odd in (math.nan, math.inf, -math.inf, True, "x", [], *([0.5] if whole else [])):
        assert faulty(name, odd), f"{name} = {odd!r} is taken"


def test_every_number_has_a_lower_limit():
    assert [name for name in NUMBERS if not any(sign.startswith(">") for sign, _ in BOUNDS[name])] == []


@pytest.mark.parametrize(
    ("code", "fits", "not_any_more"),
    [
        ("config/warmup-longer-than-horizon", {"schedule.warmup_updates": 30}, {"schedule.warmup_updates": 31}),
        ("config/min-lr-above-lr", {"schedule.min_lr": 0.25}, {"schedule.min_lr": math.nextafter(0.25, 1)}),
        ("config/heads-dont-divide-width", {"model.heads": 4}, {"model.heads": 5}),
        ("config/kv-heads-dont-divide-heads", {"model.kv_heads": 2}, {"model.kv_heads": 4}),
        ("config/head-width-odd", {"model.head_width": 6}, {"model.head_width": 5}),
        ("config/accumulation-doesnt-divide-batch", {"train.accumulation": 5}, {"train.accumulation": 4}),
        (
            "config/rope-factors-not-in-order",
            {"model.rope_scaling": '{type = "llama3", factor = 2, low_freq_factor = 2, high_freq_factor = 2.01}'},
            {"model.rope_scaling": '{type = "llama3", factor = 2, low_freq_factor = 2, high_freq_factor = 2}'},
        ),
    ],
)
def test_fields_that_go_together_just_so(code, fits, not_any_more):
    given = {"train.updates": 20, "schedule.horizon": 30, "optimizer.lr": 0.25, "schedule.min_lr": 0.1} | {
        "model.width": 24, "model.heads": 6, "model.position": "rope", "train.batch_size": 10,
        "schedule.warmup_updates": 5,
    }  # fmt: skip

    def load(more):
        return load_config(None, [(key, str(value)) for key, value in (given | more).items()])

    load(fits)
    with refused(code):
        load(not_any_more)


def test_a_constant_rate_has_neither_an_end_nor_a_horizon():
    fields = {"schedule.kind": "constant", "optimizer.lr": 0.1, "schedule.min_lr": 0.2, "schedule.warmup_updates": 99}
    config = load_config(None, [(key, str(value)) for key, value in (fields | {"train.updates": 20}).items()])
    assert (config.schedule.warmup_updates, config.schedule.min_lr) == (99, 0.2)


@pytest.mark.parametrize(
    ("fields", "hidden"),
    [
        ({"mlp": "gelu", "width": 96}, 384),  # 4 x 96
        ({"mlp": "swiglu", "width": 96}, 256),  # 8/3 x 96 is 256 itself
        ({"mlp": "swiglu", "width": 97}, 320),  # 258.67, up to a multiple of 64
        ({"mlp": "swiglu", "width": 4096}, 10944),  # 10922.67; Llama 2 7B rounds up to 256 and says so: 11008
        ({"mlp": "swiglu", "width": 96, "mlp_width": 7}, 7),
    ],
)
def test_hidden_widths_by_hand(fields, hidden):
    assert ModelConfig(heads=1, **fields).hidden == hidden


@pytest.mark.parametrize(
    ("alpha", "rank", "rslora", "scale"), [(8.0, 4, False, 2.0), (8.0, 4, True, 4.0), (3.0, 16, True, 0.75)]
)
def test_an_adapters_scale_by_hand(alpha, rank, rslora, scale):
    """alpha / rank; alpha / sqrt(rank)."""
    config = load_config().changed(adapter__alpha=alpha, adapter__rank=rank, adapter__rslora=rslora)
    assert config.adapter.scale == scale


def test_tokens_of_a_row_are_chats_alone():
    config = load_config().changed(model__context=64, data__row_tokens=16, train__batch_size=3)
    assert (config.row_tokens, config.tokens_per_update) == (64, 192)
    chat = config.changed(data__format="chat")
    assert (chat.row_tokens, chat.tokens_per_update) == (16, 48)
    whole = chat.changed(data__row_tokens=None)
    assert (whole.row_tokens, whole.tokens_per_update) == (64, 192)
