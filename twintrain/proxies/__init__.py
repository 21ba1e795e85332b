"""Small runs that say which data is better: two corpora against each other, and mixtures of several."""
