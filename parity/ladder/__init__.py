"""The judge's tests, rung by rung."""
