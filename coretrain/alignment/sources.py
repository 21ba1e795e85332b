"""Where a run's batches come from: what the loop asks of text, of preferences and of rollouts alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from coretrain.data.batch import Batch


class Source(Protocol):
    """What stands behind the loop's `next(batches)`."""

    @property
    def follows_weights(self) -> bool:
        """Whether a batch depends on the weights that it is for: then an update begins only when the last has ended."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Global batches of the indices [start, stop) of the data order, the same on every process."""

    def evaluate(self) -> tuple[float, dict[str, float]]:
        """Of the validation data: what the best checkpoint is chosen by (lower is better), and figures by name."""

    def figures(self) -> dict[str, float]:
        """Figures of the batch that was handed out last, by name."""

    def answers(self) -> Sequence[Mapping[str, Any]]:
        """Some of the answers that the last evaluation sampled: prompt, answer, reward, ended; () where none are."""

    def fault(self) -> str:
        """Why the batch that was handed out last isn't to be learnt from, or ''; the loop then skips its update."""

    def state(self) -> dict[str, Any]:
        """What goes on besides the weights, small and as JSON: `Progress.align`."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The same as arrays: those of a rollout in progress."""

    def load(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take what `state` and `arrays` gave, at a resume and at a rollback."""
