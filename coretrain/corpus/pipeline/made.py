"""What the stages of a run tell each other: where files are, and what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coretrain.corpus.engine.task import Facts, Result
from coretrain.corpus.pipeline.select import LATER
from coretrain.corpus.readers.piece import Piece
from coretrain.corpus.steps import DECONTAMINATE

if TYPE_CHECKING:
    from coretrain.corpus.recipe import Recipe

HERE = "coretrain.corpus.pipeline"
FILES = {DECONTAMINATE: "learned/benchmarks", "perplexity": "learned/perplexity.npz", "quality": "learned/quality.npz"}
"""By the step that needs it: what is made, in the work folder."""


@dataclass
class Made:
    """What the stages told: facts of each task, by stage."""

    recipe: Recipe
    pieces: list[Piece]
    inputs: dict[str, str]
    """SHA-256 of each input file, by its name."""
    read: list[Facts] = field(default_factory=list)
    select: list[Facts] = field(default_factory=list)
    exact: Facts = field(default_factory=dict)
    lines: Facts = field(default_factory=dict)
    near: Facts = field(default_factory=dict)
    simhash: Facts = field(default_factory=dict)
    substrings: Facts = field(default_factory=dict)
    cut: Facts = field(default_factory=dict)
    """Documents that broke a rule when they had been cut."""
    texts: list[str] = field(default_factory=list)
    """Files of texts, by piece, as the last stage left them."""
    documents: list[dict[str, Any]] = field(default_factory=list)
    """Files of documents: name, hash, counts."""
    dropped: list[str] = field(default_factory=list)
    """Files of what was dropped."""
    index: list[str] = field(default_factory=list)
    """Files that later data can be compared with."""
    decided: list[str] = field(default_factory=list)
    """Files of the last reasons, by piece."""
    copies: list[list[str]] = field(default_factory=list)
    """Files of lists of copies, by piece, one for each kind of deduplication."""
    seconds: dict[str, float] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files in `decided` and `copies`."""

    def reason(self, name: str) -> int:
        """The number of one of the reasons besides the rules."""
        return len(self.recipe.every_rule()) + LATER.index(name)


def texts_of(piece: int) -> str:
    """The texts of a piece, in the work folder."""
    return f"texts/{piece:06d}.parquet"


def signals_of(piece: int) -> str:
    """The signals of a piece."""
    return f"signals/{piece:06d}.parquet"


def hits_of(piece: int) -> str:
    """Where benchmarks stand in a piece."""
    return f"hits/{piece:06d}.jsonl"


def troubles_of(piece: int) -> str:
    """What couldn't be read of a piece."""
    return f"troubles/{piece:06d}.jsonl"


def learned_by(recipe: Recipe) -> dict[str, str]:
    """What a recipe has made before it reads: files in the work folder, by the step that needs them."""
    trained = recipe.trained()
    return {step: FILES[step] for step in recipe.steps if step == DECONTAMINATE or trained.get(step)}


def without_execution(recipe: Recipe) -> dict[str, Any]:
    """The recipe for tasks' arguments: what can't change the result isn't in it."""
    return {key: value for key, value in recipe.plain().items() if key not in ("execution", "name", "about", "licence")}


def reasons_files(stage: str, made: Made) -> list[str]:
    """For each piece the file of a stage with the reasons why its documents go."""
    return [f"{stage}/{index:06d}.npy" for index in range(len(made.pieces))]


def facts_of(results: Sequence[Result]) -> list[Facts]:
    return [result.facts for result in results]
