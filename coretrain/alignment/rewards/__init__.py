"""What an answer is worth: rules, tasks, a user's function, a reward model, and sums of these; float64 throughout."""
