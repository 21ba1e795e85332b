"""What a run costs, from its config alone: parameters, FLOPs, tokens, hours, money (memory: memory.py).

FLOPs convention: 6 x the parameters of the matmuls (the output head once, embedding look-ups none) for each token, plus
12 L H C T for attention scores and their weighted sum, causal masking not halved (Narayanan et al. 2021).
"""

from __future__ import annotations

import functools

from coretrain.adapters.targets import adapter_parameters
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.config.schedules import shape_of
from coretrain.contract.parameters import parameter_table
from coretrain.planning.accelerators import named
from coretrain.planning.memory import BYTES, footprint, in_gib


def parameter_count(model: ModelConfig) -> int:
    """All parameters, a tied head counted once."""
    return sum(row.size for row in parameter_table(model))


@functools.cache
def matmul_parameters(model: ModelConfig) -> int:
    """Parameters that each token is multiplied by: the blocks' matrices, the output head, and a score head."""
    blocks = sum(row.size for row in parameter_table(model) if row.layer is not None and len(row.shape) == 2)
    return blocks + (model.vocabulary + model.score_head) * model.width


def flops_per_token(model: ModelConfig, context: int | None = None, halve_causal: bool = False) -> float:
    """Training FLOPs (forward and backward) of one token in a row of `context` tokens (default: the model's).

    The backward pass costs twice the forward one; recomputed activations are not counted (they are no progress).
    """
    return 3.0 * forward_flops_per_token(model, context, halve_causal)


def forward_flops_per_token(model: ModelConfig, context: int | None = None, halve_causal: bool = False) -> float:
    """FLOPs of one token's forward pass, a third of the training's.

    `halve_causal` counts only the scores that the causal mask leaves, half of them; the convention above doesn't.
    """
    attention = 4 * model.layers * model.heads * model.head * (context or model.context)
    return 2.0 * matmul_parameters(model) + (attention / 2 if halve_causal else attention)


def update_flops_per_token(config: RunConfig) -> float:
    """FLOPs of one token in an update of a run: `flops_per_token`, where all of a model trains.

    Below an adapter the frozen matrices have no gradients of their own, a third of their FLOPs less.
    """
    whole = flops_per_token(config.model, config.row_tokens)
    if config.adapter.kind == "none":
        return whole
    return whole - 2.0 * matmul_parameters(config.model) + 6.0 * sum(row.size for row in adapter_parameters(config))


def convention(config: RunConfig) -> str:
    """How `update_flops_per_token` counts, in words; N is `matmul_parameters`."""
    return "6N + attention" if config.adapter.kind == "none" else "4N + 6 x the adapter's + attention"


def run_flops(config: RunConfig) -> float:
    """Training FLOPs of the whole run, evaluation not counted."""
    return update_flops_per_token(config) * config.tokens_per_update * config.train.updates


def hours(config: RunConfig, flops_per_second: float) -> float:
    """Hours of the run at a sustained speed."""
    return run_flops(config) / flops_per_second / 3600


def money(config: RunConfig, flops_per_second: float, price_per_hour: float) -> float:
    """Price of the run, in the currency of `price_per_hour`: that of the machine which sustains `flops_per_second`."""
    return hours(config, flops_per_second) * price_per_hour


def batch_sentence(config: RunConfig, train_tokens: int | None = None, prompts: int | None = None) -> str:
    """The batch arithmetic, in words; `prompts` is how many there are, where answers to them are sampled."""
    t = config.train
    micro = "1 micro-batch" if t.accumulation == 1 else f"{t.accumulation} micro-batches"
    rows = "1 row" if config.micro_batch == 1 else f"{config.micro_batch} rows"
    total = config.tokens_per_update * t.updates
    epochs = f", {total / train_tokens:.2f} epochs of {train_tokens:,}" if train_tokens else ""
    if prompts is not None:
        align = config.aligned
        answers, rollouts = t.batch_size * align.minibatches, -(-t.updates // (align.epochs * align.minibatches))
        asked = answers // (align.group or 1)
        epochs = (
            f"; {rollouts:,} rollout{'s' * (rollouts != 1)} of {answers:,} answers to {asked:,} prompts, "
            f"{rollouts * asked / prompts:.2f} epochs of {prompts:,}"
        )
    return (
        f"{t.batch_size} rows x {config.row_tokens} tokens = {config.tokens_per_update:,} tokens an update "
        f"({micro} of {rows}); {t.updates:,} updates = {total:,} tokens{epochs}"
    )


def rate_sentence(config: RunConfig) -> str:
    """The learning rate's way, in words."""
    s, peak = config.schedule, config.optimizer.lr
    horizon = s.horizon or config.train.updates
    warmup = f"{s.warmup_updates:,} update{'s' * (s.warmup_updates != 1)} of warm-up"
    if s.kind == "constant":
        return f"{peak:g} after {warmup}"
    if s.kind == "rewarm":
        known = "the last rate of train.start" if s.start_lr is None else f"{s.start_lr:g}"
        return f"{peak:g} after {warmup} from {known}, cosine to {s.min_lr:g} at update {horizon:,}"
    if s.kind == "infinite":
        held = (peak + s.min_lr) / 2 if s.constant_lr is None else s.constant_lr
        cooled = f"cosine to {held:g} over {s.cooldown_updates or 0:,}"
        end = f"{shape_of(s)} to {s.min_lr:g} over the last {s.decay_fraction:.0%} of {horizon:,}"
        return f"{peak:g} after {warmup}, {cooled}, constant, {end}"
    over = f" over the last {s.decay_fraction:.0%}" if s.kind == "wsd" else ""
    shape = f" ({s.decay_shape})" if s.decay_shape else ""
    return f"{peak:g} after {warmup}, {s.kind}{shape} to {s.min_lr:g} at update {horizon:,}{over}"


def summary(config: RunConfig) -> list[tuple[str, str]]:
    """Parameters and FLOPs, to show."""
    table = parameter_table(config.model)
    total, embedding = parameter_count(config.model), sum(row.size for row in table if row.name.startswith("embed."))
    decayed = sum(row.size for row in table if row.decay)
    memory = footprint(config).total
    return [
        ("parameters", f"{total:,} in {len(table)} tensors, {total - embedding:,} outside the embeddings"),
        ("weight decay", f"on {decayed:,} of them (matrices and embeddings)"),
        (
            "FLOPs",
            f"{update_flops_per_token(config):.3g} a token ({convention(config)}), {run_flops(config):.3g} for the run",
        ),
        ("memory", f"about {in_gib(memory)} at the peak of an update on one device, not shared"),
    ]


def stated_peak(device_name: str, config: RunConfig) -> tuple[float | None, str]:
    """FLOP/s that MFU is stated against, and where the figure comes from; None where no peak is known."""
    if config.execution.peak_tflops:
        return config.execution.peak_tflops * 1e12, "execution.peak_tflops"
    compute = config.precision.compute
    found = named(device_name)
    if not found or BYTES[compute] != 2 or (compute == "bfloat16" and not found.bfloat16):
        return None, "no peak is stated for this device and dtype (set execution.peak_tflops)"
    return found.tflops * 1e12, f"dense {compute} peak of {found.name.upper()}"
