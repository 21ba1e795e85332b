"""A contender of `bench.scoring`: PYTHON -m bench.scoring_child PART TASK; TASK is JSON: see `bench/scoring.py`.

For lm-eval it is run by an interpreter that has that, and imports nothing of ours but the turns.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.corpus_turns import Part, peak_memory, serve


def ours(stack_name: str, task: dict[str, Any]) -> Part:
    """A run in one of our stacks, with beginnings shared or each choice as a row of its own."""
    from coretrain.evaluation.scorer import Scorer
    from coretrain.evaluation.text import encoded_pair
    from coretrain.inference.generate import open_for_generation
    from coretrain.tokenizers.registry import load_tokenizer

    if stack_name == "torch":
        from torchtrain.trainer import Trainer as make
    else:
        from jaxtrain.trainer import Trainer as make  # type: ignore[assignment]  # its twin
    run = Path(task["run"])
    tokenizer, stack = load_tokenizer(run), open_for_generation(run, make, None)
    model = Scorer(stack, stack.config, tokenizer, shares=task["shares"])

    def turn() -> dict[str, Any]:
        found = model.score([encoded_pair(tokenizer, *pair) for pair in task["pairs"]])
        return {"memory": peak_memory(), "scores": [[one.logprob, one.greedy] for one in found]}

    return turn


def peers(task: dict[str, Any]) -> Part:
    """lm-eval's class for Hugging Face's models, in float32."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=task["model"], dtype="float32", batch_size=task["batch"], device="cpu", max_length=2048)

    def turn() -> dict[str, Any]:
        asked = [
            Instance(request_type="loglikelihood", doc={}, arguments=tuple(pair), idx=place)
            for place, pair in enumerate(task["pairs"])
        ]
        found = model.loglikelihood(asked, disable_tqdm=True)
        return {"memory": peak_memory(), "scores": [[float(nats), bool(greedy)] for nats, greedy in found]}

    return turn


if __name__ == "__main__":
    part, given = sys.argv[1], json.loads(sys.argv[2])
    serve(peers(given) if part == "lm-eval" else ours(part, given))
