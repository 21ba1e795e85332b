"""Documents that say the same: exact, MinHash, SimHash, substrings."""
