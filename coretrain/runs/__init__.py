"""A run's folder, and how one becomes another."""
