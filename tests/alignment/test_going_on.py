"""What of [align] can't change where a run goes on: by it rollouts are counted, asked and weighed."""

from __future__ import annotations

import pytest

from coretrain.checkpoint.interchange import interchange_of, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.config.load import load_config
from coretrain.contract.parameters import initial_parameters
from coretrain.runs.folder import open_run, resumed_config
from tests.support.refusal import refused

FIELDS = {
    "model.layers": 1, "model.width": 16, "model.heads": 2, "model.context": 16, "model.vocab": 257,
    "data.format": "prompts", "data.source": "task:sort", "train.objective": "grpo", "train.batch_size": 8,
    "align.tokens": 4, "align.group": 4, "align.minibatches": 2,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has saved a checkpoint."""
    config = load_config("tiny", [(key, str(value)) for key, value in FIELDS.items()])
    weights = {"parameters": initial_parameters(config.model, 3)}
    save_interchange(interchange_of(tmp_path, "update-00000005"), config, weights, Progress(update=5), "torch")
    (tmp_path / "config.json").write_text(config.to_json())
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", "2"), ("minibatches", "1"), ("group", "2"), ("temperature", "0.5")]
)
def test_what_a_rollout_was_made_with_stays(run, field, value):
    """On the command line, and in a config.json that somebody has edited."""
    with refused("runs/resume-changes-field", f"align.{field}"):
        resumed_config(run, [(f"align.{field}", value)])
    config = open_run(run).changed(**{f"align__{field}": float(value) if field == "temperature" else int(value)})
    (run / "config.json").write_text(config.to_json())
    with refused("runs/config-not-as-trained", f"align.{field} = "):
        open_run(run)


def test_the_rest_may_change(run):
    config = resumed_config(run, [("align.reward_timeout", "5"), ("align.clip_high", "0.28")])
    assert (config.align.reward_timeout, config.align.clip_high) == (5, 0.28)
