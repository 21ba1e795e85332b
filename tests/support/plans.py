"""Plans, configs and refusals of the planner, as its tests ask for them."""

from __future__ import annotations

import pytest

import twintrain.plan as script
from coretrain.base.errors import UserError
from coretrain.config.load import load_config


def made(name: str = "gpt2-124m", **more: object):
    """The config that is planned for a preset, with `section__field=value` on top."""
    fields = {key.replace("__", "."): str(value) for key, value in more.items()}
    return script.planned(load_config(name, list(fields.items())), None)


def planned(*argv: object):
    """The plan of a command line, without the TPU's compiler."""
    return script.make_plan([*map(str, argv), "--no-compile"])[0]


def refused(*argv: object) -> str:
    """The one sentence by which a command line is refused."""
    with pytest.raises(UserError) as caught:
        planned(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)
