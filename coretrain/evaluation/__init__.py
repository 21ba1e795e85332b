"""How good a model is, in numbers that others' tools agree with: tasks, scores, intervals, comparisons."""
