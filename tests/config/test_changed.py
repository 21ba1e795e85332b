"""A run's config with other values: `RunConfig.changed`."""

from __future__ import annotations

import pytest

from coretrain.config.adapter import AdapterConfig
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.config.training import TrainConfig

BASE = load_config(None, [("model.layers", "3"), ("train.seed", "5"), ("adapter.kind", "lora")])


def test_several_sections_at_once_are_what_the_command_line_makes():
    given = [("train.updates", "900"), ("train.batch_size", "16"), ("model.context", "64"), ("data.source", "x.txt")]
    wanted = load_config(None, [("model.layers", "3"), ("train.seed", "5"), ("adapter.kind", "lora"), *given])
    found = BASE.changed(train__updates=900, train__batch_size=16, model__context=64, data__source="x.txt")
    assert found == wanted
    assert found.to_json() == wanted.to_json()
    assert (found.micro_batch, found.tokens_per_update) == (16, 16 * 64)


def test_a_section_and_a_field_of_it():
    """The field comes on top of the new section, in whatever order they are written."""
    new = TrainConfig(updates=70, seed=9)
    wanted = TrainConfig(updates=70, seed=11)
    assert BASE.changed(train=new, train__seed=11).train == wanted
    assert BASE.changed(train__seed=11, train=new).train == wanted
    assert BASE.changed(train=new).train is new
    bare = BASE.changed(adapter=AdapterConfig())
    assert bare == load_config(None, [("model.layers", "3"), ("train.seed", "5")])


def test_a_top_level_name():
    found = BASE.changed(name="other", train__updates=900)
    assert (found.name, found.train.updates) == ("other", 900)
    assert found.changed(name=BASE.name, train__updates=BASE.train.updates) == BASE


def test_what_is_not_named_stays_and_nothing_is_changed_in_place():
    before = BASE.to_json()
    found = BASE.changed(train__updates=900)
    assert found.model is BASE.model
    assert BASE.to_json() == before
    assert BASE.changed() == BASE
    # an adapter's run asks which fields of its model were stated
    assert found.train.model_fields_set == BASE.train.model_fields_set | {"updates"}
    assert found.model.model_fields_set == BASE.model.model_fields_set == {"layers"} | set(tiny_fields("model"))


def tiny_fields(section: str) -> set[str]:
    """What the default preset states of a section."""
    return getattr(load_config(), section).model_fields_set


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"train__update": 3}, "train.update"),
        ({"trian__updates": 3}, "trian.updates"),
        ({"updates": 3}, "updates"),
        ({"name__length": 3}, "name.length"),
        ({"train__updates": 3, "model__layrs": 3}, "model.layrs"),
        ({"micro_batch": 3}, "micro_batch"),
        ({"model__head": 3}, "model.head"),
    ],
)
def test_a_field_that_there_is_not_is_refused_by_its_name(fields, named):
    """Also a property, which a copy would silently hide."""
    with pytest.raises(ValueError, match=rf"^RunConfig has no field {named}$"):
        BASE.changed(**fields)


def test_every_field_can_be_changed():
    for section, info in RunConfig.model_fields.items():
        fields = getattr(info.annotation, "model_fields", None)
        for name in [section] if fields is None else [f"{section}__{field}" for field in fields]:
            value = getattr(BASE, section) if fields is None else getattr(getattr(BASE, section), name.split("__")[1])
            assert BASE.changed(**{name: value}) == BASE
