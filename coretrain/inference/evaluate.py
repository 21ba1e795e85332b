"""From a command line to figures: a run opened in a stack, asked the tasks, beside another run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import write_atomically
from coretrain.checkpoint.translate import MODULES
from coretrain.evaluation.ask import Question
from coretrain.evaluation.compare import compare, forgetting
from coretrain.evaluation.core import core
from coretrain.evaluation.evaluate import Outcome, as_json, evaluate, samples
from coretrain.evaluation.registry import is_here, open_tasks
from coretrain.evaluation.scorer import Scorer
from coretrain.evaluation.show import compared_table, harness_table, table
from coretrain.evaluation.task import Task
from coretrain.inference.evaluate_options import options
from coretrain.inference.generate import open_for_generation
from coretrain.runs.chat import open_chat
from coretrain.tokenizers.chat_template import Template
from coretrain.tokenizers.jinja import TemplateError
from coretrain.tokenizers.registry import load_tokenizer
from coretrain.training.references import MakeStack

CORE = "core"


def evaluate_run(argv: Sequence[str], stack_name: str, make_stack: MakeStack, program: str = "") -> None:
    """The whole of `python -m torchtrain.evaluate` or its twin. `program` is what was typed."""
    given = options(program or f"python -m {MODULES[stack_name]}.evaluate").parse_args(argv)
    for path in filter(None, (given.output, given.samples)):
        if path.exists():
            raise UserError("inference/results-there", f"{path} is there already: name a new file, or remove it")
    changed = {name: getattr(given, name) for name in ("few_shot", "seed") if getattr(given, name) is not None}
    words = [word for word in given.tasks.split(",") if word]
    if not words:
        raise UserError("inference/tasks-none", "--tasks names none: give names or paths, with commas between")
    here = [word for word in words if is_here(word, given.task_folder)]
    elsewhere = [word for word in words if word not in here]
    if elsewhere:
        from coretrain.evaluation.harness import installed

        if not installed():
            open_tasks(elsewhere, given.task_folder, changed)  # says which are known
    tasks = open_tasks(here, given.task_folder, changed)
    _check_used(given, tasks, elsewhere)
    told: dict[str, Any] = {"run": str(given.run), "stack": stack_name, "tasks": {}}
    after = _asked(given.run, given.adapter, tasks, elsewhere, given, make_stack, told)
    if after:
        print(table(after))
    if elsewhere:
        print(harness_table(told["lm-eval"]))
    if CORE in words:
        bundle = [one for one in after if one.task.facts.get("core")]
        told["core"] = core(bundle)
        print(f"\nCORE {told['core']:.4f}, the mean of {len(bundle)} centred accuracies")
    if given.compare is not None:
        other: dict[str, Any] = {"run": str(given.compare), "tasks": {}}
        before = _asked(given.compare, None, tasks, elsewhere, given, make_stack, other)
        found = [compare(*both) for both in zip(after, before, strict=True)]
        told["before"] = other
        told["gain"] = {one.after.task.name: vars(one.gain) | {"verdict": one.verdict} for one in found}
        print(f"\nbeside {given.compare}:")
        if found:
            print(f"{compared_table(found)}\n{forgetting(found)}")
        if elsewhere:
            print(f"before:\n{harness_table(other['lm-eval'])}")
    if given.output:
        write_atomically(given.output, json.dumps(told, indent=1, allow_nan=False, default=str).encode())
    if given.samples:
        rows = [row for one in after for row in samples(one)]
        write_atomically(given.samples, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _check_used(given: Any, tasks: Sequence[Task], harness: Sequence[str]) -> None:
    """Raise `UserError` for an option that none of the tasks has a use for."""
    forms = {task.form for task in tasks}
    if given.chat and "generation" not in forms:
        raise UserError("inference/chat-without-generation", "--chat is of tasks of form generation: leave it out")
    if given.limit and not harness and forms == {"text"}:
        raise UserError("inference/limit-without-rows", "--limit is of tasks with rows: leave it out")
    if given.seed is not None and harness and not tasks:
        raise UserError("inference/seed-of-lm-eval", "--seed is of tasks of this machine: leave it out")


def _asked(
    run: Path,
    adapter: Path | None,
    tasks: Sequence[Task],
    harness: Sequence[str],
    given: Any,
    make_stack: MakeStack,
    told: Any,
) -> list[Outcome]:
    """A run's outcomes, which `told` is filled with; lm-eval's are shown by itself."""
    tokenizer = load_tokenizer(run)
    question: Question | None = None
    ends: Sequence[int] = tokenizer.ends
    if given.chat:
        template, ends = open_chat(run, tokenizer)
        question = _question(template)
    stack = open_for_generation(run, make_stack, adapter)
    model = Scorer(stack, stack.config, tokenizer, ends=ends)
    context = stack.config.model.context
    outcomes = [
        evaluate(task, model, tokenizer, context, given.limit, lambda text: print(text, flush=True), question)
        for task in tasks
    ]
    told["tasks"] = {one.task.name: as_json(one) for one in outcomes}
    if harness:
        from coretrain.evaluation.harness import harness_results

        told["lm-eval"] = harness_results(harness, model, tokenizer, context, given.limit, given.few_shot)
    return outcomes


def _question(template: Template) -> Question:
    """The ids of a question by a chat template. `UserError` where that refuses it."""

    def asked(text: str) -> Sequence[int]:
        try:
            return template.question(text)
        except TemplateError as error:
            raise UserError("inference/row-refused", f"{error}: leave --chat out, or the row") from None

    return asked
