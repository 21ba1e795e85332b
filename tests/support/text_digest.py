"""Prints a hash of all that the text rules give for some texts: run under other instructions of a processor."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

from coretrain.corpus.classify.model import train as train_classifier
from coretrain.corpus.document import Batch, Document
from coretrain.corpus.perplexity.train import train
from coretrain.corpus.signals.c4 import C4
from coretrain.corpus.signals.fineweb import FineWeb
from coretrain.corpus.signals.gopher import Gopher
from coretrain.corpus.signals.page import Page
from coretrain.corpus.signals.pii import Pii
from coretrain.corpus.signals.refinedweb import RefinedWeb
from coretrain.corpus.signals.repetition import GopherRepetition
from coretrain.corpus.signals.unspaced import Unspaced
from coretrain.corpus.signals.word_lists import WordList
from tests.support.plain_rules import random_texts

STEPS = (Gopher, GopherRepetition, FineWeb, Page, Unspaced, C4, RefinedWeb, WordList, Pii)


def digest() -> str:
    """SHA-256 of signals, edited texts, trained models and their scores."""
    texts = [*random_texts(21, 120), "今天天气很好。" * 9, "a@b.de 8.8.8.8"]
    batch = Batch([Document(str(at), text) for at, text in enumerate(texts)])
    found = hashlib.sha256()
    for step in STEPS:
        after = step().run(batch)
        for key, values in sorted(after.signals.items()):
            found.update(key.encode() + values.tobytes())
        found.update("\0".join(after.texts).encode())
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        model, classifier = train(texts[:80], 4), train_classifier(texts[:40], texts[40:80], bits=12)
        found.update((model.save(path) + classifier.save(path)).encode())
        found.update(model.perplexities(texts).tobytes() + classifier.scores(texts).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(digest())
