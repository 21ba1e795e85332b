"""What tasks of a pool need, loaded once by the process that all workers are forked from."""

import pyarrow.parquet  # noqa: F401 - tasks import it when they are called

from coretrain.corpus.dedup.words import words
from coretrain.corpus.pipeline import alike, cutting, read, select, write  # noqa: F401 - the stages, so that a worker has them
from coretrain.corpus.steps import STEPS, step_class
from coretrain.corpus.text.texts import Texts

CLASSES = [step_class(name) for name in STEPS]
HASHES = words(["\xe9"]).hashes, Texts(["\xe9"]).word_hashes
"""Asked for so that the tables of all characters are there."""
