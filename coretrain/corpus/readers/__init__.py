"""Readers: files of crawls and of published data sets as pages and documents, cut at the boundaries of records."""
