"""The sections of `RunConfig`: groups of fields, frozen and validated, each field with its meaning and limits."""

from __future__ import annotations

import datetime
import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from coretrain.errors import UserError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
DType = Literal["float64", "float32", "bfloat16", "float16"]
AttentionKernel = Literal["auto", "flash_attn", "sdpa_fa4", "sdpa_fa3", "sdpa", "splash", "cudnn", "xla", "plain"]
CHAT_DATE = datetime.date(2024, 7, 26)
"""The date that Llama's own chat templates fall back to where nobody tells them one."""


class Section(BaseModel):
    """A frozen group of fields; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class RopeScaling(Section):
    """Rotary frequencies of a model whose context was made longer after it was trained."""

    type: Literal["llama3", "linear"] = Field(
        description="linear: all divided by factor; llama3: those of few turns in original_context (Llama 3.1)."
    )
    factor: float = Field(gt=0, description="What slow frequencies, or all of them, are divided by.")
    low_freq_factor: float = Field(1.0, gt=0, description="llama3: with no more turns than these, by all of factor.")
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: with no fewer turns than these, not at all.")
    original_context: Positive = Field(8192, description="llama3: the context that the model was trained with first.")

    @model_validator(mode="after")
    def _bands(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"model.rope_scaling.high_freq_factor = {self.high_freq_factor:g} isn't above low_freq_factor = "
                f"{self.low_freq_factor:g}: Llama 3.1 has 4 and 1"
            )
        return self


class ModelConfig(Section):
    """The GPT: a pre-norm decoder, GPT-2 style or Llama style by its switches."""

    layers: Positive = Field(4, le=10_000, description="Number of decoder blocks.")
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
    rope_scaling: RopeScaling | None = Field(
        None,
        description='Frequencies of a context that was made longer: {type = "llama3", factor = 8.0, ...}. Unset: none.',
    )
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
        if self.position != "rope" and self.rope_scaling:
            raise ValueError(
                f"model.rope_scaling is for rotary positions, and model.position = {self.position}: leave it out"
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
    format: Literal["text", "chat"] = Field(
        "text",
        description="text; chat: rows of messages, or of prompt and completion, in .jsonl or .parquet, of which the "
        "assistant's turns are learnt, packed into rows of context tokens.",
    )
    chat_template: str | None = Field(
        None,
        description="File of the Jinja template that turns messages into text. Unset: the base's or the run's own, "
        "else ChatML where the tokenizer has its special tokens, else a plain one.",
    )
    chat_date: datetime.date = Field(
        CHAT_DATE,
        description="Date that a template's strftime_now tells, the same on every day: data must not change by itself.",
    )
    row_tokens: Positive | None = Field(
        None, description="Tokens of a row of chat samples, at most model.context (unset: as many)."
    )
    misfits: Literal["refuse", "drop"] = Field(
        "refuse",
        description="What to do about a chat sample longer than a row, or whose answer begins inside a token.",
    )
    tokenizer: str = Field(
        "trained",
        description="`trained` (a BPE from this corpus), `gpt2`, `cl100k_base`, `o200k_base`, `bytes`, "
        "or the path of a .tiktoken file or a tokenizer.json.",
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
    timeout: int = Field(
        300, ge=5, description="Seconds that a process may keep the others waiting before the run ends and names it."
    )
    silence: Positive = Field(
        40,
        description="Seconds without any sign from a process after which it is dead: the run ends and names it. "
        "More where the run's folder shows the hosts each other's files late.",
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


class AdapterConfig(Section):
    """Adapters on a frozen base: only they train. lora (Hu et al. 2021): y = W x + scale B A drop(x)."""

    kind: Literal["none", "lora", "dora", "prefix", "bottleneck"] = Field(
        "none",
        description="none: all parameters train; lora: low-rank adapters; dora: those with magnitudes for W's outputs; "
        "prefix: trained keys and values before those of every layer; bottleneck: a small MLP behind each sublayer.",
    )
    name: str = Field(
        "default", pattern=r"^[A-Za-z0-9_-]+$", description="Name of the adapter, by which it is switched and merged."
    )
    base: str | None = Field(
        None, description="Folder of the run whose newest interchange weights stay frozen below the adapter."
    )
    fingerprint: str = Field(
        "", pattern=r"^([0-9a-f]{32})?$", description="Fingerprint of the base's weights; the run fills it in."
    )
    rank: Positive = Field(8, description="Rows r of A and columns of B; at most the smaller side of every target.")
    virtual_tokens: Positive = Field(20, description="prefix: keys and values before those of each layer.")
    bottleneck_width: Positive = Field(64, description="bottleneck: width between down and up.")
    bottleneck_activation: Literal["gelu", "relu", "silu"] = Field(
        "gelu", description="bottleneck: between down and up; gelu is the tanh form."
    )
    alpha: float = Field(8.0, gt=0, description="Scale of the update: alpha / rank, or alpha / sqrt(rank) with rslora.")
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(rank), which keeps its size at high ranks (Kalajdzievski 2023)."
    )
    dropout: Fraction = Field(0.0, description="Dropout on each adapter's input (an embedding's has none).")
    targets: tuple[str, ...] = Field(
        ("blocks.*.weight",),
        description="Glob patterns over canonical names: matrices of blocks, embed.token, head.weight. "
        "One string is taken apart at its commas. A prefix or bottleneck is of the sublayers whose matrices are named.",
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none", description="Biases that train too: none, all of the model's, or those beside an adapter."
    )

    quantize: Literal["none", "nf4", "int8", "int4"] = Field(
        "none",
        description="Hold the frozen matrices of the base's blocks in few bits (QLoRA, Dettmers et al. 2023): nf4 in "
        "4.13, int4 in 4.25, int8 in 8.25.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _patterns(cls, raw: Any) -> Any:
        return tuple(part.strip() for part in raw.split(",") if part.strip()) if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.targets:
            raise ValueError("adapter.targets is empty: give a pattern of names, as blocks.*.attention.q.weight")
        low_rank = {"dropout": self.dropout > 0, "rslora": self.rslora, "bias": self.bias == "lora_only"}
        if self.kind in ("prefix", "bottleneck") and (field := next((n for n, on in low_rank.items() if on), None)):
            raise ValueError(
                f"adapter.{field} = {getattr(self, field)} is for kinds lora and dora, "
                f"and adapter.kind is {self.kind}: leave adapter.{field} out"
            )
        if self.kind == "dora" and self.quantize != "none":
            raise ValueError(
                "adapter.kind = dora takes norms of whole weights: set adapter.quantize = none, or adapter.kind = lora"
            )
        if self.quantize != "none" and self.kind == "none":
            raise ValueError(
                f"adapter.quantize = {self.quantize} is for an adapter's frozen base, and with adapter.kind = none all "
                "weights train: set adapter.kind = lora, or leave adapter.quantize out"
            )
        return self

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
