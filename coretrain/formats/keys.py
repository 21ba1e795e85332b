"""What becomes of each key of a file in another library's format: one table for each format, beside its reader."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Keys:
    """Every key that the format's own library reads. A test walks that library's list, so that a new key is noticed."""

    obeyed: Collection[str]
    """Keys whose value is followed."""
    only: Mapping[str, tuple[object, ...]]
    """Keys that would change a number, and the values that are read; the first one is what absence means."""
    idle: Mapping[str, Collection[str]]
    """Keys that can't change a number, by the reason why."""
    told: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Keys that are read over, which is said, and the values that need no word."""

    def __contains__(self, key: object) -> bool:
        return key in set(self)

    def __iter__(self) -> Iterator[str]:
        yield from (*self.obeyed, *self.only, *self.told)
        for keys in self.idle.values():
            yield from keys

    def unsupported(self, raw: Mapping[str, Any]) -> str | None:
        """The first key of `raw` whose value is none of those that are read."""
        return next((key for key, values in self.only.items() if raw.get(key, values[0]) not in values), None)

    def not_followed(self, raw: Mapping[str, Any]) -> list[str]:
        """Keys of `raw` of which it must be said that they aren't followed."""
        return [key for key, values in self.told.items() if key in raw and raw[key] not in values]

    def unknown(self, raw: Mapping[str, Any]) -> list[str]:
        """Keys of `raw` that are in none of the lists."""
        known = set(self)
        return [key for key in raw if key not in known]


def worded(raw: Mapping[str, Any], keys: Collection[str]) -> str:
    """`temperature = 0.6, top_p = 0.9`."""
    return ", ".join(f"{key} = {raw[key]!r}" for key in keys)
