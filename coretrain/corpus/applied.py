"""What tasks need of a recipe: its rules, from the plain mappings that a task is given.

Apart from `recipe.py`, whose models of every field a process takes a quarter of a second to make.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from coretrain.corpus.filters.by_language import keep_languages
from coretrain.corpus.filters.fineweb2 import FINEWEB2
from coretrain.corpus.filters.limits import SETS, Limit
from coretrain.corpus.rules import Rule
from coretrain.corpus.steps import DECONTAMINATE

Off = Literal["off"]
OFF: Off = "off"
_BENCHMARKS = "Brown et al. 2020; Smith et al. 2022"
_HITS = (
    Limit("decontaminate.max_hits", "decontaminate.hits", "most", 0, "count", "{} places of a benchmark", _BENCHMARKS),
    Limit("decontaminate.max_cuts", "decontaminate.cuts", "most", 10, "count", "{} cuts for benchmarks", _BENCHMARKS),
    Limit(
        "decontaminate.min_left", "decontaminate.left", "least", 1, "count", "{} characters beside cuts", _BENCHMARKS
    ),
)
"""The first where documents are dropped, the others where benchmarks are cut out of them."""
RULES: dict[str, tuple[Limit, ...]] = (
    SETS | {f"fineweb2_{code}": limits for code, limits in FINEWEB2.items()} | {DECONTAMINATE: _HITS}
)
"""The sets of rules that a recipe may name, in the order in which a set's rules are applied."""
EMPTY = Rule("text.empty", "text.extracted", "no text at all", least=1, source="always")
EMPTIED = Rule("text.emptied", "text.characters", "no text left after edits", least=1, source="always")


class Applied:
    """The rules of a recipe that was checked, given as plain mappings."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self.plain = plain

    def percentiles(self) -> dict[str, tuple[str, float]]:
        """Limits that are percentiles: by the limit's name its signal, and a fraction of the documents."""
        found: dict[str, tuple[str, float]] = {}
        for name in self.plain["rules"]:
            for limit in RULES[name]:
                value = self._limit(name, limit)
                if isinstance(value, str) and value != OFF:
                    found[limit.name] = limit.signal, float(value[1:]) / 100
        return found

    def active(self, name: str) -> list[Rule]:
        """The rules of a set that are on, in their order. Raises `UserError` for a language that nobody knows."""
        made: list[Rule] = []
        if name == "language" and (keep := self.plain["filters"][name]["keep"]):
            made.append(keep_languages(tuple(keep)))
        cuts = name == DECONTAMINATE and self.plain["options"][name]["mode"] == "cut"
        for limit in RULES[name]:
            value = self._limit(name, limit)
            if isinstance(value, str) and value != OFF:
                value = 0.0  # a percentile, which isn't known yet
            if value != OFF and (name != DECONTAMINATE or cuts != limit.name.endswith("hits")):
                made.append(limit.rule(value))
        return made

    def every_rule(self) -> list[Rule]:
        """All rules that are on, in the order in which the first that is broken drops a document."""
        return [EMPTY, *(rule for name in self.plain["rules"] for rule in self.active(name)), EMPTIED]

    def _limit(self, name: str, limit: Limit) -> Any:
        return self.plain["filters"][name][limit.name.partition(".")[2]]
