"""How surprising a text is to a language model of n-grams that was trained on good text."""
