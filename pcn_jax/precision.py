"""Sums and norms are taken in float32 or wider, whatever the parameters are kept in."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts 16-bit floats, integers and booleans to float32; leaves wider floats alone.

    Args:
      x: Any real array.

    Returns:
      The same values, in float32 or float64.

    Example:
      >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    return x.astype(sum_dtype(x.dtype))


def sum_dtype(dtype: Any) -> Any:
    """The dtype in which numbers of a dtype are summed: float64, or float32."""
    return dtype if dtype in (jnp.float32, jnp.float64) else jnp.dtype(jnp.float32)


_SPLITS = False


def full_precision(dtype: Any) -> lax.PrecisionLike:
    """Of a product of matrices that must not be rounded more than its operands are."""
    if _SPLITS and dtype == jnp.float32 and jax.default_backend() == "gpu":
        return lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    return lax.Precision.HIGHEST
