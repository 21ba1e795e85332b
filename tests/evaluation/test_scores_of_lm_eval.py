"""Scores of choices against lm-evaluation-harness' own class for Hugging Face's models, on an exported folder.

It needs another Python, E, that has it: `python -m venv E && E/bin/pip install torch transformers lm_eval`. Then
`TWINTRAIN_LM_EVAL_PYTHON=E/bin/python pytest -m slow tests/evaluation/test_scores_of_lm_eval.py`.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from coretrain.evaluation.scorer import Scorer
from coretrain.evaluation.text import encoded_pair
from coretrain.formats.huggingface.weights import export_huggingface
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support import hflm_oracle
from tests.support.models import MODELS, perturbed
from tests.support.scored_pairs import LEARNT, PAIRS, pairs_tokenizer
from torchtrain.trainer import Trainer as TorchTrainer

PYTHON = os.environ.get("TWINTRAIN_LM_EVAL_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="TWINTRAIN_LM_EVAL_PYTHON names no interpreter that has lm-eval"),
]
STACKS = {"torch": TorchTrainer, "jax": JaxTrainer}
LEFT_OUT = {("the doo", "r was open"), ("the ri", "v"), ("a", " " + LEARNT * 2)}
"""Where a token spans the border lm-eval puts the context's own ids before what is left of the whole, a text that
nobody wrote; we keep the whole's ids. It refuses a continuation that is longer than the model's context."""


@pytest.mark.parametrize("name", ["gpt2", "llama grouped untied"])
def test_choices_are_scored_as_lm_eval_scores_them(name, tmp_path, small_config):
    tokenizer = pairs_tokenizer()
    model = MODELS[name].model_copy(update={"vocab": tokenizer.vocab})
    weights = perturbed(model)
    tokenizer.save(tmp_path / "tokenizer")
    export_huggingface(tmp_path / "hf", model, weights, tmp_path / "tokenizer")
    pairs = [pair for pair in PAIRS if pair not in LEFT_OUT]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    words = [tmp_path / "hf", tmp_path / "pairs.json", tmp_path / "found.json"]
    subprocess.run([PYTHON, hflm_oracle.__file__, *map(str, words)], check=True, capture_output=True)
    theirs = json.loads((tmp_path / "found.json").read_text())
    config = small_config().changed(model=model)
    asked = [encoded_pair(tokenizer, *pair) for pair in pairs]
    for make in STACKS.values():
        found = Scorer(make(config, weights), config, tokenizer).score(asked)
        for pair, one, (alone, greedy), (together, _) in zip(pairs, found, theirs["1"], theirs["8"], strict=True):
            # measured 6e-6 in float32, lm-eval's batches of 8 against its own of 1: 4e-6; another id's is off by 0.1
            assert abs(one.logprob - alone) < 1e-4, pair
            assert abs(alone - together) < 1e-4, pair
            assert one.greedy == greedy
