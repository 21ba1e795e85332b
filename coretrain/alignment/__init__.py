"""Alignment: what is not differentiated, once for both stacks, in numpy."""
