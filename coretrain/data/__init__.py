"""Text in, batches out: prepared shards, their order, and batches."""
