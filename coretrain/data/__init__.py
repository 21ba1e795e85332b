"""Text in, batches out: sources, tokenizers, memory-mapped shards with a fingerprint, and the global order of windows."""

from coretrain.data.batches import (
    Data,
    Part,
    Split,
    global_batch,
    open_data,
    open_folder,
    rows_of_batch,
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
    "batch_hash",
    "global_batch",
    "load_tokenizer",
    "named_tokenizer",
    "open_data",
    "open_folder",
    "rows_of_batch",
    "rows_of_update",
    "validation_batches",
    "validation_bytes_per_token",
]
