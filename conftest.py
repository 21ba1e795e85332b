"""One process, one setting: float64 is on in JAX for every test, before the first array is made.

Runs of the product have it off; tests/test_model.py shows that float32 work comes out the same bits either way.
"""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")
# Nothing compiled here may outlast the session; and on a CPU, compiling for the disk cache takes 1.7 times as long.
jax.config.update("jax_enable_compilation_cache", False)
