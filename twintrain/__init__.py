"""One command, `twintrain`, and its verbs."""
