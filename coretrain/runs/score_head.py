"""A score head on its way in and out of a run: begun where an import has none, left out or refused where a file has no
place for it."""

from __future__ import annotations

from collections.abc import Mapping

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.lazy import LazyTensors
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import SCORE, initial_value, parameter_table

VALUES_LEFT = "its value head is left out: text needs none; an interchange checkpoint (--to interchange) has it"


def without_values(config: RunConfig, tensors: Mapping[str, Array]) -> tuple[RunConfig, Mapping[str, Array]]:
    """A run's model without PPO's value head, as text needs it; of another objective as it is."""
    if not config.model.score_head or config.train.objective != "ppo":
        return config, tensors
    return config.changed(model__score_head=False), _without_head(tensors)


def check_form_has_scores(config: RunConfig, form: str) -> None:
    """Raise `UserError` where a model has a score head, and the `form` of a file has no place for it."""
    if config.model.score_head and config.train.objective != "ppo":
        raise UserError(
            "runs/form-without-score-head",
            f"--to {form} has no place for the score head of a reward model: give --to hf, with --merge for an adapter",
        )


def with_own_head(config: RunConfig, tensors: Mapping[str, Array]) -> tuple[Mapping[str, Array], list[str]]:
    """Imported tensors as a config has them: with a fresh score head, or without the one found; and lines to print."""
    found = SCORE in set(tensors)
    if found == config.model.score_head:
        return tensors, []
    if found:
        return _without_head(tensors), ["its score head is left out: model.score_head = false"]
    row = next(row for row in parameter_table(config.model) if row.name == SCORE)

    def read(name: str) -> Array:
        return initial_value(row, config.train.seed) if name == SCORE else tensors[name]

    return LazyTensors([*tensors, SCORE], read), ["its score head is new: the source has none"]


def _without_head(tensors: Mapping[str, Array]) -> LazyTensors:
    return LazyTensors([name for name in tensors if name != SCORE], tensors.__getitem__)
