"""datatrove's words and MinHash signatures, computed by an interpreter that has it: it imports nothing of ours.

    PYTHON datatrove_signatures.py TEXTS.json FOUND.json

reads a list of texts, and writes for each its words as datatrove has them, and its signature by xxhash and by SHA-1
(none for a text of fewer than five words). All else by default.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from typing import Any


def sign(texts: list[str]) -> list[dict[str, Any]]:
    """Words and signatures of each text."""
    minhash = importlib.import_module("datatrove.pipeline.dedup.minhash")
    hashing = importlib.import_module("datatrove.utils.hashing")
    simplify = importlib.import_module("datatrove.utils.text").simplify_text
    found: list[dict[str, Any]] = [{} for _ in texts]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("xxhash", "sha1"):
            config = minhash.MinhashConfig(hash_config=hashing.HashConfig(precision=64, hash_fc=name))
            step = minhash.MinhashDedupSignature(folder, config=config)
            for row, text in zip(found, texts, strict=True):
                row["words"] = list(step.word_tokenizer.word_tokenize(simplify(text, config.norm_config)))
                grams = step.get_shingles(text)
                row[name] = [one for band in step.get_signature(grams) for one in band] if grams.size else None
    return found


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as given:
        everything = json.load(given)
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        json.dump(sign(everything), out)
