"""A run's curves in other people's tools: TensorBoard's event file, and Weights & Biases where asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig


def require_wandb() -> Any:
    """The wandb package. Raises `UserError` with its install line."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            "journal/wandb-package-missing",
            "journal.wandb needs the wandb package: pip install 'twintrain[wandb]', or set it to false",
        ) from None
    return wandb


class Trackers:
    """TensorBoard's event file, and Weights & Biases where asked for."""

    def __init__(
        self, folder: Path, config: RunConfig, start_update: int, evaluations: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.writer: Any = None
        self.wandb: Any = None
        if config.journal.tensorboard:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            earlier = any((folder / "tensorboard").glob("events.*"))
            self.writer = EventFileWriter(str(folder / "tensorboard"), flush_secs=10)
            if earlier:
                self.restart(start_update, evaluations)
        if config.journal.wandb:
            wandb = require_wandb()
            shown = config.model_dump(mode="json")
            self.wandb = wandb.init(project="twintrain", name=folder.name, dir=folder, config=shown)

    def restart(self, start_update: int, evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Have TensorBoard drop the steps from `start_update` on, which are to come once more."""
        if self.writer is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = Event(wall_time=time.time(), step=start_update, session_log=SessionLog(status=SessionLog.START))
        self.writer.add_event(start)
        for row in evaluations:
            if row["update"] == start_update:  # counted in updates done, it would be dropped with what followed it
                values = {f"validation/{key.removeprefix('val_')}": row[key] for key in row if key != "update"}
                self._scalars(start_update, {tag: math.nan if v is None else v for tag, v in values.items()})

    def add(self, update: int, values: Mapping[str, float]) -> None:
        """Write scalars of one update."""
        self._scalars(update, values)
        if self.wandb:
            self.wandb.log(dict(values), step=update)

    def _scalars(self, update: int, values: Mapping[str, float]) -> None:
        if self.writer:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary

            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
            self.writer.add_event(Event(wall_time=time.time(), step=update, summary=summary))

    def close(self) -> None:
        """Flush and end."""
        if self.writer:
            self.writer.close()
        if self.wandb:
            self.wandb.finish()
