"""Signatures equal to datatrove's, bit for bit, in `counting="datatrove"`, given its words.

datatrove needs an environment of its own, and an older xxhash: `python -m venv E && E/bin/pip install datatrove==0.10.1
spacy regex tokenizers 'xxhash<4'`, then `TWINTRAIN_DATATROVE_PYTHON=E/bin/python pytest -m slow
tests/corpus/test_minhash_oracle.py`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from importlib import import_module

import numpy as np
import pytest

from coretrain.corpus.dedup.minhash import MinHash, datatrove_shingles, signatures
from tests.support import datatrove_signatures
from tests.support.near_documents import text
from tests.support.near_limits import near_limits

PYTHON = os.environ.get("TWINTRAIN_DATATROVE_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="TWINTRAIN_DATATROVE_PYTHON names no interpreter that has datatrove"),
]


def test_signatures_are_datatroves(tmp_path):
    draw = random.Random(0)
    texts = [*import_module("pydoc_data.topics").topics.values()]
    texts += [text(draw, draw.randint(1, 300)) for _ in range(1000)]
    texts += [one for one in near_limits() if len(one) < 100_000]
    texts += ["Caf\u00e9 \u4f60\u597d, 12.5 \u20ac: don't \u2026 stop it now!"]
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    program = [PYTHON, datatrove_signatures.__file__, str(tmp_path / "texts.json"), str(tmp_path / "found.json")]
    subprocess.run(program, check=True, timeout=600, env={**os.environ, "PYTHONPATH": ""})
    rows = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    form = MinHash(counting="datatrove")
    for name, hashed in (("xxhash", "xxhash64"), ("sha1", "sha1")):
        found = datatrove_shingles([row["words"] for row in rows], 5, hashed)
        some = [at for at, row in enumerate(rows) if row[name] is not None]
        assert np.flatnonzero(found.counts).tolist() == some
        assert len(some) > 1000
        theirs = np.array([rows[at][name] for at in some], np.uint64)
        np.testing.assert_array_equal(signatures(found, form)[some], theirs)
