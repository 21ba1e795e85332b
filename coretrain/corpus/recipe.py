"""A recipe: every field of how a corpus is made. Its fields of steps and limits are made from the tables of these."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import Field, create_model, model_validator

from coretrain.base.numbers import COUNTABLE
from coretrain.config.fields import Countable, Positive, Section, conflict
from coretrain.corpus.applied import OFF, RULES, Applied, Off
from coretrain.corpus.dedup.simhash import MOST_BITS
from coretrain.corpus.perplexity.model import MOST_ORDER
from coretrain.corpus.rules import Rule
from coretrain.corpus.steps import DECONTAMINATE, NOT_OPTIONS, STEPS, step_class

TRAINED = {"perplexity": ("fluent",), "quality": ("good", "bad")}
"""Steps with a model, and the fields of the files that it is trained on."""
_KINDS: dict[str, Any] = {
    "count": Annotated[float, Field(ge=0, le=COUNTABLE)],
    "fraction": Annotated[float, Field(ge=0, le=1)],
    "number": Annotated[float, Field(ge=0, le=COUNTABLE)],
}
Percentile = Annotated[str, Field(pattern=r"^p[0-9]{1,2}([.][0-9]+)?$")]
"""`p90`: the value below which 90 of 100 documents lie, of those that the other rules keep."""


class InputConfig(Section):
    """What is read."""

    paths: tuple[str, ...] = Field((), description="Files, folders, patterns such as crawl/*.warc.gz; --input adds.")
    layout: str = Field("auto", description="How rows of jsonl and parquet lie; auto: by their fields.")
    priority: tuple[str, ...] = Field(
        (), description="Sources, the most wanted first: of duplicates the one of the earlier source is kept."
    )


class ExtractConfig(Section):
    """Pages to text."""

    kind: Literal["resiliparse", "trafilatura", "none"] = Field(
        "resiliparse", description="Who takes the text out of a page; none: all text, menus included."
    )
    deadline: float = Field(
        20.0, gt=0, le=3600, description="Seconds of a processor that a page may take; then it is passed over."
    )
    memory: Annotated[int, Field(ge=2**26), Countable] = Field(
        2**31, description="Bytes that a page may take; then it is passed over."
    )


class DedupConfig(Section):
    """Which documents say the same, and one of each such cluster is kept."""

    exact: Literal["off", "words", "text"] = Field(
        "words", description="Copies: of all words without case, accents and punctuation, or of the text to a byte."
    )
    lines: Literal["off", "line", "paragraph"] = Field(
        "off", description="Copies of lines or paragraphs are cut out of all documents but one, as CCNet does."
    )
    near: bool = Field(True, description="Near-duplicates by MinHash; each pair found is verified.")
    n: Positive = Field(5, le=1000, description="Words, or characters, of a shingle.")
    unit: Literal["word", "character"] = Field("word", description="What a shingle is made of.")
    bands: Positive = Field(14, le=1000, description="Bands of a signature.")
    rows: Positive = Field(8, le=1000, description="Rows of a band.")
    threshold: float = Field(0.7, gt=0, le=1, description="Jaccard similarity from which two are duplicates.")
    seed: int = Field(1, ge=0, lt=2**32, description="Of the orders that make the signatures.")
    counting: Literal["fast", "datatrove"] = Field("fast", description="datatrove: its hashes and orders, slower.")
    known: tuple[str, ...] = Field(
        (), description="Corpora made earlier with output.index: what is near one of their documents goes."
    )
    simhash: bool = Field(
        False, description="Near-duplicates by SimHash, after near or instead of it; pairs aren't verified."
    )
    simhash_n: Positive = Field(3, le=1000, description="Words, or characters, of SimHash's shingles.")
    simhash_distance: Annotated[int, Field(ge=0, le=MOST_BITS)] = Field(
        3, description="Of 64 bits those in which two duplicates may differ."
    )
    substrings: Literal["off", "byte", "word"] = Field(
        "off", description="Copies of so many bytes or words are cut out of all documents but one."
    )
    substring_length: Annotated[int, Field(ge=8, le=100_000)] = Field(
        100, description="Bytes (100 are about 50 tokens) or words of a substring."
    )
    limits_again: bool = Field(
        True, description="Texts that lines or substrings have cut are held to the rules once more."
    )


class DecontaminateConfig(Section):
    """Benchmarks that must not be trained on; the step decontaminate looks for them."""

    files: tuple[str, ...] = Field((), description="Local files of benchmarks: jsonl, parquet, txt.")
    fields: tuple[str, ...] = Field((), description="Their fields that are looked for; none: all with text.")
    index: str = Field("", description="An index made earlier, instead of files.")
    n: Positive = Field(13, le=1000, description="Words of an n-gram; GPT-3 and the Pile 13, datatrove 12.")
    shortest: Positive = Field(8, le=1000, description="Words of an item that is still looked for as a whole.")


class ModelsConfig(Section):
    """Models that are trained before anything is read, on files of yours; an option `model` names one made earlier."""

    fluent: tuple[str, ...] = Field((), description="Files of good text; the step perplexity is trained on them.")
    order: Positive = Field(5, le=MOST_ORDER, description="Words of the longest n-gram that perplexity looks at.")
    good: tuple[str, ...] = Field((), description="Files of documents as they should be, for the step quality.")
    bad: tuple[str, ...] = Field((), description="Files of documents as they should not be, as raw pages are.")


class OutputConfig(Section):
    """What is written."""

    documents: Positive = Field(100_000, description="Documents in a file.")
    index: bool = Field(False, description="Keep what later data can be compared with, for its dedup.known.")
    examples: int = Field(5, ge=0, le=100, description="Examples of each rule in the report, dropped and kept.")
    bytes_per_token: float = Field(
        4.4, gt=0, le=100, description="By which tokens are estimated in the report (English with a GPT-2 tokenizer)."
    )


class ExecutionConfig(Section):
    """How it is carried out. None of these changes what comes out."""

    piece_bytes: Annotated[int, Field(ge=2**16), Countable] = Field(
        32 * 2**20, description="Bytes of an input file that a task reads."
    )
    memory: Annotated[int, Field(ge=2**20), Countable] = Field(
        2**30, description="Bytes that a task's sorting may take, besides some hundred MiB for the process."
    )


def _options(name: str) -> type[Section]:
    """The fields of a step's class that TOML can hold, as a section."""
    hints = get_type_hints(step_class(name))
    made: dict[str, Any] = {}
    for one in dataclasses.fields(step_class(name)):
        kind = hints[one.name]
        if one.name in NOT_OPTIONS.get(name, ()):
            continue
        default = "" if one.default is dataclasses.MISSING else one.default
        if kind in (int, float, bool, str) or get_origin(kind) is Literal or kind == tuple[str, ...]:
            made[one.name] = (Annotated[int, Countable] if kind is int else kind, Field(default))
    return create_model(f"{name}_options", __base__=Section, __doc__=f"Fields of the step {name}.", **made)


def _limits(name: str) -> type[Section]:
    made: dict[str, Any] = {}
    for limit in RULES[name]:
        default = OFF if limit.default is None else limit.default
        field = Field(default, description=f"{limit.meaning} {limit.source}.")
        made[limit.name.partition(".")[2]] = (_KINDS[limit.kind] | Off | Percentile, field)
    if name == "language":
        made["keep"] = (tuple[str, ...], Field((), description="Codes of the languages to keep; none: all of them."))
    return create_model(f"{name}_limits", __base__=Section, __doc__=f"Limits of the rules {name}.", **made)


def _group(name: str, sections: Mapping[str, type[Section]], about: str) -> type[Section]:
    made: dict[str, Any] = {key: (section, section()) for key, section in sections.items()}
    return create_model(name, __base__=Section, __doc__=about, **made)


OptionsConfig = _group("OptionsConfig", {name: _options(name) for name in STEPS}, "Fields of each step.")
FiltersConfig = _group("FiltersConfig", {name: _limits(name) for name in RULES}, "Limits of each set of rules.")


class Recipe(Section):
    """How a corpus is made."""

    name: str = Field("corpus", min_length=1, max_length=100, description="Of the recipe.")
    about: str = Field("", description="What it is, and where its numbers are from.")
    licence: str = Field("", description="What is known of the input's licence: it goes into the data card.")
    steps: tuple[str, ...] = Field((), description="What is computed of each text, or edited in it, in this order.")
    rules: tuple[str, ...] = Field((), description="Sets of rules, in the order in which they are applied.")
    gates: tuple[str, ...] = Field(
        (), description="Steps whose rules are applied at once: what they drop goes through no later step."
    )
    input: InputConfig = InputConfig()
    extract: ExtractConfig = ExtractConfig()
    options: OptionsConfig = OptionsConfig()  # type: ignore[valid-type]  # made from a table
    filters: FiltersConfig = FiltersConfig()  # type: ignore[valid-type]  # made from a table
    dedup: DedupConfig = DedupConfig()
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    models: ModelsConfig = ModelsConfig()
    output: OutputConfig = OutputConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        for field, names, known in (("steps", self.steps, tuple(STEPS)), ("rules", self.rules, tuple(RULES))):
            for name in names:
                if name not in known:
                    raise conflict("corpus/unknown-word", f"{field}: {nearest(name, known)}")
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise conflict("corpus/named-twice", f"{field} names {twice[0]} twice: name it once")
        for step, files in self.trained().items():
            own = getattr(self.options, step).model
            if step in self.steps and not files and not own:
                fields = " and ".join(f"models.{name}" for name in TRAINED[step])
                raise conflict(
                    "corpus/step-without-model",
                    f"steps names {step}, which needs text of yours to learn from: give files in {fields}, or a model "
                    f"in options.{step}.model",
                )
            if files and own:
                raise conflict("corpus/two-models", f"options.{step}.model and models both say its model: give one")
            if files and not all(files.values()):
                raise conflict("corpus/half-a-model", f"the step {step} needs files in both models.good and models.bad")
        benchmarks = bool(self.decontaminate.files or self.decontaminate.index)
        if benchmarks != (DECONTAMINATE in self.steps):
            raise conflict(
                "corpus/benchmarks-without-step",
                "decontaminate.files or .index, and the step decontaminate, go together: give both, or none",
            )
        for name in self.gates:
            if name not in self.steps or name not in self.rules:
                raise conflict(
                    "corpus/gate-without-step", f"gates names {name}, which must stand in steps and in rules too"
                )
        for name in self.rules:
            for limit in self.active(name):
                step = limit.signal.partition(".")[0]
                if step not in self.steps:
                    raise conflict(
                        "corpus/rule-without-step",
                        f"rules names {name}, whose {limit.name} needs the step {step}: add {step} to steps",
                    )
        for name in self.percentiles():
            if name.partition(".")[0] in self.gates:
                raise conflict(
                    "corpus/percentile-in-gate", f"filters.{name}: a gate knows no percentiles: give a number"
                )
        for name in self.gates:
            if odd := [one.signal for one in self.active(name) if one.signal.partition(".")[0] != name]:
                raise conflict("corpus/gate-needs-other-step", f"gates names {name}, whose rules need {odd[0]} too")
        return self

    def trained(self) -> dict[str, dict[str, list[str]]]:
        """For each step with a model the files that it is trained on, by field; none where none are given."""
        found = {step: {name: list(getattr(self.models, name)) for name in names} for step, names in TRAINED.items()}
        return {step: files if any(files.values()) else {} for step, files in found.items()}

    def applied(self) -> Applied:
        """Its rules, as tasks have them."""
        return Applied(self.plain())

    def percentiles(self) -> dict[str, tuple[str, float]]:
        """Limits that are percentiles: by the limit's name its signal, and a fraction of the documents."""
        return self.applied().percentiles()

    def with_limits(self, values: Mapping[str, float]) -> Recipe:
        """The recipe with numbers for some limits."""
        raw = self.plain()
        for name, value in values.items():
            group, _, leaf = name.partition(".")
            raw["filters"][group][leaf] = value
        return Recipe.model_validate(raw)

    def active(self, name: str) -> list[Rule]:
        """The rules of a set that are on, in their order. Raises `UserError` for a language that nobody knows."""
        return self.applied().active(name)

    def every_rule(self) -> list[Rule]:
        """All rules that are on, in the order in which the first that is broken drops a document."""
        return self.applied().every_rule()

    def reading(self) -> dict[str, Any]:
        """The fields that decide what the first stage makes: texts and signals."""
        whole = self.plain()
        options = {name: whole["options"][name] for name in self.steps}
        gates = {name: whole["filters"][name] for name in self.gates}
        kept = {key: whole[key] for key in ("extract", "steps", "gates", "decontaminate", "models")}
        return kept | {"rules": list(self.gates), "options": options, "filters": gates}

    def plain(self) -> dict[str, Any]:
        """As nested mappings of JSON."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> str:
        """32 hex digits of all that decides what becomes of a document; those of names and execution aren't in it, nor
        are the folders of files."""
        whole = {key: value for key, value in self.plain().items() if key not in ("name", "about", "licence")}
        whole = whole | self.reading()
        del whole["execution"]
        whole["options"] = {
            step: {key: _named(value) for key, value in own.items()} for step, own in whole["options"].items()
        }
        for key in ("files", "index"):
            whole["decontaminate"][key] = _named(whole["decontaminate"][key])
        whole["dedup"]["known"] = _named(whole["dedup"]["known"])
        whole["models"] = {key: _named(value) for key, value in whole["models"].items()}
        whole["input"] = {key: value for key, value in whole["input"].items() if key != "paths"}
        whole["rules"] = list(self.rules)
        whole["filters"] = {name: self.plain()["filters"][name] for name in self.rules}
        return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=16).hexdigest()


def _named(value: Any) -> Any:
    """Names of files without the folders that they are in on this machine; their contents count beside it."""
    if isinstance(value, list):
        return [_named(one) for one in value]
    return value.rpartition("/")[2] if isinstance(value, str) else value


def nearest(word: str, known: tuple[str, ...]) -> str:
    """A sentence that no such word is known, and which is near."""
    from coretrain.base.errors import meant

    return f"{meant(word, known)}{word} is none of {', '.join(known)}"


def fields(section: type[Section] = Recipe, before: str = "") -> Iterator[tuple[str, type[Section], str]]:
    """Every field's dotted name, with its section and its own name."""
    for leaf, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from fields(kind, f"{before}{leaf}.")
        else:
            yield f"{before}{leaf}", section, leaf


def is_text(section: type[Section], leaf: str) -> bool:
    """Whether a field holds words."""
    kind = section.model_fields[leaf].annotation
    return kind is str or (get_origin(kind) is Literal and all(isinstance(one, str) for one in get_args(kind)))
