"""What a planted bug is looked at with: small experiments on one stack, and the gates that judge their outcome.

A probe runs one stack and returns what it saw; its judge compares that with what the other stack saw. The unmutated
outcome of either stack is computed once, and so is what JAX compiled for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from parity import gates
from parity.gates import Gate
from parity.probes import (
    adapters,
    blend,
    budgets,
    chat,
    contract,
    decode,
    lower,
    model,
    objectives,
    parts,
    policy,
    sampler,
    text,
    ways,
)
from parity.probes.sides import (
    SIDES,
    UNMUTATED,
    Seen,
    Side,
)


@dataclass(frozen=True)
class Probe:
    """An experiment on one stack, and the judge of its outcome: gate -> error of the first against the second."""

    run: Callable[[Side, str, str, frozenset[str]], Seen]
    judge: Callable[[Seen, Seen, str, str], dict[Gate, float]]
    gates: tuple[Gate, ...]


PROBES = {
    "gradients": Probe(
        model.run_gradients, model.judge_gradients, (gates.LOGITS, gates.LOSS, gates.NORM, gates.GRADIENTS)
    ),
    "logits": Probe(model.run_logits, model.judge_logits, (gates.LOGITS,)),
    "updates": Probe(model.run_updates, model.judge_updates, (gates.LOSS, gates.NORM, gates.GRADIENTS, gates.UPDATE)),
    "evaluation": Probe(model.run_evaluation, model.judge_evaluation, (gates.LOSS,)),
    "float32": Probe(model.run_float32, model.judge_float32, (model.LOGITS_32,)),
    "initial": Probe(parts.run_initial, parts.judge_initial, (gates.INITIAL,)),
    "masks": Probe(parts.run_masks, parts.judge_masks, (gates.MASKS,)),
    "rates": Probe(parts.run_rates, parts.judge_rates, (gates.RATE_USED,)),
    "decay": Probe(parts.run_decay, parts.judge_decay, (gates.DECAY,)),
    "alone": Probe(parts.run_alone, parts.judge_alone, (gates.ALONE,)),
    "norms": Probe(parts.run_norms, parts.judge_norms, (gates.NORMS_32,)),
    "kernels": Probe(parts.run_kernels, parts.judge_kernels, (gates.KERNEL_64,)),
    "rows": Probe(text.run_rows, text.judge_rows, (gates.ROWS,)),
    "resume": Probe(text.run_resume, text.judge_resume, (gates.ROWS, text.RESUME)),
    "round trip": Probe(text.run_round_trip, text.judge_round_trip, (gates.ROUND_TRIP,)),
    "decode": Probe(decode.run_decode, decode.judge_decode, (gates.LOGITS, gates.CACHE, gates.SAMPLES)),
    "ends": Probe(decode.run_ends, decode.judge_ends, (gates.SAMPLES,)),
    "objectives": Probe(objectives.run_objective, objectives.judge_objective, (gates.OBJECTIVES, gates.FIGURES)),
    "sampled": Probe(sampler.run_sampled, sampler.judge_sampled, (gates.SAMPLES, gates.SAMPLED)),
    "far": Probe(decode.run_far, decode.judge_far, (gates.CACHE,)),
    "health": Probe(policy.run_health, policy.judge_health, (gates.HEALTH, gates.ROWS, gates.TRAJECTORY)),
    "dtypes": Probe(lower.run_dtypes, lower.judge_dtypes, (gates.DTYPES,)),
    "alone, float32": Probe(lower.run_alone, lower.judge_alone, (gates.ALONE_32, gates.DECAY_32)),
    "trajectory": Probe(lower.run_trajectory, lower.judge_trajectory, (gates.YARDSTICK,)),
    "table": Probe(contract.run_table, contract.judge_table, (gates.TABLE,)),
    "closed forms": Probe(contract.run_rates, contract.judge_rates, (gates.RATE,)),
    "clip": Probe(contract.run_clip, contract.judge_clip, (gates.CLIP,)),
    "key bias": Probe(ways.run_key_bias, ways.judge_key_bias, (gates.KEY_BIAS,)),
    "split": Probe(ways.run_split, ways.judge_split, (gates.SPLIT,)),
    "deep": Probe(ways.run_deep, ways.judge_deep, (gates.DEEP,)),
    "kernels below float64": Probe(
        ways.run_narrow_kernels, ways.judge_narrow_kernels, (gates.KERNEL_32, gates.KERNEL_16)
    ),
    **{
        f"budget of {dtype}": Probe(budgets.run(dtype), budgets.judge(dtype), budgets.gates(dtype))
        for dtype in ("float32", "bfloat16", "float16")
    },
    "x64": Probe(lower.run_x64, lower.judge_x64, (gates.X64,)),
    "adapter start": Probe(adapters.run_start, adapters.judge_start, (gates.INITIAL,)),
    "adapter gradients": Probe(
        adapters.run_gradients,
        adapters.judge_gradients,
        (gates.LOGITS, gates.LOSS, gates.NORM, gates.GRADIENTS),
    ),
    "adapter updates": Probe(adapters.run_updates, adapters.judge_updates, (gates.FROZEN, gates.UPDATE)),
    "chat rows": Probe(chat.run_rows, chat.judge_rows, (gates.ROWS,)),
    "chat gradients": Probe(
        chat.run_gradients,
        chat.judge_gradients,
        (gates.LOGITS, gates.LOSS, gates.NORM, gates.GRADIENTS, gates.PACKED),
    ),
    "chat updates": Probe(chat.run_updates, chat.judge_updates, (gates.UPDATE,)),
    "adapter merge": Probe(adapters.run_merge, adapters.judge_merge, (gates.MERGED,)),
    "blend rows": Probe(blend.run_rows, blend.judge_rows, (gates.ROWS,)),
    "sets": Probe(blend.run_sets, blend.judge_sets, (gates.SETS,)),
    "adapter decode": Probe(adapters.run_decode, adapters.judge_decode, (gates.CACHE,)),
}


@functools.cache
def unmutated(side: str, probe: str, variant: str, state: str) -> Seen:
    """What a stack as it is sees."""
    return PROBES[probe].run(SIDES[side], variant, state, UNMUTATED)
