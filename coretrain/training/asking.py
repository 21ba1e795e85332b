"""Tasks that a run is asked while it trains: the figures of `twintrain evaluate`, among those of its evaluations."""

from __future__ import annotations

from coretrain.config.run import RunConfig
from coretrain.data.splits import Data
from coretrain.evaluation.evaluate import evaluate
from coretrain.evaluation.registry import open_tasks
from coretrain.evaluation.scorer import Scorer
from coretrain.training.stack import Stack


class Asking:
    """The tasks of `eval.tasks`. Nothing of a run depends on what they come to."""

    def __init__(self, config: RunConfig, stack: Stack, data: Data) -> None:
        """Raises `UserError` where a task isn't here, or can't be read."""
        self.tasks = open_tasks(config.eval.tasks, None, {})
        self.config, self.tokenizer = config, data.tokenizer
        self.model = Scorer(stack, config, data.tokenizer, shares=stack.alone)

    def due(self, update: int) -> bool:
        """Whether the evaluation after so many updates asks them."""
        train, interval = self.config.train, self.config.eval.interval
        return bool(self.tasks) and (update == train.updates or update // train.eval_interval % interval == 0)

    def figures(self) -> dict[str, float]:
        """The figure that each task is judged by, as `task/NAME/METRIC`; the same on every process."""
        context, limit = self.config.model.context, self.config.eval.limit
        outcomes = [evaluate(task, self.model, self.tokenizer, context, limit) for task in self.tasks]
        return {f"task/{one.task.name}/{one.metric}": one.value.value for one in outcomes}
