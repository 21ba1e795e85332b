"""float64 on for the whole session: JAX must hear of it before the first array is made."""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")
