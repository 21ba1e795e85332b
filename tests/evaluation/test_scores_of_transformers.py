"""Scores of choices against transformers on exported folders: what begins a text, merged tokens, cut contexts.

How ids are made of texts is written here a second time, as lm-evaluation-harness has it, with transformers' tokenizer.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coretrain.evaluation.scorer import Scorer
from coretrain.evaluation.text import encoded_pair
from coretrain.formats.huggingface.weights import export_huggingface
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.models import MODELS, perturbed
from tests.support.scored_pairs import PAIRS, pairs_tokenizer
from torchtrain.trainer import Trainer as TorchTrainer

STACKS = {"torch": TorchTrainer, "jax": JaxTrainer}


@pytest.fixture(scope="module")
def tokenizer():
    return pairs_tokenizer()


class WideAngles(torch.nn.Module):
    """Rotary tables in float64."""

    def __init__(self, model) -> None:
        super().__init__()
        steps = torch.arange(0, model.head, 2, dtype=torch.float64) / model.head
        self.frequencies = model.rope_theta**-steps

    def forward(self, x, position_ids):
        angles = position_ids[..., None].double() * self.frequencies
        both = torch.cat([angles, angles], -1)
        return both.cos().to(x.dtype), both.sin().to(x.dtype)


def judge_of(folder, model):
    """transformers' model in float64 throughout: its angles and its RMSNorm are float32 by themselves."""
    judge = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").double()
    if model.position == "rope":
        judge.model.rotary_emb = WideAngles(model)
        for layer in (judge.model, *judge.model.layers):
            for name, norm in list(layer.named_children()):
                if name.endswith("norm"):
                    wide = torch.nn.RMSNorm(model.width, model.norm_eps, dtype=torch.float64)
                    wide.weight = norm.weight
                    setattr(layer, name, wide)
    return judge


def expected(model, theirs, context: int, question: str, ending: str) -> tuple[float, bool]:
    """The sum of log-probabilities of an ending, and whether each id is the likeliest."""
    blanks = len(question) - len(question.rstrip())
    if blanks:
        question, ending = question[:-blanks], question[-blanks:] + ending
    if question:
        whole, before = (theirs(text, add_special_tokens=False).input_ids for text in (question + ending, question))
        start = min(len(before), len(whole) - 1)
        if start == 0:
            whole, start = [theirs.eos_token_id, *whole], 1
    else:
        whole, start = [theirs.eos_token_id, *theirs(ending, add_special_tokens=False).input_ids], 1
    scored = len(whole) - start
    whole = whole[-(context + 1) :]
    scored = min(scored, len(whole) - 1)
    with torch.no_grad():
        logprobs = model(torch.tensor([whole[:-1]])).logits[0].double().log_softmax(-1)[-scored:]
    ids = torch.tensor(whole[-scored:])
    return float(logprobs.gather(1, ids[:, None]).sum()), bool((logprobs.argmax(-1) == ids).all())


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", ["gpt2", "llama grouped untied"])
def test_choices_are_scored_as_transformers_scores_them(name, stack, tokenizer, tmp_path, small_config):
    model = MODELS[name].model_copy(update={"vocab": tokenizer.vocab})
    weights = perturbed(model)
    tokenizer.save(tmp_path / "tokenizer")
    export_huggingface(tmp_path / "hf", model, weights, tmp_path / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    judge, narrow = judge_of(tmp_path / "hf", model), AutoModelForCausalLM.from_pretrained(tmp_path / "hf").double()
    config = small_config(precision__compute="float64").changed(model=model)
    wide = {tensor: value.astype(np.float64) for tensor, value in weights.items()}
    asked = [encoded_pair(tokenizer, *pair) for pair in PAIRS]
    assert any(len(one.context) + len(one.ids) > model.context + 1 for one in asked)
    found = Scorer(STACKS[stack](config, wide), config, tokenizer).score(asked)
    for pair, one in zip(PAIRS, found, strict=True):
        logprob, greedy = expected(judge, theirs, model.context, *pair)
        # measured 8e-15, of sums down to -200 nats; an id shifted, left out or counted twice is off by 0.1 and more
        assert abs(one.logprob - logprob) < 1e-12, pair
        assert one.greedy == greedy
        # with transformers' own angles and norms 2e-6, and nothing where positions are learned
        assert abs(one.logprob - expected(narrow, theirs, model.context, *pair)[0]) < 1e-4
