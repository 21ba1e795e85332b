"""The judge for other people's pairs: a torch model and a JAX model, or two functions, or two optimizers.

Needs numpy, torch and jax; flax, equinox, rich and matplotlib where they are there. docs/bring-your-own.md shows it.
"""

from parity.pairs.judging import localize, localize_models, localize_module

__all__ = ["localize", "localize_models", "localize_module"]
