"""What a run is asked while it trains: tasks, how often, how many of their rows."""

from __future__ import annotations

from pydantic import Field

from coretrain.config.execution import ParallelConfig
from coretrain.config.fields import Count, Positive, Section, conflict


class EvalConfig(Section):
    """Tasks that evaluations ask the model, beside the loss of the validation data."""

    tasks: tuple[str, ...] = Field(
        (),
        description="Names and files of tasks, as `twintrain evaluate --tasks` takes them: choices, texts, answers.",
    )
    interval: Positive = Field(
        1, description="They are asked at every n-th evaluation (train.eval_interval), and at the end."
    )
    limit: Count = Field(0, description="Rows of each task that are asked, its first ones (0: all).")


def check_eval(evaluation: EvalConfig, parallel: ParallelConfig) -> None:
    """Raise the conflict where tasks can't be asked, or fields have nothing to say without them."""
    if not evaluation.tasks and (evaluation.interval, evaluation.limit) != (1, 0):
        raise conflict(
            "config/eval-without-tasks", "eval.interval and eval.limit are of eval.tasks: name some, or leave both out"
        )
    if evaluation.tasks and parallel.pipeline > 1:
        raise conflict(
            "config/eval-in-stages",
            f"eval.tasks can't be asked with parallel.pipeline = {parallel.pipeline}, whose stages give no "
            "log-probabilities: leave eval.tasks out and evaluate the checkpoints, or set parallel.pipeline = 1",
        )
