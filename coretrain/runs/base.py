"""What adapters stand on: a run's interchange checkpoint, found by its weights' fingerprint, read once, and kept."""

from __future__ import annotations

import difflib
from pathlib import Path

from coretrain.adapters.merge import fingerprint, other_field
from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.base.lazy import LazyTensors
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import Interchange, load_interchange, newest_interchange
from coretrain.checkpoint.manifest import DamagedCheckpoint
from coretrain.config.run import RunConfig
from coretrain.runs.folder import run_of


class BaseTensors(LazyTensors):
    """The tensors of a base that an adapter's run takes over, and `folder`, the checkpoint that they are of.

    Of learned positions, where there are some, only the first `context` are in it. Each tensor is read when it is asked
    for.
    """

    def __init__(self, base: Interchange, context: int) -> None:
        self.folder, tensors = base.folder, base.groups["parameters"]
        super().__init__(tensors, lambda name: tensors[name][: context if name == "embed.position" else None])


def base_run(place: str | Path) -> Path:
    """The run's folder of `adapter.base`. Raises `UserError` where there is none, with what names another."""
    check_there(typed_path(str(place)))
    return run_of(typed_path(str(place)))


def check_there(place: Path) -> None:
    """Raise `UserError` where a base has moved, or was mistyped."""
    if not place.exists():
        beside = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
        near = difflib.get_close_matches(place.name, beside, 1)
        hint = (
            f"did you mean {place.with_name(near[0])}? --adapter.base names it"
            if near
            else ("name its place with --adapter.base")
        )
        raise UserError(
            "runs/base-not-found",
            f"adapter.base = {place} is not there: {hint}, or for text generate BASE_RUN PROMPT --adapter RUN",
        )


class Base:
    """The run, or the checkpoint of one, that adapters were or will be trained on.

    However many of them ask for it, its files are checked once and its weights read once for their fingerprint.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._opened: dict[Path, Interchange] = {}
        self._fingerprints: dict[Path, str] = {}

    def checkpoints(self, fingerprint: str) -> list[Path]:
        """Where weights of a fingerprint may lie, the likeliest first; of a new adapter ('') the newest alone.

        A run may have gone on since an adapter was trained on it, and keeps what is pinned.
        """
        check_there(self.place)
        newest = newest_interchange(self.place)
        if not fingerprint or newest == self.place:
            return [newest]
        kept = CheckpointFolder(newest.parent)
        pins = kept.pins()
        return sorted(kept.found(), key=lambda path: pins.get(path.name) != fingerprint)

    def under(self, config: RunConfig) -> tuple[RunConfig, Interchange]:
        """An adapter's config with the fingerprint of what it stands on, and that: as it is, at its own context.

        Raises `UserError` where the base is of another model, or isn't what the adapter was trained on.
        """
        wanted, found, damage = config.adapter.fingerprint, "", list[DamagedCheckpoint]()
        for path in self.checkpoints(wanted):
            try:
                loaded = self._open(path)
            except DamagedCheckpoint as fault:  # another may have the same weights
                damage.append(fault)
                continue
            self._check_model(config, loaded.config)
            found = found or self._fingerprint(path)
            if wanted in ("", self._fingerprint(path)):
                return config.changed(adapter__fingerprint=self._fingerprint(path)), loaded
        if damage:
            raise damage[0]
        raise UserError(
            "runs/base-fingerprint-differs",
            f"adapter.base = {self.place} has weights of fingerprint {found}, the adapter was trained on {wanted}: "
            "give that base as it was then (its folder or one of its checkpoints, as --adapter.base "
            "runs/X/interchange/update-N), or train a new adapter on this one",
        )

    def _open(self, path: Path) -> Interchange:
        if path not in self._opened:
            self._opened[path] = load_interchange(path)
        if self._opened[path].config.adapter.kind != "none":
            raise UserError(
                "runs/base-holds-adapter",
                f"adapter.base = {self.place} holds an adapter: merge it first, with twintrain convert merge",
            )
        return self._opened[path]

    def _fingerprint(self, path: Path) -> str:
        if path not in self._fingerprints:
            loaded = self._opened[path]
            self._fingerprints[path] = fingerprint(loaded.config, loaded.groups["parameters"])
        return self._fingerprints[path]

    def _check_model(self, config: RunConfig, base: RunConfig) -> None:
        if other := other_field(config.model, base.model):
            raise UserError(
                "runs/base-model-differs",
                f"model.{other} = {getattr(config.model, other)}, the base {self.place} has "
                f"{getattr(base.model, other)}: it is another model; give the base that the adapter belongs to",
            )
        if base.model.score_head and not config.model.score_head:
            raise UserError(
                "runs/base-has-score-head",
                f"adapter.base = {self.place} has a score head (model.score_head), for which train.objective = "
                f"{config.train.objective} has no use: give the run that it began with",
            )
        check_context(config, base)


def keep_base(config: RunConfig, checkpoint: Path) -> str:
    """Have the base's run keep the checkpoint that an adapter stands on when it goes on; what to warn of, or ''."""
    folder, fingerprint = CheckpointFolder(checkpoint.parent), config.adapter.fingerprint
    if checkpoint.parent.name != "interchange" or folder.pins().get(checkpoint.name) == fingerprint:
        return ""
    try:
        folder.pin(checkpoint.name, fingerprint)
    except OSError as error:
        return (
            f"{checkpoint} can't be marked as in use ({error.strerror}): don't go on with {config.adapter.base}, "
            "which would remove it, or copy it before"
        )
    return ""


def check_context(config: RunConfig, base: RunConfig) -> None:
    """Raise `UserError` where an adapter's rows are longer than its base's."""
    ours, theirs = config.model.context, base.model.context
    if ours > theirs:
        raise UserError(
            "runs/context-exceeds-base",
            f"model.context = {ours} is longer than the {theirs} of the base {config.adapter.base}: lower it, "
            "or leave it out",
        )
