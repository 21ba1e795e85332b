"""The judge's processes: several for its tests, and those whose trainings it judges."""
