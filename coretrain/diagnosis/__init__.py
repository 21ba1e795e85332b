"""Over- or underfitted, unstable, short of data: what a run's curves say, in words, with the next thing to change."""
