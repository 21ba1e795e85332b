"""What a planted bug is looked at with: small experiments on one stack, and the gates that judge their outcome.

A probe runs one stack and returns what it saw; its judge compares that with what the other stack saw. The unmutated
outcome of either stack is computed once, and so is what JAX compiled for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from parity import compare
from parity.compare import Gate
from parity.probes import adapters, budgets, chat, contract, decode, lower, model, parts, policy, text, ways
from parity.probes.sides import SIDES, UNMUTATED, Seen, Side


@dataclass(frozen=True)
class Probe:
    """An experiment on one stack, and the judge of its outcome: gate -> error of the first against the second."""

    run: Callable[[Side, str, str, frozenset[str]], Seen]
    judge: Callable[[Seen, Seen, str, str], dict[Gate, float]]
    gates: tuple[Gate, ...]


PROBES = {
    "gradients": Probe(
        model.run_gradients, model.judge_gradients, (compare.LOGITS, compare.LOSS, compare.NORM, compare.GRADIENTS)
    ),
    "logits": Probe(model.run_logits, model.judge_logits, (compare.LOGITS,)),
    "updates": Probe(
        model.run_updates, model.judge_updates, (compare.LOSS, compare.NORM, compare.GRADIENTS, compare.UPDATE)
    ),
    "evaluation": Probe(model.run_evaluation, model.judge_evaluation, (compare.LOSS,)),
    "float32": Probe(model.run_float32, model.judge_float32, (model.LOGITS_32,)),
    "initial": Probe(parts.run_initial, parts.judge_initial, (compare.INITIAL,)),
    "masks": Probe(parts.run_masks, parts.judge_masks, (compare.MASKS,)),
    "rates": Probe(parts.run_rates, parts.judge_rates, (compare.RATE_USED,)),
    "decay": Probe(parts.run_decay, parts.judge_decay, (compare.DECAY,)),
    "alone": Probe(parts.run_alone, parts.judge_alone, (compare.ALONE,)),
    "norms": Probe(parts.run_norms, parts.judge_norms, (compare.NORMS_32,)),
    "kernels": Probe(parts.run_kernels, parts.judge_kernels, (compare.KERNEL_64,)),
    "rows": Probe(text.run_rows, text.judge_rows, (compare.ROWS,)),
    "resume": Probe(text.run_resume, text.judge_resume, (compare.ROWS, text.RESUME)),
    "round trip": Probe(text.run_round_trip, text.judge_round_trip, (compare.ROUND_TRIP,)),
    "decode": Probe(decode.run_decode, decode.judge_decode, (compare.LOGITS, compare.CACHE, compare.SAMPLES)),
    "far": Probe(decode.run_far, decode.judge_far, (compare.CACHE,)),
    "health": Probe(policy.run_health, policy.judge_health, (compare.HEALTH, compare.ROWS, compare.TRAJECTORY)),
    "dtypes": Probe(lower.run_dtypes, lower.judge_dtypes, (compare.DTYPES,)),
    "alone, float32": Probe(lower.run_alone, lower.judge_alone, (compare.ALONE_32, compare.DECAY_32)),
    "trajectory": Probe(lower.run_trajectory, lower.judge_trajectory, (compare.YARDSTICK,)),
    "table": Probe(contract.run_table, contract.judge_table, (compare.TABLE,)),
    "closed forms": Probe(contract.run_rates, contract.judge_rates, (compare.RATE,)),
    "clip": Probe(contract.run_clip, contract.judge_clip, (compare.CLIP,)),
    "key bias": Probe(ways.run_key_bias, ways.judge_key_bias, (compare.KEY_BIAS,)),
    "split": Probe(ways.run_split, ways.judge_split, (compare.SPLIT,)),
    "deep": Probe(ways.run_deep, ways.judge_deep, (compare.DEEP,)),
    "kernels below float64": Probe(
        ways.run_narrow_kernels, ways.judge_narrow_kernels, (compare.KERNEL_32, compare.KERNEL_16)
    ),
    **{
        f"budget of {dtype}": Probe(budgets.run(dtype), budgets.judge(dtype), budgets.gates(dtype))
        for dtype in ("float32", "bfloat16", "float16")
    },
    "x64": Probe(lower.run_x64, lower.judge_x64, (compare.X64,)),
    "adapter start": Probe(adapters.run_start, adapters.judge_start, (compare.INITIAL,)),
    "adapter gradients": Probe(
        adapters.run_gradients,
        adapters.judge_gradients,
        (compare.LOGITS, compare.LOSS, compare.NORM, compare.GRADIENTS),
    ),
    "adapter updates": Probe(adapters.run_updates, adapters.judge_updates, (compare.FROZEN, compare.UPDATE)),
    "chat rows": Probe(chat.run_rows, chat.judge_rows, (compare.ROWS,)),
    "chat gradients": Probe(
        chat.run_gradients,
        chat.judge_gradients,
        (compare.LOGITS, compare.LOSS, compare.NORM, compare.GRADIENTS, compare.PACKED),
    ),
    "chat updates": Probe(chat.run_updates, chat.judge_updates, (compare.UPDATE,)),
    "adapter merge": Probe(adapters.run_merge, adapters.judge_merge, (compare.MERGED,)),
    "adapter decode": Probe(adapters.run_decode, adapters.judge_decode, (compare.CACHE,)),
}


@functools.cache
def unmutated(side: str, probe: str, variant: str, state: str) -> Seen:
    """What a stack as it is sees."""
    return PROBES[probe].run(SIDES[side], variant, state, UNMUTATED)
