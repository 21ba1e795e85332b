"""Many texts at once as arrays: classes of characters, words, lines, hashes, repeated n-grams. No rule is here."""
