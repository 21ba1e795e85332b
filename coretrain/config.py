"""One run, written down: the sections of `RunConfig`, frozen and validated, each field with its meaning and limits.

Sources, later ones win: the defaults below, a TOML file (`configs/NAME.toml` or a path), `--section.field value`.
"""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coretrain.errors import UserError

CONFIG_VERSION = 1
PRESETS = Path(__file__).resolve().parent.parent / "configs"

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
DType = Literal["float64", "float32", "bfloat16", "float16"]
TorchAttention = Literal["flash_attn", "sdpa_fa4", "sdpa_fa3", "sdpa", "plain"]
JaxAttention = Literal["splash", "cudnn", "xla", "plain"]
AttentionKernel = Literal["auto", "flash_attn", "sdpa_fa4", "sdpa_fa3", "sdpa", "splash", "cudnn", "xla", "plain"]


class Section(BaseModel):
    """A frozen group of fields; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The GPT: a pre-norm decoder, GPT-2 style or Llama style by its switches."""

    layers: Positive = Field(4, description="Number of decoder blocks.")
    width: Positive = Field(192, description="Width D of the residual stream.")
    heads: Positive = Field(6, description="Query heads H; must divide width unless head_width is given.")
    kv_heads: Positive | None = Field(
        None, description="Key/value heads K (grouped-query attention); must divide heads. Unset: as many as heads."
    )
    head_width: Positive | None = Field(None, description="Width C of one head. Unset: width / heads.")
    mlp_width: Positive | None = Field(
        None, description="Hidden width F of the MLP. Unset: 4 x width (gelu) or 8/3 x width rounded up to 64 (swiglu)."
    )
    context: Positive = Field(256, description="Longest sequence T, in tokens; a training row is this long.")
    vocab: Positive | None = Field(None, description="Vocabulary V. Unset: the tokenizer's, specials included.")
    norm: Literal["layernorm", "rmsnorm"] = Field("layernorm", description="Normalisation before each sublayer.")
    norm_eps: float = Field(1e-5, gt=0, description="Added to the variance inside every norm.")
    position: Literal["learned", "rope"] = Field(
        "learned", description="Learned position embedding, or rotary (half-split, as HF Llama)."
    )
    rope_theta: float = Field(10000.0, gt=0, description="Base of the rotary frequencies.")
    mlp: Literal["gelu", "swiglu"] = Field("gelu", description="MLP: GELU (tanh form) or SwiGLU.")
    bias: bool = Field(True, description="Biases on every linear layer, and on layernorm.")
    tied: bool = Field(True, description="The output head shares the token embedding.")
    init_std: float = Field(
        0.02, gt=0, description="Std of initial weights; residual outputs get std/sqrt(2 x layers)."
    )
    residual_dropout: Fraction = Field(0.0, description="Dropout on each sublayer's output, before the residual sum.")
    embedding_dropout: Fraction = Field(0.0, description="Dropout on the summed embeddings.")

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"model.heads = {self.heads} does not divide model.width = {self.width}: "
                "choose heads that divide width, or set model.head_width"
            )
        if self.heads % self.kv:
            raise ValueError(
                f"model.kv_heads = {self.kv_heads} does not divide model.heads = {self.heads}: "
                "every key/value head serves the same number of query heads"
            )
        if self.position == "rope" and self.head % 2:
            raise ValueError(
                f"model.head_width = {self.head} is odd, but rotary positions pair its halves: make it even"
            )
        return self

    @property
    def kv(self) -> int:
        """Key/value heads K, resolved."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head(self) -> int:
        """Head width C, resolved."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def hidden(self) -> int:
        """MLP hidden width F, resolved."""
        if self.mlp_width is not None:
            return self.mlp_width
        return 4 * self.width if self.mlp == "gelu" else -(-8 * self.width // 3 // 64) * 64

    @property
    def vocabulary(self) -> int:
        """Vocabulary V, once the tokenizer has set it."""
        if self.vocab is None:
            raise UserError("model.vocab is not set: give it, or load the run's data so that the tokenizer sets it")
        return self.vocab


class MixturePart(Section):
    """One source of a mixture and its share of the training rows."""

    source: str = Field(description="A source, as data.source takes it.")
    weight: float = Field(gt=0, description="Its share, relative to the other parts'.")


class DataConfig(Section):
    """Text in, batches out."""

    source: str = Field(
        "stdlib",
        description="`stdlib` (this Python's own library and pydoc topics), a file or folder of "
        ".txt .md .py .jsonl(.gz .zst) .parquet, or `hf:NAME[:SUBSET][:SPLIT]` (needs the datasets extra).",
    )
    mixture: tuple[MixturePart, ...] = Field(
        (), description='Several sources with weights, instead of source: [{source = "a", weight = 95}, ...].'
    )
    text_field: str = Field("text", description="The field that holds the text, in jsonl, parquet and datasets.")
    tokenizer: str = Field(
        "trained",
        description="`trained` (a BPE from this corpus), `gpt2`, `cl100k_base`, `o200k_base`, `bytes`, "
        "or the path of a .tiktoken file.",
    )
    tokenizer_vocab: Annotated[int, Field(ge=257)] = Field(
        4096, description="Vocabulary of a trained tokenizer, specials included."
    )
    validation_fraction: float = Field(
        0.02, gt=0, lt=0.5, description="Share of documents, by hash, kept for validation."
    )
    max_documents: Count = Field(0, description="Stop after this many documents of a source (0: all).")
    shard_tokens: Annotated[int, Field(ge=1024)] = Field(16_777_216, description="Tokens in a shard file.")
    cache: str = Field("~/.cache/twintrain", description="Folder of prepared shards and trained tokenizers.")
    prepare_processes: Count = Field(0, description="Processes that tokenize (0: one for each core).")
    workers: Count = Field(0, description="Loader workers during training (0: in the trainer's own process).")


class OptimizerConfig(Section):
    """The update rule."""

    name: Literal["adamw", "adam", "muon"] = Field(
        "adamw", description="adamw; adam (no decay); muon (hidden matrices by Muon, the rest by AdamW)."
    )
    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the bias-corrected second moment.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled decay, on matrices and embeddings only.")
    clip: float = Field(1.0, ge=0, description="Largest global gradient norm (0: no clipping).")
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of Muon's matrices.")


class ScheduleConfig(Section):
    """The learning rate of update n, a closed form that both stacks are handed."""

    kind: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="After warm-up: cosine or linear to min_lr, constant, or warm-up-stable-decay."
    )
    warmup_updates: Count = Field(
        100,
        description="Updates of linear warm-up; lr(0) is already above 0. Where --train.updates alone makes a run "
        "shorter than that, a tenth of the updates.",
    )
    horizon: Positive | None = Field(None, description="Update at which the decay ends. Unset: train.updates.")
    min_lr: float = Field(1e-4, ge=0, description="Learning rate at the end of the decay.")
    decay_fraction: float = Field(0.2, gt=0, le=1, description="Share of the horizon that wsd's final decay takes.")


class TrainConfig(Section):
    """How long, how much at once, how often to look."""

    updates: Positive = Field(600, description="Optimizer updates in the run.")
    batch_size: Positive = Field(
        16, description="Rows of context tokens in one update, over all micro-batches and ranks."
    )
    accumulation: Positive = Field(1, description="Micro-batches in one update; must divide batch_size.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(1337, description="Seed of weights, data order and dropout.")
    eval_interval: Positive = Field(
        100, description="Updates between evaluations; the last update is always followed by one."
    )
    eval_batches: Positive = Field(
        8, description="Batches of batch_size rows in an evaluation, the same ones each time."
    )
    log_interval: Positive = Field(
        10, description="Updates between plain terminal lines; metrics.jsonl has every update."
    )
    sample_prompt: str = Field("def", description="Prompt of the text sampled at the end; best with no space after it.")
    sample_tokens: Count = Field(200, description="Tokens sampled at the end (0: none).")

    @model_validator(mode="after")
    def _split(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"train.accumulation = {self.accumulation} does not divide train.batch_size = {self.batch_size}"
            )
        return self


class PrecisionConfig(Section):
    """Dtypes. Master weights and moments are float32 (float64 in float64); norms, softmax and loss too."""

    compute: DType = Field("float32", description="Dtype of matmuls and activations.")
    loss_scale: float = Field(
        65536.0, gt=0, description="Initial loss scale of float16; halved on overflow, doubled after 2000 good updates."
    )
    fast_matmul: bool = Field(False, description="Allow TF32 (CUDA) or bf16 passes (TPU) in float32 matmuls.")


class ExecutionConfig(Section):
    """How the same numbers are computed: nothing here changes what is trained beyond rounding."""

    device: Literal["auto", "cpu", "mps", "cuda", "gpu", "tpu"] = Field(
        "auto", description="Where to run (gpu and tpu are JAX's names; cuda and gpu mean the same)."
    )
    attention: AttentionKernel = Field(
        "auto", description="Attention kernel; auto takes the first of the stack's table that can run here."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile: auto compiles where a compiler exists and the run is long enough to "
        "pay for it. JAX always compiles.",
    )
    checkpoint_activations: Literal["none", "full", "matmuls"] = Field(
        "none", description="Recompute in the backward pass: nothing, whole blocks, or all but matmul outputs."
    )
    scan_layers: bool | None = Field(
        None,
        description="JAX: one compiled block scanned over layers (off: unrolled). Unset: unrolled on a CPU up to "
        "12 layers where nothing is recomputed, else scanned.",
    )
    loss_chunk: Positive = Field(1024, description="Tokens per chunk of the output head and cross-entropy.")
    vocab_multiple: Positive = Field(
        64,
        description="Rows of the embedding are padded to this multiple for speed; padding never reaches the loss, "
        "checkpoints or exports.",
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="Peak to state MFU against (unset: none is stated on CPU)."
    )


class ParallelConfig(Section):
    """How one update is shared by many devices: the same training on any number of them.

    The axes multiply to the number of devices. A micro-batch's rows are shared by data x fsdp of them.
    """

    data: Positive | None = Field(
        None, description="Copies of the model, each with its rows of a micro-batch. Unset: what the other axes leave."
    )
    fsdp: Positive = Field(
        1, description="JAX: devices that share weights, gradients and moments as well as rows (torch: parallel.zero)."
    )
    tensor: Positive = Field(
        1, description="Devices that share each layer's heads, hidden width and vocabulary; must divide all of them."
    )
    context: Positive = Field(1, description="JAX: devices that share each row's tokens, for long rows.")
    pipeline: Positive = Field(
        1, description="Stages that share the layers, fed with the update's micro-batches; must divide model.layers."
    )
    zero: Literal[0, 1, 2, 3] = Field(
        0,
        description="torch: DeepSpeed's ZeRO stage over the data axis. 1 shards moments, 2 gradients too, 3 weights "
        "too; 0 needs no DeepSpeed.",
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="torch, with ZeRO: keep the optimizer's state, or weights too (stage 3), in host memory."
    )
    coordinator: str | None = Field(
        None, description="JAX on several hosts: ADDRESS:PORT of the first. Unset: found where the cluster tells it."
    )
    hosts: Positive | None = Field(
        None, description="JAX: how many hosts take part. Unset: found where the cluster tells it, else one."
    )
    host: Count | None = Field(None, description="JAX: which of them this one is, from 0. Unset: found, as above.")
    timeout: Positive = Field(
        300, description="Seconds that a process may keep the others waiting before the run ends and names it."
    )


class HealthConfig(Section):
    """What to do about a non-finite or spiking update, decided before it is applied."""

    nonfinite: Literal["skip", "stop", "rollback"] = Field("skip", description="On a non-finite loss or gradient norm.")
    spike: Literal["ignore", "skip", "stop", "rollback"] = Field(
        "ignore", description="On a loss or gradient norm more than spike_sigma above the window's mean."
    )
    spike_sigma: float = Field(6.0, gt=0, description="Standard deviations that make a spike.")
    window: Annotated[int, Field(ge=8)] = Field(
        128, description="Updates in the window; no spike is called before it is full."
    )
    max_consecutive: Positive = Field(20, description="Stop the run after this many skipped updates in a row.")


class CheckpointConfig(Section):
    """When to save and what to keep."""

    interval: Positive = Field(200, description="Updates between saves; the last update is always saved.")
    keep: Positive = Field(2, description="Newest checkpoints to keep.")
    keep_best: bool = Field(True, description="Also keep the one with the lowest validation loss.")


class JournalConfig(Section):
    """What a run says beyond metrics.jsonl and report.html."""

    tensorboard: bool = Field(True, description="Write TensorBoard events.")
    wandb: bool = Field(False, description="Log to Weights & Biases (needs the wandb extra).")


class RunConfig(Section):
    """A whole run."""

    version: int = Field(CONFIG_VERSION, ge=1, le=CONFIG_VERSION, description="Version of this format.")
    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="Name of the run and of its folder.")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig())
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig())
    train: TrainConfig = Field(default_factory=lambda: TrainConfig())
    precision: PrecisionConfig = Field(default_factory=lambda: PrecisionConfig())
    execution: ExecutionConfig = Field(default_factory=lambda: ExecutionConfig())
    parallel: ParallelConfig = Field(default_factory=lambda: ParallelConfig())
    health: HealthConfig = Field(default_factory=lambda: HealthConfig())
    checkpoint: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig())
    journal: JournalConfig = Field(default_factory=lambda: JournalConfig())

    @model_validator(mode="before")
    @classmethod
    def _version(cls, raw: Any) -> Any:
        version = raw.get("version", CONFIG_VERSION) if isinstance(raw, Mapping) else CONFIG_VERSION
        if isinstance(version, int) and version > CONFIG_VERSION:
            raise ValueError(
                f"version = {version} is newer than this twintrain's {CONFIG_VERSION}: "
                "upgrade twintrain, or write the config for the older version"
            )
        return raw

    @model_validator(mode="after")
    def _agree(self) -> Self:
        horizon = self.schedule.horizon or self.train.updates
        if self.schedule.kind in ("cosine", "linear", "wsd") and self.schedule.warmup_updates > horizon:
            raise ValueError(
                f"schedule.warmup_updates = {self.schedule.warmup_updates} is longer than the horizon of "
                f"{horizon} updates: shorten the warm-up, or raise train.updates or schedule.horizon"
            )
        if self.schedule.kind != "constant" and self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(
                f"schedule.min_lr = {self.schedule.min_lr:g} is above optimizer.lr = {self.optimizer.lr:g}: "
                "lower it (a tenth of lr is usual)"
            )
        return self

    @property
    def micro_batch(self) -> int:
        """Rows of one micro-batch."""
        return self.train.batch_size // self.train.accumulation

    @property
    def tokens_per_update(self) -> int:
        """Tokens of one update's global batch."""
        return self.train.batch_size * self.model.context

    def with_vocab(self, vocab: int) -> RunConfig:
        """The same run with the tokenizer's vocabulary filled in; a smaller one in the config is refused."""
        if self.model.vocab is not None and self.model.vocab < vocab:
            raise UserError(
                f"model.vocab = {self.model.vocab} is smaller than the tokenizer's {vocab}: raise it or leave it out"
            )
        size = vocab if self.model.vocab is None else self.model.vocab
        return self.model_copy(update={"model": self.model.model_copy(update={"vocab": size})})

    def to_json(self) -> str:
        """The config as canonical JSON, as checkpoints and run folders keep it."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> RunConfig:
        """Read what `to_json` wrote."""
        return build_config(json.loads(text), "the run's config")


def until(config: RunConfig, updates: int) -> RunConfig:
    """The same run, ended after so many updates."""
    return config.model_copy(update={"train": config.train.model_copy(update={"updates": updates})})


def presets() -> list[str]:
    """Names of the configs that ship with twintrain."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_config(name_or_path: str | None = None, overrides: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Load a preset by name or a TOML file by path (None: `tiny`), then apply dotted overrides.

    Raises `UserError`, which names the field or the file and the way out.
    """
    source = name_or_path or "tiny"
    path = Path(source) if source.endswith(".toml") else PRESETS / f"{source}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(source, presets(), 1)
        hint = f"did you mean {near[0]}?" if near else f"presets are {', '.join(presets())}"
        raise UserError(f"no config named {source}: {hint}")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    raw.setdefault("name", path.stem)
    raw = _shorter_warmup(apply_overrides(raw, overrides), {key for key, _ in overrides})
    return build_config(raw, str(path))


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A copy of `raw` with each ("section.field", "text") set; the text is read as TOML, or else kept as a string."""
    result: dict[str, Any] = copy.deepcopy(dict(raw))
    for key, text in overrides:
        known_key(key)
        *parents, leaf = key.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"{parent} = {place!r} is not a section: write [{parent}] with its fields below it")
        if text.lower() in ("none", "null"):
            place.pop(leaf, None)  # back to the default
            continue
        try:
            place[leaf] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            place[leaf] = {"True": True, "False": False}.get(text, text)
        section, field = fields()[key]
        if section.model_fields[field].annotation is str and not isinstance(place[leaf], str):
            place[leaf] = text  # a folder named 2026 is a name, not a number
    return result


def _shorter_warmup(raw: dict[str, Any], overridden: Set[str]) -> dict[str, Any]:
    """`raw`, its warm-up a tenth of train.updates where only those were overridden, and it no longer fits into them."""
    if "train.updates" in overridden and not overridden & {"schedule.warmup_updates", "schedule.horizon"}:
        schedule, updates = raw.setdefault("schedule", {}), raw.get("train", {}).get("updates")
        warmup = schedule.get("warmup_updates", ScheduleConfig.model_fields["warmup_updates"].default)
        whole = isinstance(updates, int) and isinstance(warmup, int) and not schedule.get("horizon")
        if whole and warmup > updates > 0:
            schedule["warmup_updates"] = updates // 10
    return raw


def fields() -> dict[str, tuple[type[Section], str]]:
    """Every dotted field name, with the section class and the field's own name."""
    found: dict[str, tuple[type[Section], str]] = {}
    for name, info in RunConfig.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            found |= {f"{name}.{leaf}": (section, leaf) for leaf in section.model_fields}
        else:
            found[name] = (RunConfig, name)
    return found


def known_key(key: str) -> None:
    """Raise `UserError`, with the nearest right name, unless `key` is a field."""
    known = fields()
    if key in known:
        return
    leaf = key.rsplit(".", 1)[-1]
    near = (
        difflib.get_close_matches(key, known, 1, 0.7)
        or [name for name in known if name.endswith("." + leaf)][:1]
        or difflib.get_close_matches(key, known, 1, 0.5)
    )
    raise UserError(f"unknown field {key}" + (f": did you mean {near[0]}?" if near else ": see --help for all fields"))


def build_config(raw: Mapping[str, Any], where: str) -> RunConfig:
    """Validate a nested mapping into a `RunConfig`; every fault becomes one sentence."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            try:
                known_key(key)
            except UserError as unknown:
                raise UserError(f"{where}: {unknown}") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error":
            raise UserError(f"{where}: {message}") from None
        raise UserError(
            f"{where}: {key} = {first['input']!r} is wrong: {message[0].lower() + message[1:]}{_meaning(key)}"
        ) from None


def _meaning(key: str) -> str:
    found = fields().get(key)
    return f" ({found[0].model_fields[found[1]].description})" if found else ""


def describe_type(section: type[Section], leaf: str) -> str:
    """A field's type and limits in a few words, for --help."""
    info = section.model_fields[leaf]

    def words(annotation: Any) -> str:
        args = list(get_args(annotation))
        if hasattr(annotation, "__metadata__"):
            return words(args[0])
        if args and all(isinstance(arg, str) for arg in args):
            return " | ".join(args)
        if args and getattr(annotation, "__origin__", None) is not tuple:
            return " | ".join(words(arg) for arg in args if arg is not type(None))
        return "list" if args else getattr(annotation, "__name__", str(annotation))

    schema = section.model_json_schema()["properties"][leaf]
    schema = next((option for option in schema.get("anyOf", ()) if option.get("type") != "null"), schema)
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {schema[word]:g}" for word, sign in signs.items() if word in schema)
    return words(info.annotation) + (f", {limits}" if limits else "")
