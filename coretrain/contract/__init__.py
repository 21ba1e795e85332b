"""The numbers that both stacks must agree on, in numpy."""
