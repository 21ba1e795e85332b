"""The contract carried out in JAX."""
