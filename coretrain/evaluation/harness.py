"""Our models as models of lm-evaluation-harness, in either stack: its hundreds of tasks, where its data can be had."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import on_one_line, shown
from coretrain.evaluation.requests import Generation, Model
from coretrain.evaluation.text import encoded_pair, windows
from coretrain.tokenizers.tokenizer import Tokenizer

GENERATED = 256
"""Tokens of an answer where a task doesn't say, as in lm-evaluation-harness."""
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What its tasks call that number."""


def installed() -> bool:
    """Whether lm-evaluation-harness is there."""
    return importlib.util.find_spec("lm_eval") is not None


def harness_model(model: Model, tokenizer: Tokenizer, context: int) -> Any:
    """A model as `lm_eval.api.model.LM`. Raises `UserError` where lm-eval is not installed."""
    if not installed():
        raise UserError("evaluation/lm-eval-missing", "lm-eval is not installed: pip install -e '.[evaluate]'")
    base: Any = importlib.import_module("lm_eval.api.model").LM

    class Ours(base):  # type: ignore[misc]  # known only where it is installed
        """Scores and answers of ours to its requests."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            """(nats, whether it is the likeliest) of each continuation."""
            found = model.score([encoded_pair(tokenizer, *request.args) for request in requests])
            return [(one.logprob, one.greedy) for one in found]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            """Nats of each text."""
            pieces = [list(windows(tokenizer, request.args[0], context)) for request in requests]
            scored = iter(model.score([piece for some in pieces for piece in some]))
            return [sum(next(scored).logprob for _ in some) for some in pieces]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """The likeliest answer to each prompt, up to one of its ends. `UserError` where it is to be drawn."""
            return model.generate([_generation(tokenizer, *request.args) for request in requests])

    return Ours()


def harness_results(
    names: Sequence[str], model: Model, tokenizer: Tokenizer, context: int, limit: int, few_shot: int | None
) -> dict[str, Any]:
    """What lm-eval tells of a model on tasks of its own. Raises `UserError` where it knows none of a name."""
    ours, harness = harness_model(model, tokenizer, context), importlib.import_module("lm_eval")
    manager = importlib.import_module("lm_eval.tasks").TaskManager()
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise UserError(
            "evaluation/task-unknown-to-lm-eval",
            f"neither here nor in lm-eval is there a task {shown(unknown[0])}: see lm-eval ls tasks",
        )
    try:
        told: Any = harness.simple_evaluate(
            model=ours, tasks=list(names), num_fewshot=few_shot, limit=limit or None, task_manager=manager
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            "evaluation/lm-eval-failed",
            f"lm-eval can't ask {', '.join(names)} ({on_one_line(str(error))[:200]}): is there a network?",
        ) from None
    return dict(told["results"])


def _generation(tokenizer: Tokenizer, prompt: str, settings: dict[str, Any]) -> Generation:
    if settings.get("do_sample") and settings.get("temperature", 1.0):
        raise UserError(
            "evaluation/lm-eval-draws", "an lm-eval task wants answers drawn at random: only greedy ones are"
        )
    until = settings.get("until") or ()
    ids = tuple(int(token) for token in tokenizer.encode(prompt)) or (tokenizer.eot,)
    tokens = next((int(settings[name]) for name in LIMITS if settings.get(name)), GENERATED)
    return Generation(ids, (until,) if isinstance(until, str) else tuple(until), tokens)
