"""TRL's side of `bench.alignment`: run by an interpreter that has TRL, transformers and datasets; it imports nothing of
ours but the clock.

    PYTHON -m bench.alignment_peer PART TASK     # TASK is JSON: see `bench/alignment.py`

A turn makes a trainer anew, with the start's weights, and measures `train()` alone.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any

from bench.corpus_turns import Facts, Part, peak_memory, serve, spent

PAD = 0
"""A byte that no prompt and no answer has: an end token that pads as well would be cut off."""


def has(module: str, name: str) -> Any:
    """A name of a package that is there in a peer's interpreter alone."""
    return getattr(importlib.import_module(module), name)


def rows_of(task: dict[str, Any]) -> list[dict[str, str]]:
    """Prompts with their answers, or pairs."""
    with open(task["rows"], encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def model_of(task: dict[str, Any], kind: str = "AutoModelForCausalLM", **options: Any) -> Any:
    """The start's weights, in float32."""
    return has("transformers", kind).from_pretrained(task["model"], dtype="float32", **options)


def tokenizer_of(task: dict[str, Any]) -> Any:
    """The start's tokenizer, which pads with a token of its own."""
    tokenizer = has("transformers", "AutoTokenizer").from_pretrained(task["model"])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)
    return tokenizer


def arguments(task: dict[str, Any], kind: Any, **given: Any) -> Any:
    """Of a trainer: what all three have in common."""
    common = {
        "output_dir": tempfile.mkdtemp(),
        "learning_rate": task["lr"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 1337,
    }
    return kind(**common | given)


def grpo(task: dict[str, Any]) -> Any:
    """`GRPOTrainer` as its defaults have it: no KL, and so no reference."""
    tokenizer = tokenizer_of(task)
    end = tokenizer.eos_token_id

    def exact(completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        several = zip(completions, completion_ids, answer, strict=True)
        return [float(said == right and ids[-1] == end) for said, ids, right in several]

    args = arguments(
        task,
        has("trl", "GRPOConfig"),
        per_device_train_batch_size=task["batch"],
        num_generations=task["group"],
        max_completion_length=task["tokens"],
        max_steps=task["updates"],
        beta=task.get("kl", 0.0),
        temperature=1.0,
    )
    data = has("datasets", "Dataset").from_list(rows_of(task))
    return has("trl", "GRPOTrainer")(model_of(task), exact, args, data, processing_class=tokenizer)


def dpo(task: dict[str, Any]) -> Any:
    """`DPOTrainer`; where the reference is computed beforehand, that is before `train()`, and not measured."""
    args = arguments(
        task,
        has("trl", "DPOConfig"),
        per_device_train_batch_size=task["batch"],
        max_steps=task["updates"],
        beta=0.1,
        max_length=task["row"],
        precompute_ref_log_probs=task["precompute"],
        precompute_ref_batch_size=task["batch"],
    )
    data = has("datasets", "Dataset").from_list(rows_of(task)[: task["batch"] * task["updates"]])
    reference = None if task["precompute"] else model_of(task)
    kind = has("trl", "DPOTrainer")
    return kind(model_of(task), reference, args, train_dataset=data, processing_class=tokenizer_of(task))


def verifier(task: dict[str, Any], tokenizer: Any) -> Any:
    """The reward in the form of a reward model: 1 at every position of a row whose answer is right and ends."""
    torch = importlib.import_module("torch")
    right = {row["prompt"]: row["answer"] for row in rows_of(task)}

    def backbone(_: Any, input_ids: Any, attention_mask: Any, **__: Any) -> Any:
        scores = []
        for ids, seen in zip(input_ids, attention_mask, strict=True):
            prompt, separator, answer = tokenizer.decode(ids[seen]).partition(">")
            scores.append(float(answer == right.get(prompt + separator, "") + tokenizer.eos_token))
        return SimpleNamespace(hidden_states=[torch.tensor(scores)[:, None, None].expand(*input_ids.shape, 1)])

    def score(_: Any, hidden: Any) -> Any:
        return hidden

    members = {"base_model_prefix": "backbone", "backbone": backbone, "score": score}
    return type("Verifier", (torch.nn.Module,), members)()


def ppo(task: dict[str, Any]) -> Any:
    """`PPOTrainer` of TRL 1.12; its value model is a model of its own, as it asks for."""
    tokenizer = tokenizer_of(task)
    args = arguments(
        task,
        has("trl.experimental.ppo", "PPOConfig"),
        per_device_train_batch_size=task["batch"],
        gradient_accumulation_steps=task["minibatches"],
        num_mini_batches=task["minibatches"],
        num_ppo_epochs=task["epochs"],
        total_episodes=task["batch"] * task["minibatches"] * task["updates"],
        local_rollout_forward_batch_size=task["batch"] * task["minibatches"],
        response_length=task["tokens"],
        stop_token="eos",
        temperature=1.0,
        num_sample_generations=0,
        kl_coef=0.05,
    )
    data = has("datasets", "Dataset").from_list([tokenizer(row["prompt"]) for row in rows_of(task)])
    return has("trl.experimental.ppo", "PPOTrainer")(
        args,
        tokenizer,
        model_of(task),
        model_of(task),
        verifier(task, tokenizer),
        data,
        model_of(task, "AutoModelForSequenceClassification", num_labels=1, pad_token_id=PAD),
    )


TRAINERS = {"grpo": grpo, "ppo": ppo, "dpo": dpo}
REWARDS = ("reward", "objective/scores", "rewards/accuracies")
"""By which names the log has the reward, or the accuracy."""


def turns(name: str, task: dict[str, Any]) -> Part:
    """One training of a part."""

    def part() -> Facts:
        trainer = TRAINERS[name](task)
        clock, cpu = time.perf_counter(), spent()
        trainer.train()
        facts = {"clock": time.perf_counter() - clock, "cpu": spent() - cpu, "memory": peak_memory()}
        told = [float(line[key]) for line in trainer.state.log_history for key in REWARDS if key in line]
        return facts | {"reward": told[-1]}

    return part


if __name__ == "__main__":
    serve(turns(sys.argv[1], json.loads(sys.argv[2])))
