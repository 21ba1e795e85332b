"""Pairs that other people wrote and published, judged end to end: their verdicts as docs/bring-your-own.md has them."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.support.commands import ROOT, environment

PYTHON = os.environ.get("TWINTRAIN_PAIRS_PYTHON", "")
"""The python of an environment with transformers 4.57.6 (the last with Flax models) and mamba2-jax."""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="TWINTRAIN_PAIRS_PYTHON names no environment with transformers 4.57.6")
@pytest.mark.parametrize(
    ("words", "kind", "tap", "line"),
    [
        # the window sees one key too many: a mask is built in setup
        ("mistral 6", "algorithm", "model.layers.0.self_attn.o_proj", "(FlaxMistralAttention.setup)"),
        ("mistral 4", "same", "", "JAX computes in float32 at"),
        # token_type_ids are ones by default in Flax
        ("electra 8", "algorithm", "electra.embeddings.token_type_embeddings", "(FlaxElectraPreTrainedModel.__call__)"),
        ("gpt2 8", "same", "", ""),
        ("gpt2 8 masked", "algorithm", "transformer.h.0.attn.c_proj", "eager_attention_forward"),
        ("mamba2 8", "same", "", "mamba2_jax/modeling.py"),
        ("mamba2 10", "same", "", "mamba2_jax/modeling.py"),
    ],
)
def test_published_pairs(words, kind, tap, line):
    command = [PYTHON, "-m", "tests.support.foreign_pairs", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["kind"], found["tap"]) == (kind, tap), found
    assert line in "\n".join(found["notes"])
