"""The results file of a session of the judge, read back: each field that its page shows is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coretrain.base.errors import UserError
from coretrain.base.parse import from_json, read_bytes

Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Gate(_Strict):
    name: str
    rung: str
    cap: float
    floor: float
    catches: str
    error: float | None
    where: str
    status: str


class _Mutant(_Strict):
    name: str
    side: str
    area: str
    about: str
    declared: str | None = None
    killed_by: list[str]
    equivalent: bool
    expected_tap: str | None = None
    localized_tap: str | None = None


class _Curves(_Strict):
    difference: list[float | None]
    yardstick: list[float | None]
    loss_torch: list[float | None]
    loss_jax: list[float | None]

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        lengths = {len(curve) for curve in (self.difference, self.yardstick, self.loss_torch, self.loss_jax)}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError("its curves have no updates, or not as many as each other")
        return self


class _Device(_Strict):
    name: str


class Results(_Strict):
    """What `pytest parity` leaves."""

    versions: dict[str, str | None]
    machine: dict[str, Any]
    devices: list[_Device]
    gates: list[_Gate]
    failures: list[str]
    not_run: list[list[str]]
    date: str = ""
    variants: list[str] = []
    seconds: float = 0
    mutants: list[_Mutant] | None = None
    trajectory: dict[str, _Curves] | None = None
    dtypes: list[dict[str, Any]] | None = None
    kernels: list[dict[str, Any]] | None = None
    reduced_matmuls: list[dict[str, Any]] | None = None


class _Edit(_Strict):
    id: str
    file: str
    line: Count
    room: str
    operator: str
    about: str
    status: str
    tests: Count = 0
    reason: str = ""
    diff: str = ""


class _Judged(_Strict):
    judged: Count
    killed: Count

    @model_validator(mode="after")
    def _no_more_killed_than_judged(self) -> Self:
        if self.killed > self.judged:
            raise ValueError(f"{self.killed} of {self.judged} are killed")
        return self


class _Group(_Judged):
    name: str
    by_parity: Count | None = None
    low: Share | None = None
    high: Share | None = None


class _Cell(_Judged):
    room: str
    operator: str
    stillborn: Count = 0


class Score(_Strict):
    """What `python -m parity.mutation` leaves."""

    groups: list[_Group]
    table: list[_Cell]
    mutants: list[_Edit]
    date: str = ""
    seed: int | None = None
    against: str = ""
    places: Count | None = None
    sample: Count | None = None
    minutes: float | None = None


def read_mutants(path: Path) -> Mapping[str, Any]:
    """A results file of `python -m parity.mutation`, what it leaves out filled in; `UserError` where it is none."""
    try:
        return Score.model_validate(from_json(read_bytes(path))).model_dump()
    except (ValueError, OSError) as error:
        raise UserError(
            "parity/mutants-unreadable",
            f"{path}: not the results of python -m parity.mutation ({_reason(error)}); run it again, or move the file "
            "away",
        ) from None


def _reason(error: Exception) -> str:
    """What is wrong with a file, its first field that is."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def read(path: Path) -> Mapping[str, Any]:
    """A results file of `pytest parity`; `UserError` where it is none."""
    try:
        results: Mapping[str, Any] = from_json(read_bytes(path))
        Results.model_validate(results)
        if odd := [row for row in results["not_run"] if len(row) != 2]:
            raise ValueError(f"not_run has {odd[0]}, which isn't what and why")
    except FileNotFoundError:
        raise UserError("parity/results-missing", f"{path}: no results there; run pytest parity first") from None
    except (ValueError, OSError) as error:
        raise UserError(
            "parity/results-unreadable", f"{path}: not the results of pytest parity ({_reason(error)}); run it again"
        ) from None
    return results
