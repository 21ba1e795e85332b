"""Mixtures of sources: weights, a cap on epochs, and a search for better weights by small runs."""
