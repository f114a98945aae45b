"""Strictness lives in the tests, not in the library."""

import os

# JAX reads these once, when it is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
