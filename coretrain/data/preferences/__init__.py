"""Preferences: pairs of answers, and answers with labels, from rows of files to packed rows of tokens."""
