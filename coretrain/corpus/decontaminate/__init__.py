"""Texts of benchmarks found in documents, and cut out or dropped with them: from local files, without network."""
