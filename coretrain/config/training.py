"""How a run trains, when it stops, and what it tells: their fields."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coretrain.config.fields import (
    Count,
    Countable,
    DType,
    Positive,
    Section,
    conflict,
)


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

    kind: Literal["cosine", "linear", "constant", "wsd", "rewarm", "infinite"] = Field(
        "cosine",
        description="After warm-up: cosine or linear to min_lr, constant, or warm-up-stable-decay; rewarm, whose "
        "warm-up begins at start_lr, then cosine; infinite: cosine to constant_lr, constant, a fast decay at the end.",
    )
    warmup_updates: Count = Field(
        100,
        description="Updates of linear warm-up; lr(0) is already above 0. A tenth of the horizon where that is "
        "shorter and this is not given: not at all, or only in a file whose train.updates or schedule.horizon the "
        "command line changes.",
    )
    horizon: Positive | None = Field(None, description="Update at which the decay ends. Unset: train.updates.")
    min_lr: float = Field(
        1e-4,
        ge=0,
        description="Learning rate at the end of the decay. A tenth of lr where that is lower and this not given.",
    )
    decay_fraction: float = Field(
        0.2, gt=0, le=1, description="Share of the horizon that the final decay of wsd and infinite takes."
    )
    decay_shape: Literal["linear", "1-sqrt", "cosine", "exponential"] | None = Field(
        None, description="Shape of that decay. Unset: linear with wsd, exponential with infinite."
    )
    start_lr: float | None = Field(
        None,
        ge=0,
        description="Learning rate that rewarm rises from. Unset: the last one of the run that train.start names.",
    )
    cooldown_updates: Count | None = Field(
        None, description="Updates that infinite takes from lr down to constant_lr, after the warm-up."
    )
    constant_lr: float | None = Field(
        None, gt=0, description="Learning rate that infinite holds. Unset: halfway between lr and min_lr."
    )


class TrainConfig(Section):
    """How long, how much at once, how often to look."""

    objective: Literal["cross_entropy", "reward", "dpo", "ipo", "simpo", "kto", "orpo", "ppo", "grpo"] = Field(
        "cross_entropy",
        description="What an update makes smaller: cross_entropy of the next token; of preference pairs reward (a "
        "reward model), dpo, ipo, simpo or orpo; of labelled answers kto; of sampled answers ppo or grpo.",
    )
    start: str | None = Field(
        None,
        description="The weights that a new run begins with, and their tokenizer: a run's folder, or `preset:NAME`. "
        "Unset: fresh ones.",
    )
    start_moments: Literal["fresh", "keep", "warm"] = Field(
        "fresh",
        description="The optimizer's moments of a run that has a start: fresh ones; keep both, and the count of their "
        "updates; warm: keep the second and the count, with the first at zero.",
    )
    updates: Positive = Field(600, description="Optimizer updates in the run.")
    batch_size: Positive = Field(
        16, le=1_000_000_000, description="Rows of context tokens in one update, over all micro-batches and ranks."
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
            raise conflict(
                "config/accumulation-doesnt-divide-batch",
                f"train.accumulation = {self.accumulation} does not divide train.batch_size = {self.batch_size}",
            )
        if self.start_moments != "fresh" and self.start is None:
            raise conflict(
                "config/moments-without-start",
                f"train.start_moments = {self.start_moments} keeps moments of another run, and none is named: give it "
                "with --from runs/NAME, or leave train.start_moments out",
            )
        return self


class PrecisionConfig(Section):
    """Dtypes. Master weights and moments are float32 (float64 in float64); norms, softmax and loss too."""

    compute: DType = Field(
        "float32",
        description="Dtype of matmuls and activations. auto: bfloat16 where the stack that begins the run measures its "
        "matmuls 1.5 times as fast as float32's, else float32; config.json keeps what it took.",
    )
    loss_scale: float = Field(
        65536.0, gt=0, description="Initial loss scale of float16; halved on overflow, doubled after 2000 good updates."
    )
    fast_matmul: bool = Field(False, description="Allow TF32 (CUDA) or bf16 passes (TPU) in float32 matmuls.")


class HealthConfig(Section):
    """What to do about a non-finite or spiking update, decided before it is applied."""

    nonfinite: Literal["skip", "stop", "rollback"] = Field("skip", description="On a non-finite loss or gradient norm.")
    spike: Literal["ignore", "skip", "stop", "rollback"] = Field(
        "ignore", description="On a loss or gradient norm more than spike_sigma above the window's mean."
    )
    spike_sigma: float = Field(6.0, gt=0, description="Standard deviations that make a spike.")
    window: Annotated[int, Field(ge=8), Countable] = Field(
        128, description="Updates in the window; no spike is called before it is full."
    )
    lag: Annotated[int, Field(ge=0, le=64)] = Field(
        1, description="Newest updates that a spike's limits leave out: the host may be so far behind the device."
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
