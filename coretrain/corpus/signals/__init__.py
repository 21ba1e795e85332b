"""Numbers a document, by rules over whole batches of text."""
