"""Text in, batches out: sources, tokenizers, shards with a fingerprint, and the global order of windows."""

from coretrain.data.batches import (
    Data,
    Part,
    Split,
    Updates,
    global_batch,
    open_data,
    open_folder,
    planes,
    updates_of,
    validation_batches,
    validation_bytes_per_token,
)
from coretrain.data.order import batch_hash, rows_of_update
from coretrain.data.tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer, load_tokenizer, named_tokenizer

__all__ = [
    "END_OF_TEXT",
    "Data",
    "Part",
    "Split",
    "StreamDecoder",
    "Tokenizer",
    "Updates",
    "batch_hash",
    "global_batch",
    "load_tokenizer",
    "named_tokenizer",
    "open_data",
    "open_folder",
    "planes",
    "rows_of_update",
    "updates_of",
    "validation_batches",
    "validation_bytes_per_token",
]
